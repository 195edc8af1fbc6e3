"""Rungs that a recorded series has for its own holes: interpolation, and the hour-of-day mean."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cached_property

from wattledger.carbon.intensity import (
    Basis,
    IntensityPoint,
    IntensitySource,
    Ladder,
    Signal,
    StepSeries,
    Tier,
)
from wattledger.records import NS_PER_S

HOUR_NS = 3600 * NS_PER_S
MAX_INTERPOLATED_NS = 2 * HOUR_NS


def with_fallback(
    series: StepSeries, annual: IntensitySource | None = None, *, interpolate: bool = False
) -> Ladder:
    """The whole ladder of accounting.md 4.8 over a recorded series of one zone."""
    rungs: list[IntensitySource] = [series]
    if interpolate:
        rungs.append(Interpolated(series))
    rungs.append(HourOfDayMean(series))
    if annual is not None:
        rungs.append(annual)
    return Ladder(rungs)


class Interpolated:
    """Gaps of at most two hours, on the line between the middles of the steps beside them.

    A gap is cut into steps as long as the one before it, so that the answer for any instant does
    not depend on the window that asks.
    """

    def __init__(self, series: StepSeries) -> None:
        """Look into the gaps of `series`."""
        self._series = series
        self.signal: Signal = series.signal
        self.basis: Basis = series.basis

    def segments(self, start_ns: int, end_ns: int) -> tuple[IntensityPoint, ...]:
        """Interpolated steps, clipped to the stretch; longer gaps stay open."""
        points = self._series.points
        near = self._series.overlapping(start_ns, end_ns)
        found: list[IntensityPoint] = []
        for index in range(max(near.start, 1), min(near.stop + 1, len(points))):
            for step in _bridge(points[index - 1], points[index]):
                if step.start_ns < end_ns and step.end_ns > start_ns:
                    found.append(step.clip(start_ns, end_ns))
        return tuple(found)


def _bridge(left: IntensityPoint, right: IntensityPoint) -> Iterator[IntensityPoint]:
    if right.start_ns - left.end_ns > MAX_INTERPOLATED_NS:
        return
    length_ns = left.end_ns - left.start_ns
    # Twice the middles, to stay in integers.
    left_mid, right_mid = left.start_ns + left.end_ns, right.start_ns + right.end_ns
    start_ns = left.end_ns
    while start_ns < right.start_ns:
        end_ns = min(start_ns + length_ns, right.start_ns)
        part = (start_ns + end_ns - left_mid) / (right_mid - left_mid)
        low, value, high = (
            math.fsum((a * (1.0 - part), b * part))
            for a, b in zip(left.range_gco2e_per_kwh, right.range_gco2e_per_kwh, strict=True)
        )
        yield IntensityPoint(
            start_ns,
            end_ns,
            value,
            Tier.INTERPOLATED,
            left.source,
            min(low, value),
            max(high, value),
        )
        start_ns = end_ns


class HourOfDayMean:
    """The time-weighted mean of the measured points of the same UTC hour, year and month."""

    def __init__(self, series: StepSeries) -> None:
        """Take the means of `series`."""
        self._series = series
        self.signal: Signal = series.signal
        self.basis: Basis = series.basis

    @cached_property
    def _means(self) -> dict[tuple[int, int, int], tuple[float, float, float]]:
        spans: dict[tuple[int, int, int], list[IntensityPoint]] = {}
        for point in self._series.points:
            if point.tier is Tier.MEASURED:
                for start_ns, end_ns in _hours(point.start_ns, point.end_ns):
                    spans.setdefault(_hour_key(start_ns), []).append(point.clip(start_ns, end_ns))
        return {key: _mean(points) for key, points in spans.items()}

    def segments(self, start_ns: int, end_ns: int) -> tuple[IntensityPoint, ...]:
        """One step per UTC hour that has a mean; the rest stays open."""
        found: list[IntensityPoint] = []
        for from_ns, to_ns in _hours(start_ns, end_ns):
            mean = self._means.get(_hour_key(from_ns))
            if mean is not None:
                low, value, high = mean
                found.append(
                    IntensityPoint(
                        from_ns, to_ns, value, Tier.HOUR_OF_DAY, self._series.source, low, high
                    )
                )
        return tuple(found)


def _hours(start_ns: int, end_ns: int) -> Iterator[tuple[int, int]]:
    while start_ns < end_ns:
        next_ns = min((start_ns // HOUR_NS + 1) * HOUR_NS, end_ns)
        yield start_ns, next_ns
        start_ns = next_ns


def _hour_key(t_ns: int) -> tuple[int, int, int]:
    moment = datetime.fromtimestamp(t_ns // NS_PER_S, UTC)
    return moment.year, moment.month, moment.hour


def _mean(points: list[IntensityPoint]) -> tuple[float, float, float]:
    lengths_ns = [point.end_ns - point.start_ns for point in points]
    low, value, high = (
        math.fsum(
            point.range_gco2e_per_kwh[column] * length_ns
            for point, length_ns in zip(points, lengths_ns, strict=True)
        )
        / sum(lengths_ns)
        for column in range(3)
    )
    return min(low, value), value, max(high, value)
