"""A device's counter against its own power gauge, over the last minutes.

Both tell of the same energy, one by a running sum, one by samples: where their ratio is far from 1
one of them is wrong, and only the operator can say which (notes on hardware tell of such GPUs).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

from wattledger.records import NS_PER_S, CounterReading, PowerReading

SPAN_NS = 300 * NS_PER_S
LEAST_NS = 60 * NS_PER_S
_STEP_NS = 5 * NS_PER_S
_MAX_GAP_NS = 5 * NS_PER_S


class _Point(NamedTuple):
    """Where both stood: the gauge's integral at `power_ns`, the counter at `counter_ns`."""

    power_ns: int
    integral_uj: float
    counter_ns: int
    counter_uj: int


@dataclass(slots=True)
class CrossCheck:
    """Fed with each power reading and the counter reading before it.

    The gauge is integrated by the trapezoid rule. A gap, or a counter that falls, starts anew.
    """

    _points: deque[_Point] = field(default_factory=deque)
    _latest: _Point | None = None
    _power: PowerReading | None = None

    @property
    def ratio(self) -> float | None:
        """Mean power by the counter over mean power by the gauge; None before a minute of both."""
        if self._latest is None or not self._points:
            return None
        first, last = self._points[0], self._latest
        power_ns, counter_ns = last.power_ns - first.power_ns, last.counter_ns - first.counter_ns
        integral_uj = last.integral_uj - first.integral_uj
        if power_ns < LEAST_NS or counter_ns <= 0 or integral_uj <= 0.0:
            return None
        return ((last.counter_uj - first.counter_uj) / counter_ns) / (integral_uj / power_ns)

    def take(self, power: PowerReading, counter: CounterReading) -> None:
        """Take a power reading, and the latest counter reading."""
        before, latest = self._power, self._latest
        self._power = power
        if (
            before is None
            or latest is None
            or not 0 < power.t_ns - before.t_ns <= _MAX_GAP_NS
            or power.t_ns - counter.t_ns > _MAX_GAP_NS
            or counter.energy_uj < latest.counter_uj
        ):
            self._points.clear()
            self._latest = _Point(power.t_ns, 0.0, counter.t_ns, counter.energy_uj)
            self._points.append(self._latest)
            return
        mean_uw = (before.power_uw + power.power_uw) / 2
        integral_uj = latest.integral_uj + mean_uw * (power.t_ns - before.t_ns) / NS_PER_S
        self._latest = _Point(power.t_ns, integral_uj, counter.t_ns, counter.energy_uj)
        if power.t_ns - self._points[-1].power_ns >= _STEP_NS:
            self._points.append(self._latest)
            while len(self._points) > 1 and self._points[1].power_ns <= power.t_ns - SPAN_NS:
                self._points.popleft()
