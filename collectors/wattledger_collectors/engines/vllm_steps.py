"""When each step of a vLLM engine ran, and what is told of it.

The end of a step is its EngineCore's own `time.monotonic()`, the host's CLOCK_MONOTONIC. Its start
is the end of the step before, but never earlier than a request of it can have been running: one
that goes on ran in the step before, a new one is scheduled at some time that vLLM tells. So the
pause between the last step of one request and the first of the next stays idle.

A prompt that takes several steps (chunked prefill) puts nothing out before its first token. It is
told as a step of its own, from when it was scheduled to its first token, beside the steps of the
others. How many steps it took is known by their ends: with asynchronous scheduling a request is
scheduled while the step before still runs, so one end may lie in between all the same.

An engine that is paused, or stopped, amid a decode has no step as long as the pause: a step that
goes on lasts 2 s, or 20 times what the last ones did, at most. The rest is idle.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

from wattledger_collectors.engines.events import EventBuffer
from wattledger_collectors.engines.vllm_place import Place

_LATE_ENDS = 8
_LONG_NS = 2_000_000_000
_TOO_LONG = 20
_KEPT_CREDITS = 64

Columns = tuple[list[int], list[int], list[int]]
"""Prefill, decode and context tokens."""


class Live:
    """A request that has put something out: its name, prompt, and the context it has reached.

    While it lives its context is `shift` plus a count that all share (see `vllm_requests.py`).
    `owed` is the token that its prefill computed, which no decoding was spent on (see `vllm.py`);
    `timeline` is that of the engine that prefilled it.
    """

    __slots__ = ("cached", "context", "name", "owed", "prompt", "shift", "timeline")

    def __init__(self, name: str, prompt: int, cached: int, decoded: int = 0) -> None:
        self.name = name
        self.prompt = prompt
        self.cached = cached
        self.context = prompt + decoded
        self.shift = self.owed = 0
        self.timeline: Timeline | None = None


@dataclass(slots=True)
class Prefill:
    """Prompt tokens, or once more computed ones, that a request brings into its step.

    `scheduled_ns` is None where vLLM does not tell; `known_ns` is when it got the request.
    `preempted` is also set, without `again`, where it was amid its first prefill.
    """

    live: Live
    tokens: int
    scheduled_ns: int | None
    known_ns: int = 0
    again: bool = False
    preempted: bool = False


class Draft:
    """A step as its outputs tell it: requests, new tokens and contexts in parallel.

    `stats` is the object that vLLM hands to the stat loggers after it, None where it has none;
    `ids` are its own names of the requests. No dataclass: one is made per step.
    """

    __slots__ = (
        "contexts", "end_ns", "ended", "ids", "lives", "outputs", "prefills", "stats", "tokens",
        "turned",
    )  # fmt: skip

    def __init__(  # noqa: PLR0917
        self,
        stats: object,
        end_ns: int,
        ids: list[str],
        outputs: list[Any],
        lives: list[Live],
        tokens: list[int],
        contexts: list[int],
        prefills: list[Prefill],
    ) -> None:
        self.stats = stats
        self.end_ns = end_ns
        self.ids = ids
        self.outputs = outputs
        self.lives = lives
        self.tokens = tokens
        self.contexts = contexts
        self.prefills = prefills
        self.ended: list[tuple[Live, bool]] = []
        # Sessions that have come to a turn's end.
        self.turned: list[Live] = []

    def join(self, other: Draft) -> None:
        """A large step is handed over in slices; the lists of its requests belong to others too."""
        self.lives = self.lives + other.lives
        self.tokens = self.tokens + other.tokens
        self.contexts = self.contexts + other.contexts
        self.prefills += other.prefills
        self.ended += other.ended
        self.turned += other.turned


class Timeline:
    """The steps of one engine as one front end sees them, told to `buffer`."""

    def __init__(self, buffer: EventBuffer, place: Place) -> None:
        self.add = buffer.add
        self.place = place
        self.start_ns = self.end_ns = 0
        self._ends: deque[int] = deque(maxlen=place.in_flight + _LATE_ENDS)
        self._quiet_since_ns: int | None = None
        # When the scheduler told of requests to compute again, and how many of their tokens.
        self._credits: deque[list[int]] = deque(maxlen=_KEPT_CREDITS)
        self._lives: list[Live] = []
        self._names: list[str] = []

    def boundary(self, end_ns: int) -> None:
        """A step ended that put nothing out here."""
        if self._quiet_since_ns is None:
            self._quiet_since_ns = self._ends[-1] if self._ends else self.end_ns
        self._ends.append(end_ns)

    def scheduled(self, scheduler_stats: Any, t_ns: int) -> None:
        """What the scheduler says at `t_ns` of requests that it has to compute once more."""
        cache = getattr(scheduler_stats, "prefix_cache_stats", None)
        queries = getattr(cache, "preempted_queries", 0)
        if queries:
            self._credits.append([t_ns, max(0, queries - getattr(cache, "preempted_hits", 0))])

    def tell(self, draft: Draft, length_ns: int | None = None) -> None:
        """A step, and the requests that ended with it."""
        end_ns, lives, start_ns = draft.end_ns, draft.lives, self.end_ns
        goes_on = True
        if draft.prefills:
            goes_on = len(lives) > len({fresh.live for fresh in draft.prefills})
            earliest_ns, names, columns = self._with_prefills(draft)
            if not goes_on:
                start_ns = max(start_ns, earliest_ns)
        else:
            earliest_ns = end_ns
            names = self._names if lives is self._lives else self._named(lives)
            columns = [0] * len(lives), draft.tokens, draft.contexts
        if length_ns is not None and goes_on and self.place.in_flight == 1:
            start_ns = max(start_ns, end_ns - length_ns)
        if end_ns - start_ns > _LONG_NS and goes_on and start_ns:
            start_ns = max(start_ns, min(earliest_ns, end_ns - self._longest_ns(end_ns)))
        if end_ns == self.end_ns:
            start_ns = self.start_ns
        if not 0 < start_ns <= end_ns:
            # Before the first step that was seen there is nothing to reckon from.
            start_ns = end_ns
        if names:
            self.add(("columns", self.place.model, start_ns, end_ns, names, *columns))
        self.start_ns = start_ns
        self.end_ns = max(self.end_ns, end_ns)
        self._ends.append(end_ns)
        self._quiet_since_ns = None
        if draft.turned:
            self.settle(draft.turned, end_ns)
        if draft.ended:
            self.finish(draft.ended, end_ns)

    def _named(self, lives: list[Live]) -> list[str]:
        """The names of a step's requests: those of the step before, the very same list."""
        if lives != self._lives:
            self._names = [live.name for live in lives]
        self._lives = lives
        return self._names

    def _longest_ns(self, end_ns: int) -> int:
        """How long a step that goes on may be; before there is anything to go by, any length."""
        lengths = [after - before for before, after in pairwise(self._ends) if after > before]
        if self.end_ns > self.start_ns:
            lengths.append(self.end_ns - self.start_ns)
        return max(_LONG_NS, round(_TOO_LONG * median(lengths))) if lengths else end_ns

    def finish(self, ended: list[tuple[Live, bool]], t_ns: int) -> None:
        """Requests that put out nothing any more, and whether they were broken off."""
        self.settle([live for live, _ in ended], t_ns)
        for live, aborted in ended:
            counts = live.prompt, min(live.cached, live.prompt), live.context - live.prompt
            self.add(("finish", self.place.model, t_ns, live.name, *counts, aborted))

    def settle(self, lives: list[Live], t_ns: int) -> None:
        """Tells the tokens that no step evaluates, in a step of no length."""
        owing = [live for live in lives if live.owed]
        if not owing:
            return
        at_ns = min(t_ns, self.end_ns) or t_ns
        names, zeros = [live.name for live in owing], [0] * len(owing)
        owed = [live.owed for live in owing]
        self.add(("columns", self.place.model, at_ns, at_ns, names, zeros, owed, zeros))
        for live in owing:
            live.owed = 0

    def tell_nobody(self, start_ns: int, end_ns: int, prefill: int, decode: int, owed: int) -> None:
        """A step whose requests are not known; `owed` tokens of it came out of its prefill."""
        model = self.place.model
        start_ns = min(start_ns, end_ns)
        self.add(("columns", model, start_ns, end_ns, [""], [prefill], [decode], [0]))
        if owed:
            self.add(("columns", model, end_ns, end_ns, [""], [0], [owed], [0]))
        self.start_ns, self.end_ns = start_ns, end_ns

    def _with_prefills(self, draft: Draft) -> tuple[int, list[str], Columns]:
        """When the earliest prefill in the step began, its requests, and their columns."""
        names = [live.name for live in draft.lives]
        columns = [0] * len(names), draft.tokens.copy(), draft.contexts.copy()
        prefill, decode, contexts = columns
        earliest_ns, gone = draft.end_ns, []
        for fresh in draft.prefills:
            at, live = draft.lives.index(fresh.live), fresh.live
            tokens, began_ns = self._tokens(fresh), self._began_ns(fresh)
            live.timeline = self
            if not fresh.again and tokens:
                live.owed = min(decode[at], 1)
                decode[at] -= live.owed
                contexts[at] = 0
            if tokens and self._took_steps(began_ns, draft.end_ns):
                self._tell_alone(live.name, tokens, began_ns, draft.end_ns)
            elif tokens or decode[at]:
                prefill[at] = tokens
                earliest_ns = min(earliest_ns, began_ns)
            if not (prefill[at] or decode[at]):
                gone.append(at)
        for at in sorted(gone, reverse=True):
            for column in (names, *columns):
                del column[at]
        return earliest_ns, names, columns

    def _began_ns(self, prefill: Prefill) -> int:
        """When the request began to run; where vLLM does not tell, as early as it can have."""
        if prefill.scheduled_ns is not None:
            return prefill.scheduled_ns
        quiet_ns = self._quiet_since_ns
        return max(prefill.known_ns, self.end_ns if quiet_ns is None else quiet_ns)

    def _took_steps(self, began_ns: int, end_ns: int) -> bool:
        """Whether more ends lie in between than a prefill of a single step can have seen."""
        between = sum(began_ns < seen_ns < end_ns for seen_ns in self._ends)
        return between >= self.place.in_flight

    def _tokens(self, prefill: Prefill) -> int:
        """A preempted request computes once more what it lost; the last is its ordinary decode.

        Of one that was preempted amid its first prefill nobody says how much that was.
        """
        lost = prefill.tokens
        if prefill.preempted and not self.place.recomputes_all:
            lost = self._take_credit(prefill)
        if not prefill.again:
            return prefill.tokens
        return max(0, lost - 1)

    def _take_credit(self, prefill: Prefill) -> int:
        """Tokens of this resume: the scheduler tells them with the first step to end after it."""
        for credit in self._credits:
            if credit[1] and credit[0] >= self._began_ns(prefill):
                taken = min(prefill.live.prompt if not prefill.again else prefill.tokens, credit[1])
                credit[1] -= taken
                return taken
        return 0

    def _tell_alone(self, name: str, tokens: int, began_ns: int, end_ns: int) -> None:
        start_ns = min(began_ns, end_ns)
        self.add(("columns", self.place.model, start_ns, end_ns, [name], [tokens], [0], [0]))
