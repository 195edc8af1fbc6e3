"""What the kernel meters by hwmon: Intel GPUs, NVIDIA Grace, NVIDIA Jetson."""

from __future__ import annotations

import time
from collections.abc import Iterable

from wattledger.records import CounterReading, Device, DeviceKind, PowerReading
from wattledger_collectors.sensors.backoff import Backoff
from wattledger_collectors.sensors.hwmon_files import FileMeter, Found, KeptFile
from wattledger_collectors.sensors.hwmon_grace import grace_meters
from wattledger_collectors.sensors.hwmon_intel import intel_meters
from wattledger_collectors.sensors.hwmon_jetson import jetson_meters
from wattledger_collectors.sensors.plausible import MAX_POWER_UW, PlausibleCounter
from wattledger_collectors.sensors.procfs import OpenFile, open_readonly
from wattledger_collectors.sensors.protocol import (
    Absent,
    Denied,
    MonotonicClock,
    ReadFault,
    Reading,
    SensorSettings,
)

_MAX_NODE_UW = 10 * MAX_POWER_UW
_FAMILIES = (intel_meters, grace_meters, jetson_meters)


class _Meter:
    """A meter with its files held open."""

    __slots__ = ("_counter", "_files", "_powers_uw", "backoff", "devices")

    def __init__(self, meter: FileMeter, open_file: OpenFile, period_s: float) -> None:
        self.devices = meter.devices
        self.backoff = Backoff(period_s)
        self._files = tuple(KeptFile(path, open_file) for path in meter.paths)
        self._powers_uw = meter.powers_uw
        self._counter = PlausibleCounter()

    def read(self, clock: MonotonicClock) -> list[Reading]:
        """A reading per device, stamped after the last file; raises OSError or ValueError."""
        numbers = [file.read() for file in self._files]
        t_ns = clock()
        if self._powers_uw is None:
            return [self._counted(t_ns, numbers[0])]
        powers_uw = self._powers_uw(numbers)
        return [
            _gauged(device, t_ns, power_uw)
            for device, power_uw in zip(self.devices, powers_uw, strict=True)
        ]

    def try_files(self) -> None:
        """Read every file once; raises OSError or ValueError."""
        for file in self._files:
            file.read()

    def close(self) -> None:
        for file in self._files:
            file.close()

    def _counted(self, t_ns: int, energy_uj: int) -> Reading:
        (device,) = self.devices
        if energy_uj < 0:
            raise ValueError(f"{self._files[0].path}: {energy_uj} is no counter")
        told_uj = self._counter.take(t_ns, energy_uj)
        if told_uj is None:
            # Nothing to close and to wait for: the file is well, what it says is not.
            return ReadFault(device.device, t_ns, f"the counter jumped to {energy_uj} uJ")
        return CounterReading(device.device, t_ns, told_uj)


class HwmonSensor:
    """Reads every meter at each tick: Intel's energy counters, Grace's and Jetson's gauges.

    Files that make up one figure are read together, and fail together: one that fails is told as
    a `ReadFault` of each device it is part of, opened anew and tried again by backoff, while the
    others go on. Figures of more than 2 kW (20 kW for a node meter) are refused. Not tested on
    hardware. Source: hwmon_intel.py, hwmon_grace.py, hwmon_jetson.py.
    """

    name = "hwmon"

    def __init__(
        self,
        settings: SensorSettings,
        clock: MonotonicClock = time.monotonic_ns,
        open_file: OpenFile = open_readonly,
    ) -> None:
        self.period_s = settings.period_s
        self._settings = settings
        self._clock = clock
        self._open_file = open_file
        self._meters: list[_Meter] = []
        self._notes: tuple[str, ...] = ()

    @property
    def note(self) -> str:
        """That no hardware has seen this, and what is peculiar to what was found."""
        return "; ".join(["not tested on hardware", *self._notes])

    def open(self) -> tuple[Device, ...]:
        """Find the meters; raises `Absent` or `Denied`."""
        self.close()
        families = [find(self._settings) for find in _FAMILIES]
        self._notes = tuple(note for found in families for note in found.notes)
        meters = [meter for found in families for meter in found.meters]
        if not meters:
            raise self._nothing(families)
        self._meters = [_Meter(meter, self._open_file, self.period_s) for meter in meters]
        self._check_access()
        return tuple(device for meter in self._meters for device in meter.devices)

    def read(self) -> list[Reading]:
        """One tick; see the class."""
        readings: list[Reading] = []
        now_ns = self._clock()
        for meter in self._meters:
            if meter.backoff.waiting(now_ns):
                continue
            try:
                readings += meter.read(self._clock)
            except (OSError, ValueError) as failed:
                meter.close()
                meter.backoff.failed(now_ns)
                t_ns = self._clock()
                readings += [ReadFault(d.device, t_ns, str(failed)) for d in meter.devices]
                continue
            meter.backoff.worked()
        return readings

    def close(self) -> None:
        """Close every file."""
        for meter in self._meters:
            meter.close()
        self._meters = []

    def _nothing(self, families: Iterable[Found]) -> Absent | Denied:
        for found in families:
            if found.mend:
                return Denied("this is a Grace, and its power meters do not show", found.mend)
        seen = "".join(f"; {note}" for note in self._notes)
        return Absent(f"no Intel GPU, Grace or Jetson meter here{seen}")

    def _check_access(self) -> None:
        """Raises `Denied` where not one meter may be read; a single one is a fault at each try."""
        refused: list[str] = []
        for meter in self._meters:
            try:
                meter.try_files()
            except PermissionError as denied:
                refused.append(str(denied.filename))
                meter.close()
            except (OSError, ValueError):
                # Broken, not denied: each read will say so.
                meter.close()
        if len(refused) == len(self._meters):
            self.close()
            raise Denied(
                f"{refused[0]} may not be read",
                f"run `sudo chmod a+r {' '.join(refused)}` (until the next boot), "
                "or give the daemon CAP_DAC_READ_SEARCH",
            )


def _gauged(device: Device, t_ns: int, power_uw: int) -> PowerReading | ReadFault:
    most_uw = _MAX_NODE_UW if device.kind is DeviceKind.NODE else MAX_POWER_UW
    if not 0 <= power_uw <= most_uw:
        return ReadFault(device.device, t_ns, f"{power_uw} uW cannot be")
    return PowerReading(device.device, t_ns, power_uw)
