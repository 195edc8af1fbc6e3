"""Is a counter to be trusted? Its first seconds against the power that is told meanwhile."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from wattledger.records import NS_PER_S, CounterReading, PowerReading

_SHORTEST_NS = NS_PER_S // 2
_LONGEST_NS = 4 * NS_PER_S
_FEWEST = 5


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the counter is trusted; where it is not, `reason` says why."""

    trusted: bool
    reason: str = ""


class Trial:
    """Keeps a counter's first readings, and those of the power beside it, until they agree.

    Trusted is what rises by half to twice the integrated power over at least 0.5 s; refused what
    does not within 4 s. Where no power is told, a counter that moves is trusted. Either way the
    readings kept here are evidence: nothing is lost while the trial lasts.
    """

    def __init__(self) -> None:
        self.counters: list[CounterReading] = []
        self.powers: list[PowerReading] = []

    def verdict(self) -> Verdict | None:
        """What the readings so far say; None where it is too early."""
        if len(self.counters) < 2:
            return None
        first, last = self.counters[0], self.counters[-1]
        elapsed_ns = last.t_ns - first.t_ns
        late = elapsed_ns >= _LONGEST_NS
        if not late and (elapsed_ns < _SHORTEST_NS or len(self.counters) < _FEWEST):
            return None
        rise_uj, integral_uj = last.energy_uj - first.energy_uj, self._integral_uj()
        if integral_uj <= 0:
            agreed = rise_uj > 0
        else:
            agreed = integral_uj <= 2 * rise_uj and rise_uj <= 2 * integral_uj
        if agreed:
            return Verdict(trusted=True)
        return Verdict(trusted=False, reason=_reason(rise_uj, integral_uj)) if late else None

    def _integral_uj(self) -> int:
        """The energy under the power readings, by trapezoids."""
        area = sum(
            (before.power_uw + after.power_uw) * (after.t_ns - before.t_ns)
            for before, after in pairwise(self.powers)
        )
        return area // (2 * NS_PER_S)


def _reason(rise_uj: int, integral_uj: int) -> str:
    if rise_uj == 0:
        return "its counter does not move"
    if rise_uj < 0:
        return "its counter fell"
    return f"its counter tells {rise_uj / integral_uj:.2g} times the integrated power"
