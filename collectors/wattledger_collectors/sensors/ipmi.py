"""The whole node's power by IPMI DCMI, asked of `ipmitool`."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from wattledger.records import NS_PER_S, Device, DeviceKind, PowerReading
from wattledger_collectors.sensors.protocol import (
    Absent,
    Denied,
    MonotonicClock,
    ReadFault,
    Reading,
    SensorSettings,
)

NODE = "node0"
# The meter takes readings more than 5 s apart for a gap, and each one costs a process.
PERIOD_S = 4.0
_TIMEOUT_S = 3.0
_STALE_NS = 30 * NS_PER_S
_DEVICES = ("ipmi0", "ipmi/0", "ipmidev/0")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_UW_PER_W = 1_000_000

_POWER = re.compile(r"^\s*Instantaneous power reading:\s+(\d{1,6}) Watts\s*$", re.MULTILINE)
_STATE = re.compile(r"^\s*Power reading state is:\s+(\w+)\s*$", re.MULTILINE)
# ipmitool 1.8.19 lets the sampling period follow on the same line.
_STAMP = re.compile(r"^\s*IPMI timestamp:\s+(\S.*?)\s*(?:Sampling period:.*)?$", re.MULTILINE)
_UNSET_STAMP = re.compile(r"1970|01/01/70|Unspecified|Unknown", re.IGNORECASE)
_UNSUPPORTED = re.compile(r"\((c1|c9|cc|d[456])\)|valid DCMI command was not returned")
_MEND_DENIED = (
    'let its group read it: a udev rule KERNEL=="ipmi*", GROUP="wattledger", MODE="0660", '
    "then `sudo udevadm trigger`"
)


@dataclass(frozen=True, slots=True)
class DcmiPower:
    """One answer of the controller; `stamp` is its own time of the reading, None if unset."""

    power_w: int
    stamp: str | None


class UnsupportedError(ValueError):
    """The controller says that it does not measure power."""


def parse_dcmi(text: str) -> DcmiPower:
    """Read the output of `ipmitool dcmi power reading`; raises ValueError or `UnsupportedError`.

    ipmitool exits with 0 where the controller refused. A host that asks is running, so 0 W is
    no measurement. Source: DCMI 1.5, 6.6.1 Get Power Reading (state, time stamp).
    """
    power, state, stamp = (found.search(text) for found in (_POWER, _STATE, _STAMP))
    if _UNSUPPORTED.search(text):
        raise UnsupportedError(_first_line(text))
    if power is None or state is None:
        raise ValueError(f"no DCMI power reading: {_first_line(text)}")
    if state[1] != "activated":
        raise UnsupportedError(f"the controller's power measurement is {state[1][:40]}")
    power_w = int(power[1])
    if power_w == 0:
        raise ValueError("0 W of a running host")
    known = stamp[1] if stamp and not _UNSET_STAMP.search(stamp[1]) else None
    return DcmiPower(power_w, known)


class Ipmitool:
    """Runs `ipmitool`, one child at a time, each killed and reaped when its time is up."""

    def __init__(self, program: str, timeout_s: float = _TIMEOUT_S) -> None:
        self._program = program
        self._timeout_s = timeout_s
        self._stuck: subprocess.Popen[bytes] | None = None

    def power_reading(self) -> str:
        """What it printed, errors too; raises OSError or TimeoutError."""
        if self._stuck is not None:
            if self._stuck.poll() is None:
                raise TimeoutError("an earlier ipmitool cannot be killed: the controller hangs")
            self._stuck = None
        child = subprocess.Popen(
            [self._program, "dcmi", "power", "reading"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={"PATH": _PATH, "LC_ALL": "C"},
            # A group of its own, so that what it starts can be killed with it.
            start_new_session=True,
        )
        try:
            out, _ = child.communicate(timeout=self._timeout_s)
        except subprocess.TimeoutExpired as late:
            self._kill(child)
            raise TimeoutError(f"no answer within {self._timeout_s:g} s") from late
        except BaseException:
            self._kill(child)
            raise
        return out.decode(errors="replace")

    def close(self) -> None:
        """Reap a child that would not die, if it has by now."""
        if self._stuck is not None and self._stuck.poll() is not None:
            self._stuck = None

    def _kill(self, child: subprocess.Popen[bytes]) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        if child.stdout is not None:
            child.stdout.close()
        try:
            child.wait(1.0)
        except subprocess.TimeoutExpired:
            # Inside a driver call that cannot be interrupted; looked at again next time.
            self._stuck = child


def may_open(path: Path) -> bool:
    """Whether this process may ask the controller through `path`."""
    return os.access(path, os.R_OK | os.W_OK)


class IpmiSensor:
    """Reads the host's own controller as `node0`, of kind `node`: never part of a total.

    A time stamp that the controller gave before is no news; after 30 s of it the reading is a
    fault. What fails is a `ReadFault`. Some controllers average over a minute, so that only
    longer windows can be held against the sum of the parts.
    """

    name = "ipmi"

    def __init__(
        self,
        settings: SensorSettings,
        clock: MonotonicClock = time.monotonic_ns,
        *,
        dev_root: Path = Path("/dev"),
        search_path: str = _PATH,
        timeout_s: float = _TIMEOUT_S,
        allowed: Callable[[Path], bool] = may_open,
    ) -> None:
        self.period_s = PERIOD_S
        self._settings = settings
        self._clock = clock
        self._dev_root = dev_root
        self._search_path = search_path
        self._timeout_s = timeout_s
        self._allowed = allowed
        self._tool: Ipmitool | None = None
        self._stamp: str | None = None
        self._news_ns = 0

    def open(self) -> tuple[Device, ...]:
        """The one device; raises `Absent` or `Denied`, and TimeoutError or OSError."""
        self.close()
        program = shutil.which("ipmitool", path=self._search_path)
        if program is None:
            raise Absent("ipmitool is not installed: `sudo apt install ipmitool`")
        self._check_device()
        self._tool = Ipmitool(program, self._timeout_s)
        try:
            parse_dcmi(self._tool.power_reading())
        except UnsupportedError as refused:
            raise Absent(
                f"the controller does not tell its power by DCMI ({refused}): "
                "its Redfish service may, see [redfish]"
            ) from refused
        static_w, basis = self._settings.static_of(NODE)
        return (Device(NODE, DeviceKind.NODE, None, static_w, basis),)

    def read(self) -> list[Reading]:
        """Power where the controller has news; see the class."""
        if self._tool is None:
            return []
        try:
            told = parse_dcmi(self._tool.power_reading())
        except (OSError, ValueError) as failed:
            return [ReadFault(NODE, self._clock(), f"ipmitool: {failed}")]
        now_ns = self._clock()
        if told.stamp is not None and told.stamp == self._stamp:
            if now_ns - self._news_ns <= _STALE_NS:
                return []
            reason = f"ipmitool: the reading of {told.stamp} again and again"
            return [ReadFault(NODE, now_ns, reason)]
        self._stamp, self._news_ns = told.stamp, now_ns
        return [PowerReading(NODE, now_ns, told.power_w * _UW_PER_W)]

    def close(self) -> None:
        """Leave no child behind that can be reaped."""
        if self._tool is not None:
            self._tool.close()
        self._tool = None
        self._stamp = None

    def _check_device(self) -> None:
        paths = [self._dev_root / name for name in _DEVICES]
        path = next((path for path in paths if path.exists()), None)
        if path is None:
            raise Absent(
                f"no {paths[0]}: no management controller, or its driver is not loaded "
                "(`sudo modprobe ipmi_si ipmi_devintf`)"
            )
        if not self._allowed(path):
            raise Denied(f"{path} may not be opened", _MEND_DENIED)


def _first_line(text: str) -> str:
    lines = (line.strip() for line in text.splitlines())
    return next((line[:120] for line in lines if line), "it printed nothing")
