"""Who uses NVIDIA GPUs: memory held and SM utilization per process."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from wattledger.records import Device, Process, ProcessUse, UseRecord
from wattledger_collectors.sensors.backoff import Backoff
from wattledger_collectors.sensors.nvml_driver import (
    Handle,
    NotSupported,
    NvmlDriver,
    NvmlError,
    SmSample,
)
from wattledger_collectors.sensors.nvml_link import GpuLink
from wattledger_collectors.sensors.protocol import Absent, MonotonicClock, SensorSettings


class _Gpu:
    __slots__ = ("backoff", "failure", "link", "since_ns", "stamp")

    def __init__(self, link: GpuLink, period_s: float) -> None:
        self.link = link
        self.backoff = Backoff(period_s)
        self.failure = ""
        self.since_ns: int | None = None
        self.stamp = 0

    def failed(self, now_ns: int, failure: str) -> None:
        """Start anew at the next try; a reload may start the driver's clock anew, too."""
        self.link.drop()
        self.backoff.failed(now_ns)
        self.failure = failure
        self.since_ns = None
        self.stamp = 0


class NvmlUseSensor:
    """One `UseRecord` per GPU and interval between samples.

    `sm_percent` is None where no process was busy or the GPU does not tell (MIG), so that memory
    decides. A process that was busy and is gone keeps its utilization and holds no memory. A GPU
    that fails leaves its interval without a record. The calls may take milliseconds inside the
    driver and keep a lock there: sample once a second at most.
    Source: nvml_driver.py; stamps of utilization are fed back, never compared with our clock.
    """

    name = "nvml_use"
    beside: tuple[str, ...] = ("nvml",)

    def __init__(self, settings: SensorSettings, clock: MonotonicClock = time.monotonic_ns) -> None:
        self.period_s = settings.use_period_s
        self._clock = clock
        self._driver: NvmlDriver | None = None
        self._gpus: list[_Gpu] = []

    def set_devices(self, devices: Iterable[Device]) -> None:
        """Nothing to learn: NVML numbers the GPUs itself."""

    def sample(self) -> list[UseRecord | Process]:
        """Use since the last sample; raises `Absent` or `Denied`, or `NvmlError` if all fail."""
        driver = self._driver or self._open()
        records: list[UseRecord | Process] = []
        for gpu in self._gpus:
            now_ns = self._clock()
            if gpu.backoff.waiting(now_ns):
                continue
            try:
                record = self._sample_gpu(driver, gpu)
            except NvmlError as failure:
                gpu.failed(now_ns, str(failure))
                continue
            gpu.backoff.worked()
            if record is not None:
                records.append(record)
        if all(gpu.backoff.failing for gpu in self._gpus):
            raise NvmlError(self._gpus[0].failure)
        return records

    def close(self) -> None:
        """Release NVML; the next sample starts anew."""
        self._gpus = []
        if self._driver is not None:
            self._driver.close()
            self._driver = None

    def _open(self) -> NvmlDriver:
        driver = NvmlDriver()
        driver.open()
        try:
            count = driver.count()
        except NvmlError:
            driver.close()
            raise
        if not count:
            driver.close()
            raise Absent("NVML runs, but there is no GPU")
        self._gpus = [_Gpu(GpuLink(driver, index), self.period_s) for index in range(count)]
        self._driver = driver
        return driver

    def _sample_gpu(self, driver: NvmlDriver, gpu: _Gpu) -> UseRecord | None:
        """The GPU's record since its last sample; None at the first one."""
        handle = gpu.link.handle()
        owners = driver.owners(handle)
        samples = self._new_samples(driver, gpu, handle)
        since_ns, gpu.since_ns = gpu.since_ns, self._clock()
        if since_ns is None:
            return None
        return UseRecord(gpu.link.device, since_ns, gpu.since_ns, _uses(owners, samples))

    def _new_samples(self, driver: NvmlDriver, gpu: _Gpu, handle: Handle) -> list[SmSample]:
        try:
            samples = driver.sm_samples(handle, gpu.stamp)
        except NotSupported:
            return []
        gpu.stamp = max((sample.stamp for sample in samples), default=gpu.stamp)
        return samples


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
