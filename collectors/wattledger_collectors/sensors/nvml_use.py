"""Who uses NVIDIA GPUs: memory held and SM utilization per process."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from wattledger.records import Device, Process, ProcessUse, UseRecord
from wattledger_collectors.sensors.backoff import Backoff
from wattledger_collectors.sensors.nvml_driver import Handle, NotSupported, NvmlDriver, NvmlError
from wattledger_collectors.sensors.nvml_link import GpuLink, find_links
from wattledger_collectors.sensors.nvml_mig import MigBoard, shared
from wattledger_collectors.sensors.nvml_mps import BY_MPS, MpsServers
from wattledger_collectors.sensors.nvml_processes import Owner, ProcessLists, SmSample, together
from wattledger_collectors.sensors.protocol import Absent, MonotonicClock, SensorSettings

_GRAPHICS_EVERY = 5


class _Gpu:
    __slots__ = (
        "backoff",
        "device",
        "failure",
        "graphics_in",
        "link",
        "lists",
        "mig",
        "mps",
        "since_ns",
        "stamp",
    )

    def __init__(self, link: GpuLink, driver: NvmlDriver, settings: SensorSettings) -> None:
        self.link = link
        self.device = link.device or ""
        self.lists = ProcessLists(driver)
        self.mig = MigBoard(driver)
        self.mps = MpsServers(settings.proc_root)
        self.backoff = Backoff(settings.use_period_s)
        self.failure = ""
        self.since_ns: int | None = None
        self.stamp = 0
        self.graphics_in = 0

    def failed(self, now_ns: int, failure: str) -> None:
        """Start anew at the next try; a reload may start the driver's clock anew, too."""
        self.link.drop()
        self.mig.restart()
        self.backoff.failed(now_ns)
        self.failure = failure
        self.since_ns = None
        self.stamp = 0


class NvmlUseSensor:
    """One `UseRecord` per GPU and interval between samples.

    `sm_percent` is None where no process was busy or the GPU does not tell, so that memory
    decides. With MIG on it is a process's part of its instance's part of the board, and `basis`
    says how that was found (nvml_mig.py). `basis` is `mps` where an MPS server alone holds the
    GPU: its clients are not known then. A process that was busy and is gone keeps its utilization
    and holds no memory. A GPU that fails leaves its interval without a record. The calls may take
    milliseconds inside the driver and keep a lock there: sample once a second at most. Graphics
    processes are looked up at every fifth sample while there are none.
    Source: nvml_processes.py; stamps of utilization are fed back, never compared with our clock.
    """

    name = "nvml_use"
    beside: tuple[str, ...] = ("nvml",)

    def __init__(self, settings: SensorSettings, clock: MonotonicClock = time.monotonic_ns) -> None:
        self.period_s = settings.use_period_s
        self._settings = settings
        self._clock = clock
        self._driver: NvmlDriver | None = None
        self._generation = 0
        self._gpus: list[_Gpu] = []

    def set_devices(self, devices: Iterable[Device]) -> None:
        """Nothing to learn: NVML numbers the GPUs itself."""

    def sample(self) -> list[UseRecord | Process]:
        """Use since the last sample; raises `Absent` or `Denied`, or `NvmlError` if all fail."""
        driver = self._driver or self._open()
        records: list[UseRecord | Process] = []
        with driver.steady:
            if driver.generation != self._generation:
                self._find(driver)
            for gpu in self._gpus:
                now_ns = self._clock()
                if gpu.backoff.waiting(now_ns):
                    continue
                try:
                    record = self._sample_gpu(gpu)
                except NvmlError as failure:
                    gpu.failed(now_ns, str(failure))
                    continue
                gpu.backoff.worked()
                if record is not None:
                    records.append(record)
        if all(gpu.backoff.failing for gpu in self._gpus):
            raise NvmlError(self._gpus[0].failure if self._gpus else "no GPU answers")
        return records

    def close(self) -> None:
        """Release NVML; the next sample starts anew."""
        for gpu in self._gpus:
            gpu.mig.close()
        self._gpus = []
        if self._driver is not None:
            self._driver.close()
            self._driver = None

    def _open(self) -> NvmlDriver:
        driver = NvmlDriver()
        driver.open()
        try:
            if not driver.count():
                raise Absent("NVML runs, but there is no GPU")
            self._find(driver)
        except (Absent, NvmlError):
            driver.close()
            raise
        self._driver = driver
        return driver

    def _find(self, driver: NvmlDriver) -> None:
        """Take up GPUs that are new; those known keep their marks, found again by UUID."""
        known = {gpu.device for gpu in self._gpus}
        for link in find_links(driver):
            if link.device not in known:
                self._gpus.append(_Gpu(link, driver, self._settings))
        self._generation = driver.generation

    def _sample_gpu(self, gpu: _Gpu) -> UseRecord | None:
        """The GPU's record since its last sample; None at the first one."""
        handle = gpu.link.handle()
        owners = _owners(gpu, handle)
        now_ns = self._clock()
        in_use = {owner.instance for owner in owners if owner.instance is not None}
        if in_use:
            weights, basis = gpu.mig.weights(handle, in_use, now_ns)
            uses = _by_instance(owners, weights)
        else:
            uses, basis = _uses(_by_pid(owners), _new_samples(gpu, handle)), ""
            if gpu.mps.alone([use.pid for use in uses]):
                basis = BY_MPS
        since_ns, gpu.since_ns = gpu.since_ns, self._clock()
        if since_ns is None:
            return None
        return UseRecord(gpu.device, since_ns, gpu.since_ns, uses, basis=basis)


def _owners(gpu: _Gpu, handle: Handle) -> list[Owner]:
    compute = gpu.lists.compute(handle)
    if gpu.graphics_in > 0:
        gpu.graphics_in -= 1
        return compute
    graphics = gpu.lists.graphics(handle)
    if not graphics:
        gpu.graphics_in = _GRAPHICS_EVERY - 1
    return together(compute, graphics)


def _new_samples(gpu: _Gpu, handle: Handle) -> list[SmSample]:
    try:
        samples = gpu.lists.sm_samples(handle, gpu.stamp)
    except NotSupported:
        return []
    gpu.stamp = max((sample.stamp for sample in samples), default=gpu.stamp)
    return samples


def _by_pid(owners: Sequence[Owner]) -> dict[int, int | None]:
    """Memory in bytes by process, None where none of its instances tells."""
    held_bytes: dict[int, int | None] = {}
    for owner in owners:
        known = held_bytes.get(owner.pid)
        told = owner.memory_bytes
        held_bytes[owner.pid] = told if known is None else known + (told or 0)
    return held_bytes


def _by_instance(owners: Sequence[Owner], weights: Mapping[int, float]) -> tuple[ProcessUse, ...]:
    """Owners of a board with MIG on; without weights, memory is to decide."""
    percent = shared(owners, weights) if weights else {}
    return tuple(
        ProcessUse(pid, sm_percent=percent.get(pid), memory_bytes=held)
        for pid, held in sorted(_by_pid(owners).items())
    )


def _uses(owners: Mapping[int, int | None], samples: Sequence[SmSample]) -> tuple[ProcessUse, ...]:
    """Owners and busy processes by pid, each with its mean utilization over the samples.

    Idle processes have no samples, so the longest list tells how many rounds there were.
    """
    rounds = max(Counter(sample.pid for sample in samples).values(), default=0)
    busy: Counter[int] = Counter()
    for sample in samples:
        busy[sample.pid] += sample.sm_percent
    return tuple(
        ProcessUse(
            pid,
            sm_percent=busy[pid] / rounds if pid in busy else None,
            memory_bytes=owners.get(pid, 0),
        )
        for pid in sorted({*owners, *busy})
    )
