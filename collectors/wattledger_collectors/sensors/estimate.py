"""The CPU's power where nothing measures it: a curve of load, and said to be one."""

from __future__ import annotations

import os
import time

from wattledger.records import Device, DeviceKind, PowerReading, StaticBasis
from wattledger_collectors.sensors.hwmon_grace import module_is_metered
from wattledger_collectors.sensors.procfs import (
    STAT_BYTES,
    MachineTicks,
    cpu_model,
    machine_ticks,
    open_readonly,
)
from wattledger_collectors.sensors.protocol import (
    Absent,
    MonotonicClock,
    ReadFault,
    Reading,
    SensorSettings,
)
from wattledger_collectors.sensors.tdp import Tdp, read_processors, tdp_of

IDLE_SHARE = 0.1
_UW_PER_W = 1_000_000
_DEVICE = "cpu0"


class EstimateSensor:
    """Tells `TDP * (0.1 + 0.9 * load)` once a second as `cpu0`, for hosts without RAPL.

    `load` is the busy share of all CPU time since the last read; the first read only sets the
    mark. The TDP is the config's, else the CPU table's, else 85 W; `note` says which. The idle
    power is the curve's own. The curve is straight, so that a job's estimate goes by its own CPU
    time and not by its neighbours'. Nothing here is measured: a real CPU's idle share and curve
    differ. Source: accounting.md section 1 (TDP x utilization); 85 W for an unknown CPU is what
    CodeCarbon documents; /proc/stat.
    """

    name = "estimate"

    def __init__(self, settings: SensorSettings, clock: MonotonicClock = time.monotonic_ns) -> None:
        self.period_s = settings.power_period_s
        self._settings = settings
        self._clock = clock
        self._known: Tdp | None = None
        self._descriptor: int | None = None
        self._last: MachineTicks | None = None

    @property
    def note(self) -> str:
        """Where the thermal design power is known from."""
        return self._tdp.note

    @property
    def _tdp(self) -> Tdp:
        # Only when it is asked for: most hosts have a meter and need no table.
        if self._known is None:
            settings = self._settings
            self._known = tdp_of(settings.cpu_tdp_w, read_processors(settings.proc_root))
        return self._known

    def open(self) -> tuple[Device, ...]:
        """The one device; raises `Absent` where there is no /proc/stat, or beside a superchip."""
        self.close()
        if module_is_metered(self._settings.proc_root):
            raise Absent("this is a superchip: the GPU's own counter may hold the CPU as well")
        path = self._settings.proc_root / "stat"
        try:
            self._descriptor = open_readonly(path)
        except OSError as missing:
            raise Absent(f"{path} cannot be read: {missing.strerror}") from missing
        static_w, basis = self._settings.static_of(_DEVICE)
        if static_w is None:
            static_w, basis = IDLE_SHARE * self._tdp.tdp_w, StaticBasis.CATALOGUE
        model = cpu_model(self._settings.proc_root)
        return (Device(_DEVICE, DeviceKind.CPU, model, static_w, basis, estimated=True),)

    def read(self) -> list[Reading]:
        """Power since the last read; nothing where no CPU time has passed."""
        if self._descriptor is None:
            return []
        try:
            ticks = machine_ticks(os.pread(self._descriptor, STAT_BYTES, 0))
        except (OSError, ValueError) as failed:
            self._last = None
            reason = f"{self._settings.proc_root / 'stat'}: {failed}"
            return [ReadFault(_DEVICE, self._clock(), reason)]
        now_ns = self._clock()
        last, self._last = self._last, ticks
        if last is None or ticks.all <= last.all:
            return []
        load = min(max((ticks.busy - last.busy) / (ticks.all - last.all), 0.0), 1.0)
        power_w = self._tdp.tdp_w * (IDLE_SHARE + (1.0 - IDLE_SHARE) * load)
        return [PowerReading(_DEVICE, now_ns, round(power_w * _UW_PER_W))]

    def close(self) -> None:
        """Close /proc/stat."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        self._last = None
