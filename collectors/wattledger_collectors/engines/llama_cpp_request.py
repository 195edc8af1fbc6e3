"""One run of `Llama.generate`: what is told of it, step by step.

A step lasts from one token to the next, as sampling waits for the device and `llama_decode` need
not. What the consumer does in between (detokenizing, writing out) is part of it up to `PAUSE_NS`;
beyond that the client does not read and the engine is idle.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Sequence
from typing import Any

from wattledger_collectors.engines.events import Event, Part, TokenEvent
from wattledger_collectors.engines.llama_cpp_outside import (
    Teller,
    harmless,
    settled,
    tell_fault,
    unwatch_decode,
    watch_decode,
)

PAUSE_NS = 50_000_000
_UNCHECKED_TOKENS = 64

Tokens = Generator[int, Sequence[int] | None, Any]


class Request:
    """What a run of `generate` computed, and up to when that has been told."""

    __slots__ = (
        "_adopted", "_chunks_tokens", "_llama", "_plain_eval", "_prompt", "_ready_ns", "_teller",
        "_tokens_before", "_untold_tokens", "aborted", "add", "append", "cached_tokens",
        "context_tokens", "decode_tokens", "inner", "mark_ns", "model", "name", "now_ns",
        "prompt_tokens", "token",
    )  # fmt: skip

    def __init__(self, teller: Teller, llama: Any, prompt: Sequence[int]) -> None:
        self._teller = teller
        self._llama = llama
        self._prompt = prompt
        self._adopted = 0
        self._plain_eval: Callable[..., None] | None = None
        self.inner: Tokens | None = None
        self.token: int | None = None
        self.aborted = False
        self.now_ns = teller.now_ns
        self.add: Callable[[Event], None] = untold
        self.append: Callable[[Event], None] = untold
        self.name = self.model = ""
        self.prompt_tokens = self.cached_tokens = self.decode_tokens = 0
        self.mark_ns = self._ready_ns = self.context_tokens = 0
        self._chunks_tokens = self._untold_tokens = 0
        self._tokens_before: int | None = None

    @property
    def runs(self) -> bool:
        """Whether the engine is at it right now, not its consumer."""
        return bool(getattr(self.inner, "gi_running", True))

    @harmless
    def open(self, inner: Tokens) -> None:
        """The engine is about to prefill."""
        llama, self.inner = self._llama, inner
        self.prompt_tokens = len(self._prompt)
        previous, llama._wattledger_live = llama._wattledger_live, self
        if previous is not None:
            previous.abandoned()
        outside = settled(self._teller, llama)
        llama._wattledger_outside = None
        self.model = self._teller.model_of(llama)
        if outside is not None and outside.leads_to(self._prompt, llama):
            self.name, self._adopted = outside.name, outside.prefill_tokens
        else:
            if outside is not None:
                outside.finished()
            self.name = self._teller.name_request()
        self.mark_ns = self.now_ns()
        llama._wattledger_prefill = self
        self._teller.open_requests.add(self)
        self.add, self.append = self._teller.add, self._teller.append
        self._teller.begin()

    @harmless
    def evaluating(self, tokens: Sequence[int]) -> None:
        """`eval` got the prompt's uncached tokens, or more of them."""
        if self._tokens_before is None:
            cached = self.prompt_tokens - len(tokens)
            self.cached_tokens = max(cached - self._adopted, 0)
        self._tokens_before, self._chunks_tokens = self._llama.n_tokens, 0
        watch_decode(self._llama, self)

    @harmless
    def decoding(self, _: Any) -> None:
        """A chunk of the prompt goes to `llama_decode`: those before it are told."""
        self._tell_prefill()

    @harmless
    def decoded(self, batch: Any) -> None:
        """A chunk is through, or the device still works on it."""
        tokens = batch.n_tokens()
        self._chunks_tokens += tokens
        self._untold_tokens += tokens

    @harmless
    def evaluated(self) -> None:
        """`eval` returned or raised; the engine's own count is taken where we saw no decode."""
        unwatch_decode(self._llama)
        if not self._chunks_tokens and self._tokens_before is not None:
            self._untold_tokens += self._llama.n_tokens - self._tokens_before

    @harmless
    def prefilled(self) -> None:
        """The first token came, or none will.

        A prompt whose logits were all cached computes nothing: that time goes to its first token.
        """
        self._llama._wattledger_prefill = None
        self.context_tokens = max(self.prompt_tokens, self._llama.n_tokens)
        self._tell_prefill()
        self._ready_ns = max(self.mark_ns, self.now_ns())
        # A token's step is told by `metered`; a look at each `eval` would cost as much again.
        self._plain_eval = self._teller.plain_eval(self._llama)
        if self._plain_eval is not None:
            self._llama.eval = self._plain_eval

    def _tell_prefill(self) -> None:
        tokens, self._untold_tokens = self._untold_tokens, 0
        if tokens:
            end_ns = self.now_ns()
            self.add(("step", self.model, self.mark_ns, end_ns, ((self.name, tokens, 0, 0),)))
            self.mark_ns = end_ns

    @harmless
    def left(self) -> None:
        """The consumer has the last token, which will not be evaluated any more."""
        if self.token is not None and not ends_generation(self._llama, self.token):
            part: Part = (self.name, 0, 1, 0)
            end_ns = max(self.mark_ns, self._ready_ns)
            self.add(("step", self.model, self.mark_ns, end_ns, (part,)))
            self.decode_tokens += 1

    @harmless
    def finished(self, failed: bool) -> None:
        """The generator is closed, or as good as."""
        llama = self._llama
        if self._plain_eval is not None and vars(llama).get("eval") is self._plain_eval:
            del llama.eval
        if llama._wattledger_live is self:
            llama._wattledger_live = None
        if self in self._teller.open_requests:
            self._teller.open_requests.discard(self)
            counts = (self.prompt_tokens, self.cached_tokens, self.decode_tokens)
            aborted = failed or self.aborted
            self.add(("finish", self.model, self.now_ns(), self.name, *counts, aborted))
        self.add = self.append = untold

    def lost(self, error: Exception) -> None:
        """Its tokens cannot be told."""
        self.add = self.append = untold
        tell_fault(error)

    def abandoned(self) -> None:
        """The generator is open, but its Llama works on something else or the process ends."""
        self.left()
        self.finished(True)


def metered(request: Request, inner: Tokens) -> Tokens:
    """Runs `inner` and tells its steps; send, throw, close and return pass through unchanged."""
    now_ns, failed = request.now_ns, False
    request.open(inner)
    try:
        try:
            token = request.token = next(inner)
        finally:
            request.prefilled()
        model, name, before_tokens = request.model, request.name, request.context_tokens
        send = inner.send
        while True:
            try:
                sent = yield token
            except BaseException as error:  # noqa: BLE001 - the consumer's, handed on; or its leave
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
                context = before_tokens + decoded
                event: TokenEvent = ("token", model, start_ns, end_ns, name, context)
                try:
                    tell = request.append if decoded % _UNCHECKED_TOKENS else request.add
                    tell(event)
                except Exception as error:  # noqa: BLE001 - the engine hook's border
                    request.lost(error)
    except StopIteration as stop:
        return stop.value
    except BaseException as error:
        failed = not isinstance(error, GeneratorExit)
        raise
    finally:
        request.finished(failed)


def watched(llama: Any, chunks: Generator[Any, None, None]) -> Generator[Any, None, None]:
    """Passes on what `Llama._create_completion` yields; who leaves before its end has aborted."""
    request: Request | None = None
    try:
        for chunk in chunks:
            if request is None:
                request = getattr(llama, "_wattledger_live", None)
            yield chunk
    except BaseException:
        # Where the engine itself failed or was through, its request is told already.
        if request is not None:
            request.aborted = True
        chunks.close()
        raise


def untold(_: Event) -> None:
    """Where the events of a request go whose start we failed to understand."""


def ends_generation(llama: Any, token: int) -> bool:
    """Whether the engine itself takes the token for the end (`llama_vocab_is_eog`).

    A Llama that was closed has freed its vocabulary: nobody may look there any more.
    """
    bindings = sys.modules.get("llama_cpp.llama_cpp")
    is_end = getattr(bindings, "llama_vocab_is_eog", None)
    if is_end is None:
        return bool(token == llama.token_eos())
    closed = getattr(llama._model, "model", llama) is None
    return not closed and bool(is_end(llama._model.vocab, token))
