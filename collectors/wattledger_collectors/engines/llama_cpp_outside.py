"""What a Llama computes outside of `Llama.generate`: `eval` by hand, image prompts, embeddings.

A chat handler for images or sound evaluates the prompt piece by piece before it generates: text
by `Llama.eval`, the rest by a C helper that only moves `Llama.n_tokens` on. So where `n_tokens`
has moved since we last looked, the stretch in between was that helper's. A `generate` whose
prompt begins with what was evaluated so goes on with the same request.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, ParamSpec, Protocol

from wattledger_collectors.engines.autoload import tell
from wattledger_collectors.engines.events import Event

P = ParamSpec("P")


def harmless(ours: Callable[P, None]) -> Callable[P, None]:
    """Keeps any fault of ours from the engine: tokens may go uncounted, a request never fails."""

    @wraps(ours)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            ours(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - the engine hook's border
            tell_fault(error)

    return guarded


def tell_fault(error: Exception) -> None:
    """Says once in a process that tokens go uncounted."""
    if not _FAULTS:
        _FAULTS.append(type(error).__name__)
        tell(f"some tokens of llama.cpp are not metered: {error!r}; does this version fit?")


_FAULTS: list[str] = []


class Open(Protocol):
    """What has begun and is not told as finished."""

    add: Callable[[Event], None]
    append: Callable[[Event], None]

    def abandoned(self) -> None:
        """Nobody goes on with it."""


class Teller(Protocol):
    """What is needed of the hook."""

    begin: Callable[[], None]
    now_ns: Callable[[], int]
    open_requests: set[Open]

    @property
    def add(self) -> Callable[[Event], None]:
        """Takes an event, and sees to the bound."""

    @property
    def append(self) -> Callable[[Event], None]:
        """Takes an event."""

    def model_of(self, llama: Any) -> str:
        """The model's name."""

    def name_request(self) -> str:
        """A name that no other request of this process has."""

    def plain_eval(self, llama: Any) -> Callable[..., None] | None:
        """The engine's own `eval` of this Llama, unless somebody else has wrapped it too."""


class Outside:
    """A request that is evaluated by hand; `position` is how far the context goes.

    It ends when the context is cut back, when a `generate` begins that has another prompt, or at
    exit. As llama.cpp's own counters have it, a single token evaluated where the last evaluation
    ended is a decode, all else is prefill.
    """

    __slots__ = (
        "_skipped", "_teller", "add", "append", "decode_tokens", "mark_ns", "model", "name",
        "position", "prefill_tokens",
    )  # fmt: skip

    def __init__(self, teller: Teller, llama: Any, position: int, mark_ns: int) -> None:
        self._teller = teller
        self.add, self.append = teller.add, teller.append
        self.name, self.model = teller.name_request(), teller.model_of(llama)
        self.position, self.mark_ns = position, mark_ns
        self.prefill_tokens = self.decode_tokens = 0
        self._skipped = False
        teller.open_requests.add(self)
        teller.begin()

    def tell(self, position: int, start_ns: int) -> None:
        """The context goes to `position` now."""
        tokens, self.position = position - self.position, position
        self.mark_ns = self._teller.now_ns()
        if tokens == 1 and self.prefill_tokens and not self._skipped:
            self.decode_tokens += 1
            part = (self.name, 0, 1, position - 1)
        else:
            self.prefill_tokens += tokens
            part = (self.name, tokens, 0, 0)
        self._skipped = False
        if tokens:
            self.add(("step", self.model, start_ns, self.mark_ns, (part,)))

    def skip(self, position: int) -> None:
        """The engine computed up to `position` where we did not see it, since the last step."""
        tokens, self.position = position - self.position, position
        self.prefill_tokens += tokens
        self._skipped = True
        start_ns, self.mark_ns = self.mark_ns, self._teller.now_ns()
        self.add(("step", self.model, start_ns, self.mark_ns, ((self.name, tokens, 0, 0),)))

    def leads_to(self, prompt: Sequence[int], llama: Any) -> bool:
        """Whether `prompt` begins with what was evaluated; if so its request goes on as ours."""
        done = self.position
        ours = not self.decode_tokens and done <= len(prompt)
        if ours and list(prompt[:done]) == list(llama.input_ids[:done]):
            self._teller.open_requests.discard(self)
            return True
        return False

    def finished(self) -> None:
        """Nothing more comes of it; whether anybody wanted more is not known."""
        if self in self._teller.open_requests:
            self._teller.open_requests.discard(self)
            counts = (self.prefill_tokens, 0, self.decode_tokens)
            self.add(("finish", self.model, self._teller.now_ns(), self.name, *counts, False))

    abandoned = finished


def settled(teller: Teller, llama: Any) -> Outside | None:
    """What was evaluated by hand and still stands in the context, up to this moment."""
    outside: Outside | None = llama._wattledger_outside
    position = llama.n_tokens
    if outside is not None and position < outside.position:
        outside.finished()
        outside = None
    if outside is None and position and llama._wattledger_reset_ns:
        outside = Outside(teller, llama, 0, llama._wattledger_reset_ns)
    if outside is not None and position > outside.position:
        outside.skip(position)
    llama._wattledger_outside, llama._wattledger_reset_ns = outside, 0
    return outside


class Embedding:
    """One call of `Llama.embed`: a prefill of a step per batch, as each is read before the next."""

    def __init__(self, teller: Teller, llama: Any) -> None:
        self._teller = teller
        self._llama = llama
        self._name = ""
        self._mark_ns = teller.now_ns()
        self._tokens = self._untold_tokens = 0

    @harmless
    def decoding(self, _: Any) -> None:
        """A batch begins, so that the one before is read."""
        if not self._name:
            self._teller.begin()
            self._name = self._teller.name_request()
        self._tell()

    @harmless
    def decoded(self, batch: Any) -> None:
        """A batch was computed, or the device still works on it."""
        self._untold_tokens = batch.n_tokens()
        self._tokens += self._untold_tokens

    @harmless
    def finished(self, failed: bool) -> None:
        """`embed` returned or raised; one that never got to the model is not told."""
        unwatch_decode(self._llama)
        if self._name:
            self._tell()
            model, now_ns = self._teller.model_of(self._llama), self._teller.now_ns()
            self._teller.add(("finish", model, now_ns, self._name, self._tokens, 0, 0, failed))

    def _tell(self) -> None:
        tokens, self._untold_tokens = self._untold_tokens, 0
        if tokens:
            start_ns, self._mark_ns = self._mark_ns, self._teller.now_ns()
            model, parts = self._teller.model_of(self._llama), ((self._name, tokens, 0, 0),)
            self._teller.add(("step", model, start_ns, self._mark_ns, parts))


class Decoding(Protocol):
    """Who is told of each `llama_decode`."""

    def decoding(self, batch: Any) -> None:
        """Before it."""

    def decoded(self, batch: Any) -> None:
        """After it, unless it failed."""


def watch_decode(llama: Any, observer: Decoding) -> None:
    """Tells `observer` of each decode of this Llama's context, until `unwatch_decode`."""
    context = getattr(llama, "_ctx", None)
    if context is None or "decode" in vars(context):
        return
    decode = context.decode

    def watching(batch: Any) -> Any:
        observer.decoding(batch)
        result = decode(batch)
        observer.decoded(batch)
        return result

    watching._wattledger = True  # type: ignore[attr-defined]
    context.decode = watching


def unwatch_decode(llama: Any) -> None:
    """The context decodes as its class does again."""
    own = vars(llama._ctx) if hasattr(llama, "_ctx") else {}
    if hasattr(own.get("decode"), "_wattledger"):
        del llama._ctx.decode
