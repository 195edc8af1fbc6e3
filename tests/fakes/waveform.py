"""Power over time that is known exactly, and what an instrument shows of it.

Times are integer microseconds, power is milliwatts, energy nanojoules: the integrals of square
waves and steps are whole numbers. None of this shares a line with what it is to judge.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Protocol

US_PER_S = 1_000_000
_RAPL_COUNTS = 1 << 32


class Wave(Protocol):
    """Power over time, told by its integral."""

    def energy_nj(self, t_us: int) -> int:
        """Energy spent in [0, t_us); negative before 0."""


@dataclass(frozen=True, slots=True)
class Square:
    """High for `high_us` of every `period_us`; constant where both powers are the same."""

    low_mw: int
    high_mw: int
    period_us: int
    high_us: int
    phase_us: int = 0

    def energy_nj(self, t_us: int) -> int:
        return self._spent(t_us + self.phase_us) - self._spent(self.phase_us)

    def _spent(self, u_us: int) -> int:
        cycles, rest_us = divmod(u_us, self.period_us)
        high_us = cycles * self.high_us + min(rest_us, self.high_us)
        return high_us * self.high_mw + (u_us - high_us) * self.low_mw


@dataclass(frozen=True, slots=True)
class Ramp:
    """Rises evenly from low to high over every period, then falls at once."""

    low_mw: int
    high_mw: int
    period_us: int

    def energy_nj(self, t_us: int) -> int:
        cycles, rest_us = divmod(t_us, self.period_us)
        rise_mw = self.high_mw - self.low_mw
        ramps = cycles * self.period_us**2 + rest_us**2
        return self.low_mw * t_us + rise_mw * ramps // (2 * self.period_us)


class Steps:
    """Power from each point on; nothing before the first."""

    def __init__(self, points: list[tuple[int, int]]) -> None:
        self._at_us = [t_us for t_us, _ in points]
        self._power_mw = [power_mw for _, power_mw in points]
        spent = ((end - t) * power for (t, power), (end, _) in pairwise(points))
        self._before_nj = list(accumulate(spent, initial=0))

    def energy_nj(self, t_us: int) -> int:
        index = bisect_right(self._at_us, t_us) - 1
        if index < 0:
            return 0
        return self._before_nj[index] + (t_us - self._at_us[index]) * self._power_mw[index]


def constant(power_w: int) -> Square:
    return Square(power_w * 1000, power_w * 1000, US_PER_S, US_PER_S)


def square(period_us: int, low_w: int = 70, high_w: int = 600) -> Square:
    """Half of the time high; one that keeps step with a refresh is high in the 25 ms before it."""
    return Square(low_w * 1000, high_w * 1000, period_us, period_us // 2, phase_us=40_001)


# ------------------------------------------------------------------------- instruments


@dataclass(frozen=True, slots=True)
class EnergyRegister:
    """An NVML counter: millijoules since the last reset, taken anew every `refresh_us`.

    `lag_us` is how old the energy is when it appears.
    """

    wave: Wave
    refresh_us: int = 100_000
    lag_us: int = 0
    resets_us: tuple[int, ...] = ()
    start_mj: int = 4_000_000_000

    def show(self, t_us: int) -> int:
        seen_us = t_us - t_us % self.refresh_us - self.lag_us
        since = bisect_right(self.resets_us, seen_us)
        if not since:
            return self.start_mj + self.wave.energy_nj(seen_us) // 1_000_000
        spent_nj = self.wave.energy_nj(seen_us) - self.wave.energy_nj(self.resets_us[since - 1])
        return spent_nj // 1_000_000


@dataclass(frozen=True, slots=True)
class PowerRegister:
    """A gauge in milliwatts: the mean of the last `window_us`, taken anew every `refresh_us`.

    A window of a quarter of the refresh period is what A100 and H100 have (arXiv 2312.02741);
    one of the whole period misses nothing.
    """

    wave: Wave
    refresh_us: int = 100_000
    window_us: int = 25_000

    def show(self, t_us: int) -> int:
        end_us = t_us - t_us % self.refresh_us
        spent_nj = self.wave.energy_nj(end_us) - self.wave.energy_nj(end_us - self.window_us)
        return spent_nj // self.window_us


@dataclass(frozen=True, slots=True)
class RaplRegister:
    """A powercap counter in microjoules: 32 bits of the processor's units, as the kernel tells.

    Source: drivers/powercap/intel_rapl_common.c (the range is 0xffffffff units).
    """

    wave: Wave
    unit_nj: int
    start_counts: int = _RAPL_COUNTS - 100_000_000

    @property
    def range_uj(self) -> int:
        return (_RAPL_COUNTS - 1) * self.unit_nj // 1000

    def show(self, t_us: int) -> int:
        counts = self.start_counts + self.wave.energy_nj(t_us) // self.unit_nj
        return counts % _RAPL_COUNTS * self.unit_nj // 1000


# ----------------------------------------------------------------------------- sampler


@dataclass(frozen=True, slots=True)
class Sampler:
    """Polls on absolute deadlines, a little late, now and then a lot, and not during stalls.

    A stall of `stall_us` begins 37 s into every `every_us`; None: there are none.
    """

    period_us: int = 100_000
    stall_us: int | None = None
    every_us: int = 100 * US_PER_S
    seed: int = 7

    def polls(self, length_us: int) -> Iterator[int]:
        chance = random.Random(self.seed)
        deadline_us = 0
        while deadline_us <= length_us:
            late_us = chance.randrange(3_000) if chance.random() < 0.99 else 60_000
            t_us = self._after_stall(deadline_us + late_us)
            yield t_us
            deadline_us = max(deadline_us, t_us - t_us % self.period_us) + self.period_us

    def _after_stall(self, t_us: int) -> int:
        if self.stall_us is None:
            return t_us
        since_us = t_us % self.every_us - 37 * US_PER_S
        return t_us - since_us + self.stall_us if 0 <= since_us < self.stall_us else t_us
