"""The host's two clocks, handed in wherever time matters."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from wattledger.errors import InputError
from wattledger.records import NS_PER_S, Clock

STEP_NS = NS_PER_S // 2
"""A wall clock this far from where it was expected has been stepped."""

LATEST_NS = 2**63 - 1 - 30 * 365 * 86_400 * NS_PER_S
"""What a wall clock can say at most: thirty years of uptime must then still fit into 64 bits.

Source: TIME_SETTOD_SEC_MAX in Linux's include/linux/time64.h.
"""

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


def believable(wall_ns: int, kept_ns: int) -> bool:
    """Whether a wall clock can be right, where the ledger has forgotten all before `kept_ns`."""
    return kept_ns <= wall_ns < LATEST_NS


def believed(clock: Clock, now_ns: int, kept_ns: int, last: tuple[Clock, int] | None) -> Clock:
    """`clock`, or one that goes on from the ledger's last page where it cannot be right.

    `last` is that page's clock and end. A host that boots in 1970 is put right by its network
    later; what it spends until then is booked late rather than never.

    Raises:
        InputError: it lies in no time that a ledger can hold, and there is no page to go on from.
    """
    wall_ns = clock.epoch_ns + now_ns
    if believable(wall_ns, kept_ns) or (last is None and wall_ns < LATEST_NS):
        return clock
    if last is None:
        raise InputError("the wall clock is beyond the year 2232: set it, then start again")
    before, end_ns = last
    same_boot = before.boot_id == clock.boot_id
    return replace(clock, epoch_ns=before.epoch_ns if same_boot else end_ns - now_ns)


def read_boot_id(proc_root: Path = Path("/proc")) -> str:
    """The kernel's id of this boot (random(4))."""
    return (proc_root / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
