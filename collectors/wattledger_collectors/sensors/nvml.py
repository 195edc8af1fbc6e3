"""NVIDIA GPUs by NVML: the board's energy counter, its power gauge where there is none."""

from __future__ import annotations

import time
from enum import Enum

from wattledger.records import NS_PER_S, CounterReading, Device, DeviceKind, PowerReading
from wattledger_collectors.sensors.backoff import Backoff
from wattledger_collectors.sensors.nvml_counter import FREE_RISE_MJ, Track
from wattledger_collectors.sensors.nvml_driver import (
    EnergyCall,
    Handle,
    NotSupported,
    NvmlDriver,
    NvmlError,
)
from wattledger_collectors.sensors.nvml_link import GpuLink, find_links
from wattledger_collectors.sensors.nvml_power import PowerGauge, is_superchip
from wattledger_collectors.sensors.protocol import (
    Absent,
    DevicesChanged,
    MonotonicClock,
    ReadFault,
    Reading,
    SensorSettings,
)

_UJ_PER_MJ = 1000
_LOOK_S = 60.0


class _Source(Enum):
    """What a GPU is metered by; settled at its first answer, lest a glitch change the books."""

    UNSETTLED = "unsettled"
    COUNTER = "counter"
    GAUGE = "gauge"
    NOTHING = "nothing"


class _Gpu:
    __slots__ = (
        "backoff",
        "device",
        "gauge",
        "gauge_backoff",
        "link",
        "model",
        "pointer",
        "source",
        "track",
    )

    def __init__(self, link: GpuLink, driver: NvmlDriver, settings: SensorSettings) -> None:
        self.link = link
        self.device = link.device or ""
        self.model: str | None = None
        self.source = _Source.UNSETTLED
        self.gauge = PowerGauge(driver)
        self.track = Track()
        self.pointer: object = None
        self.backoff = Backoff(settings.period_s)
        self.gauge_backoff = Backoff(settings.power_period_s)


class NvmlSensor:
    """Reads every GPU's energy counter at each tick, and its power once per `power_period_s`.

    A GPU without the counter (older than Volta) is read by its power gauge at each tick. One
    that fails is told as `ReadFault` and tried again by backoff; the others go on. What no GPU
    can draw is a `ReadFault` too. With MIG on, the board is one device. Devices are `gpu0`.. in
    NVML's order at first sight, and keep their ids by UUID. Where a GPU was plugged in, found
    within a minute, `read` raises `DevicesChanged`. Source: nvml_driver.py, nvml_power.py.
    """

    name = "nvml"

    def __init__(self, settings: SensorSettings, clock: MonotonicClock = time.monotonic_ns) -> None:
        self.period_s = settings.period_s
        self._settings = settings
        self._clock = clock
        self._driver: NvmlDriver | None = None
        self._energy: EnergyCall
        self._generation = 0
        # A counter that works is read by `read` itself; whatever needs more care is odd.
        self._lean: list[_Gpu] = []
        self._odd: list[_Gpu] = []
        self._power_period_ns = int(settings.power_period_s * NS_PER_S)
        self._power_due_ns = 0
        self._look_due_ns = 0
        self._plugged: frozenset[str] = frozenset()
        self._mute: set[str] = set()

    def open(self) -> tuple[Device, ...]:
        """Find the GPUs that tell energy or power; raises `Absent`, `Denied` or `NvmlError`."""
        self.close()
        driver = self._driver = NvmlDriver()
        driver.open()
        self._generation = driver.generation
        self._plugged = self._plugged_in()
        links = find_links(driver)
        if not links and driver.count():
            raise NvmlError("none of the GPUs that NVML lists tells its UUID")
        for link in links:
            gpu = _Gpu(link, driver, self._settings)
            try:
                self._settle(driver, gpu)
            except NvmlError:
                # Kept: a GPU that is lost now may come back, and says so at each try.
                gpu.link.drop()
            if gpu.source is _Source.NOTHING:
                self._mute.add(gpu.device)
            else:
                self._odd.append(gpu)
        if not self._odd:
            self.close()
            raise Absent("NVML runs, but no GPU here tells its energy or power")
        self._power_due_ns = 0
        self._look_due_ns = self._clock() + int(_LOOK_S * NS_PER_S)
        return tuple(self._device(gpu) for gpu in self._odd)

    def read(self) -> list[Reading]:
        """One tick; see the class.

        It runs ten times a second on a CPU that has just woken, where every line costs: for a
        counter that works, one call into the driver and one look at the clock.
        """
        clock = self._clock
        now_ns = clock()
        readings: list[Reading] = []
        driver = self._driver
        if driver is None:
            return readings
        with_power = now_ns >= self._power_due_ns
        if with_power:
            self._power_due_ns = now_ns + self._power_period_ns
            self._look_around(driver, now_ns)
        if driver.generation != self._generation:
            self._start_anew(driver)
        odd = self._odd
        if self._lean:
            call, out, cell = self._energy
            for gpu in self._lean:
                status = call(gpu.pointer, out)
                t_ns = clock()
                mj = cell.value
                track = gpu.track
                rise_mj = mj - track.mj
                if status or not 0 <= rise_mj <= FREE_RISE_MJ:
                    readings.append(self._doubtful(driver, gpu, status, mj, t_ns))
                    continue
                if rise_mj:
                    track.mj = mj
                    track.changed_ns = t_ns
                energy_uj = (mj - track.base_mj) * _UJ_PER_MJ
                readings.append(CounterReading(gpu.device, t_ns, energy_uj))
        if odd:
            self._read_odd(driver, odd, now_ns, readings)
        if with_power:
            self._read_power(now_ns, readings)
        return readings

    def close(self) -> None:
        """Release NVML."""
        self._lean = []
        self._odd = []
        self._mute = set()
        if self._driver is not None:
            self._driver.close()
            self._driver = None

    @property
    def note(self) -> str:
        """What each GPU is metered by, and what to know of it."""
        devices: dict[str, list[str]] = {}
        for gpu in self._gpus():
            devices.setdefault(_note(gpu), []).append(gpu.device)
        return "; ".join(f"{', '.join(same)}: {note}" for note, same in devices.items())

    # ------------------------------------------------------------------- one GPU

    def _doubtful(self, driver: NvmlDriver, gpu: _Gpu, status: int, mj: int, t_ns: int) -> Reading:
        """A reading that failed, or needs a second thought."""
        if status:
            return self._failed(gpu, t_ns, driver.energy_error(status))
        try:
            return CounterReading(gpu.device, t_ns, gpu.track.take(mj, t_ns))
        except NvmlError as nonsense:
            return ReadFault(gpu.device, t_ns, str(nonsense))

    def _start_anew(self, driver: NvmlDriver) -> None:
        """After another enumeration every handle is void."""
        self._generation = driver.generation
        self._lean, self._odd = [], self._gpus()

    def _failed(self, gpu: _Gpu, t_ns: int, failed: NvmlError) -> ReadFault:
        gpu.link.drop()
        gpu.backoff.failed(t_ns)
        if gpu in self._lean:
            self._lean = [other for other in self._lean if other is not gpu]
            self._odd = [*self._odd, gpu]
        return ReadFault(gpu.device, t_ns, str(failed))

    def _read_odd(
        self, driver: NvmlDriver, odd: list[_Gpu], now_ns: int, readings: list[Reading]
    ) -> None:
        """GPUs that are metered by power, are yet unknown, or failed before."""
        for gpu in odd:
            if gpu.backoff.waiting(now_ns):
                continue
            try:
                handle = gpu.link.handle()
                if gpu.source is _Source.UNSETTLED:
                    self._settle(driver, gpu)
                if gpu.source is _Source.GAUGE:
                    power_uw = self._power_uw(gpu, handle)
                    readings.append(PowerReading(gpu.device, self._clock(), power_uw))
                elif gpu.source is _Source.COUNTER:
                    self._read_counter(driver, gpu, handle, readings)
            except NvmlError as failed:
                readings.append(self._failed(gpu, self._clock(), failed))
            else:
                gpu.backoff.worked()

    def _read_counter(
        self, driver: NvmlDriver, gpu: _Gpu, handle: Handle, readings: list[Reading]
    ) -> None:
        """Read a counter with care; one that can be believed is read leanly from now on."""
        energy_mj = driver.energy_uj(handle) // _UJ_PER_MJ
        t_ns = self._clock()
        readings.append(CounterReading(gpu.device, t_ns, gpu.track.take(energy_mj, t_ns)))
        gpu.pointer = handle.pointer
        self._odd = [other for other in self._odd if other is not gpu]
        self._lean = sorted([*self._lean, gpu], key=lambda known: known.link.index)

    def _read_power(self, now_ns: int, readings: list[Reading]) -> None:
        """The gauges beside counters: for resets and the cross-check. One may fail alone."""
        for gpu in self._lean:
            if gpu.gauge_backoff.waiting(now_ns):
                continue
            try:
                power_uw = self._power_uw(gpu, Handle(gpu.pointer))
            except NotSupported:
                gpu.gauge_backoff.failed(now_ns)
            except NvmlError as failed:
                gpu.gauge_backoff.failed(now_ns)
                readings.append(ReadFault(gpu.device, self._clock(), str(failed)))
            else:
                gpu.gauge_backoff.worked()
                readings.append(PowerReading(gpu.device, self._clock(), power_uw))

    def _power_uw(self, gpu: _Gpu, handle: Handle) -> int:
        if gpu.gauge.source is None:
            return gpu.gauge.settle(handle, gpu.model)
        try:
            return gpu.gauge.read_uw(handle)
        except NotSupported:
            return gpu.gauge.settle(handle, gpu.model)

    def _settle(self, driver: NvmlDriver, gpu: _Gpu) -> None:
        """Find what the GPU is metered by; raises `NvmlError` where it does not answer."""
        handle = gpu.link.handle()
        gpu.model = _model(driver, handle)
        try:
            driver.energy_uj(handle)
            self._energy = driver.energy_call()
        except NotSupported:
            gpu.source = _Source.UNSETTLED
        else:
            gpu.source = _Source.COUNTER
        try:
            gpu.gauge.settle(handle, gpu.model)
        except NotSupported:
            if gpu.source is not _Source.COUNTER:
                gpu.source = _Source.NOTHING
        else:
            if gpu.source is not _Source.COUNTER:
                gpu.source = _Source.GAUGE

    def _device(self, gpu: _Gpu) -> Device:
        static_w, basis = self._settings.static_of(gpu.device)
        return Device(gpu.device, DeviceKind.GPU, gpu.model, static_w, basis)

    def _gpus(self) -> list[_Gpu]:
        return sorted([*self._lean, *self._odd], key=lambda gpu: gpu.link.index)

    # ------------------------------------------------------------------ new GPUs

    def _look_around(self, driver: NvmlDriver, now_ns: int) -> None:
        """Once a minute: whether a GPU was plugged in; raises `DevicesChanged`.

        NVML looks for GPUs only when it is initialized, the kernel's own list follows at once.
        """
        if now_ns < self._look_due_ns:
            return
        plugged = self._plugged_in()
        try:
            if plugged - self._plugged and not driver.enumerate_anew():
                return
            self._look_due_ns = now_ns + int(_LOOK_S * NS_PER_S)
            self._plugged = plugged
            self._find_others(driver)
        except NvmlError:
            # Each GPU will say so itself, at its own read.
            self._look_due_ns = now_ns + int(_LOOK_S * NS_PER_S)

    def _find_others(self, driver: NvmlDriver) -> None:
        known = self._mute | {gpu.device for gpu in self._gpus()}
        for link in find_links(driver):
            if link.uuid is not None and link.device not in known:
                raise DevicesChanged(f"{link.device} was plugged in")

    def _plugged_in(self) -> frozenset[str]:
        """The PCI addresses that the NVIDIA driver holds; empty where it does not tell."""
        folder = self._settings.proc_root / "driver/nvidia/gpus"
        try:
            return frozenset(entry.name for entry in folder.iterdir())
        except OSError:
            return frozenset()


def _model(driver: NvmlDriver, handle: Handle) -> str | None:
    try:
        return driver.name(handle)
    except NvmlError:
        return None


def _note(gpu: _Gpu) -> str:
    """What a GPU is metered by, and what that covers."""
    if gpu.source is _Source.UNSETTLED:
        return "does not answer yet"
    if gpu.source is _Source.GAUGE:
        return f"no energy counter, {gpu.gauge.note} is integrated"
    note = f"energy counter beside {gpu.gauge.note}"
    if is_superchip(gpu.model):
        return f"{note}; it may cover the whole module: Grace's own meters are not added to it"
    if gpu.gauge.module_told:
        return f"{note}; module power is told too, and what the counter covers is not known"
    return note
