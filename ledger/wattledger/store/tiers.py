"""Which tier of a ledger answers which stretch of time, and how rows are cut exactly.

Whole hours come from hour sums, whole minutes from minute sums, ragged ends from raw rows cut
by `apportion.between`. Since a rollup is the exact sum of its raw rows, any cutting adds up.
Where a finer tier is pruned, the rows of the next coarser one are cut instead.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from itertools import pairwise
from string import Template
from typing import NamedTuple

from wattledger.apportion import between
from wattledger.records import NS_PER_S

MINUTE_NS = 60 * NS_PER_S
HOUR_NS = 3600 * NS_PER_S

Ids = tuple[int, ...]
Values = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Family:
    """Tables that hold the same kind of row per tier: what it is about, and its amounts."""

    name: str
    dims: tuple[str, ...]
    amounts: tuple[str, ...]


_AMOUNTS = (
    "static_uj",
    "dynamic_uj",
    "device_ns",
    "prefill_tokens",
    "cached_tokens",
    "decode_tokens",
    "requests",
)
POSTING = Family("posting", ("device", "account"), _AMOUNTS)
REQUEST = Family("request", ("device", "account", "request"), _AMOUNTS)
METERED = Family("metered", ("device",), ("energy_uj", "device_ns", "gaps", "resets", "wraps"))
# Postings seen as a meter would see them, to be held against METERED.
CHARGED = Family("posting", ("device",), ("static_uj + dynamic_uj", "device_ns", "0", "0", "0"))

# A sum beyond 64 bits would become a float, and the books would no longer be exact: a NULL is
# refused by its column.
_ADDED = """%(amount)s = CASE typeof(%(amount)s + excluded.%(amount)s) WHEN 'integer'
    THEN %(amount)s + excluded.%(amount)s END"""


@cache
def sql(family: Family, text: str) -> str:
    """A statement's text with $name, $dims, $amounts and what derives from them filled in."""
    columns = (*family.dims, *family.amounts)
    return Template(text).substitute(
        name=family.name,
        dims=", ".join(family.dims),
        amounts=", ".join(family.amounts),
        negated=", ".join(f"-{amount}" for amount in family.amounts),
        sums=", ".join(f"SUM({amount})" for amount in family.amounts),
        halves=", ".join(
            f"SUM(({amount}) >> 32), SUM(({amount}) & 4294967295)" for amount in family.amounts
        ),
        uneven=" OR ".join(f"SUM({amount}) <> 0" for amount in family.amounts),
        added=", ".join(_ADDED % {"amount": amount} for amount in family.amounts),
        match=" AND ".join(f"{dim} = ?" for dim in family.dims),
        marks=", ".join("?" for _ in columns),
    )


def floor_to(t_ns: int, unit_ns: int) -> int:
    """The last multiple of `unit_ns` that is not after `t_ns`."""
    return t_ns - t_ns % unit_ns


def ceil_to(t_ns: int, unit_ns: int) -> int:
    """The first multiple of `unit_ns` that is not before `t_ns`."""
    return t_ns + -t_ns % unit_ns


@lru_cache(maxsize=1024)
def span_of(start_ns: int, end_ns: int) -> int:
    """0 where [start_ns, end_ns) fits a UTC minute, 1 where it fits a UTC hour, else 2."""
    last_ns = max(start_ns, end_ns - 1)
    if start_ns // MINUTE_NS == last_ns // MINUTE_NS:
        return 0
    return 1 if start_ns // HOUR_NS == last_ns // HOUR_NS else 2


class Kept(NamedTuple):
    """From when on each tier is whole, UTC nanoseconds on hour edges; hour <= minute <= raw."""

    raw_ns: int
    minute_ns: int
    hour_ns: int


class Part(NamedTuple):
    """A stretch of one interval of a question."""

    interval: int
    start_ns: int
    end_ns: int


class Row(NamedTuple):
    """A stored row, even over [start_ns, end_ns); a rollup belongs to no clock (0)."""

    start_ns: int
    end_ns: int
    clock: int
    ids: Ids
    values: Values


class Piece(NamedTuple):
    """What of a row lies in one interval; `cut` where an edge went through the row."""

    interval: int
    ids: Ids
    values: Values
    cut: bool


class Source(NamedTuple):
    """Parts that one statement answers; its rows never cross a multiple of `unit_ns`."""

    parts: list[Part]
    unit_ns: int
    text: str


_WHOLE = """SELECT $dims, $sums FROM ${name}_%s WHERE start_ns >= ? AND start_ns < ?
    GROUP BY $dims"""
_WHOLE_HOURS = _WHOLE % "hour"
_WHOLE_MINUTES = _WHOLE % "minute"
_CUT_HOURS = """SELECT start_ns, start_ns + 3600000000000, 0, $dims, $amounts FROM ${name}_hour
    WHERE start_ns >= ? AND start_ns < ?"""
_CUT_MINUTES = """SELECT start_ns, start_ns + 60000000000, 0, $dims, $amounts FROM ${name}_minute
    WHERE start_ns >= ? AND start_ns < ?"""
_RAW = """SELECT start_ns, end_ns, clock, $dims, $amounts FROM ${name}_raw
    WHERE start_ns >= ? AND start_ns < ? AND span = 0"""
# `span > 0` repeats what `span = 1` implies: SQLite takes the partial index only if told so.
_SHORT = """SELECT start_ns, end_ns, clock, $dims, $amounts FROM ${name}_raw
    WHERE span > 0 AND span = 1 AND end_ns > ? AND end_ns <= ?"""
_LONG = """SELECT start_ns, end_ns, clock, $dims, $amounts FROM ${name}_raw
    WHERE span > 0 AND span = 2 AND end_ns > ? AND start_ns < ?"""


@dataclass(frozen=True, slots=True)
class Plan:
    """Where each stretch of a question is answered from; every list ascends."""

    whole_hours: list[Part] = field(default_factory=list)
    whole_minutes: list[Part] = field(default_factory=list)
    cut_hours: list[Part] = field(default_factory=list)
    cut_minutes: list[Part] = field(default_factory=list)
    raw: list[Part] = field(default_factory=list)
    short: list[Part] = field(default_factory=list)
    every: list[Part] = field(default_factory=list)

    def sums(self) -> tuple[tuple[list[Part], str], ...]:
        """Parts that rollups answer whole, with their statements: (start, end) -> ids, sums."""
        return (self.whole_hours, _WHOLE_HOURS), (self.whole_minutes, _WHOLE_MINUTES)

    def sources(self) -> tuple[Source, ...]:
        """Parts whose rows may have to be cut, with their statements: (start, end) -> rows."""
        return (
            Source(self.cut_hours, HOUR_NS, _CUT_HOURS),
            Source(self.cut_minutes, MINUTE_NS, _CUT_MINUTES),
            Source(self.raw, MINUTE_NS, _RAW),
            Source(self.short, HOUR_NS, _SHORT),
            Source(self.every, 1, _LONG),
        )


def plan(edges_ns: Sequence[int], kept: Kept) -> Plan:
    """Lay the intervals [edges[i], edges[i+1]) over the tiers; time before `kept` is gone."""
    made = Plan()
    for interval, (start_ns, end_ns) in enumerate(pairwise(edges_ns)):
        _lay(made.every, interval, max(start_ns, kept.hour_ns), end_ns)
        coarse: list[Part] = []
        _lay(coarse, interval, max(start_ns, kept.hour_ns), min(end_ns, kept.minute_ns))
        made.cut_hours.extend(_take_whole(coarse, HOUR_NS, made.whole_hours))
        middle: list[Part] = []
        _lay(middle, interval, max(start_ns, kept.minute_ns), min(end_ns, kept.raw_ns))
        middle = _take_whole(middle, HOUR_NS, made.whole_hours)
        made.cut_minutes.extend(_take_whole(middle, MINUTE_NS, made.whole_minutes))
        fine: list[Part] = []
        _lay(fine, interval, max(start_ns, kept.raw_ns), end_ns)
        fine = _take_whole(fine, HOUR_NS, made.whole_hours)
        made.raw.extend(_take_whole(fine, MINUTE_NS, made.whole_minutes))
        made.short.extend(middle + fine)
    return made


def _lay(parts: list[Part], interval: int, start_ns: int, end_ns: int) -> None:
    if start_ns < end_ns:
        parts.append(Part(interval, start_ns, end_ns))


def _take_whole(parts: list[Part], unit_ns: int, whole: list[Part]) -> list[Part]:
    """Move the whole units of `parts` to `whole`; returns the ragged rest."""
    rest: list[Part] = []
    for part in parts:
        first_ns = ceil_to(part.start_ns, unit_ns)
        last_ns = floor_to(part.end_ns, unit_ns)
        if first_ns >= last_ns:
            rest.append(part)
            continue
        _lay(rest, part.interval, part.start_ns, first_ns)
        whole.append(Part(part.interval, first_ns, last_ns))
        _lay(rest, part.interval, last_ns, part.end_ns)
    return rest


def runs(parts: Sequence[Part], unit_ns: int) -> Iterator[tuple[int, int, list[Part]]]:
    """Neighbouring parts with the whole units around them: (start_ns, end_ns, parts)."""
    run: list[Part] = []
    for part in parts:
        if run and floor_to(part.start_ns, unit_ns) > ceil_to(run[-1].end_ns, unit_ns):
            yield floor_to(run[0].start_ns, unit_ns), ceil_to(run[-1].end_ns, unit_ns), run
            run = []
        run.append(part)
    if run:
        yield floor_to(run[0].start_ns, unit_ns), ceil_to(run[-1].end_ns, unit_ns), run


def spread(rows: Iterable[Row], parts: Sequence[Part]) -> Iterator[Piece]:
    """Cut rows along ascending, disjoint parts; every amount by `apportion.between`."""
    ends_ns = [part.end_ns for part in parts]
    for row in rows:
        if not any(row.values):
            continue
        start_ns, end_ns = row.start_ns, row.end_ns
        for at in range(bisect_right(ends_ns, start_ns), len(parts)):
            part = parts[at]
            if part.start_ns >= max(end_ns, start_ns + 1):
                break
            if part.start_ns <= start_ns and end_ns <= part.end_ns:
                yield Piece(part.interval, row.ids, row.values, cut=False)
                continue
            values = tuple(
                between(value, start_ns, end_ns, part.start_ns, part.end_ns) if value else 0
                for value in row.values
            )
            yield Piece(part.interval, row.ids, values, cut=True)


def clusters(rows: Iterable[Row]) -> list[Row]:
    """Merge the overlapping rows of each clock and ids into one row over their hull.

    A meter's row and the postings it pays for meet in one cluster, however the postings are
    cut, so that a difference between them is laid over the stretch it belongs to.
    """
    merged: list[Row] = []
    for row in sorted(rows, key=lambda row: (row.clock, row.ids, row.start_ns, -row.end_ns)):
        last = merged[-1] if merged else None
        if last and (last.clock, last.ids) == (row.clock, row.ids) and row.start_ns < last.end_ns:
            values = tuple(map(int.__add__, last.values, row.values))
            end_ns = max(last.end_ns, row.end_ns)
            merged[-1] = last._replace(end_ns=end_ns, values=values)
        else:
            merged.append(row)
    return merged
