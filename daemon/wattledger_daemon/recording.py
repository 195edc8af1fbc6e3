"""Evidence as it comes, for those who record it; a slow reader is cut off, never waited for."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence

_MAX_SUBSCRIBERS = 2
_MAX_CHUNKS = 64
_CHUNK_LINES = 1000

Lines = Sequence[str]


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

    def next(self, timeout_s: float) -> Lines:
        """The next lines; empty where none came in time."""
        try:
            return self._chunks.get(timeout=timeout_s)
        except queue.Empty:
            return ()


class Recorder:
    """Hands trace lines from the pipeline thread to a few subscribers."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._subscriptions: tuple[Subscription, ...] = ()

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
        """Close every recording."""
        for subscription in self._subscriptions:
            subscription.ended = reason
