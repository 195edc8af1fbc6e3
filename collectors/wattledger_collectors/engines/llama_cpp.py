"""The hook in llama-cpp-python: tells each prefill and each token of `llama_cpp.Llama`.

Every completion, streamed or not, runs through the generator `Llama.generate`, which calls
`Llama.eval` for the prompt's uncached suffix and then once per token. Both are wrapped on the
class (read in 0.3.36, llama_cpp/llama.py). What is told:

- prefill: the tokens that `eval` computed before the first token came; cached tokens are the
  prompt's others. They sum to the server's `usage.prompt_tokens`.
- decode: a generated token is told with the step that evaluates it. The last one is never
  evaluated, so it is told in a step of no length; if it is an end-of-generation token it is not
  told at all, as `usage.completion_tokens` does not count it either. Tokens that a stop sequence
  later trims from the text were generated and count in both.
- with a draft model, accepted tokens count like any other; rejected drafts are not counted, and
  their time is part of the step that evaluated them.
- `Llama.embed`: its tokens as prefill, in one step per call.
- `Llama.eval` called outside of `generate` (image prompts, low-level use): a step without
  breakdown; a `generate` that follows sees those tokens as cached.

A step lasts from one token to the next. What the consumer does in between (detokenizing, writing
out) is part of it up to `PAUSE_NS`; beyond that the client does not read and the engine is idle.

The server closes the generator both at a request's natural end and when the client goes away, so
the two look alike: `aborted` is told only of a request that ended by an exception.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Callable, Generator, Sequence
from functools import wraps
from types import ModuleType
from typing import Any, Concatenate, ParamSpec, Protocol

from wattledger_collectors.engines.events import EventBuffer

KIND = "llama_cpp"
PAUSE_NS = 10_000_000
_REMEMBERED_IDS = 1024

P = ParamSpec("P")
Tokens = Generator[int, Sequence[int] | None, None]


class Llama(Protocol):
    """What the hook reads of a `llama_cpp.Llama`; two attributes are the hook's own."""

    n_tokens: int
    model_path: str
    _wattledger_prefill: _Request | None
    _wattledger_live: int


def install(module: ModuleType) -> None:
    """Hooks `module.Llama` and reports to the host's daemon; a second call changes nothing.

    Raises ImportError where grpc or protobuf is missing in the engine's environment.
    """
    from wattledger_collectors.reporter import Reporting

    llama_class = module.Llama
    if hasattr(llama_class, "_wattledger_live"):
        return
    buffer = EventBuffer()
    reporting = Reporting(KIND, buffer, os.environ)
    Hook(buffer, reporting.ensure_running, os.environ.get("WATTLEDGER_MODEL")).attach(llama_class)


def _harmless(ours: Callable[P, None]) -> Callable[P, None]:
    """Keeps any fault of ours from the engine: tokens may go uncounted, a request never fails."""

    @wraps(ours)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            ours(*args, **kwargs)
        except Exception:  # noqa: BLE001 - the engine hook's border
            return

    return guarded


class Hook:
    """Wraps the methods of a Llama class.

    `begin` is called once per request before its first event; `model` overrides the name that
    is otherwise the model file's.
    """

    def __init__(
        self, buffer: EventBuffer, begin: Callable[[], None], model: str | None = None
    ) -> None:
        self.add = buffer.add
        self.begin = begin
        self._model = model
        self._numbers = itertools.count(1)
        self._recent_ids: dict[str, None] = {}

    def attach(self, llama_class: Any) -> None:
        """Replaces `generate`, `eval` and `embed`, with the same signatures and behaviour."""
        llama_class._wattledger_prefill = None
        llama_class._wattledger_live = 0
        llama_class.generate = self._wrap_generate(llama_class.generate)
        llama_class.eval = self._wrap_eval(llama_class.eval)
        if hasattr(llama_class, "embed"):
            llama_class.embed = self._wrap_embed(llama_class.embed)

    def _wrap_generate(
        self, original: Callable[Concatenate[Llama, Sequence[int], P], Tokens]
    ) -> Callable[Concatenate[Llama, Sequence[int], P], Tokens]:
        @wraps(original)
        def generate(
            llama: Llama, tokens: Sequence[int], /, *args: P.args, **kwargs: P.kwargs
        ) -> Tokens:
            return _metered(_Request(self, llama, tokens), original(llama, tokens, *args, **kwargs))

        return generate
