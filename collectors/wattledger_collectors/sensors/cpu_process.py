"""One process whose CPU time and memory are followed."""

from __future__ import annotations

import os
from pathlib import Path

from wattledger_collectors.sensors.procfs import (
    STAT_BYTES,
    ProcessTicks,
    open_readonly,
    process_ticks,
    resident_bytes,
)

UNREADABLE = (OSError, ValueError, IndexError)
"""What reading a process that just ended, or garbage in its place, may raise."""


class TrackedProcess:
    """One process; its kept descriptor answers ESRCH once it is gone, even if its pid lives on.

    `group` is the path of its control group, as last looked at: it may be moved, and mostly is
    within its first seconds; `settled` says that it was looked at twice.
    """

    __slots__ = (
        "_cpu_ticks",
        "_descriptor",
        "_path",
        "_proc_root",
        "group",
        "pid",
        "settled",
        "start",
    )

    def __init__(self, proc_root: Path, pid: int, keep: bool) -> None:
        self.pid = pid
        self.group: str | None = None
        self.settled = False
        self._proc_root = proc_root
        self._path = f"{proc_root}/{pid}/stat"
        self._descriptor = open_readonly(Path(self._path)) if keep else None
        try:
            self.start, self._cpu_ticks = self._read()
        except UNREADABLE:
            self.close()
            raise

    @property
    def kept(self) -> bool:
        """Whether its file is kept open."""
        return self._descriptor is not None

    def count_from_birth(self) -> None:
        """Have `spent_ticks` tell next of all that it ever spent."""
        self._cpu_ticks = 0

    def spent_ticks(self) -> int | None:
        """CPU time since the last call, clock ticks; None for a process that is gone."""
        try:
            start, cpu_ticks = self._read()
        except UNREADABLE:
            return None
        if start != self.start:
            return None
        spent, self._cpu_ticks = cpu_ticks - self._cpu_ticks, cpu_ticks
        return max(spent, 0)

    def memory_bytes(self) -> int | None:
        """Resident memory; None for a process that is gone."""
        try:
            return resident_bytes(self._proc_root, self.pid)
        except UNREADABLE:
            return None

    def close(self) -> None:
        """Close the kept file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _read(self) -> ProcessTicks:
        if self._descriptor is not None:
            return process_ticks(os.pread(self._descriptor, STAT_BYTES, 0))
        descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return process_ticks(os.read(descriptor, STAT_BYTES))
        finally:
            os.close(descriptor)
