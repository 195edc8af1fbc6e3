"""The one queue between everything that measures and the one thread that books."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from wattledger.records import Evidence
from wattledger_daemon.batches import Events


@dataclass(frozen=True, slots=True)
class Delivery:
    """An engine's batch on its way to the journal.

    `raw` is the batch as it came, `events` its steps and finishes; `introduced` is what the
    registration says of the engine and its processes, where it is news.
    """

    source: str
    sequence: int
    raw: bytes
    events: Events
    introduced: tuple[Evidence, ...] = ()


@dataclass(frozen=True, slots=True)
class Count:
    """Engine events that came twice, or were dropped by their source, noticed at `t_ns`.

    `dropped_total` is all that `source` has said to have dropped so far, this count included.
    """

    t_ns: int
    duplicates: int = 0
    dropped: int = 0
    source: str = ""
    dropped_total: int = 0


Item = Evidence | Delivery | Count


class Intake:
    """A queue that never blocks a producer: what does not fit is refused and counted.

    Bounded by records of evidence, two requests in a step being one, so that a pipeline that
    stands still costs a known amount of memory.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._lock = threading.Lock()
        self._items: list[Item] = []
        self._weight = 0
        self._overflowed = 0

    def offer(self, evidence: Sequence[Evidence | Count]) -> bool:
        """Queue evidence; False, and counted, where it does not fit."""
        with self._lock:
            if self._weight + len(evidence) > self._capacity:
                self._overflowed += len(evidence)
                return False
            self._items += evidence
            self._weight += len(evidence)
            return True

    def deliver(self, delivery: Delivery) -> bool:
        """Queue a batch whole; False where it does not fit, and its source keeps it."""
        weight = 1 + len(delivery.introduced) + delivery.events.weight
        with self._lock:
            if self._weight + weight > self._capacity:
                return False
            self._items.append(delivery)
            self._weight += weight
            return True

    def drain(self) -> list[Item]:
        """Take everything, in order of arrival."""
        with self._lock:
            items, self._items, self._weight = self._items, [], 0
            return items

    def take_overflowed(self) -> int:
        """Records refused by `offer` since the last call."""
        with self._lock:
            count, self._overflowed = self._overflowed, 0
            return count

    @property
    def depth(self) -> int:
        """Records waiting."""
        return self._weight
