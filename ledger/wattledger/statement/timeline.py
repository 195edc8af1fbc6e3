"""The window cut wherever a price, a lifetime or a calendar period changes."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from wattledger.carbon.intensity import IntensityPoint, Tier
from wattledger.carbon.operational import refine
from wattledger.carbon.pue import PuePoint
from wattledger.statement.query import UsageQuery
from wattledger.timespan import period_edges, period_label


@dataclass(frozen=True, slots=True)
class Price:
    """What a kWh cost in an interval: PUE, and low, central and high gCO2e/kWh."""

    pue: float = 1.0
    low_gco2e_per_kwh: float = 0.0
    intensity_gco2e_per_kwh: float = 0.0
    high_gco2e_per_kwh: float = 0.0
    tier: Tier | None = None
    source: str = ""


FREE = Price()


@dataclass(frozen=True, slots=True)
class Interval:
    """A stretch with one price; `labels` names the local periods that hold it."""

    start_ns: int
    end_ns: int
    price: Price = FREE
    labels: Mapping[str, str] = field(default_factory=dict)


class Timeline:
    """Intervals that cover a window, ascending."""

    def __init__(self, intervals: Sequence[Interval]) -> None:
        """Take ascending intervals without holes between them."""
        self._starts = [interval.start_ns for interval in intervals]
        self._intervals = tuple(intervals)

    @property
    def edges_ns(self) -> tuple[int, ...]:
        """Every start, and the end of the last."""
        return (*self._starts, self._intervals[-1].end_ns)

    def at(self, t_ns: int) -> Interval:
        """The interval that holds `t_ns`."""
        return self._intervals[bisect.bisect_right(self._starts, t_ns) - 1]


def free_timeline(query: UsageQuery) -> Timeline:
    """The window cut at calendar periods only, for statements without carbon."""
    return priced_timeline(query, (), (), ())


def priced_timeline(
    query: UsageQuery,
    intensities: Sequence[IntensityPoint],
    pues: Sequence[PuePoint],
    other_edges_ns: Iterable[int],
) -> Timeline:
    """The common refinement of window, intensity, PUE, periods and `other_edges_ns`."""
    window = query.window
    edges_ns = refine(
        window.start_ns,
        window.end_ns,
        (point.start_ns for point in intensities),
        (point.start_ns for point in pues),
        other_edges_ns,
        *(period_edges(window, period, query.tz) for period in query.periods),
    )
    intensity_starts = [point.start_ns for point in intensities]
    pue_starts = [point.start_ns for point in pues]

    def price(t_ns: int) -> Price:
        if not intensities:
            return FREE
        point = intensities[bisect.bisect_right(intensity_starts, t_ns) - 1]
        pue = pues[bisect.bisect_right(pue_starts, t_ns) - 1].pue
        return Price(pue, *point.range_gco2e_per_kwh, point.tier, point.source)

    return Timeline(
        [
            Interval(
                start_ns,
                end_ns,
                price(start_ns),
                {
                    period.value: period_label(start_ns, period, query.tz)
                    for period in query.periods
                },
            )
            for start_ns, end_ns in itertools.pairwise(edges_ns)
        ]
    )
