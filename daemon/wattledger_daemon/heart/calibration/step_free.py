"""Power while nothing was computed, from stretches that surely were step-free."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

from wattledger_daemon.heart.calibration.fit import Idle

_IDLE_LEAST_S = 6.0
_IDLE_MEMORY = 360


@dataclass(frozen=True, slots=True)
class StepFree:
    """Power while nothing was computed: the lowest that lasts, watts."""

    stretches: int = 0
    seconds: float = 0.0
    mean_w: float = 0.0
    spread: float = 0.0

    def plus(self, power_w: float, seconds: float) -> StepFree:
        """With one stretch more; one far lower begins anew, one far higher was no idling."""
        if not self.stretches or power_w < self.mean_w - self._slack_w:
            return StepFree(1, seconds, power_w)
        if power_w > self.mean_w + self._slack_w:
            return self
        stretches = min(self.stretches + 1, _IDLE_MEMORY)
        off_w = power_w - self.mean_w
        mean_w = self.mean_w + off_w / stretches
        spread = self.spread + (off_w * (power_w - mean_w) - self.spread) / stretches
        return StepFree(stretches, self.seconds + seconds, mean_w, spread)

    def beside(self, power_w: float) -> StepFree:
        """What stands beside time with steps at `power_w`: nothing where that was far lower."""
        return StepFree() if power_w < self.mean_w - self._slack_w else self

    @property
    def _slack_w(self) -> float:
        return 0.25 * self.mean_w + 1.0

    def idle(self) -> Idle | None:
        """As idle power to fix; None before it is known."""
        if self.seconds < _IDLE_LEAST_S:
            return None
        # Twice the error of a mean of independent stretches: neighbours are warm alike.
        error_w = 2.0 * 2.0 * sqrt(self.spread / self.stretches)
        return Idle(self.mean_w, error_w, "step-free")
