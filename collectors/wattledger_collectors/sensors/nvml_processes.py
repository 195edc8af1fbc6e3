"""Who is on a GPU, and how busy: lists that NVML fills, each in one call into the driver.

These calls may take milliseconds inside the driver and keep a lock there, on which the GPU's own
work waits. The bindings ask twice, once for the size: here the room is kept from call to call.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

from wattledger_collectors.sensors.nvml_driver import (
    Handle,
    NothingFound,
    NotSupported,
    NvmlDriver,
    NvmlError,
    RawCall,
)

_COMPUTE_CALL = "nvmlDeviceGetComputeRunningProcesses_v3"
_GRAPHICS_CALL = "nvmlDeviceGetGraphicsRunningProcesses_v3"
_UTILIZATION_CALL = "nvmlDeviceGetProcessUtilization"
_NO_INSTANCE = 0xFFFFFFFF
_NOT_TOLD_BYTES = 1 << 50
"""NVML says 2^64 - 1 where it does not know; no GPU has so much as this."""
_TRIES = 3


class Owner(NamedTuple):
    """A process that holds a context, on the board or in one of its MIG GPU instances."""

    pid: int
    instance: int | None
    memory_bytes: int | None


class SmSample(NamedTuple):
    """One process's SM utilization in percent at `stamp`, microseconds of the driver's clock."""

    pid: int
    stamp: int
    sm_percent: int


class _Room:
    """An array that one of NVML's calls fills, made larger when the call says so."""

    def __init__(self, driver: NvmlDriver, call: str, element: Any) -> None:
        self._driver = driver
        self._call = call
        self._element = element
        self._array: Any = None
        self._length = 0

    def filled(self, ask: Callable[[RawCall, object, object], int]) -> list[Any]:
        """What the call has to tell; `ask` makes it, given where the count is and the array."""
        call = self._driver.raw(self._call)
        if call is None:
            raise NotSupported(f"{self._call}: not in this driver")
        for _ in range(_TRIES):
            count = ctypes.c_uint(self._length)
            status = ask(call, ctypes.byref(count), self._array)
            if status == self._driver.nvml.NVML_ERROR_INSUFFICIENT_SIZE:
                # More may come before the next try.
                self._length = count.value + count.value // 2 + 8
                self._array = (self._element * self._length)()
            elif status:
                raise self._driver.error(self._call, status)
            else:
                return list(self._array[: min(count.value, self._length)]) if self._array else []
        raise NvmlError(f"{self._call}: its list grows faster than it can be read")


class ProcessLists:
    """One GPU's processes; every method raises `NvmlError` where NVML does.

    Pids are the host's: NVML knows no pid namespaces, and some drivers translate. Source:
    nvmlDeviceGetComputeRunningProcesses, nvmlDeviceGetGraphicsRunningProcesses (version 3, with
    the MIG instance) and nvmlDeviceGetProcessUtilization.
    """

    def __init__(self, driver: NvmlDriver) -> None:
        nvml = driver.nvml
        self._compute = _Room(driver, _COMPUTE_CALL, nvml.c_nvmlProcessInfo_v3_t)
        self._graphics = _Room(driver, _GRAPHICS_CALL, nvml.c_nvmlProcessInfo_v3_t)
        self._busy = _Room(driver, _UTILIZATION_CALL, nvml.c_nvmlProcessUtilizationSample_t)

    def compute(self, gpu: Handle) -> list[Owner]:
        """Every process with a compute context, once per MIG instance."""
        return _owners(self._compute, gpu)

    def graphics(self, gpu: Handle) -> list[Owner]:
        """Every process with a graphics context; empty where the driver has no such list."""
        try:
            return _owners(self._graphics, gpu)
        except NotSupported:
            return []

    def sm_samples(self, gpu: Handle, after_stamp: int) -> list[SmSample]:
        """Samples newer than `after_stamp`, which must be a stamp of an earlier sample or 0.

        Empty where nobody was busy; raises `NotSupported` with MIG on. The stamps follow a clock
        that NVML does not name.
        """
        stamp = ctypes.c_ulonglong(after_stamp)
        try:
            raw = self._busy.filled(
                lambda call, count, array: call(gpu.pointer, array, count, stamp)
            )
        except NothingFound:
            return []
        # A driver may pad the array with stale and impossible samples.
        return [
            SmSample(int(sample.pid), int(sample.timeStamp), int(sample.smUtil))
            for sample in raw
            if sample.timeStamp > after_stamp and sample.smUtil <= 100
        ]


def together(compute: list[Owner], graphics: list[Owner]) -> list[Owner]:
    """Both lists as one: a process on both holds its memory once."""
    owners = {owner[:2]: owner for owner in compute}
    for owner in graphics:
        known = owners.get(owner[:2])
        if known is None or (known.memory_bytes or 0) < (owner.memory_bytes or 0):
            owners[owner[:2]] = owner
    return list(owners.values())


def _owners(room: _Room, gpu: Handle) -> list[Owner]:
    held_bytes: Counter[tuple[int, int | None]] = Counter()
    told: set[tuple[int, int | None]] = set()
    for process in room.filled(lambda call, count, array: call(gpu.pointer, count, array)):
        instance = None if process.gpuInstanceId == _NO_INSTANCE else int(process.gpuInstanceId)
        key = int(process.pid), instance
        memory_bytes = int(process.usedGpuMemory)
        if memory_bytes < _NOT_TOLD_BYTES:
            told.add(key)
        else:
            memory_bytes = 0
        held_bytes[key] += memory_bytes
    return [Owner(*key, held if key in told else None) for key, held in held_bytes.items()]
