"""Grid carbon intensity as a step function of time, in gCO2e per kWh.

A source answers for any stretch with points that say where each value came from. Sources stack in
a `Ladder`: what one rung does not know the next is asked for, and a stretch that nobody knows is
an error, never a world average (accounting.md, 4.7 and 4.8).
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Protocol

from wattledger.errors import DataMissingError, InputError
from wattledger.timespan import format_instant


class Tier(StrEnum):
    """How an intensity came to be known, from best to worst; `constant` was given by hand."""

    MEASURED = "measured"
    PROVIDER_ESTIMATED = "provider_estimated"
    INTERPOLATED = "interpolated"
    HOUR_OF_DAY = "hour_of_day"
    ANNUAL = "annual"
    LATEST_ANNUAL = "latest_annual"
    CONSTANT = "constant"


class Signal(StrEnum):
    """Whether an intensity is that of the average or of the marginal kWh; never mixed."""

    AVERAGE = "average"
    MARGINAL = "marginal"


class Basis(StrEnum):
    """Whether an intensity counts the stack alone or the whole life cycle; never mixed."""

    DIRECT = "direct"
    LIFECYCLE = "lifecycle"
    UNSPECIFIED = "unspecified"


@dataclass(frozen=True, slots=True)
class IntensityPoint:
    """One step of an intensity series in [start_ns, end_ns), UTC nanoseconds.

    Values in gCO2e/kWh; a bound that is None equals the central value. Raises `InputError` for an
    empty step, a negative or infinite value, or bounds that do not hold it.
    """

    start_ns: int
    end_ns: int
    intensity_gco2e_per_kwh: float
    tier: Tier = Tier.MEASURED
    source: str = ""
    low_gco2e_per_kwh: float | None = None
    high_gco2e_per_kwh: float | None = None

    def __post_init__(self) -> None:
        low, value, high = self.range_gco2e_per_kwh
        if self.start_ns >= self.end_ns:
            raise InputError(
                f"intensity from {format_instant(self.start_ns)}: its end must be later"
            )
        if not (0.0 <= low <= value <= high < math.inf):
            raise InputError(
                f"intensity from {format_instant(self.start_ns)} is {value}: "
                "give gCO2e/kWh, zero or more, within its bounds"
            )

    @property
    def range_gco2e_per_kwh(self) -> tuple[float, float, float]:
        """Low, central and high value."""
        value = self.intensity_gco2e_per_kwh
        low, high = self.low_gco2e_per_kwh, self.high_gco2e_per_kwh
        return (value if low is None else low, value, value if high is None else high)

    def clip(self, start_ns: int, end_ns: int) -> IntensityPoint:
        """The same step within [start_ns, end_ns), which must overlap it."""
        return replace(self, start_ns=max(self.start_ns, start_ns), end_ns=min(self.end_ns, end_ns))


class IntensitySource(Protocol):
    """What can say the intensity of a stretch of time; one signal and one basis each."""

    @property
    def signal(self) -> Signal:
        """Average or marginal."""

    @property
    def basis(self) -> Basis:
        """Direct, lifecycle or unspecified."""

    def segments(self, start_ns: int, end_ns: int) -> Sequence[IntensityPoint]:
        """Steps within [start_ns, end_ns), ascending and disjoint.

        A rung of a `Ladder` may leave holes; `covering` refuses them.
        """


@dataclass(frozen=True, slots=True)
class ConstantIntensity:
    """One intensity for all time, given by hand; tier `constant`."""

    intensity_gco2e_per_kwh: float
    source: str = "--intensity"
    signal: Signal = Signal.AVERAGE
    basis: Basis = Basis.UNSPECIFIED

    def __post_init__(self) -> None:
        if not 0.0 <= self.intensity_gco2e_per_kwh < math.inf:
            raise InputError(
                f"{self.source} {self.intensity_gco2e_per_kwh}: give gCO2e/kWh, zero or more"
            )

    def segments(self, start_ns: int, end_ns: int) -> tuple[IntensityPoint, ...]:
        """The one step that covers the stretch."""
        value = self.intensity_gco2e_per_kwh
        return (IntensityPoint(start_ns, end_ns, value, Tier.CONSTANT, self.source),)


class StepSeries:
    """A recorded series; it may have holes, and what lies outside it is a hole too."""

    def __init__(
        self,
        points: Iterable[IntensityPoint],
        *,
        source: str,
        signal: Signal = Signal.AVERAGE,
        basis: Basis = Basis.UNSPECIFIED,
    ) -> None:
        """Sort the points and name their source; raises `InputError` where two overlap."""
        self.points = tuple(
            replace(point, source=point.source or source)
            for point in sorted(points, key=lambda point: point.start_ns)
        )
        self.signal, self.basis, self.source = signal, basis, source
        for earlier, later in zip(self.points, self.points[1:], strict=False):
            if later.start_ns < earlier.end_ns:
                raise InputError(
                    f"{source}: two intensities overlap at {format_instant(later.start_ns)}: "
                    "keep one of them"
                )
        self._ends = [point.end_ns for point in self.points]

    def overlapping(self, start_ns: int, end_ns: int) -> range:
        """Indices into `points` of the steps that overlap [start_ns, end_ns)."""
        first = bisect.bisect_right(self._ends, start_ns)
        last = first
        while last < len(self.points) and self.points[last].start_ns < end_ns:
            last += 1
        return range(first, last)

    def segments(self, start_ns: int, end_ns: int) -> tuple[IntensityPoint, ...]:
        """The recorded steps, clipped to the stretch."""
        return tuple(
            self.points[index].clip(start_ns, end_ns)
            for index in self.overlapping(start_ns, end_ns)
        )


class Ladder:
    """Sources asked in order, each for what those before it left open."""

    def __init__(self, rungs: Sequence[IntensitySource]) -> None:
        """Stack the rungs; raises `InputError` where their signal or basis differ."""
        bases = {rung.basis for rung in rungs} - {Basis.UNSPECIFIED}
        signals = {rung.signal for rung in rungs}
        if len(bases) > 1 or len(signals) != 1:
            raise InputError(
                "intensities of different signal or basis cannot fill each other's gaps: "
                f"found {', '.join(sorted(signals | bases))}; use series of one kind"
            )
        self.rungs = tuple(rungs)
        self.signal = rungs[0].signal
        self.basis = next(iter(bases), Basis.UNSPECIFIED)

    def segments(self, start_ns: int, end_ns: int) -> tuple[IntensityPoint, ...]:
        """Steps of the best rung that knows each part; may leave holes that no rung knows."""
        found: list[IntensityPoint] = []
        open_spans = [(start_ns, end_ns)]
        for rung in self.rungs:
            still_open: list[tuple[int, int]] = []
            for span in open_spans:
                points = rung.segments(*span)
                found.extend(points)
                still_open.extend(holes(points, *span))
            open_spans = still_open
        return tuple(sorted(found, key=lambda point: point.start_ns))


def holes(points: Sequence[IntensityPoint], start_ns: int, end_ns: int) -> list[tuple[int, int]]:
    """The parts of [start_ns, end_ns) that ascending `points` leave open."""
    found: list[tuple[int, int]] = []
    reached_ns = start_ns
    for point in points:
        if point.start_ns > reached_ns:
            found.append((reached_ns, point.start_ns))
        reached_ns = point.end_ns
    if reached_ns < end_ns:
        found.append((reached_ns, end_ns))
    return found


def covering(source: IntensitySource, start_ns: int, end_ns: int) -> Sequence[IntensityPoint]:
    """Steps that cover [start_ns, end_ns) without a hole; raises `DataMissingError` otherwise."""
    points = source.segments(start_ns, end_ns)
    missing = holes(points, start_ns, end_ns)
    if missing:
        first_ns, until_ns = missing[0]
        raise DataMissingError(
            f"no grid intensity is known from {format_instant(first_ns)} to "
            f"{format_instant(until_ns)}: import it with `wattledger grid import`, "
            "or give --zone or --intensity"
        )
    return points
