"""Engines that two report under different names: whatever they compute is booked twice."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

from wattledger.records import NS_PER_S
from wattledger_daemon.health import EngineHealth
from wattledger_daemon.logs import event

_LOG = logging.getLogger(__name__)
_SCRAPE = "scrape/"
_LOOK_NS = 10 * NS_PER_S
_FRESH_NS = 15 * NS_PER_S
_MOST_TOLD = 256
_MOST_OWNERS = 8

Reporter = tuple[str, EngineHealth]
"""A source's name, and what it says of its engine."""


def is_scrape(source: str) -> bool:
    """Whether the source is one of this daemon's own scrapes."""
    return source.startswith(_SCRAPE)


def reporter_pid(source: str) -> tuple[int, int]:
    """The process that reports and its start in clock ticks, of a name `kind/pid/start`.

    Zeros for a name of another form.
    """
    _, _, rest = source.partition("/")
    pid, _, rest = rest.partition("/")
    start = rest.partition("/")[0]
    return (int(pid), int(start)) if pid.isdecimal() and start.isdecimal() else (0, 0)


class Rivals:
    """Warns once of two engines that claim one process; the pipeline thread's.

    A claim counts when it stands for two looks: an engine that starts may not know its own
    processes yet. A scrape gives way by itself to whoever reports, and is told there.
    """

    def __init__(self) -> None:
        self._due_ns = 0
        self._seen: set[frozenset[str]] = set()
        self._told: set[frozenset[str]] = set()

    def look(self, reporters: Iterable[Reporter], now_ns: int) -> None:
        """Compare those who report, now and then."""
        if now_ns < self._due_ns:
            return
        self._due_ns = now_ns + _LOOK_NS
        seen: set[frozenset[str]] = set()
        for pid, engines in _owners(reporters, now_ns).items():
            for (one, one_scraped), (other, scraped) in combinations(engines, 2):
                pair = frozenset((one, other))
                if len(pair) == 2 and one_scraped == scraped:
                    seen.add(pair)
                    if pair in self._seen:
                        told = engines[one, one_scraped], engines[other, scraped]
                        self._tell(pair, pid, told)
        self._seen = seen

    def _tell(self, pair: frozenset[str], pid: int, engines: Sequence[EngineHealth]) -> None:
        if pair in self._told or len(self._told) >= _MOST_TOLD:
            return
        self._told.add(pair)
        coarse = [engine.engine for engine in engines if engine.coarse]
        off = f"what reports {coarse[0]}" if len(coarse) == 1 else "one of both"
        names = ", ".join(sorted(pair))
        mend = f"switch off {off}: their tokens may be booked twice"
        _LOG.warning(event("engine_reported_twice", engines=names, pid=pid, mend=mend))


def _owners(
    reporters: Iterable[Reporter], now_ns: int
) -> Mapping[int, Mapping[tuple[str, bool], EngineHealth]]:
    """The engines that claim each process, by their names and whether they are scraped."""
    owners: dict[int, dict[tuple[str, bool], EngineHealth]] = {}
    for source, health in reporters:
        if now_ns - health.last_ns < _FRESH_NS:
            for pid in health.pids:
                engines = owners.setdefault(pid, {})
                if len(engines) < _MOST_OWNERS:
                    engines[health.engine, is_scrape(source)] = health
    return owners
