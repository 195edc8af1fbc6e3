"""Batches on their way to the daemon: numbered, kept until committed, bounded.

Pure: no thread, no clock, no wire. A batch gets its number when it is first sent, so what is
dropped before leaves no hole. A batch dropped or refused after that is sent as an empty one: its
number never means anything else, and the daemon sees no hole either.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

EMPTY = b""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What an outbox may hold, and how many batches may be sent but uncommitted."""

    payload_bytes: int = 16 * 2**20
    batches: int = 16_384
    uncommitted: int = 256


@dataclass(frozen=True, slots=True)
class _Batch:
    payload: bytes
    events: int


class Outbox:
    """A queue whose first `_numbered` batches have the numbers up to `_last`.

    Numbers in (`committed`, first kept one) belong to batches dropped after they got a number.
    `dropped_events` counts those too, though a daemon that lives on may still commit them.
    """

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._batches: deque[_Batch] = deque()
        self._payload_bytes = 0
        self._numbered = 0
        self._last = 0
        self._delivered = 0
        self.committed = 0
        self.dropped_events = 0

    def __len__(self) -> int:
        return len(self._batches)

    @property
    def payload_bytes(self) -> int:
        """Bytes held."""
        return self._payload_bytes

    @property
    def uncommitted(self) -> bool:
        """Whether the daemon has yet to say that something is on its disk."""
        return bool(self._batches) or self.committed < self._last

    def add(self, payload: bytes, events: int) -> None:
        """Appends a batch; where the bounds are reached the oldest goes, its events counted."""
        self._batches.append(_Batch(payload, events))
        self._payload_bytes += len(payload)
        while (
            self._payload_bytes > self._bounds.payload_bytes
            or len(self._batches) > self._bounds.batches
        ):
            self.dropped_events += self._forget_oldest().events

    def next(self) -> tuple[int, bytes] | None:
        """The number and payload to send now; None if all is sent or the daemon lags behind."""
        number = self._delivered + 1
        if number > self._last:
            if self._numbered == len(self._batches):
                return None
            if self._last - self.committed >= self._bounds.uncommitted:
                return None
            self._numbered += 1
            self._last = number
        index = number - self._first_kept
        return number, self._batches[index].payload if index >= 0 else EMPTY

    def delivered(self, number: int) -> None:
        """The daemon has this batch in memory: it is not sent again to the same daemon."""
        self._delivered = max(self._delivered, number)

    def commit(self, number: int) -> None:
        """The daemon has every batch up to here on disk: they are forgotten."""
        while self._numbered and self._first_kept <= number:
            self._forget_oldest()
        self.committed = max(self.committed, min(number, self._last))
        self._delivered = max(self._delivered, self.committed)

    def rewind(self, committed: int) -> None:
        """Another daemon answers, and has this much on disk: the rest is sent again, in order."""
        self.commit(committed)
        self._delivered = self.committed

    def refuse(self, number: int) -> None:
        """The daemon will not have this batch: its events are dropped, its number sent empty.

        A number that was sent empty already is passed over.
        """
        index = number - self._first_kept
        if index < 0 or self._batches[index].payload == EMPTY:
            self.delivered(number)
            return
        refused = self._batches[index]
        self._batches[index] = _Batch(EMPTY, 0)
        self._payload_bytes -= len(refused.payload)
        self.dropped_events += refused.events

    @property
    def _first_kept(self) -> int:
        return self._last - self._numbered + 1

    def _forget_oldest(self) -> _Batch:
        batch = self._batches.popleft()
        self._payload_bytes -= len(batch.payload)
        self._numbered = max(0, self._numbered - 1)
        return batch
