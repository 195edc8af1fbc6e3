"""One GPU's energy counter: what of it can be believed."""

from __future__ import annotations

from wattledger.records import NS_PER_S
from wattledger_collectors.sensors.nvml_driver import NvmlError
from wattledger_collectors.sensors.nvml_power import HIGHEST_POWER_W

_UJ_PER_MJ = 1000
_SHORTEST_NS = NS_PER_S // 10
_NOTHING_YET = -1
_HIGHEST_MJ = HIGHEST_POWER_W * 1000 * 10 * 365 * 86_400
"""Ten years at the highest power: a first reading above it is nonsense."""

FREE_RISE_MJ = HIGHEST_POWER_W * 1000 * _SHORTEST_NS // NS_PER_S
"""A rise that is possible within any interval. A counter moves in steps of up to 100 ms, so two
reads a moment apart may see all of a step."""


class Track:
    """What a counter told so far, in its own millijoules, and when it last moved.

    A rise that is possible is told on. One that would have taken more than `HIGHEST_POWER_W`
    over the time since the counter last moved is refused, as is a fall to more than a reset
    counter can have gathered in that time. A counter that goes on from a refused reading has
    jumped for good: it is told from 0 on, which the books take for a reset and fill from power.
    """

    __slots__ = ("_suspect_mj", "_suspect_ns", "base_mj", "changed_ns", "mj")

    def __init__(self) -> None:
        self.mj = _NOTHING_YET
        self.base_mj = 0
        self.changed_ns = 0
        self._suspect_mj: int | None = None
        self._suspect_ns = 0

    def take(self, mj: int, t_ns: int) -> int:
        """The energy to tell, microjoules; raises `NvmlError` where it cannot be believed."""
        if self.mj == _NOTHING_YET:
            believed = 0 <= mj <= _HIGHEST_MJ
        elif mj < self.mj:
            believed = mj <= _limit_mj(t_ns - self.changed_ns)
        else:
            believed = mj - self.mj <= _limit_mj(t_ns - self.changed_ns)
        if not believed:
            self._doubt(mj, t_ns)
        elif mj < self.mj:
            self.base_mj = 0
        if mj != self.mj:
            self.mj, self.changed_ns = mj, t_ns
        self._suspect_mj = None
        return (mj - self.base_mj) * _UJ_PER_MJ

    def _doubt(self, mj: int, t_ns: int) -> None:
        """Refuse a reading, unless it goes on from one that was refused before."""
        suspect_mj, suspect_ns = self._suspect_mj, self._suspect_ns
        if suspect_mj is not None and 0 < mj - suspect_mj <= _limit_mj(t_ns - suspect_ns):
            self.base_mj = mj
            return
        if mj != suspect_mj:
            self._suspect_mj, self._suspect_ns = (mj if mj <= _HIGHEST_MJ else None), t_ns
        before = "nothing" if self.mj == _NOTHING_YET else f"{self.mj / 1000:g} J"
        raise NvmlError(
            f"the energy counter tells {mj / 1000:g} J after {before}: "
            f"more than {HIGHEST_POWER_W // 1000} kW, which no GPU draws"
        )


def _limit_mj(elapsed_ns: int) -> int:
    """What a GPU can have drawn in that time, at the very most."""
    return HIGHEST_POWER_W * 1000 * max(elapsed_ns, _SHORTEST_NS) // NS_PER_S
