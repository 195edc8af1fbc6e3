"""AMD GPUs by AMD SMI: the energy counter where it proves right, else the power gauge."""

from __future__ import annotations

import time
from enum import Enum

from wattledger.records import NS_PER_S, CounterReading, Device, DeviceKind, PowerReading
from wattledger_collectors.sensors.amdsmi_boards import Board, find_boards, holds_cpu
from wattledger_collectors.sensors.amdsmi_driver import (
    AmdDriver,
    AmdError,
    AmdGpu,
    LoadBindings,
    NotSupported,
    Uninitialized,
    load_bindings,
)
from wattledger_collectors.sensors.amdsmi_trial import Trial, Verdict
from wattledger_collectors.sensors.backoff import Backoff
from wattledger_collectors.sensors.drm_cards import find_cards
from wattledger_collectors.sensors.plausible import PlausibleCounter
from wattledger_collectors.sensors.protocol import (
    Absent,
    Denied,
    MonotonicClock,
    ReadFault,
    Reading,
    SensorSettings,
)


class _Source(Enum):
    """What a GPU is metered by; settled once per daemon, lest a glitch change the books."""

    COUNTER = "counter"
    GAUGE = "gauge"


class _Gpu:
    __slots__ = ("backoff", "board", "counter", "device", "gpu", "source", "trial")

    def __init__(self, board: Board, period_s: float, source: _Source | None) -> None:
        self.board = board
        self.device = board.device
        self.gpu: AmdGpu | None = board.gpu
        self.source = source
        self.trial = Trial()
        self.counter = PlausibleCounter()
        self.backoff = Backoff(period_s)


class AmdSmiSensor:
    """Reads every GPU's energy counter at each tick, and its power once per `power_period_s`.

    A counter is believed once it agrees with the power gauge over its first readings
    (amdsmi_trial.py), which are told when that is settled; the gauge of a GPU whose counter is
    stuck or wrong is read at each tick, and `note` says so. A GPU that fails is told as
    `ReadFault` and tried again by backoff; the others go on. Not tested on hardware.
    """

    name = "amdsmi"

    def __init__(
        self,
        settings: SensorSettings,
        clock: MonotonicClock = time.monotonic_ns,
        load: LoadBindings = load_bindings,
    ) -> None:
        self.period_s = settings.period_s
        self._settings = settings
        self._clock = clock
        self._load = load
        self._driver: AmdDriver | None = None
        self._gpus: list[_Gpu] = []
        self._settled: dict[str, _Source] = {}
        self._refused: dict[str, str] = {}
        self._notes: tuple[str, ...] = ()
        self._power_period_ns = int(settings.power_period_s * NS_PER_S)
        self._power_due_ns = 0

    @property
    def note(self) -> str:
        """That no hardware has seen this, and which GPUs are metered by their gauge, and why."""
        refused = [f"{device} by its power gauge: {why}" for device, why in self._refused.items()]
        return "; ".join(["not tested on hardware", *self._notes, *refused])

    def open(self) -> tuple[Device, ...]:
        """Find the boards; raises `Absent`, `Denied` or `AmdError`."""
        self.close()
        cards = [c for c in find_cards(self._settings.sysfs_root) if c.driver == "amdgpu"]
        if not cards:
            # Before the import, which costs memory and speaks where ROCm is missing.
            raise Absent("no AMD GPU here (no card of the amdgpu driver)")
        driver = AmdDriver(self._load)
        driver.open()
        self._driver = driver
        boards = find_boards(driver, {card.pci: card.device for card in cards})
        if not boards:
            self.close()
            raise Absent("AMD SMI runs, but shows no GPU")
        self._gpus = [
            _Gpu(board, self.period_s, self._settled.get(board.device)) for board in boards
        ]
        self._notes = tuple(
            f'{board.device} holds its CPU too: set sensors.rapl = "off", lest it be counted twice'
            for board in boards
            if holds_cpu(board.model)
        )
        return tuple(self._device(board) for board in boards)

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
            if gpu.backoff.waiting(now_ns):
                continue
            try:
                self._read_gpu(driver, gpu, with_power, readings)
            except AmdError as failed:
                gpu.gpu, gpu.trial = None, Trial()
                gpu.backoff.failed(now_ns)
                readings.append(ReadFault(gpu.device, self._clock(), str(failed)))
            else:
                gpu.backoff.worked()
        return readings

    def close(self) -> None:
        """Release the library."""
        self._gpus = []
        if self._driver is not None:
            self._driver.close()
            self._driver = None

    def _read_gpu(
        self, driver: AmdDriver, gpu: _Gpu, with_power: bool, readings: list[Reading]
    ) -> None:
        handle = gpu.gpu or _find(driver, gpu.board.gpu.pci)
        gpu.gpu = handle
        if gpu.source is None:
            self._try(driver, gpu, handle, readings)
            return
        if gpu.source is _Source.COUNTER:
            energy_uj = driver.energy_uj(handle)
            readings.append(self._plausible(gpu, self._clock(), energy_uj))
            if not with_power:
                return
        try:
            power_uw = driver.power_uw(handle)
        except NotSupported:
            if gpu.source is _Source.COUNTER:
                return
            raise
        readings.append(PowerReading(gpu.device, self._clock(), power_uw))

    def _plausible(self, gpu: _Gpu, t_ns: int, energy_uj: int) -> CounterReading | ReadFault:
        told_uj = gpu.counter.take(t_ns, energy_uj)
        if told_uj is None:
            return ReadFault(gpu.device, t_ns, f"the counter jumped to {energy_uj} uJ")
        return CounterReading(gpu.device, t_ns, told_uj)

    def _try(self, driver: AmdDriver, gpu: _Gpu, handle: AmdGpu, readings: list[Reading]) -> None:
        """Read both for the trial; tell all of it by whichever has won."""
        try:
            energy_uj = driver.energy_uj(handle)
        except NotSupported as failed:
            power_uw = driver.power_uw(handle)
            gpu.trial.powers.append(PowerReading(gpu.device, self._clock(), power_uw))
            self._settle(gpu, Verdict(trusted=False, reason=str(failed)), readings)
            return
        gpu.trial.counters.append(CounterReading(gpu.device, self._clock(), energy_uj))
        try:
            power_uw = driver.power_uw(handle)
            gpu.trial.powers.append(PowerReading(gpu.device, self._clock(), power_uw))
        except NotSupported:
            pass
        verdict = gpu.trial.verdict()
        if verdict is not None:
            self._settle(gpu, verdict, readings)

    def _settle(self, gpu: _Gpu, verdict: Verdict, readings: list[Reading]) -> None:
        trial, gpu.trial = gpu.trial, Trial()
        if verdict.trusted:
            gpu.source = _Source.COUNTER
            # The counter first: a gauge told before it would begin the device's books anew.
            for counter in trial.counters:
                readings.append(self._plausible(gpu, counter.t_ns, counter.energy_uj))
        elif trial.powers:
            gpu.source = _Source.GAUGE
            self._refused[gpu.device] = verdict.reason
        else:
            raise AmdError(f"{verdict.reason}, and no power is told")
        readings.extend(trial.powers)
        self._settled[gpu.device] = gpu.source

    def _device(self, board: Board) -> Device:
        static_w, basis = self._settings.static_of(board.device)
        return Device(board.device, DeviceKind.GPU, board.model, static_w, basis)


def _find(driver: AmdDriver, pci: str) -> AmdGpu:
    """The GPU after a failed call; a driver reload makes the library forget who initialized it."""
    try:
        return driver.gpu_at(pci)
    except Uninitialized:
        try:
            driver.open()
        except (Absent, Denied) as gone:
            raise AmdError(str(gone)) from gone
        return driver.gpu_at(pci)
