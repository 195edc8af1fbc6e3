"""Which processes hold a GPU open: those with a descriptor of a DRM node."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from wattledger.records import NS_PER_S

_NODES = ("/dev/dri/renderD", "/dev/dri/card")
_COMPUTE_NODE = "/dev/kfd"
_LOOKS_AT_MOST = 1000
_FIRST_WAIT_NS = 5 * NS_PER_S
_LONGEST_WAIT_NS = 80 * NS_PER_S

OpenFiles = Callable[[Path], Iterable[tuple[str, str]]]
"""The name and the target of every link in a `/proc/PID/fd` folder; raises OSError."""


def open_files(folder: Path) -> Iterator[tuple[str, str]]:
    """What a process holds open; raises OSError, PermissionError for one of somebody else's."""
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                # Of thousands of links: a Path for each would cost five times as much.
                yield entry.name, os.readlink(entry.path)  # noqa: PTH115
            except FileNotFoundError:
                continue


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that holds DRM nodes: the descriptors' names, and whether it computes by KFD."""

    pid: int
    descriptors: tuple[str, ...]
    computes: bool


@dataclass(slots=True)
class _Seen:
    """When to look at a process again, which is later and later; most never open a GPU."""

    inode: int
    due_ns: int = 0
    wait_ns: int = _FIRST_WAIT_NS
    refused: bool = False


@dataclass(slots=True)
class GpuHolders:
    """Looks for holders among all processes, at most 1,000 of them at a scan.

    A new process is looked at by the next scan, and again after 5, 10, 20, 40 s and then every
    80 s, since many load their engine long after their start; holders at every scan. `read`
    counts the looks into others' processes; `complete` tells that none is left to look into.
    """

    proc_root: Path
    look: OpenFiles = open_files
    own_pid: int = field(default_factory=os.getpid)
    holders: dict[int, Holder] = field(default_factory=dict)
    read: int = 0
    complete: bool = False
    _seen: dict[int, _Seen] = field(default_factory=dict)

    @property
    def hidden(self) -> int:
        """How many processes may not be looked into."""
        return sum(seen.refused for seen in self._seen.values())

    def scan(self, now_ns: int) -> None:
        """Look at what is new and what is due; raises OSError where there is no /proc."""
        present: dict[int, _Seen] = {}
        with os.scandir(self.proc_root) as entries:
            for entry in entries:
                if not entry.name.isdecimal():
                    continue
                pid, inode = int(entry.name), entry.inode()
                seen = self._seen.get(pid)
                if seen is None or seen.inode != inode:
                    seen = _Seen(inode)
                    self.holders.pop(pid, None)
                present[pid] = seen
        others = present.keys() - self.holders.keys()
        # What waits longest goes first, and what was never looked at before all else.
        due = sorted((present[pid].due_ns, pid) for pid in others if present[pid].due_ns <= now_ns)
        for pid in [*self.holders, *(pid for _, pid in due[:_LOOKS_AT_MOST])]:
            if pid in present:
                self._look(pid, present[pid], now_ns)
        for pid in self.holders.keys() - present.keys():
            del self.holders[pid]
        self._seen = present
        self.complete |= len(due) <= _LOOKS_AT_MOST

    def _look(self, pid: int, seen: _Seen, now_ns: int) -> None:
        # Spread by pid, lest all that a start of the daemon found fall due together.
        seen.due_ns = now_ns + seen.wait_ns + seen.wait_ns * (pid % 16) // 16
        seen.wait_ns = min(2 * seen.wait_ns, _LONGEST_WAIT_NS)
        self.holders.pop(pid, None)
        try:
            links = list(self.look(self.proc_root / str(pid) / "fd"))
        except PermissionError:
            seen.refused = True
            return
        except OSError:
            return
        seen.refused = False
        self.read += pid != self.own_pid
        nodes = tuple(sorted(name for name, target in links if target.startswith(_NODES)))
        if nodes:
            computes = any(target == _COMPUTE_NODE for _, target in links)
            self.holders[pid] = Holder(pid, nodes, computes)
