"""What the host itself lets anybody see: processes, control groups, device nodes, its clock."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from wattledger_cli.examine import Finding, State, closed_to_us

_TIME_ERROR = 5
_STA_UNSYNC = 0x40
_HIDING = {"1", "2", "4", "noaccess", "invisible", "ptraceable"}


def examine_host(
    root: Path = Path("/"), synchronized: Callable[[], bool | None] | None = None
) -> Iterator[Finding]:
    """One finding per thing that attribution leans on, as this user sees it."""
    yield _processes(root)
    yield _groups(root)
    if nvidia := _nvidia(root):
        yield nvidia
    yield _clock((synchronized or clock_synchronized)())


def _processes(root: Path) -> Finding:
    """Whether other users' processes can be seen. Source: proc(5), mount options."""
    try:
        mounts = (root / "proc/self/mounts").read_text(errors="replace").splitlines()
    except OSError as error:
        detail = f"/proc cannot be read, {error.strerror}: nothing can be told of processes"
        return Finding("host", "processes", State.FAILING, detail, "mount /proc")
    options = [
        fields[3].split(",")
        for line in mounts
        if (fields := line.split())[1:3] == ["/proc", "proc"]
    ]
    hides = [o for o in (options[-1] if options else []) if o.partition("=")[0] == "hidepid"]
    if hides and hides[-1].partition("=")[2] in _HIDING and os.geteuid() != 0:
        detail = f"/proc is mounted with {hides[-1]}: other users' processes cannot be seen"
        mend = "run wattledgerd as root, or sudo mount -o remount,hidepid=0 /proc"
        return Finding("host", "processes", State.DENIED, detail, mend)
    return Finding("host", "processes", State.READY, "all processes can be seen")


def _groups(root: Path) -> Finding:
    """Whether control groups tell of CPU time. Source: the kernel's cgroup-v2.rst."""
    folder = root / "sys/fs/cgroup"
    unified = folder / "cgroup.controllers"
    legacy = [folder / "cpuacct", folder / "cpu,cpuacct", folder / "cpu"]
    what = unified if unified.exists() else next((f for f in legacy if f.exists()), None)
    if what is None:
        detail = "no control groups here: CPU time is told per process alone"
        return Finding("host", "control groups", State.ABSENT, detail)
    if mend := closed_to_us(what):
        detail = f"{what} is closed to this user: CPU time is told per process alone"
        return Finding("host", "control groups", State.DENIED, detail, mend)
    kind = "version 2" if what == unified else "version 1"
    return Finding("host", "control groups", State.READY, f"{kind}, {folder}")


def _nvidia(root: Path) -> Finding | None:
    """Whether the device nodes that NVML opens are there and ours; None without the driver."""
    driver, control = root / "proc/driver/nvidia/version", root / "dev/nvidiactl"
    if not driver.exists() and not control.exists():
        return None
    nodes = [control, *sorted((root / "dev").glob("nvidia[0-9]*"))]
    if not control.exists() or len(nodes) == 1:
        missing = control if not control.exists() else root / "dev/nvidia0"
        detail = f"the driver is loaded and {missing} is not there"
        mend = "sudo nvidia-modprobe -c 0; in a container give it the GPUs"
        return Finding("host", "NVIDIA nodes", State.FAILING, detail, mend)
    for node in nodes:
        if not os.access(node, os.R_OK | os.W_OK):
            mend = closed_to_us(node) or "ask for read and write access"
            detail = f"{node} is closed to this user"
            return Finding("host", "NVIDIA nodes", State.DENIED, detail, mend)
    detail = f"{len(nodes) - 1} GPU nodes in {root / 'dev'}"
    return Finding("host", "NVIDIA nodes", State.READY, detail)


def _clock(synchronized: bool | None) -> Finding:
    if synchronized is None:
        return Finding("host", "clock", State.NOTICE, "the kernel does not tell of its clock here")
    if synchronized:
        return Finding("host", "clock", State.READY, "synchronized")
    detail = "not synchronized, says the kernel: windows may lie in the wrong hour of the grid"
    return Finding("host", "clock", State.NOTICE, detail, "sudo systemctl enable --now chrony")


class _Timex(ctypes.Structure):
    """The head of `struct timex`, adjtimex(2), and room for the rest."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_byte * 512),
    )


def clock_synchronized() -> bool | None:
    """Whether the kernel says that something keeps its clock; None where it does not tell.

    Source: adjtimex(2), which with modes 0 asks and changes nothing.
    """
    try:
        adjtimex = ctypes.CDLL(None).adjtimex
    except (OSError, AttributeError):
        return None
    timex = _Timex()
    state = int(adjtimex(ctypes.byref(timex)))
    if state < 0:
        return None
    return state != _TIME_ERROR and not timex.status & _STA_UNSYNC
