"""The few lines of /proc that sensors read. Source: proc(5)."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

OpenFile = Callable[[Path], int]
"""Opens a file for reading and returns its descriptor; raises OSError."""

STAT_BYTES = 2048
"""Enough for the first line of /proc/stat, and for all of /proc/PID/stat."""

_CPUINFO_BYTES = 8192
_STATM_BYTES = 256
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def open_readonly(path: Path) -> int:
    """Open `path` for reading; the descriptor is for `os.pread` and is not inherited."""
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


class MachineTicks(NamedTuple):
    """The machine's CPU time since boot, clock ticks over all CPUs."""

    busy: int
    all: int


class ProcessTicks(NamedTuple):
    """A process's start and its CPU time (user and system), clock ticks."""

    start: int
    cpu: int


def machine_ticks(stat: bytes) -> MachineTicks:
    """Read the first line of /proc/stat; raises ValueError where it is none.

    Guest time is already in user and nice. Waiting for I/O is idle; stolen time is busy.
    """
    label, *fields = stat.partition(b"\n")[0].split()
    if label != b"cpu":
        raise ValueError("/proc/stat does not start with a `cpu` line")
    user, nice, system, idle, iowait, irq, softirq, steal = (int(f) for f in fields[:8])
    busy = user + nice + system + irq + softirq + steal
    return MachineTicks(busy, busy + idle + iowait)


def process_ticks(stat: bytes) -> ProcessTicks:
    """Read /proc/PID/stat; raises ValueError or IndexError where it is none.

    The second field is the command in parentheses, which may itself hold parentheses, spaces
    and newlines.
    """
    fields = stat[stat.rindex(b")") + 1 :].split()
    return ProcessTicks(start=int(fields[19]), cpu=int(fields[11]) + int(fields[12]))


def resident_bytes(proc_root: Path, pid: int) -> int:
    """Resident memory of a process; raises OSError, ValueError or IndexError."""
    # Hundreds of these are read at once: a Path costs as much as the read.
    descriptor = os.open(f"{proc_root}/{pid}/statm", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return int(os.read(descriptor, _STATM_BYTES).split(None, 2)[1]) * _PAGE_BYTES
    finally:
        os.close(descriptor)


def memory_total_bytes(proc_root: Path) -> int:
    """The machine's memory; raises OSError, or ValueError without a MemTotal line."""
    for line in (proc_root / "meminfo").read_bytes().splitlines():
        label, _, rest = line.partition(b":")
        if label == b"MemTotal":
            return int(rest.split()[0]) * 1024
    raise ValueError(f"{proc_root / 'meminfo'} has no MemTotal line")


def cpu_model(proc_root: Path) -> str | None:
    """The first `model name` of /proc/cpuinfo; None where the architecture tells none."""
    try:
        with (proc_root / "cpuinfo").open("rb") as file:
            text = file.read(_CPUINFO_BYTES)
    except OSError:
        return None
    for line in text.decode(errors="replace").splitlines():
        label, _, value = line.partition(":")
        if label.strip() == "model name":
            return " ".join(value.split()) or None
    return None
