"""What a sensor is: the seam between the daemon and whatever measures.

    Absent    not on this host: told once, and that is that
    Denied    here, but this user may not read it: a warning with the mend

Anything else that `open`, `read` or `sample` raises means that the source is broken.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from wattledger.records import (
    CounterReading,
    Device,
    PowerReading,
    Process,
    StaticBasis,
    UseRecord,
)
from wattledger_collectors.workloads.rules import Rule

MonotonicClock = Callable[[], int]
"""CLOCK_MONOTONIC in nanoseconds."""

monotonic_ns: MonotonicClock = time.monotonic_ns


@dataclass(frozen=True, slots=True)
class ReadFault:
    """A read of `device` that failed at `t_ns`: a gap, never a zero."""

    device: str
    t_ns: int
    reason: str


Reading = CounterReading | PowerReading | ReadFault


class Absent(Exception):  # noqa: N818 - a finding, not an error: most hosts lack most sources
    """The source does not exist on this host."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Denied(Exception):  # noqa: N818 - reads as one of two findings, beside Absent
    """The source exists and this process may not read it; `mend` is what grants it."""

    def __init__(self, reason: str, mend: str) -> None:
        super().__init__(reason, mend)
        self.reason = reason
        self.mend = mend

    def __str__(self) -> str:
        return f"{self.reason}; {self.mend}"


class DevicesChanged(Exception):  # noqa: N818 - a finding, as Absent is
    """The source meters more devices than `open` told: open it again. Nothing is lost by it."""


@dataclass(frozen=True, slots=True)
class RedfishSettings:
    """How to reach the host's management controller; secrets are named by file, never held.

    `resource` is the path of the one resource to read, None to look for it.
    """

    url: str
    user: str | None = None
    password_file: Path | None = None
    ca_file: Path | None = None
    resource: str | None = None
    period_s: float = 4.0
    timeout_s: float = 3.0


@dataclass(frozen=True, slots=True)
class SensorSettings:
    """What sensors need to know of their host and of the site's config.

    `cpu_tdp_w` is the thermal design power of all sockets together, None where unknown.
    `static_w` overrides a device's idle power, watts by device id. `rules` say whose processes
    are, the first that fits.
    """

    sysfs_root: Path = Path("/sys")
    proc_root: Path = Path("/proc")
    period_s: float = 0.1
    power_period_s: float = 1.0
    use_period_s: float = 1.0
    cpu_use_period_s: float = 5.0
    cpu_tdp_w: float | None = None
    static_w: Mapping[str, float] = field(default_factory=dict)
    rules: tuple[Rule, ...] = ()
    redfish: RedfishSettings | None = None

    def static_of(self, device: str) -> tuple[float | None, StaticBasis]:
        """The configured idle power of `device` in watts, and where it is known from."""
        static_w = self.static_w.get(device)
        return static_w, StaticBasis.UNKNOWN if static_w is None else StaticBasis.CONFIG


class Sensor(Protocol):
    """A source of energy; driven by one thread, which may `open` again after a failure."""

    name: str
    period_s: float

    def open(self) -> tuple[Device, ...]:
        """Find the devices; raises `Absent` or `Denied`."""

    def read(self) -> list[Reading]:
        """One reading or fault per device that has news, each stamped right after its read."""

    def close(self) -> None:
        """Release every handle; a sensor that was never opened may be closed."""


class UseSensor(Protocol):
    """A source of who uses a device; driven by one thread.

    `beside` names the energy sensors of which one must be on for this one to be of any use;
    empty: it is always wanted.
    """

    name: str
    period_s: float
    beside: tuple[str, ...]

    def set_devices(self, devices: Iterable[Device]) -> None:
        """Say which devices are metered now; told before each sample."""

    def sample(self) -> Sequence[UseRecord | Process | ReadFault]:
        """Use since the last sample, and what could not be read; the first only sets the mark.

        Raises `Absent` or `Denied`.
        """

    def close(self) -> None:
        """Release every handle; the next sample starts anew."""


@runtime_checkable
class ProcessTracker(Protocol):
    """A use sensor that follows single processes."""

    def track(self, pids: Iterable[int]) -> None:
        """Follow these processes from the next sample on; any thread may ask."""
