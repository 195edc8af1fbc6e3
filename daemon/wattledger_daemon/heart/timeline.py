"""Stretches of time kept in order, and found by the window they touch."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from operator import attrgetter
from typing import Generic, Protocol, TypeVar


class Stretch(Protocol):
    """Anything with a half-open extent in time."""

    @property
    def start_ns(self) -> int:
        """First nanosecond."""

    @property
    def end_ns(self) -> int:
        """One past the last nanosecond."""


S = TypeVar("S", bound=Stretch)


class Timeline(Generic[S]):
    """Stretches ordered by start; those that arrive late are put in their place."""

    def __init__(self) -> None:
        self._items: list[S] = []
        self._longest_ns = 0

    def __bool__(self) -> bool:
        return bool(self._items)

    @property
    def first_ns(self) -> int:
        """Start of the earliest stretch; IndexError when empty."""
        return self._items[0].start_ns

    @property
    def latest(self) -> S:
        """The stretch that starts last; IndexError when empty."""
        return self._items[-1]

    @property
    def last_ns(self) -> int:
        """Latest end; ValueError when empty."""
        return max(item.end_ns for item in self._items)

    def add(self, item: S) -> None:
        """Put a stretch in its place; among equal starts the later added comes last."""
        self._longest_ns = max(self._longest_ns, item.end_ns - item.start_ns)
        if not self._items or self._items[-1].start_ns <= item.start_ns:
            self._items.append(item)
        else:
            insort(self._items, item, key=attrgetter("start_ns"))

    def touching(self, start_ns: int, end_ns: int) -> list[S]:
        """Stretches that overlap [start_ns, end_ns), and those of no length that lie in it."""
        start = attrgetter("start_ns")
        low = bisect_left(self._items, start_ns - self._longest_ns, key=start)
        high = bisect_right(self._items, end_ns - 1, key=start)
        return [
            item
            for item in self._items[low:high]
            if item.end_ns > start_ns or item.start_ns >= start_ns
        ]

    def forget_before(self, t_ns: int) -> list[S]:
        """Drop and return the stretches that end by `t_ns` and lead the order."""
        keep = 0
        while keep < len(self._items) and self._items[keep].end_ns <= t_ns:
            keep += 1
        gone, self._items = self._items[:keep], self._items[keep:]
        return gone
