"""Level 2: an engine's energy on one device among its steps.

A step's part is spread over the engine's busy time, cut at step edges; the steps alive in a
piece share it by weight / duration. Source: accounting.md section 3, vectors V3 to V7.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from wattledger.records import CostModel, Step
from wattledger_daemon.heart.attribution.cost import phase_weights, step_weight_j


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


@dataclass(frozen=True, slots=True)
class BusyPiece:
    """A stretch in which the same steps are alive; shares by index of step, summing to 1."""

    start_ns: int
    end_ns: int
    shares: tuple[tuple[int, float], ...]


class BusyTime:
    """An engine's busy time within a window, cut at step edges.

    Built once per engine and window, then asked by every cell of every device.
    """

    def __init__(self, steps: Sequence[Step], cost: CostModel, start_ns: int, end_ns: int) -> None:
        self.steps = steps
        self._pieces = _pieces(steps, cost, start_ns, end_ns)
        self._ends_ns = [piece.end_ns for piece in self._pieces]

    @property
    def is_busy(self) -> bool:
        """Whether any step takes any time in the window."""
        return bool(self._pieces)

    def split(
        self, start_ns: int, end_ns: int, part: Quantities, *, static_known: bool
    ) -> tuple[dict[int, Quantities], Quantities]:
        """Split the engine's `part` of a cell into (per index of step, engine idle).

        With B the busy part of the cell: static and time go by B, dynamic wholly to the
        steps if there is any. Where idle power is unknown dynamic goes by B as well.
        """
        live = self._within(start_ns, end_ns) if self._pieces else []
        if not live:
            return {}, part
        busy_ns = sum(high - low for low, high, _ in live)
        idle = Quantities()
        busy_share = busy_ns / (end_ns - start_ns)
        work = Quantities(
            part.static_uj * busy_share,
            part.dynamic_uj * (1.0 if static_known else busy_share),
            part.device_ns * busy_share,
        )
        idle.add(part, 1.0)
        idle.add(work, -1.0)
        by_step: dict[int, Quantities] = {}
        for low_ns, high_ns, piece in live:
            for index, share in piece.shares:
                taken = by_step.setdefault(index, Quantities())
                taken.add(work, share * (high_ns - low_ns) / busy_ns)
        return by_step, idle

    def _within(self, start_ns: int, end_ns: int) -> list[tuple[int, int, BusyPiece]]:
        found = []
        for piece in self._pieces[bisect_right(self._ends_ns, start_ns) :]:
            if piece.start_ns >= end_ns:
                break
            found.append((max(piece.start_ns, start_ns), min(piece.end_ns, end_ns), piece))
        return found


def _pieces(steps: Sequence[Step], cost: CostModel, start_ns: int, end_ns: int) -> list[BusyPiece]:
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
        BusyPiece(edges[i], edges[i + 1], _live_shares(live[i], steps, cost))
        for i in range(len(edges) - 1)
        if live[i]
    ]


def _live_shares(
    live: list[int], steps: Sequence[Step], cost: CostModel
) -> tuple[tuple[int, float], ...]:
    if len(live) == 1:
        return ((live[0], 1.0),)
    rates = {
        index: step_weight_j(steps[index], cost) / (steps[index].end_ns - steps[index].start_ns)
        for index in live
    }
    if not any(rates.values()):
        # Nothing to go by: every request's phase counts alike.
        rates = {i: float(len(phase_weights(steps[i], cost)) or 1) for i in live}
    total = sum(rates.values())
    return tuple((index, rate / total) for index, rate in rates.items())
