"""What the proxy tells of the requests that pass through it, as events of their engine.

Each answered request becomes a prefill step, a decode step and a finish:

- where the engine tells durations, decode ends with the answer and prefill ends where decode
  begins; what lies before (a queue, a model being loaded) is no step;
- where a stream tells counts alone, prefill lasts from the request to the first token shown;
- else one step from the request to the answer holds both.

A request that the engine worked on and whose counts are not told (an aborted stream, a stream
whose client asked for no `usage`) is a step without breakdown: its energy is nobody's in
particular rather than idle, and it is counted in `untold`. No fault of ours reaches the traffic.
"""

from __future__ import annotations

import itertools
import json
import os
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Concatenate, ParamSpec

from wattledger_collectors.engines.events import EventBuffer
from wattledger_collectors.engines.proxy_answers import Answer, Reader, Share
from wattledger_collectors.engines.proxy_http import Head
from wattledger_collectors.workloads.names import printable

COMPUTING = frozenset(
    ("chat", "completion", "completions", "embed", "embedding", "embeddings", "generate",
     "infill", "messages", "rerank", "reranking", "responses")
)  # fmt: skip
"""Last words of the paths on which an engine computes tokens."""

SEVERAL = "(several)"
_RECENT_NS = 120 * 10**9
_MOST_STEP_NS = 12 * 3600 * 10**9
_MOST_TOKENS = 2**31
_MOST_NAMES = 4096
_MOST_ASKED_BYTES = 2**20

P = ParamSpec("P")


def _harmless(ours: Callable[Concatenate[Exchange, P], None]) -> Callable[..., None]:
    """Keeps any fault of ours from the traffic: a request may go uncounted, none fails."""

    @wraps(ours)
    def guarded(exchange: Exchange, *args: P.args, **kwargs: P.kwargs) -> None:
        if exchange.over:
            return
        try:
            ours(exchange, *args, **kwargs)
        except Exception as error:  # noqa: BLE001 - the engine hook's border
            exchange.over = True
            exchange.meter.fault(error)

    return guarded


class Meter:
    """Follows the requests of one engine; called from one thread.

    `model` overrides what the answers say. `tenant_header` names the request header that says
    whose a request is. `tell` gets lines for the user, each kind of them once.
    """

    def __init__(
        self,
        buffer: EventBuffer,
        *,
        model: str | None = None,
        tenant_header: str | None = None,
        now_ns: Callable[[], int] = time.monotonic_ns,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.add = buffer.add
        self.now_ns = now_ns
        self.counted = self.untold = self.faults = 0
        self._model = model
        self._tenant_header = (tenant_header or "").lower().encode("latin-1", "replace")
        self._tell = tell
        self._told: set[str] = set()
        # A restarted proxy may have the same pid: in a container it always has.
        self._run = f"{os.getpid()}-{secrets.token_hex(4)}"
        self._numbers = itertools.count(1)
        self._tenants: OrderedDict[str, str] = OrderedDict()
        self._models: dict[str, int] = {}

    def begin(self, head: Head) -> Exchange:
        """A request came in; what computes nothing is not followed."""
        exchange = Exchange(self)
        exchange.begun(head)
        return exchange

    def name(self, head: Head) -> str:
        """The client's X-Request-Id, `#r<number>` behind it when it comes again, else our own."""
        number = next(self._numbers)
        asked = printable(head.text(b"x-request-id").encode())
        name = asked or f"{self._run}-{number}"
        if name in self._tenants:
            name = f"{name}#r{number}"
        tenant = printable(head.text(self._tenant_header).encode()) if self._tenant_header else None
        self._tenants[name] = tenant or ""
        if len(self._tenants) > _MOST_NAMES:
            self._tenants.popitem(last=False)
        return name

    def tenant_of(self, name: str) -> str:
        """Whose a recent request is by its client's word, "" where unknown; from any thread."""
        return self._tenants.get(name, "")

    def label(self, model: str) -> str:
        """The model to name to the daemon, which knows one per engine at a time.

        Where an engine serves several within two minutes, naming the last one would book one
        model's joules to another.
        """
        if self._model is not None:
            return self._model
        now_ns = self.now_ns()
        if model:
            self._models[model] = now_ns
        recent = {m: at for m, at in self._models.items() if now_ns - at <= _RECENT_NS}
        self._models = recent
        if len(recent) > 1:
            self.tell_once(
                "several models in turn: their joules are told together as model (several); "
                "run a server and a proxy for each to tell them apart"
            )
            return SEVERAL
        return next(iter(recent), model)

    def tell_once(self, line: str) -> None:
        """One line for the user, the first time."""
        if line not in self._told:
            self._told.add(line)
            self._tell(line)

    def fault(self, error: Exception) -> None:
        """Something of ours went wrong; the traffic did not notice."""
        self.faults += 1
        self.tell_once(f"a request is not metered: {type(error).__name__}: {error}")


class Exchange:
    """One request and its answer; `over` when there is nothing more to follow."""

    __slots__ = ("_answer", "_answered", "_asked", "_reader", "_sent_ns", "meter", "name", "over")

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.over = False
        self.name = ""
        self._sent_ns = 0
        self._asked = bytearray()
        self._answered = False
        self._answer = Answer()
        self._reader: Reader | None = None

    @_harmless
    def begun(self, head: Head) -> None:
        """The request's head is here."""
        path = head.target.partition(b"?")[0].decode("latin-1")
        if head.method != b"POST" or path.rstrip("/").rpartition("/")[2] not in COMPUTING:
            self.over = True
            return
        self.name = self.meter.name(head)
        self._sent_ns = self.meter.now_ns()

    @_harmless
    def asked(self, pieces: Iterable[bytes]) -> None:
        """Content of the request, as it came; what is long is not kept."""
        for piece in pieces:
            if len(self._asked) <= _MOST_ASKED_BYTES:
                self._asked += piece

    @_harmless
    def sent(self) -> None:
        """The request is out; an engine does not begin before it has all of it."""
        if not self._answered:
            self._sent_ns = self.meter.now_ns()

    @_harmless
    def answered(self, head: Head) -> None:
        """The response's head is here; an error computed nothing."""
        self._answered = True
        if not 200 <= head.status < 300:
            self.over = True
            return
        self._reader = Reader(head, self._answer)

    @_harmless
    def content(self, pieces: Iterable[bytes]) -> None:
        """Content of the response, as it came."""
        if self._reader is not None:
            now_ns = self.meter.now_ns()
            for piece in pieces:
                self._reader.feed(piece, now_ns)

    @_harmless
    def complete(self) -> None:
        """The response is whole."""
        if self._reader is not None:
            self._reader.end(self.meter.now_ns())
        self._close(aborted=False)

    @_harmless
    def broken(self) -> None:
        """One side went away."""
        self._close(aborted=not self._answer.ended)

    @_harmless
    def dropped(self) -> None:
        """The request never reached the engine."""
        self.over = True

    def _close(self, *, aborted: bool) -> None:
        self.over = True
        answer, meter = self._answer, self.meter
        if len(answer.shares) > 1:
            self._find_choices()
        shares = answer.shares
        if not shares and answer.idle:
            return
        model, end_ns = meter.label(answer.model), meter.now_ns()
        untold = not shares or answer.partial or any(s.prompt_tokens is None for s in shares)
        if untold:
            meter.untold += 1
            meter.add(("step", model, self._earliest(end_ns), end_ns, ()))
            meter.tell_once(
                "an answer told no token counts or not all (a client gone, a stream without "
                "usage): its energy is booked as unattributed"
            )
        if not shares:
            return
        prompt = sum(share.prompt_tokens or 0 for share in shares)
        cached = sum(share.cached_tokens for share in shares)
        decode = sum(share.decode_tokens for share in shares)
        if prompt >= _MOST_TOKENS or decode >= _MOST_TOKENS:
            raise ValueError(f"{prompt} and {decode} tokens are no counts")
        for share in shares:
            self._tell(model, share)
        meter.counted += 1
        told_ns = max(share.told_ns for share in shares)
        meter.add(("finish", model, told_ns, self.name, prompt, cached, decode, aborted))

    def _find_choices(self) -> None:
        """How many answers the request wanted of each prompt; unknown, it had one prompt."""
        try:
            wanted = json.loads(self._asked)
            number = wanted.get("n_cmpl") or wanted.get("n") or 1
        except (ValueError, AttributeError, RecursionError):
            number = None
        if isinstance(number, int) and number > 0:
            self._answer.choices = number
        else:
            self._answer.choices = len(self._answer.shares)
            self._answer.partial = True

    def _tell(self, model: str, share: Share) -> None:
        """The steps of a share; one without tokens is none."""
        prefill, decode, end_ns = share.prefill_tokens, share.decode_tokens, share.told_ns
        first_ns, earliest_ns = self._answer.first_ns, self._earliest(end_ns)
        if share.prefill_ns is not None and share.decode_ns is not None:
            # A client that reads slowly holds the answer's end back, not its first token.
            if first_ns is not None:
                end_ns = min(end_ns, first_ns + share.decode_ns)
            turn_ns = max(earliest_ns, end_ns - share.decode_ns)
            earliest_ns = max(earliest_ns, turn_ns - share.prefill_ns)
        elif first_ns is not None and decode > 1:
            turn_ns = first_ns
        else:
            self._step(model, earliest_ns, end_ns, prefill, decode)
            return
        self._step(model, earliest_ns, turn_ns, prefill, 0)
        self._step(model, turn_ns, end_ns, 0, decode)

    def _step(self, model: str, start_ns: int, end_ns: int, prefill: int, decode: int) -> None:
        if prefill or decode:
            part = (self.name, prefill, decode, 0)
            self.meter.add(("step", model, start_ns, max(start_ns, end_ns), (part,)))

    def _earliest(self, end_ns: int) -> int:
        return max(self._sent_ns, end_ns - _MOST_STEP_NS)
