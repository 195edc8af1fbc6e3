"""The host's two clocks, handed in wherever time matters."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from wattledger.records import NS_PER_S, Clock

STEP_NS = NS_PER_S // 2
"""A wall clock this far from where it was expected has been stepped."""

_PREEMPTED_NS = 10_000_000
_TRIES = 5


@dataclass(frozen=True, slots=True)
class HostTime:
    """CLOCK_MONOTONIC and CLOCK_REALTIME of this host, nanoseconds."""

    monotonic_ns: Callable[[], int] = time.monotonic_ns
    wall_ns: Callable[[], int] = time.time_ns

    def epoch_ns(self) -> int:
        """UTC at monotonic zero, now; a reading torn by preemption is taken again."""
        for _ in range(_TRIES):
            before_ns = self.monotonic_ns()
            wall_ns = self.wall_ns()
            after_ns = self.monotonic_ns()
            if after_ns - before_ns < _PREEMPTED_NS:
                break
        return wall_ns - (before_ns + after_ns) // 2


def stepped(clock: Clock, epoch_ns: int) -> bool:
    """Whether the wall clock has left `clock` since it was opened."""
    return abs(epoch_ns - clock.epoch_ns) > STEP_NS


def read_boot_id(proc_root: Path = Path("/proc")) -> str:
    """The kernel's id of this boot (random(4))."""
    return (proc_root / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
