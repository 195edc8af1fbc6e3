"""Level 2: an engine's energy on one device among its steps.

A step's part is spread over the engine's busy time, cut at step edges; the steps alive in a
piece share it by weight / duration. Source: accounting.md section 3, vectors V3 to V7. Where the
cost model is calibrated, dynamic energy lies within a cell by that cost (decisions/0008).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(slots=True)
class Quantities:
    """Static and dynamic energy (uJ) and device time (ns), before rounding."""

    static_uj: float = 0.0
    dynamic_uj: float = 0.0
    device_ns: float = 0.0

    def add(self, other: Quantities, share: float) -> None:
        """Add `share` of `other`."""
        self.static_uj += other.static_uj * share
        self.dynamic_uj += other.dynamic_uj * share
        self.device_ns += other.device_ns * share


class Parts:
    """Quantities by index of step, in columns."""

    __slots__ = ("device_ns", "dynamic_uj", "static_uj")

    def __init__(self, count: int) -> None:
        self.static_uj = [0.0] * count
        self.dynamic_uj = [0.0] * count
        self.device_ns = [0.0] * count

    @property
    def columns(self) -> tuple[list[float], list[float], list[float]]:
        """Static energy, dynamic energy and time."""
        return self.static_uj, self.dynamic_uj, self.device_ns


class Weighed(NamedTuple):
    """A step's extent, its cost by the model, and in how many phases it is booked, at least 1.

    `of_pass` is its part of what a forward pass costs by itself: 1 but for one told several times.
    """

    start_ns: int
    end_ns: int
    weight_j: float
    phases: int
    of_pass: float = 1.0


@dataclass(frozen=True, slots=True)
class BusyPiece:
    """A stretch in which the same steps are alive; shares by index of step, summing to 1.

    `density` is how much of a cell's dynamic energy a nanosecond takes, to those beside it.
    """

    start_ns: int
    end_ns: int
    shares: tuple[tuple[int, float], ...]
    density: float = 1.0


class BusyTime:
    """An engine's busy time within a window, cut at step edges.

    Built once per engine and window, then asked by every cell of every device. `by_cost` spreads
    a cell's dynamic energy by the steps' cost, which must be in this engine's own joules.
    """

    def __init__(
        self, steps: Sequence[Weighed], start_ns: int, end_ns: int, *, by_cost: bool = False
    ) -> None:
        self._count = len(steps)
        self._pieces = _pieces(steps, start_ns, end_ns, by_cost=by_cost)
        self._ends_ns = [piece.end_ns for piece in self._pieces]

    @property
    def is_busy(self) -> bool:
        """Whether any step takes any time in the window."""
        return bool(self._pieces)

    def parts(self) -> Parts:
        """Nothing yet, for every step."""
        return Parts(self._count)

    def split(
        self, extent: tuple[int, int], part: Quantities, parts: Parts, *, static_known: bool
    ) -> Quantities:
        """Add the steps' share of an engine's `part` of a cell to `parts`; returns what is idle.

        With B the busy part of the cell: static and time go by B, dynamic wholly to the
        steps if there is any. Where idle power is unknown dynamic goes by B as well.
        """
        start_ns, end_ns = extent
        live = list(self._within(start_ns, end_ns)) if self._pieces else []
        if not live:
            return part
        busy_ns = sum(length for length, _, _ in live)
        weight = sum(length * density for length, _, density in live)
        busy_share = busy_ns / (end_ns - start_ns)
        static_uj = part.static_uj * busy_share
        dynamic_uj = part.dynamic_uj * (1.0 if static_known else busy_share)
        device_ns = part.device_ns * busy_share
        of_static, of_dynamic, of_time = parts.columns
        for length_ns, shares, density in live:
            by_time = length_ns / busy_ns
            by_cost = length_ns * density / weight if weight else by_time
            for index, share in shares:
                of_static[index] += static_uj * share * by_time
                of_dynamic[index] += dynamic_uj * share * by_cost
                of_time[index] += device_ns * share * by_time
        return Quantities(
            part.static_uj - static_uj, part.dynamic_uj - dynamic_uj, part.device_ns - device_ns
        )

    def _within(
        self, start_ns: int, end_ns: int
    ) -> Iterator[tuple[int, tuple[tuple[int, float], ...], float]]:
        """Lengths, shares and densities of the pieces of a stretch."""
        for at in range(bisect_right(self._ends_ns, start_ns), len(self._pieces)):
            piece = self._pieces[at]
            if piece.start_ns >= end_ns:
                return
            length_ns = min(piece.end_ns, end_ns) - max(piece.start_ns, start_ns)
            yield length_ns, piece.shares, piece.density


def _pieces(
    steps: Sequence[Weighed], start_ns: int, end_ns: int, *, by_cost: bool
) -> list[BusyPiece]:
    """The union of the steps within the window, cut at their edges."""
    spans = [
        (max(step.start_ns, start_ns), min(step.end_ns, end_ns), index)
        for index, step in enumerate(steps)
        if min(step.end_ns, end_ns) > max(step.start_ns, start_ns)
    ]
    edges = sorted({edge for low, high, _ in spans for edge in (low, high)})
    live: list[list[int]] = [[] for _ in edges]
    for low, high, index in spans:
        for position in range(bisect_left(edges, low), bisect_left(edges, high)):
            live[position].append(index)
    return [
        BusyPiece(
            edges[i],
            edges[i + 1],
            _live_shares(live[i], steps),
            sum(_rate(steps[index]) for index in live[i]) if by_cost else 1.0,
        )
        for i in range(len(edges) - 1)
        if live[i]
    ]


def _live_shares(live: list[int], steps: Sequence[Weighed]) -> tuple[tuple[int, float], ...]:
    if len(live) == 1:
        return ((live[0], 1.0),)
    rates = {index: _rate(steps[index]) for index in live}
    if not any(rates.values()):
        # Nothing to go by: every request's phase counts alike.
        rates = {index: float(steps[index].phases) for index in live}
    total = sum(rates.values())
    return tuple((index, rate / total) for index, rate in rates.items())


def _rate(step: Weighed) -> float:
    """What a step costs per nanosecond."""
    return step.weight_j / (step.end_ns - step.start_ns)
