"""CPU packages and memory by RAPL, through the kernel's powercap tree."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from wattledger.records import NS_PER_S, CounterReading, Device, DeviceKind
from wattledger_collectors.sensors.backoff import Backoff
from wattledger_collectors.sensors.procfs import OpenFile, cpu_model, open_readonly
from wattledger_collectors.sensors.protocol import (
    Absent,
    Denied,
    DevicesChanged,
    MonotonicClock,
    ReadFault,
    Reading,
    SensorSettings,
)
from wattledger_collectors.sensors.rapl_trend import Trend

# Not intel-rapl-mmio:N, which counts the same packages by another road.
_ZONE = re.compile(r"intel-rapl:(?P<top>\d+)(:\d+)?")
_PACKAGE = re.compile(r"package-(?P<package>\d+)(-die-(?P<die>\d+))?")
_COUNTER_BYTES = 32
_SETTLE_S = 0.1
_RESCAN_NS = 30 * NS_PER_S
_MEND = (
    "run `sudo chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj` (until the next boot), "
    "or give the daemon CAP_DAC_READ_SEARCH"
)


class _Found(NamedTuple):
    """A zone that is to be read, and where its package stands among all."""

    kind: DeviceKind
    place: tuple[int, int]
    path: Path


class _Zone:
    """One counter file; its descriptor is kept, since opening costs ten times a read."""

    __slots__ = ("_descriptor", "_open_file", "_trend", "backoff", "device", "path")

    def __init__(
        self, device: Device, path: Path, open_file: OpenFile, period_s: float, trend: Trend
    ) -> None:
        self.device = device
        self.path = path
        self.backoff = Backoff(period_s)
        self._open_file = open_file
        self._trend = trend
        self._descriptor: int | None = None

    def read_uj(self) -> int:
        """The counter in microjoules; raises OSError, or ValueError where it is no number."""
        if self._descriptor is None:
            self._descriptor = self._open_file(self.path)
        raw = os.pread(self._descriptor, _COUNTER_BYTES, 0).strip()
        if not raw.isdigit():
            raise ValueError(f"{raw[:16]!r} is not a counter")
        return int(raw)

    def checked_uj(self, asked_ns: int, clock: MonotonicClock) -> tuple[int, int]:
        """As `read_uj`, with its stamp; ValueError too for what no CPU can have used since."""
        energy_uj = self.read_uj()
        t_ns = clock()
        return self._trend.checked(energy_uj, t_ns, t_ns - asked_ns), t_ns

    def failed(self, now_ns: int, why: Exception) -> None:
        """Let go of the file: what it says after this may be another count."""
        self.close()
        self.backoff.failed(now_ns)
        if isinstance(why, OSError):
            self._trend.broken()
        else:
            self._trend.doubted()

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class RaplSensor:
    """Reads `energy_uj` of every package (`cpu0`..) and its DRAM zone (`dram0`..) at each tick.

    A counter wraps at `max_energy_range_uj`. `core` and `uncore` are parts of a package and
    `psys` holds the packages: none of them is added. `psys` is read, as `cpu0`, only where no
    package tells. AMD tells packages alone. `dramN` hangs on package `cpuN`. A zone that fails,
    stands still or jumps is told as `ReadFault`, opened anew and tried again by backoff; the
    others go on. Where zones come or go, `read` raises `DevicesChanged`.
    Source: Documentation/power/powercap/powercap.rst; drivers/powercap/intel_rapl_common.c.
    """

    name = "rapl"

    def __init__(
        self,
        settings: SensorSettings,
        clock: MonotonicClock = time.monotonic_ns,
        open_file: OpenFile = open_readonly,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self.period_s = settings.period_s
        self.note = ""
        self._settings = settings
        self._clock = clock
        self._open_file = open_file
        self._wait = wait
        self._root = settings.sysfs_root / "class" / "powercap"
        self._zones: list[_Zone] = []
        self._listed: frozenset[str] = frozenset()
        self._scanned_ns = 0
        # Kept from one opening to the next: an id means the same package as long as we live.
        self._numbers: dict[tuple[int, int], int] = {}
        self._trends: dict[str, Trend] = {}

    def open(self) -> tuple[Device, ...]:
        """Find the zones; raises `Absent` or `Denied`, OSError where they were there before."""
        self.close()
        self._listed = _listed(self._root)
        found = _zones(self._root)
        if not found:
            raise self._nothing("no RAPL package")
        for place in (zone.place for zone in found if zone.kind is DeviceKind.CPU):
            self._numbers.setdefault(place, len(self._numbers))
        model = cpu_model(self._settings.proc_root)
        for zone in sorted(found, key=self._order):
            device = self._device(zone, model)
            trend = self._trends.setdefault(device.device, Trend(device.wrap_uj))
            trend.broken()
            path = zone.path / "energy_uj"
            self._zones.append(_Zone(device, path, self._open_file, self.period_s, trend))
        self._drop(self._silent())
        return tuple(zone.device for zone in self._zones)

    def read(self) -> list[Reading]:
        """One tick; see the class."""
        readings: list[Reading] = []
        now_ns = self._clock()
        if self._zones and now_ns - self._scanned_ns > _RESCAN_NS:
            self._scanned_ns = now_ns
            if _listed(self._root) != self._listed:
                raise DevicesChanged(f"zones under {self._root} have come or gone")
        for zone in self._zones:
            if zone.backoff.waiting(now_ns):
                continue
            try:
                energy_uj, t_ns = zone.checked_uj(now_ns, self._clock)
            except (OSError, ValueError) as failed:
                zone.failed(now_ns, failed)
                reason = f"{zone.path}: {failed}"
                readings.append(ReadFault(zone.device.device, self._clock(), reason))
                continue
            readings.append(CounterReading(zone.device.device, t_ns, energy_uj))
            if zone.backoff.failing:
                zone.backoff.worked()
        return readings

    def close(self) -> None:
        """Close every counter file."""
        for zone in self._zones:
            zone.close()
        self._zones = []

    def _nothing(self, what: str) -> Exception:
        reason = f"{what} under {self._root}"
        if self._trends:
            return OSError(f"{reason} any more")
        return Absent(
            f"{reason} (a virtual machine or a container hides it; on bare metal try "
            "`sudo modprobe intel_rapl_msr`, AMD too): the CPU can only be estimated"
        )

    def _silent(self) -> list[_Zone]:
        """Zones whose counter stands at 0, as hypervisors show it; raises `Denied`."""
        silent = [zone for zone in self._zones if self._first_uj(zone) == 0]
        if silent:
            self._wait(_SETTLE_S)
        return [zone for zone in silent if self._first_uj(zone) == 0]

    def _first_uj(self, zone: _Zone) -> int | None:
        """What a zone tells at the start; None where it is broken: each read will say so."""
        try:
            return zone.read_uj()
        except PermissionError as refused:
            self.close()
            raise Denied(f"{zone.path} may not be read", _MEND) from refused
        except (OSError, ValueError):
            zone.close()
            return None

    def _drop(self, silent: list[_Zone]) -> None:
        names = ", ".join(zone.device.device for zone in silent)
        self.note = f"left out {names}: the counter stands at 0" if silent else ""
        for zone in silent:
            zone.close()
            self._zones.remove(zone)
            del self._trends[zone.device.device]
        if not self._zones:
            raise self._nothing("no RAPL counter that moves")

    def _order(self, zone: _Found) -> tuple[bool, int]:
        return zone.kind is DeviceKind.DRAM, self._numbers[zone.place]

    def _device(self, zone: _Found, model: str | None) -> Device:
        name = f"{zone.kind.value}{self._numbers[zone.place]}"
        static_w, basis = self._settings.static_of(name)
        if _text(zone.path / "name") == "psys":
            model = f"{model} (psys)" if model else "psys"
        return Device(
            name,
            zone.kind,
            model if zone.kind is DeviceKind.CPU else None,
            static_w,
            basis,
            wrap_uj=_number(zone.path / "max_energy_range_uj"),
        )


def _zones(root: Path) -> list[_Found]:
    """What is to be read, in the order of packages and dies, each package once."""
    zones = list(_named_zones(root))
    places: dict[tuple[int, int], tuple[int, Path]] = {}
    for name, top, path in sorted(zones, key=lambda zone: zone[1]):
        if match := _PACKAGE.fullmatch(name):
            place = int(match["package"]), int(match["die"] or 0)
            # A second driver may count the same package again.
            places.setdefault(place, (top, path))
    if not places:
        platform = [path for name, _, path in zones if name == "psys"]
        return [_Found(DeviceKind.CPU, (0, 0), path) for path in platform[:1]]
    packages = [_Found(DeviceKind.CPU, at, path) for at, (_, path) in sorted(places.items())]
    drams = {top: path for name, top, path in zones if name == "dram"}
    return packages + [
        _Found(DeviceKind.DRAM, at, drams[top])
        for at, (top, _) in sorted(places.items())
        if top in drams
    ]


def _named_zones(root: Path) -> Iterator[tuple[str, int, Path]]:
    """Name, number of the top zone and folder; the class folder lists children flat."""
    for zone in _listed(root):
        match = _ZONE.fullmatch(zone)
        name = _text(root / zone / "name")
        if match and name:
            yield name, int(match["top"]), root / zone


def _listed(root: Path) -> frozenset[str]:
    """Names of the zones that the kernel shows now."""
    try:
        return frozenset(filter(_ZONE.fullmatch, os.listdir(root)))  # noqa: PTH208 - read often
    except OSError:
        return frozenset()


def _text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text and text.isdecimal() else None
