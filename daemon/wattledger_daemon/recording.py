"""Evidence as it comes, for those who record it; a slow reader is cut off, never waited for."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from wattledger.records import (
    DEFAULT_COST_MODEL,
    Device,
    Engine,
    Evidence,
    PinnedCost,
    Process,
    RequestOwner,
)
from wattledger.trace import encode

_MAX_SUBSCRIBERS = 2
_MAX_CHUNKS = 64
_CHUNK_LINES = 1000

Lines = Sequence[str]
K = TypeVar("K")
T = TypeVar("T")


class Subscription:
    """One reader's bounded queue of trace lines; `ended` says why no more will come."""

    def __init__(self) -> None:
        self.ended: str | None = None
        self.begun = False
        self._chunks: queue.Queue[Lines] = queue.Queue(_MAX_CHUNKS)

    def put(self, lines: Lines) -> None:
        """Queue lines; a reader that is too far behind is ended."""
        try:
            for start in range(0, len(lines), _CHUNK_LINES):
                self._chunks.put_nowait(lines[start : start + _CHUNK_LINES])
        except queue.Full:
            self.ended = "the recording fell behind: read it faster"

    def next(self) -> Lines:
        """The next lines; empty where none are there."""
        try:
            return self._chunks.get_nowait()
        except queue.Empty:
            return ()


class Transcript:
    """Makes of evidence what a replay will read as the daemon did.

    A replay sorts by time, and takes what bears no time (devices, engines, cost models) for true
    all along, and whose a request is from its moment on: so that a recording must end where one of
    those changes.
    """

    def __init__(self) -> None:
        self._devices: dict[str, Device] = {}
        self._engines: dict[str, Engine] = {}
        self._costs: dict[str, PinnedCost] = {}
        self._owners: dict[tuple[str, str, int], RequestOwner] = {}

    def changed(self, known: Sequence[Evidence]) -> str | None:
        """Compare with what was `known` a turn ago; the reason to end recordings, if any."""
        devices = {item.device: item for item in known if isinstance(item, Device)}
        engines = {item.engine: item for item in known if isinstance(item, Engine)}
        costs = {item.engine: item for item in known if isinstance(item, PinnedCost)}
        owners = {
            (i.engine, i.request, i.since_ns): i for i in known if isinstance(i, RequestOwner)
        }
        reason = None
        if name := _differing(self._devices, devices):
            reason = f"what is known of {name} (its idle power, say) changed"
        elif name := _differing(self._engines, engines):
            reason = f"engine {name} registered anew with other processes"
        elif name := _differing(self._costs, costs):
            reason = f"the cost model of {name} changed"
        elif request := _differing(self._owners, owners):
            reason = f"request {request[1]} turned out to be another's"
        self._devices, self._engines, self._costs = devices, engines, costs
        self._owners = owners
        return f"{reason}: record again" if reason else None

    def preamble(self, known: Sequence[Evidence]) -> list[Evidence]:
        """What is known, without cost models of engines that never came, which no line explains."""
        return [item for item in known if not isinstance(item, PinnedCost) or self._told(item)]

    def lines_of(self, evidence: Sequence[Evidence], known: Sequence[Evidence]) -> list[str]:
        """A turn's evidence as lines, who and what in it as it is `known` now."""
        processes = {item.pid: item for item in known if isinstance(item, Process)}
        lines = []
        for item in evidence:
            match item:
                case Device():
                    lines.append(encode(self._devices.get(item.device, item)))
                case Process():
                    lines.append(encode(processes.get(item.pid, item)))
                case PinnedCost():
                    pass  # said with its engine
                case _:
                    lines.append(encode(item))
            if isinstance(item, Engine) and (cost := self._costs.get(item.engine)):
                lines += [encode(cost)] if self._told(cost) else []
        return lines

    def _told(self, pinned: PinnedCost) -> bool:
        """Whether a line can say it; a replay has the default weights by itself."""
        return pinned.engine in self._engines and pinned.cost != DEFAULT_COST_MODEL


def _differing(before: Mapping[K, T], now: Mapping[K, T]) -> K | None:
    """The first name that both know, each otherwise."""
    return next((name for name, item in before.items() if now.get(name, item) != item), None)


class Recorder:
    """Hands trace lines from the pipeline thread to a few subscribers."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._subscriptions: tuple[Subscription, ...] = ()
        self.transcript = Transcript()

    @property
    def active(self) -> bool:
        """Whether anybody records, so that lines need be made at all."""
        return bool(self._subscriptions)

    def subscribe(self) -> Subscription | None:
        """A new reader's queue; None where enough are reading already."""
        with self._lock:
            if len(self._subscriptions) >= _MAX_SUBSCRIBERS:
                return None
            subscription = Subscription()
            self._subscriptions += (subscription,)
            return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """Forget a reader."""
        with self._lock:
            self._subscriptions = tuple(s for s in self._subscriptions if s is not subscription)

    def publish(self, lines: Lines, preamble: Callable[[], Lines]) -> None:
        """Give lines to every reader; one that begins gets the preamble instead."""
        for subscription in self._subscriptions:
            if subscription.ended:
                continue
            subscription.put(lines if subscription.begun else preamble())
            subscription.begun = True

    def end(self, reason: str) -> None:
        """Close every recording that has begun."""
        for subscription in self._subscriptions:
            if subscription.begun:
                subscription.ended = reason
