"""Which processes of this host are somebody's, and which control groups they live in."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wattledger_collectors.workloads.identity import cgroup, environment, look
from wattledger_collectors.workloads.rules import Rule, first_match


@dataclass(frozen=True, slots=True)
class Found:
    """What a scan met: processes that are somebody's, and where all new ones live.

    `cgroups` are texts of /proc/PID/cgroup, each once.
    """

    pids: tuple[int, ...]
    cgroups: frozenset[bytes]


class Discovery:
    """Finds processes whose environment names a workload or a job, or that a rule is about.

    A scan lists /proc and looks only into what is new: a folder's inode number tells a process
    from another one that was given its pid. Every process is looked into at two scans, since one
    that was met between fork and exec still shows its parent's environment, and stands in its
    parent's control group.
    """

    def __init__(self, proc_root: Path, rules: Sequence[Rule] = ()) -> None:
        self._proc_root = proc_root
        # A rule about groups alone is served by the groups' own counters.
        self._rules = tuple(rules) if any(not rule.of_groups for rule in rules) else ()
        self._settled: dict[int, int] = {}
        self._young: dict[int, int] = {}

    def scan(self) -> Found:
        """What was found since the last scan; raises OSError."""
        pids: list[int] = []
        cgroups: set[bytes] = set()
        settled: dict[int, int] = {}
        young: dict[int, int] = {}
        for pid, inode in self._new(settled):
            cgroups.add(cgroup(self._proc_root, pid))
            if self._is_somebodys(pid):
                settled[pid] = inode
                pids.append(pid)
            elif self._young.get(pid) == inode:
                settled[pid] = inode
            else:
                young[pid] = inode
        self._settled, self._young = settled, young
        return Found(tuple(pids), frozenset(cgroups))

    def _new(self, settled: dict[int, int]) -> list[tuple[int, int]]:
        """Pids and inode numbers still to be looked into; the others go into `settled`."""
        new: list[tuple[int, int]] = []
        known = self._settled.get
        with os.scandir(self._proc_root) as entries:
            for entry in entries:
                if not entry.name.isdecimal():
                    continue
                pid, inode = int(entry.name), entry.inode()
                if known(pid) == inode:
                    settled[pid] = inode
                else:
                    new.append((pid, inode))
        return new

    def _is_somebodys(self, pid: int) -> bool:
        declared = environment(self._proc_root, pid)
        if declared.declares or not self._rules:
            return declared.declares
        seen = look(self._proc_root, pid, declared)
        first = first_match(self._rules, seen.paths, seen.command, seen.uid)
        return first is not None and not first.of_groups
