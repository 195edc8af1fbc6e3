"""What a process and all its descendants cost: CPU time and memory, from /proc."""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU seconds so far, memory in MB (10^6 bytes), and counts.

    `rss_mb` counts pages that two processes of the tree share twice, `pss_mb` once (and a part of
    those that are shared with others).
    """

    cpu_s: float
    rss_mb: float
    pss_mb: float
    processes: int
    threads: int
    files: int


def cost_of(root: int) -> Cost:
    """The cost of the tree below `root`, itself included; CPU of children that ended counts."""
    pids = _tree(root)
    rolls = [_kilobytes(_PROC / str(pid) / "smaps_rollup") for pid in pids]
    stats = [stat for pid in pids if (stat := _stat(pid))]
    return Cost(
        cpu_s=sum(int(ticks) for stat in stats for ticks in stat[11:15]) / _TICKS_PER_S,
        rss_mb=sum(roll.get("Rss", 0) for roll in rolls) * 1024 / 1e6,
        pss_mb=sum(roll.get("Pss", 0) for roll in rolls) * 1024 / 1e6,
        processes=len(stats),
        threads=sum(int(stat[17]) for stat in stats),
        files=sum(_files(pid) for pid in pids),
    )


def _tree(root: int) -> list[int]:
    children: dict[int, list[int]] = defaultdict(list)
    for name in os.listdir(_PROC):  # noqa: PTH208 - half the price of iterdir
        if name.isdigit() and (stat := _stat(int(name))):
            children[int(stat[1])].append(int(name))
    found = [root]
    for pid in found:
        found += children[pid]
    return found


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the third on (proc_pid_stat(5)); empty where it ended."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return []
    return text.rpartition(")")[2].split()


def _kilobytes(path: Path) -> dict[str, int]:
    try:
        lines = path.read_text().splitlines()[1:]
    except (FileNotFoundError, ProcessLookupError):
        return {}
    return {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}


def _files(pid: int) -> int:
    try:
        return len(os.listdir(_PROC / str(pid) / "fd"))  # noqa: PTH208
    except (FileNotFoundError, ProcessLookupError):
        return 0
