"""What a hook tells of its engine, and the bounded buffer it tells it to.

Events are plain tuples: inside an engine's token loop a dataclass would cost more than the
whole hook may.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Part = tuple[str, int, int, int]
"""One request's part of a step: request, prefill tokens, decode tokens, context tokens."""

StepEvent = tuple[Literal["step"], str, int, int, tuple[Part, ...]]
"""One step: tag, model, start_ns, end_ns (CLOCK_MONOTONIC), parts; no parts: breakdown unknown."""

TokenEvent = tuple[Literal["token"], str, int, int, str, int]
"""A step that computed one token of one request: tag, model, start_ns, end_ns, request, context.

Flat, since a hook in an engine that serves one request at a time makes one per token.
"""

Column = Sequence[int]

ColumnsEvent = tuple[Literal["columns"], str, int, int, Sequence[str], Column, Column, Column]
"""A step of many requests: tag, model, start_ns, end_ns, then in parallel the requests and their
prefill, decode and context tokens. Nobody changes the lists any more; a hook whose requests are
those of the step before may tell the same list of them again, which is cheaper to send.
"""

FinishEvent = tuple[Literal["finish"], str, int, str, int, int, int, bool]
"""End of a request: tag, model, t_ns, request, prompt, cached, decode tokens, aborted."""

TallyEvent = tuple[Literal["tally"], str, int, int, int, int, int]
"""Requests that ended and that nobody can name: tag, model, t_ns, how many, and the sums of their
prompt, cached and decode tokens."""

Event = StepEvent | TokenEvent | ColumnsEvent | FinishEvent | TallyEvent

DEFAULT_LIMIT = 65_536
DEFAULT_ENTRIES = 524_288
"""Requests in all steps together: some 60 bytes each."""


@dataclass(slots=True)
class Counts:
    """What a stretch of events held."""

    steps: int = 0
    prefill_tokens: int = 0
    decode_tokens: int = 0
    finishes: int = 0

    @property
    def events(self) -> int:
        """Steps and finishes together."""
        return self.steps + self.finishes

    def count(self, event: Event) -> None:
        """Adds one event."""
        if event[0] == "finish":
            self.finishes += 1
            return
        if event[0] == "tally":
            self.finishes += event[3]
            return
        self.steps += 1
        if event[0] == "token":
            self.decode_tokens += 1
        elif event[0] == "columns":
            self.prefill_tokens += sum(event[5])
            self.decode_tokens += sum(event[6])
        else:
            for _, prefill_tokens, decode_tokens, _ in event[4]:
                self.prefill_tokens += prefill_tokens
                self.decode_tokens += decode_tokens


def entries_of(event: Event) -> int:
    """How many requests an event names beyond one."""
    return len(event[4]) if event[0] in _WITH_ENTRIES else 0  # type: ignore[arg-type]


_WITH_ENTRIES = frozenset({"columns", "step"})


class EventBuffer:
    """Holds the newest events until the reporter takes them; the oldest make room, counted.

    `add` is called by the engine's threads, `take` by the reporter's. There is no lock: under
    the GIL each deque operation is atomic, and an int's += on an attribute lets no other thread
    in. A deque with `maxlen` would not do: what it pushes out between the length check and the
    append of another thread would go uncounted. So the bounds are exceeded by at most one event
    per thread, and by those that went in by `append`.
    """

    __slots__ = ("_entries", "_events", "_limit", "_most_entries", "append", "dropped")

    def __init__(self, limit: int = DEFAULT_LIMIT, most_entries: int = DEFAULT_ENTRIES) -> None:
        self._events: deque[Event] = deque()
        self._entries = 0
        self._most_entries = most_entries
        # An event without the look at the bound, for a token loop: let every so many go by `add`.
        self.append = self._events.append
        self._limit = limit
        self.dropped = Counts()

    def __len__(self) -> int:
        return len(self._events)

    def add(self, event: Event) -> None:
        """Appends an event, after making the room for it."""
        events, kind = self._events, event[0]
        if kind in _WITH_ENTRIES:
            self._entries += len(event[4])  # type: ignore[arg-type]
        if len(events) >= self._limit or self._entries > self._most_entries:
            self._make_room()
        events.append(event)

    def take(self, most: int, most_entries: int = DEFAULT_ENTRIES) -> list[Event]:
        """Removes and returns up to `most` of the oldest events, in order.

        Ends with the step that reaches `most_entries`.
        """
        taken: list[Event] = []
        entries = 0
        try:
            while len(taken) < most and entries < most_entries:
                event = self._events.popleft()
                entries += entries_of(event)
                taken.append(event)
        except IndexError:
            pass
        self._entries -= entries
        return taken

    def drop(self, events: Iterable[Event]) -> None:
        """Counts events that were taken and will not be told."""
        for event in events:
            self.dropped.count(event)

    def clear(self) -> None:
        """Forgets everything: a forked child must not tell its parent's tokens again."""
        self._events.clear()
        self._entries = 0
        self.dropped = Counts()

    def close(self) -> None:
        """Keeps nothing from now on: there is nobody to take it."""
        self._limit = 0
        self._events.clear()

    def _make_room(self) -> None:
        events = self._events
        while events and (len(events) >= self._limit or self._entries > self._most_entries):
            try:
                event = events.popleft()
            except IndexError:
                return
            entries = entries_of(event)
            self._entries -= entries
            self.dropped.count(event)
