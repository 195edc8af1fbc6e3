"""Turns cumulative counters, read now and then, into what was computed between. Pure.

No token is told twice: what is told is the highest total so far, whichever source it came from.
Some may be missed: those that an engine counted after the last look before its end, and, where
its counters passed their old values before the first look after it, as many as those. So may all
that stood in a counter that fell while nothing says that its process began anew (`falls`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

from wattledger.apportion import between
from wattledger_collectors.scrape.falls import NS_PER_S, Began, Doubts, Pace, is_after, nobody_knows
from wattledger_collectors.scrape.protocol import Kind, Reading, ScrapeError, Series

CARRY_NS = 60 * NS_PER_S
"""How long an engine may be at work without telling of any token before the time goes unnamed."""

PIECE_NS = 60 * NS_PER_S
MOST_PIECES = 64
MOST_SERIES = 20_000
MOST_FALLS = 4
FALLS_NS = 60 * NS_PER_S
"""So many restarts are none: several processes answer in turn, each with counters of its own."""

MOST_AT_ONCE = 2**31 - 1
"""What a batch can tell of in one step: a month of a busy engine."""


class JumpError(ScrapeError):
    """More tokens at once than any engine computes: dropped, and to be counted as such."""


@dataclass(frozen=True, slots=True)
class Tally:
    """Tokens and requests, since a first look or between two."""

    prefill_tokens: int = 0
    cached_tokens: int = 0
    decode_tokens: int = 0
    finished_requests: int = 0

    def __sub__(self, other: Tally) -> Tally:
        return Tally(
            self.prefill_tokens - other.prefill_tokens,
            self.cached_tokens - other.cached_tokens,
            self.decode_tokens - other.decode_tokens,
            self.finished_requests - other.finished_requests,
        )

    def highest(self, other: Tally) -> Tally:
        """The higher of each."""
        return Tally(
            max(self.prefill_tokens, other.prefill_tokens),
            max(self.cached_tokens, other.cached_tokens),
            max(self.decode_tokens, other.decode_tokens),
            max(self.finished_requests, other.finished_requests),
        )


@dataclass(frozen=True, slots=True)
class Work:
    """What an engine did in [start_ns, end_ns); no tokens: it ran, and did not tell what."""

    start_ns: int
    end_ns: int
    prefill_tokens: int
    decode_tokens: int


@dataclass(frozen=True, slots=True)
class Finished:
    """Requests that ended by `t_ns`, and the tokens told since the ones before them ended."""

    t_ns: int
    requests: int
    prompt_tokens: int
    cached_tokens: int
    decode_tokens: int


@dataclass(frozen=True, slots=True)
class Told:
    """What two looks say together."""

    work: tuple[Work, ...] = ()
    finished: Finished | None = None


class Counting:
    """One engine's counters from the first look on; what they held before is nobody's here."""

    def __init__(self) -> None:
        self._last: dict[Series, float] = {}
        self._sums: dict[Series, float] = {}
        self._tier: int | None = None
        self._told = Tally()
        self._ended = Tally()
        self._looked_ns: int | None = None
        self._since_ns = 0
        self._waiting = False
        self._started_s = 0.0
        self._fell_ns: list[int] = []
        self._pace = Pace()
        self._doubts = Doubts()
        self.restarts = 0
        self.falls = 0
        """How often counters fell, or jumped back, and nothing was booked of it."""

    @property
    def told(self) -> Tally:
        """All that was told so far."""
        return self._told

    @property
    def sees_tokens(self) -> bool:
        """Whether any counter of tokens was ever there."""
        return self._tier is not None

    def take(self, t_ns: int, reading: Reading, began: Began = nobody_knows) -> Told:
        """A look at `t_ns`, later than the one before; the first tells nothing.

        `began` is asked where counters fell. Raises ScrapeError where an engine's label sets grow
        without bound, and JumpError.
        """
        first = self._looked_ns is None
        gap_ns = 0 if self._looked_ns is None else t_ns - self._looked_ns
        self._restart(t_ns, gap_ns, reading, began)
        self._advance(reading.counters, gap_ns, baseline=first)
        if reading.tier is not None:
            self._tier = reading.tier if self._tier is None else min(self._tier, reading.tier)
        if first or t_ns <= self._since_ns:
            self._looked_ns = self._since_ns = max(t_ns, self._since_ns)
            return Told()
        self._looked_ns = t_ns
        total = self._told.highest(self._total())
        moved, self._told = total - self._told, total
        most = max(moved.prefill_tokens, moved.cached_tokens, moved.decode_tokens)
        if most > MOST_AT_ONCE:
            self._ended, self._since_ns, self._waiting = total, t_ns, False
            raise JumpError(f"a counter rose by {most} at once, which is not booked")
        return Told(self._work(t_ns, moved, reading.running), self._finished(t_ns))

    # -------------------------------------------------------------------- inside

    def _restart(self, t_ns: int, gap_ns: int, reading: Reading, began: Began) -> None:
        """Have the counters of a process that restarted begin at 0, those yet to come as well."""
        known, last_s = self._last, self._started_s
        self._started_s = reading.started_s or last_s
        fallen = self._doubts.fallen(known, reading.counters, self._pace, gap_ns)
        if reading.fell or (last_s > 0.0 and abs(self._started_s - last_s) > 1.0):
            fallen |= {series.epoch for series in (*known, *reading.counters)}
        anew: set[str] = set()
        if fallen:
            certain = is_after(began(), t_ns - gap_ns)
            pace, doubts = self._pace, self._doubts
            anew = doubts.anew(fallen, reading.counters, pace, gap_ns, certain=certain)
            self.restarts += bool(anew)
            self.falls += fallen != anew
            self._fell_ns = [*self._fell_ns, t_ns][-MOST_FALLS:]
        self._check_astray(t_ns, reading)
        kept = {s: value for s, value in known.items() if s.epoch not in anew}
        doubted = {s: v for s, v in reading.counters.items() if s.epoch in fallen - anew}
        self._last = kept | doubted

    def _check_astray(self, t_ns: int, reading: Reading) -> None:
        """Raises ScrapeError after too many falls, until there was none for as long."""
        astray = len(self._fell_ns) == MOST_FALLS and t_ns - self._fell_ns[-1] < FALLS_NS
        if astray and self._fell_ns[-1] - self._fell_ns[0] < FALLS_NS:
            self._last, self._looked_ns = dict(reading.counters), t_ns
            self._since_ns, self._waiting = t_ns, False
            raise ScrapeError(
                f"its counters began anew {MOST_FALLS} times in a minute, and are not booked: "
                "does another process answer each time?"
            )

    def _advance(self, counters: Mapping[Series, float], gap_ns: int, *, baseline: bool) -> None:
        if len(self._sums.keys() | counters.keys()) > MOST_SERIES:
            raise ScrapeError(f"its counters had more than {MOST_SERIES} label sets")
        rises: list[tuple[Series, float]] = []
        for series, value in counters.items():
            more = 0.0 if baseline else value - self._last.get(series, 0.0)
            self._sums[series] = self._sums.get(series, 0.0) + more
            self._last[series] = value
            rises.append((series, more))
        if gap_ns > 0:
            self._pace.note(rises, gap_ns)

    def _total(self) -> Tally:
        prefill, prompt = self._sum(Kind.PREFILL), self._sum(Kind.PROMPT)
        cached = self._sum(Kind.CACHED) or 0.0
        if prefill is None:
            prefill = max(0.0, (prompt or 0.0) - cached)
        # Totals are rounded, not what came between: no fraction is lost or told twice.
        return Tally(
            round(prefill),
            round(cached),
            round(self._sum(Kind.DECODE) or 0.0),
            round(self._sum(Kind.FINISHED) or 0.0),
        )

    def _sum(self, kind: Kind) -> float | None:
        """The sum over label sets, of replicas the highest; None where there is no such series."""
        tier = 0 if kind is Kind.FINISHED else self._tier
        highest: dict[tuple[object, str], float] = {}
        for series, value in self._sums.items():
            if series.kind is kind and series.tier == tier:
                key = series.labels, series.epoch
                highest[key] = max(highest.get(key, 0.0), value)
        return sum(highest.values()) if highest else None

    def _work(self, t_ns: int, moved: Tally, running: int | None) -> tuple[Work, ...]:
        """What was done up to now, where that can be said; else the stretch goes on.

        Tokens that are told late, at a request's end say, belong to all the time since the
        engine set to work: as long as it says that requests run, nothing is closed.
        """
        start_ns, waited = self._since_ns, self._waiting
        if moved.prefill_tokens or moved.decode_tokens:
            self._since_ns, self._waiting = t_ns, False
            return tuple(_pieces(start_ns, t_ns, moved))
        if running and t_ns - start_ns < CARRY_NS:
            self._waiting = True
            return ()
        self._since_ns, self._waiting = t_ns, False
        return (Work(start_ns, t_ns, 0, 0),) if running or waited else ()

    def _finished(self, t_ns: int) -> Finished | None:
        since = self._told - self._ended
        if not since.finished_requests:
            return None
        self._ended = self._told
        # Of an engine that tells of no end for weeks, as much as a batch can say.
        cached = min(MOST_AT_ONCE, since.cached_tokens)
        return Finished(
            t_ns,
            since.finished_requests,
            min(MOST_AT_ONCE, since.prefill_tokens + since.cached_tokens),
            cached,
            min(MOST_AT_ONCE, since.decode_tokens),
        )


def _pieces(start_ns: int, end_ns: int, moved: Tally) -> Iterator[Work]:
    """Work even over a stretch, cut: the books may have closed on the oldest part of a long one."""
    count = min(MOST_PIECES, 1 + (end_ns - start_ns - 1) // PIECE_NS)
    cuts = [start_ns + (end_ns - start_ns) * at // count for at in range(count + 1)]
    for from_ns, to_ns in pairwise(cuts):
        yield Work(
            from_ns,
            to_ns,
            between(moved.prefill_tokens, start_ns, end_ns, from_ns, to_ns),
            between(moved.decode_tokens, start_ns, end_ns, from_ns, to_ns),
        )
