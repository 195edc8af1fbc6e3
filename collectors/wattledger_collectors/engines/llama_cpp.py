"""The hook in llama-cpp-python: tells each prefill and each token of `llama_cpp.Llama`.

Every completion, streamed or not, with tools, a grammar or logprobs, runs through the generator
`Llama.generate`, which calls `Llama.eval` for the prompt's uncached suffix and then once per
token. Both are wrapped on the class (read in 0.3.36, llama_cpp/llama.py). What is told:

- prefill: the tokens that `eval` computed before the first token came, a step per `n_batch` of
  them; cached tokens are the prompt's others. They sum to the server's `usage.prompt_tokens`.
- decode: a generated token is told with the step that evaluates it. The last one is never
  evaluated, so it is told in a step of no length; if it is an end-of-generation token it is not
  told at all, as `usage.completion_tokens` does not count it either. Tokens that a stop sequence
  later trims from the text were generated and count in both. (For an empty prompt that `usage`
  counts the BOS too, as a completion token: it is one more than was generated.)
- with a draft model, accepted tokens count like any other; rejected drafts are not counted, and
  their time is part of the step that evaluated them.
- `Llama.embed`: its tokens as prefill, a step per batch.
- `Llama.eval` by hand and prompts with images: `llama_cpp_outside.py`.

A request is `aborted` where somebody left a completion before its end, an exception ended it, or
it was forgotten: its generator is still open when the next begins on the same Llama, or at exit.
Who iterates `generate` itself stops where he likes: that is no abort.

Against `llama_perf_context`: n_p_eval + n_eval = prefill + decode - one per request whose last
token was not evaluated, plus rejected drafts. (n_reused there counts graphs, not tokens.)
"""

from __future__ import annotations

import atexit
import inspect
import itertools
import os
import sys
import time
from collections.abc import Callable, Generator, Sequence
from functools import wraps
from pathlib import Path
from types import MethodType, ModuleType
from typing import Any

from wattledger_collectors.engines.events import EventBuffer
from wattledger_collectors.engines.llama_cpp_outside import (
    Embedding,
    Open,
    Outside,
    harmless,
    settled,
    watch_decode,
)
from wattledger_collectors.engines.llama_cpp_request import (
    Request,
    Tokens,
    metered,
    untold,
    watched,
)
from wattledger_collectors.engines.llama_cpp_server import AGAIN, tenant_of

KIND = "llama_cpp"
_REMEMBERED_NAMES = 1024

Chunks = Generator[Any, None, None]


def install(module: ModuleType) -> None:
    """Hooks `module.Llama` and reports to the host's daemon; a second call changes nothing.

    Raises ImportError where grpc or protobuf is missing in the engine's environment.
    """
    from wattledger_collectors.engines.facts import EngineFacts
    from wattledger_collectors.reporter import Reporting

    if hasattr(module.Llama, "_wattledger_live"):
        return
    buffer = EventBuffer()
    reporting = Reporting(KIND, buffer, os.environ, EngineFacts(tenant_of=tenant_of))
    hook = Hook(buffer, reporting.ensure_running, os.environ.get("WATTLEDGER_MODEL"))
    hook.attach(module.Llama)
    # After the one of `reporting`, so that it runs before it.
    atexit.register(hook.end_all)
    os.register_at_fork(after_in_child=hook.forget_all)


class Hook:
    """Wraps the methods of a Llama class.

    `begin` is called once per request, before its first event; `model` overrides the name,
    which is otherwise the model file's.
    """

    def __init__(
        self,
        buffer: EventBuffer,
        begin: Callable[[], None],
        model: str | None = None,
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.add = buffer.add
        self.append = buffer.append
        self.begin = begin
        self.now_ns = now_ns
        self._model = model
        self._numbers = itertools.count(1)
        self._recent: dict[str, None] = {}
        self.open_requests: set[Open] = set()
        self._original_eval: Callable[..., None]
        self._evaluate: Callable[..., None]

    def attach(self, llama_class: Any) -> None:
        """Replaces methods by ones that behave the same; what another version lacks is left out."""
        llama_class._wattledger_prefill = llama_class._wattledger_live = None
        llama_class._wattledger_outside, llama_class._wattledger_reset_ns = None, 0
        llama_class.generate = self._wrap_generate(llama_class.generate)
        self._original_eval = llama_class.eval
        llama_class.eval = self._evaluate = self._wrap_eval(llama_class.eval)
        for name, wrap in (
            ("reset", self._wrap_reset),
            ("load_state", self._wrap_load_state),
            ("embed", self._wrap_embed),
        ):
            if hasattr(llama_class, name):
                setattr(llama_class, name, wrap(getattr(llama_class, name)))
        if inspect.isgeneratorfunction(getattr(llama_class, "_create_completion", None)):
            llama_class._create_completion = self._wrap_create(llama_class._create_completion)

    @harmless
    def end_all(self) -> None:
        """Nobody will go on with what is still open."""
        for request in tuple(self.open_requests):
            request.abandoned()

    @harmless
    def forget_all(self) -> None:
        """What is open belongs to the parent process, which tells it."""
        for request in self.open_requests:
            request.add = request.append = untold
        self.open_requests.clear()

    def model_of(self, llama: Any) -> str:
        """The configured name, else the model file's."""
        return self._model or Path(llama.model_path).name

    def name_request(self) -> str:
        """The server's X-Request-ID, made unique in this process; else `<pid>-<number>`.

        One HTTP request may run several completions (function calling), and clients may repeat
        an id: from the second on, a number is appended, as `request_names.py` knows it.
        """
        number = next(self._numbers)
        name = _http_request_id()
        if name is None:
            return f"{os.getpid()}-{number}"
        if name in self._recent:
            return f"{name}{AGAIN}{number}"
        self._recent[name] = None
        if len(self._recent) > _REMEMBERED_NAMES:
            del self._recent[next(iter(self._recent))]
        return name

    def plain_eval(self, llama: Any) -> Callable[..., None] | None:
        """The engine's own `eval` of this Llama, unless somebody else has wrapped it too."""
        if type(llama).eval is not self._evaluate or "eval" in vars(llama):
            return None
        return MethodType(self._original_eval, llama)

    def _wrap_generate(self, original: Callable[..., Tokens]) -> Callable[..., Tokens]:
        @wraps(original)
        def generate(llama: Any, *args: Any, **kwargs: Any) -> Tokens:
            prompt = args[0] if args else kwargs.get("tokens", ())
            return metered(Request(self, llama, prompt), original(llama, *args, **kwargs))

        return generate

    def _wrap_eval(self, original: Callable[[Any, Sequence[int]], None]) -> Callable[..., None]:
        @wraps(original)
        def evaluate(self_: Any, tokens: Sequence[int]) -> None:
            request: Request | None = self_._wattledger_prefill
            live: Request | None = self_._wattledger_live
            if request is not None:
                request.evaluating(tokens)
                try:
                    original(self_, tokens)
                finally:
                    request.evaluated()
            elif live is not None and live.runs:
                original(self_, tokens)
            else:
                start_ns = self.now_ns()
                self._settle(self_)
                try:
                    original(self_, tokens)
                finally:
                    self._tell_outside(self_, start_ns)

        return evaluate

    @harmless
    def _settle(self, llama: Any) -> None:
        if settled(self, llama) is None:
            llama._wattledger_outside = Outside(self, llama, llama.n_tokens, self.now_ns())

    @harmless
    def _tell_outside(self, llama: Any, start_ns: int) -> None:
        llama._wattledger_outside.tell(llama.n_tokens, start_ns)

    def _wrap_reset(self, original: Callable[[Any], None]) -> Callable[[Any], None]:
        @wraps(original)
        def reset(llama: Any) -> None:
            self._context_replaced(llama, self.now_ns())
            original(llama)

        return reset

    def _wrap_load_state(self, original: Callable[..., None]) -> Callable[..., None]:
        @wraps(original)
        def load_state(llama: Any, *args: Any, **kwargs: Any) -> None:
            original(llama, *args, **kwargs)
            self._context_replaced(llama, 0)

        return load_state

    @harmless
    def _context_replaced(self, llama: Any, reset_ns: int) -> None:
        """What is open on this Llama cannot go on, unless `generate` itself does this."""
        live: Request | None = llama._wattledger_live
        if live is not None and live.runs:
            return
        for left in (live, llama._wattledger_outside):
            if left is not None:
                left.abandoned()
        llama._wattledger_outside, llama._wattledger_reset_ns = None, reset_ns

    def _wrap_create(self, original: Callable[..., Chunks]) -> Callable[..., Chunks]:
        @wraps(original)
        def create(llama: Any, *args: Any, **kwargs: Any) -> Chunks:
            return watched(llama, original(llama, *args, **kwargs))

        return create

    def _wrap_embed(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def embed(llama: Any, *args: Any, **kwargs: Any) -> Any:
            embedding, failed = Embedding(self, llama), True
            self._watch(llama, embedding)
            try:
                output = original(llama, *args, **kwargs)
                failed = False
            finally:
                embedding.finished(failed)
            return output

        return embed

    @harmless
    def _watch(self, llama: Any, embedding: Embedding) -> None:
        watch_decode(llama, embedding)


def _http_request_id() -> str | None:
    """The id of the HTTP request in whose context we run, if the server keeps one."""
    module = sys.modules.get("starlette_context")
    try:
        return str(module.context["X-Request-ID"]) if module else None
    except Exception:  # noqa: BLE001 - the engine hook's border; outside of a request it raises
        return None
