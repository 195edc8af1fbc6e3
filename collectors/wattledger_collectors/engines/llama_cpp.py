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
the two look alike. Or it forgets a generator, which is closed when Python finds it unused: such a
request is told as finished when the next begins on the same Llama, or at exit. `aborted` is told
of these, and of a request that ended by an exception.
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
from types import ModuleType
from typing import Any, ParamSpec

from wattledger_collectors.engines.events import Event, EventBuffer, Part, TokenEvent

KIND = "llama_cpp"
PAUSE_NS = 50_000_000
_UNCHECKED_TOKENS = 64
_REMEMBERED_NAMES = 1024

P = ParamSpec("P")
Tokens = Generator[int, Sequence[int] | None, Any]


def install(module: ModuleType) -> None:
    """Hooks `module.Llama` and reports to the host's daemon; a second call changes nothing.

    Raises ImportError where grpc or protobuf is missing in the engine's environment.
    """
    from wattledger_collectors.reporter import Reporting

    if hasattr(module.Llama, "_wattledger_live"):
        return
    buffer = EventBuffer()
    reporting = Reporting(KIND, buffer, os.environ)
    hook = Hook(buffer, reporting.ensure_running, os.environ.get("WATTLEDGER_MODEL"))
    hook.attach(module.Llama)
    # After the one of `reporting`, so that it runs before it.
    atexit.register(hook.end_all)
    os.register_at_fork(after_in_child=hook.forget_all)


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
        self.open_requests: set[_Request] = set()

    def attach(self, llama_class: Any) -> None:
        """Replaces `generate`, `eval` and `embed` by methods that behave the same."""
        llama_class._wattledger_prefill = None
        llama_class._wattledger_live = None
        llama_class.generate = self._wrap_generate(llama_class.generate)
        llama_class.eval = self._wrap_eval(llama_class.eval)
        embed = getattr(llama_class, "embed", None)
        if embed is not None and "return_count" in inspect.signature(embed).parameters:
            llama_class.embed = self._wrap_embed(embed)

    @_harmless
    def end_all(self) -> None:
        """Nobody will go on with what is still open."""
        for request in tuple(self.open_requests):
            request.abandoned()

    @_harmless
    def forget_all(self) -> None:
        """What is open belongs to the parent process, which tells it."""
        for request in self.open_requests:
            request.add = request.append = _untold
        self.open_requests.clear()

    def model_of(self, llama: Any) -> str:
        """The configured name, else the model file's."""
        return self._model or Path(llama.model_path).name

    def name_request(self) -> str:
        """The server's X-Request-ID, made unique in this process; else `<pid>-<number>`.

        One HTTP request may run several completions (function calling), and clients may repeat
        an id: from the second on, the number is appended.
        """
        number = next(self._numbers)
        name = _http_request_id()
        if name is None:
            return f"{os.getpid()}-{number}"
        if name in self._recent:
            return f"{name}-{number}"
        self._recent[name] = None
        if len(self._recent) > _REMEMBERED_NAMES:
            del self._recent[next(iter(self._recent))]
        return name

    def _wrap_generate(self, original: Callable[..., Tokens]) -> Callable[..., Tokens]:
        @wraps(original)
        def generate(llama: Any, *args: Any, **kwargs: Any) -> Tokens:
            prompt = args[0] if args else kwargs.get("tokens", ())
            return _metered(_Request(self, llama, prompt), original(llama, *args, **kwargs))

        return generate

    def _wrap_eval(self, original: Callable[[Any, Sequence[int]], None]) -> Callable[..., None]:
        @wraps(original)
        def evaluate(self_: Any, tokens: Sequence[int]) -> None:
            request: _Request | None = self_._wattledger_prefill
            if request is not None:
                request.evaluating(tokens)
                try:
                    original(self_, tokens)
                finally:
                    request.evaluated()
            elif self_._wattledger_live is not None:
                original(self_, tokens)
            else:
                self._eval_alone(original, self_, tokens)

        return evaluate

    def _eval_alone(
        self, original: Callable[[Any, Sequence[int]], None], llama: Any, tokens: Sequence[int]
    ) -> None:
        start_ns = self.now_ns()
        try:
            original(llama, tokens)
        finally:
            self._tell_step(llama, start_ns, ())

    def _wrap_embed(self, original: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(original)

        @wraps(original)
        def embed(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs)
            wants_count = bound.arguments.get("return_count", False)
            bound.arguments["return_count"] = True
            llama, start_ns = bound.args[0], self.now_ns()
            try:
                output, tokens = original(*bound.args, **bound.kwargs)
            except BaseException:
                self._tell_step(llama, start_ns, ())
                raise
            self._tell_embedding(llama, start_ns, tokens)
            return (output, tokens) if wants_count else output

        return embed

    @_harmless
    def _tell_step(self, llama: Any, start_ns: int, parts: tuple[Part, ...]) -> None:
        self.begin()
        self.add(("step", self.model_of(llama), start_ns, self.now_ns(), parts))

    @_harmless
    def _tell_embedding(self, llama: Any, start_ns: int, tokens: int) -> None:
        name, model = self.name_request(), self.model_of(llama)
        self._tell_step(llama, start_ns, ((name, tokens, 0, 0),))
        self.add(("finish", model, self.now_ns(), name, tokens, 0, 0, False))


class _Request:
    """One run of `generate`: what it computed, and up to when that has been told."""

    __slots__ = (
        "_hook", "_llama", "_prompt", "_ready_ns", "_tokens_before", "add", "append",
        "cached_tokens", "computed_tokens", "decode_tokens", "mark_ns", "model", "name",
        "now_ns", "prompt_tokens", "token",
    )  # fmt: skip

    def __init__(self, hook: Hook, llama: Any, prompt: Sequence[int]) -> None:
        self._hook = hook
        self._llama = llama
        self._prompt = prompt
        self.token: int | None = None
        self.now_ns = hook.now_ns
        self.add: Callable[[Event], None] = _untold
        self.append: Callable[[Event], None] = _untold
        self.name = self.model = ""
        self.prompt_tokens = self.cached_tokens = self.computed_tokens = self.decode_tokens = 0
        self.mark_ns = self._ready_ns = self._tokens_before = 0

    @_harmless
    def open(self) -> None:
        """The engine is about to prefill."""
        self.mark_ns = self.now_ns()
        self.name = self._hook.name_request()
        self.model = self._hook.model_of(self._llama)
        self.prompt_tokens = len(self._prompt)
        previous, self._llama._wattledger_live = self._llama._wattledger_live, self
        if previous is not None:
            previous.abandoned()
        self._llama._wattledger_prefill = self
        self._hook.open_requests.add(self)
        self.add, self.append = self._hook.add, self._hook.append
        self._hook.begin()

    @_harmless
    def evaluating(self, tokens: Sequence[int]) -> None:
        """`eval` got the prompt's uncached tokens, or more of them."""
        if self.computed_tokens == 0:
            self.cached_tokens = self.prompt_tokens - len(tokens)
        self._tokens_before = self._llama.n_tokens

    @_harmless
    def evaluated(self) -> None:
        """`eval` returned or raised; the engine's own count says how far it came."""
        self.computed_tokens += self._llama.n_tokens - self._tokens_before

    @_harmless
    def prefilled(self) -> None:
        """The first token came, or none will.

        A prompt whose logits were all cached computes nothing: that time goes to its first token.
        """
        self._llama._wattledger_prefill = None
        self._ready_ns = self.now_ns()
        if self.computed_tokens:
            part = (self.name, self.computed_tokens, 0, 0)
            self.add(("step", self.model, self.mark_ns, self._ready_ns, (part,)))
            self.mark_ns = self._ready_ns

    @_harmless
    def left(self) -> None:
        """The consumer has the last token, which will not be evaluated any more."""
        if self.token is not None and not _ends_generation(self._llama, self.token):
            part = (self.name, 0, 1, 0)
            end_ns = max(self.mark_ns, self._ready_ns)
            self.add(("step", self.model, self.mark_ns, end_ns, (part,)))
            self.decode_tokens += 1

    @_harmless
    def finished(self, aborted: bool) -> None:
        """The generator is closed, or as good as."""
        if self in self._hook.open_requests:
            self._hook.open_requests.discard(self)
            if self._llama._wattledger_live is self:
                self._llama._wattledger_live = None
            counts = (self.prompt_tokens, self.cached_tokens, self.decode_tokens)
            self.add(("finish", self.model, self.now_ns(), self.name, *counts, aborted))
        self.add = self.append = _untold

    def abandoned(self) -> None:
        """The generator is open, but its Llama works on something else or the process ends."""
        self.left()
        self.finished(True)


def _metered(request: _Request, inner: Tokens) -> Tokens:
    """Runs `inner` and tells its steps; send, throw, close and return pass through unchanged."""
    now_ns, aborted = request.now_ns, False
    request.open()
    try:
        try:
            token = request.token = next(inner)
        finally:
            request.prefilled()
        model, name, send = request.model, request.name, inner.send
        prompt_tokens = request.prompt_tokens
        while True:
            try:
                sent = yield token
            except GeneratorExit:
                request.left()
                inner.close()
                raise
            except BaseException as error:  # noqa: BLE001 - thrown in by the consumer, handed on
                request.left()
                token = request.token = inner.throw(error)
                continue
            mark_ns, resumed_ns = request.mark_ns, now_ns()
            try:
                token = request.token = send(sent)
            finally:
                request.mark_ns = end_ns = now_ns()
                start_ns = resumed_ns if resumed_ns - mark_ns > PAUSE_NS else mark_ns
                decoded = request.decode_tokens
                request.decode_tokens = decoded + 1
                context = prompt_tokens + decoded
                event: TokenEvent = ("token", model, start_ns, end_ns, name, context)
                try:
                    tell = request.append if decoded % _UNCHECKED_TOKENS else request.add
                    tell(event)
                except Exception:  # noqa: BLE001 - the engine hook's border
                    request.add = request.append = _untold
    except StopIteration as stop:
        return stop.value
    except BaseException as error:
        aborted = not isinstance(error, GeneratorExit)
        raise
    finally:
        request.finished(aborted)


def _untold(_: Event) -> None:
    """Where the events of a request go whose start we failed to understand."""


def _http_request_id() -> str | None:
    """The id of the HTTP request in whose context we run, if the server keeps one."""
    module = sys.modules.get("starlette_context")
    try:
        return str(module.context["X-Request-ID"]) if module else None
    except Exception:  # noqa: BLE001 - the engine hook's border; outside of a request it raises
        return None


def _ends_generation(llama: Any, token: int) -> bool:
    """Whether the engine itself takes the token for the end (`llama_vocab_is_eog`)."""
    bindings = sys.modules.get("llama_cpp.llama_cpp")
    is_end = getattr(bindings, "llama_vocab_is_eog", None)
    if is_end is None:
        return bool(token == llama.token_eos())
    return bool(is_end(llama._model.vocab, token))
