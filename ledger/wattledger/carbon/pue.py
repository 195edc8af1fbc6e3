"""Power usage effectiveness: facility energy over IT energy (ISO/IEC 30134-2), as a step series."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from wattledger.errors import DataMissingError, InputError
from wattledger.timespan import format_instant


def _check(pue: float, where: str) -> None:
    if not 1.0 <= pue < math.inf:
        raise InputError(f"{where} {pue}: a PUE is a number of 1 or more")


@dataclass(frozen=True, slots=True)
class PuePoint:
    """The PUE of [start_ns, end_ns), UTC nanoseconds; below 1 raises `InputError`."""

    start_ns: int
    end_ns: int
    pue: float
    source: str = ""

    def __post_init__(self) -> None:
        if self.start_ns >= self.end_ns:
            raise InputError(f"PUE from {format_instant(self.start_ns)}: its end must be later")
        _check(self.pue, f"PUE from {format_instant(self.start_ns)}")


class PueSource(Protocol):
    """What can say the PUE of a stretch of time."""

    def segments(self, start_ns: int, end_ns: int) -> Sequence[PuePoint]:
        """Steps that cover [start_ns, end_ns), ascending; `DataMissingError` if it cannot."""


@dataclass(frozen=True, slots=True)
class ConstantPue:
    """One PUE for all time; `InputError` below 1."""

    pue: float
    source: str = "--pue"

    def __post_init__(self) -> None:
        _check(self.pue, self.source)

    def segments(self, start_ns: int, end_ns: int) -> tuple[PuePoint, ...]:
        """The one step that covers the stretch."""
        return (PuePoint(start_ns, end_ns, self.pue, self.source),)


ASSUMED_PUE = ConstantPue(1.0, "assumed: IT energy only")


class PueSeries:
    """A PUE that changes over time."""

    def __init__(self, points: Iterable[PuePoint], *, source: str) -> None:
        """Sort the points; raises `InputError` where two overlap."""
        self._points = tuple(
            replace(point, source=point.source or source)
            for point in sorted(points, key=lambda point: point.start_ns)
        )
        self._source = source
        for earlier, later in zip(self._points, self._points[1:], strict=False):
            if later.start_ns < earlier.end_ns:
                raise InputError(
                    f"{source}: two PUEs overlap at {format_instant(later.start_ns)}: keep one"
                )

    def segments(self, start_ns: int, end_ns: int) -> tuple[PuePoint, ...]:
        """The steps within the stretch; raises `DataMissingError` where it has no PUE."""
        found: list[PuePoint] = []
        reached_ns = start_ns
        for point in self._points:
            until_ns = min(point.end_ns, end_ns)
            if point.start_ns <= reached_ns < until_ns:
                found.append(replace(point, start_ns=reached_ns, end_ns=until_ns))
                reached_ns = until_ns
        if reached_ns < end_ns:
            raise DataMissingError(
                f"{self._source} has no PUE at {format_instant(reached_ns)}: add it, or give --pue"
            )
        return tuple(found)
