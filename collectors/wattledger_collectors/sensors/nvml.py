"""NVIDIA GPUs by NVML: the board's energy counter, its power gauge where there is none."""

from __future__ import annotations

import time
from enum import Enum

from wattledger.records import NS_PER_S, CounterReading, Device, DeviceKind, PowerReading
from wattledger_collectors.sensors.backoff import Backoff
from wattledger_collectors.sensors.nvml_driver import NotSupported, NvmlDriver, NvmlError
from wattledger_collectors.sensors.nvml_link import GpuLink
from wattledger_collectors.sensors.protocol import (
    Absent,
    MonotonicClock,
    ReadFault,
    Reading,
    SensorSettings,
)


class _Source(Enum):
    """What a GPU is metered by; settled at its first answer, lest a glitch change the books."""

    UNSETTLED = "unsettled"
    COUNTER = "counter"
    GAUGE = "gauge"
    NOTHING = "nothing"


class _Gpu:
    __slots__ = ("backoff", "device", "link", "source")

    def __init__(self, link: GpuLink, period_s: float) -> None:
        self.link = link
        self.device = link.device
        self.source = _Source.UNSETTLED
        self.backoff = Backoff(period_s)


class NvmlSensor:
    """Reads every GPU's energy counter at each tick, and its power once per `power_period_s`.

    A GPU without the counter (older than Volta) is read by its power gauge at each tick. One
    that fails is told as `ReadFault` and tried again by backoff; the others go on. With MIG on,
    the board is one device. Devices are `gpu0`.. in NVML's order. Source: nvml_driver.py.
    """

    name = "nvml"

    def __init__(self, settings: SensorSettings, clock: MonotonicClock = time.monotonic_ns) -> None:
        self.period_s = settings.period_s
        self._settings = settings
        self._clock = clock
        self._driver: NvmlDriver | None = None
        self._gpus: list[_Gpu] = []
        self._power_period_ns = int(settings.power_period_s * NS_PER_S)
        self._power_due_ns = 0

    def open(self) -> tuple[Device, ...]:
        """Find the GPUs that tell energy or power; raises `Absent`, `Denied` or `NvmlError`."""
        self.close()
        driver = self._driver = NvmlDriver()
        driver.open()
        for index in range(driver.count()):
            gpu = _Gpu(GpuLink(driver, index), self.period_s)
            try:
                self._settle(driver, gpu)
            except NvmlError:
                # Kept: a GPU that is lost now may come back, and says so at each try.
                gpu.link.drop()
            if gpu.source is not _Source.NOTHING:
                self._gpus.append(gpu)
        if not self._gpus:
            self.close()
            raise Absent("NVML runs, but no GPU here tells its energy or power")
        return tuple(self._device(driver, gpu) for gpu in self._gpus)

    def read(self) -> list[Reading]:
        """One tick; see the class."""
        driver = self._driver
        if driver is None:
            return []
        now_ns = self._clock()
        with_power = now_ns >= self._power_due_ns
        if with_power:
            self._power_due_ns = now_ns + self._power_period_ns
        readings: list[Reading] = []
        for gpu in self._gpus:
            failing = gpu.backoff.failing
            if failing and gpu.backoff.waiting(now_ns):
                continue
            try:
                self._read_gpu(driver, gpu, with_power, readings)
            except NvmlError as failed:
                gpu.link.drop()
                gpu.backoff.failed(now_ns)
                readings.append(ReadFault(gpu.device, self._clock(), str(failed)))
            else:
                if failing:
                    gpu.backoff.worked()
        return readings

    def close(self) -> None:
        """Release NVML."""
        self._gpus = []
        if self._driver is not None:
            self._driver.close()
            self._driver = None

    def _read_gpu(
        self, driver: NvmlDriver, gpu: _Gpu, with_power: bool, readings: list[Reading]
    ) -> None:
        handle = gpu.link.handle()
        if gpu.source is _Source.UNSETTLED:
            self._settle(driver, gpu)
        if gpu.source is not _Source.GAUGE:
            energy_uj = driver.energy_uj(handle)
            readings.append(CounterReading(gpu.device, self._clock(), energy_uj))
            if not with_power:
                return
        try:
            power_uw = driver.power_uw(handle)
        except NotSupported:
            if gpu.source is _Source.COUNTER:
                return
            raise
        readings.append(PowerReading(gpu.device, self._clock(), power_uw))

    def _settle(self, driver: NvmlDriver, gpu: _Gpu) -> None:
        """Find what the GPU is metered by; raises `NvmlError` where it does not answer."""
        handle = gpu.link.handle()
        for source, probe in (
            (_Source.COUNTER, driver.energy_uj),
            (_Source.GAUGE, driver.power_uw),
        ):
            try:
                probe(handle)
            except NotSupported:
                continue
            gpu.source = source
            return
        gpu.source = _Source.NOTHING

    def _device(self, driver: NvmlDriver, gpu: _Gpu) -> Device:
        try:
            model = driver.name(gpu.link.handle())
        except NvmlError:
            model = None
        static_w, basis = self._settings.static_of(gpu.device)
        return Device(gpu.device, DeviceKind.GPU, model, static_w, basis)
