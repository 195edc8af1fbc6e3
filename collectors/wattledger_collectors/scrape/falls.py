"""Whether a counter that fell belongs to a process that began anew. Pure.

Where that is neither certain nor likely, another process may have answered, with a history that
was booked long ago or is not ours: its value is where counting goes on, and nothing is booked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from wattledger_collectors.scrape.protocol import Kind, Series

NS_PER_S = 1_000_000_000
SMALL = 1_000.0
"""Tokens that any engine may have made by its first look."""

_SLACK_NS = NS_PER_S
_MOST_GAP_NS = 60 * NS_PER_S

Began = Callable[[], int | None]
"""When the process that answers began, CLOCK_MONOTONIC; None where nobody can tell."""


def nobody_knows() -> None:
    """A `Began` where there is nobody to ask."""
    return


def is_after(began_ns: int | None, looked_ns: int) -> bool:
    """Whether a process is known to have begun after a look, give or take what clocks round."""
    return began_ns is not None and began_ns > looked_ns - _SLACK_NS


class Pace:
    """How fast one engine's counters were seen to rise, by what they count."""

    def __init__(self) -> None:
        self._fastest: dict[Kind, list[float]] = {}

    def note(self, rises: Iterable[tuple[Series, float]], gap_ns: int) -> None:
        """What came between two looks."""
        most: dict[Kind, float] = {}
        for series, more in rises:
            most[series.kind] = max(most.get(series.kind, 0.0), more)
        for kind, more in most.items():
            fastest = self._fastest.setdefault(kind, [0.0, 0.0])
            fastest[:] = sorted((*fastest, more * NS_PER_S / gap_ns))[-2:]

    def most(self, kind: Kind, gap_ns: int) -> float:
        """As many as that time could have made, at the second highest pace seen.

        The highest may be a jump from one process's counters to another's.
        """
        per_s, _ = self._fastest.get(kind, (0.0, 0.0))
        return SMALL + per_s * gap_ns / NS_PER_S


class Doubts:
    """Remembers which counters fell for no certain reason: they may jump back as well."""

    def __init__(self) -> None:
        self._doubted: set[str] = set()

    def fallen(
        self, known: Mapping[Series, float], now: Mapping[Series, float], pace: Pace, gap_ns: int
    ) -> set[str]:
        """Epochs whose counters are not those of the last look."""
        return {
            series.epoch
            for series, value in now.items()
            if value < known.get(series, 0.0) or self._jumps(series, value, known, pace, gap_ns)
        }

    def anew(
        self,
        fallen: set[str],
        now: Mapping[Series, float],
        pace: Pace,
        gap_ns: int,
        *,
        certain: bool,
    ) -> set[str]:
        """Those of them that began at 0, for `certain` or likely; the others are doubted."""
        if certain:
            found = set(fallen)
        else:
            gap_ns = min(gap_ns, _MOST_GAP_NS)
            large = {s.epoch for s, value in now.items() if value > pace.most(s.kind, gap_ns)}
            found = fallen - large
        self._doubted = (self._doubted | fallen) - found
        return found

    def _jumps(
        self,
        series: Series,
        value: float,
        known: Mapping[Series, float],
        pace: Pace,
        gap_ns: int,
    ) -> bool:
        more = value - known.get(series, 0.0)
        return series.epoch in self._doubted and more > pace.most(series.kind, gap_ns)
