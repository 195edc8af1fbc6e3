"""Which processes of this host declare whose they are."""

from __future__ import annotations

import os
from pathlib import Path

from wattledger_collectors.workloads.identity import Identity, declared

_NOTHING = Identity(None, None)


class DeclaredProcesses:
    """Finds processes whose environment names a workload or a job, each once.

    A scan lists /proc and looks only into what is new: a folder's inode number tells a process
    from another one that was given its pid. Every process is looked into at two scans, since one
    that was met between fork and exec still shows its parent's environment.
    """

    def __init__(self, proc_root: Path) -> None:
        self._proc_root = proc_root
        self._settled: dict[int, int] = {}
        self._young: dict[int, int] = {}

    def scan(self) -> list[int]:
        """Pids found to declare themselves since the last scan; raises OSError."""
        found: list[int] = []
        settled: dict[int, int] = {}
        young: dict[int, int] = {}
        with os.scandir(self._proc_root) as entries:
            for entry in entries:
                if not entry.name.isdecimal():
                    continue
                pid, inode = int(entry.name), entry.inode()
                if self._settled.get(pid) == inode:
                    settled[pid] = inode
                elif declared(self._proc_root, pid) != _NOTHING:
                    settled[pid] = inode
                    found.append(pid)
                elif self._young.get(pid) == inode:
                    settled[pid] = inode
                else:
                    young[pid] = inode
        self._settled, self._young = settled, young
        return found
