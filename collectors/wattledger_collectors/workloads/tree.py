"""Which processes stand below another. Standard library alone: engines' hooks use it too."""

from __future__ import annotations

from pathlib import Path

_MOST = 4096


def descendants(root_pid: int, proc_root: Path = Path("/proc")) -> tuple[int, ...]:
    """A process and all that stand below it, ascending; () where it is gone.

    At most 4,096 of them. Source: /proc/PID/task/TID/children (proc(5), CONFIG_PROC_CHILDREN).
    """
    if not (proc_root / str(root_pid)).exists():
        return ()
    found: set[int] = set()
    waiting = [root_pid]
    while waiting and len(found) < _MOST:
        pid = waiting.pop()
        if pid not in found:
            found.add(pid)
            waiting += children(pid, proc_root)
    return tuple(sorted(found))


def children(pid: int, proc_root: Path = Path("/proc")) -> tuple[int, ...]:
    """The children of a process, of whichever of its threads; () where it is gone."""
    found: list[int] = []
    try:
        for thread in (proc_root / str(pid) / "task").iterdir():
            found += map(int, (thread / "children").read_text().split())
    except (OSError, ValueError):
        # Gone between two looks.
        pass
    return tuple(found)
