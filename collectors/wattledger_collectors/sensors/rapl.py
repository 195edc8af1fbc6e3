"""CPU packages and memory by RAPL, through the kernel's powercap tree."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

from wattledger.records import CounterReading, Device, DeviceKind
from wattledger_collectors.sensors.backoff import Backoff
from wattledger_collectors.sensors.procfs import OpenFile, cpu_model, open_readonly
from wattledger_collectors.sensors.protocol import (
    Absent,
    Denied,
    MonotonicClock,
    ReadFault,
    Reading,
    SensorSettings,
)

# Not intel-rapl-mmio:N, which counts the same packages by another road.
_ZONE = re.compile(r"intel-rapl:(?P<top>\d+)(:\d+)?")
_PACKAGE = re.compile(r"package-(?P<package>\d+)(-die-(?P<die>\d+))?")
_COUNTER_BYTES = 32
_MEND = (
    "run `sudo chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj` (until the next boot), "
    "or give the daemon CAP_DAC_READ_SEARCH"
)


class _Zone:
    """One counter file; its descriptor is kept, since opening costs ten times a read."""

    __slots__ = ("_descriptor", "_open_file", "backoff", "device", "path")

    def __init__(self, device: Device, path: Path, open_file: OpenFile, period_s: float) -> None:
        self.device = device
        self.path = path
        self.backoff = Backoff(period_s)
        self._open_file = open_file
        self._descriptor: int | None = None

    def read_uj(self) -> int:
        """The counter in microjoules; raises OSError, or ValueError where it is no number."""
        if self._descriptor is None:
            self._descriptor = self._open_file(self.path)
        raw = os.pread(self._descriptor, _COUNTER_BYTES, 0).strip()
        if not raw.isdigit():
            raise ValueError(f"{raw[:16]!r} is not a counter")
        return int(raw)

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class RaplSensor:
    """Reads `energy_uj` of every package (`cpu0`..) and its DRAM zone (`dram0`..) at each tick.

    A counter wraps at `max_energy_range_uj`. `psys` holds the packages too: it is read, as
    `cpu0`, only where no package tells. AMD tells packages alone. A zone that fails is told as
    `ReadFault`, opened anew and tried again by backoff; the others go on.
    Source: Documentation/power/powercap/powercap.rst; drivers/powercap/intel_rapl_common.c.
    """

    name = "rapl"

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
        self._zones: list[_Zone] = []

    def open(self) -> tuple[Device, ...]:
        """Find the zones; raises `Absent` or `Denied`."""
        self.close()
        root = self._settings.sysfs_root / "class" / "powercap"
        found = _zones(root)
        if not found:
            raise Absent(
                f"no RAPL package under {root} (a virtual machine, a container, or no driver)"
            )
        model = cpu_model(self._settings.proc_root)
        for name, kind, path in found:
            device = self._device(name, kind, model, path)
            self._zones.append(_Zone(device, path / "energy_uj", self._open_file, self.period_s))
        self._check_access()
        return tuple(zone.device for zone in self._zones)

    def read(self) -> list[Reading]:
        """One tick; see the class."""
        readings: list[Reading] = []
        now_ns = self._clock()
        for zone in self._zones:
            if zone.backoff.waiting(now_ns):
                continue
            try:
                energy_uj = zone.read_uj()
            except (OSError, ValueError) as failed:
                zone.close()
                zone.backoff.failed(now_ns)
                reason = f"{zone.path}: {failed}"
                readings.append(ReadFault(zone.device.device, self._clock(), reason))
                continue
            readings.append(CounterReading(zone.device.device, self._clock(), energy_uj))
            if zone.backoff.failing:
                zone.backoff.worked()
        return readings

    def close(self) -> None:
        """Close every counter file."""
        for zone in self._zones:
            zone.close()
        self._zones = []

    def _check_access(self) -> None:
        for zone in self._zones:
            try:
                zone.read_uj()
            except PermissionError as refused:
                self.close()
                raise Denied(f"{zone.path} may not be read", _MEND) from refused
            except (OSError, ValueError):
                # Broken, not denied: each read will say so.
                zone.close()

    def _device(self, name: str, kind: DeviceKind, model: str | None, path: Path) -> Device:
        static_w, basis = self._settings.static_of(name)
        if _text(path / "name") == "psys":
            model = f"{model} (psys)" if model else "psys"
        return Device(
            name,
            kind,
            model if kind is DeviceKind.CPU else None,
            static_w,
            basis,
            wrap_uj=_number(path / "max_energy_range_uj"),
        )


def _zones(root: Path) -> list[tuple[str, DeviceKind, Path]]:
    """Device id, kind and folder of what is to be read, in the order of packages and dies."""
    zones = list(_named_zones(root))
    packages = sorted(
        (int(match["package"]), int(match["die"] or 0), top, path)
        for name, top, path in zones
        if (match := _PACKAGE.fullmatch(name))
    )
    if not packages:
        platform = [path for name, _, path in zones if name == "psys"]
        return [("cpu0", DeviceKind.CPU, path) for path in platform[:1]]
    found = [(f"cpu{n}", DeviceKind.CPU, path) for n, (*_, path) in enumerate(packages)]
    drams = {top: path for name, top, path in zones if name == "dram"}
    ordered = [drams[top] for _, _, top, _ in packages if top in drams]
    found += [(f"dram{n}", DeviceKind.DRAM, path) for n, path in enumerate(ordered)]
    return found


def _named_zones(root: Path) -> Iterator[tuple[str, int, Path]]:
    """Name, number of the top zone and folder; the class folder lists children flat."""
    if not root.is_dir():
        return
    for path in root.iterdir():
        match = _ZONE.fullmatch(path.name)
        name = _text(path / "name") if match else None
        if match and name:
            yield name, int(match["top"]), path


def _text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text and text.isdecimal() else None
