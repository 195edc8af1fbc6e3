"""NVML behind a typed seam: units converted once, errors mapped once.

    NvmlError             any failed call
    ├── NotSupported      not on this GPU, in this mode or in this driver
    ├── NothingFound      nothing to tell
    └── Uninitialized     the library forgot us (a driver reload)

Source: NVML API reference, nvml.h 13.5; bindings by nvidia-ml-py.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

from wattledger_collectors.sensors.protocol import Absent, Denied

_LIBRARY = "libnvidia-ml.so.1"
_ENERGY_CALL = "nvmlDeviceGetTotalEnergyConsumption"
_FIELD_POWER_INSTANT = 186
_UJ_PER_MJ = 1000
_UW_PER_MW = 1000


class NvmlError(Exception):
    """A call that NVML refused or failed."""


class NotSupported(NvmlError):  # noqa: N818 - NVML's own name for it
    """This GPU, its mode or its driver does not offer the call."""


class NothingFound(NvmlError):  # noqa: N818 - NVML's NOT_FOUND, often no failure at all
    """NVML has nothing to tell."""


class Uninitialized(NvmlError):  # noqa: N818 - NVML's own name for it
    """NVML must be initialized again, and every handle fetched anew."""


class Handle(NamedTuple):
    """A GPU as NVML knows it until the library is initialized again."""

    pointer: object


class SmSample(NamedTuple):
    """One process's SM utilization in percent at `stamp`, microseconds of the driver's clock."""

    pid: int
    stamp: int
    sm_percent: int


class NvmlDriver:
    """One user of libnvidia-ml, on one thread; every method raises `NvmlError` where NVML does.

    Raises `Absent` at once where the bindings are not installed.
    """

    def __init__(self) -> None:
        try:
            import pynvml
        except ModuleNotFoundError as missing:
            raise Absent(
                "nvidia-ml-py is not installed; run pip install 'wattledger[daemon]'"
            ) from missing
        self._nvml = pynvml
        # A missing symbol is told by an exception that is no NVMLError.
        self._errors: tuple[type[Exception], ...] = (
            pynvml.NVMLError,
            pynvml.NVMLLibraryMismatchError,
        )
        self._opened = 0
        self._energy_mj = ctypes.c_ulonglong()
        self._energy_out = ctypes.byref(self._energy_mj)
        self._read_energy: Callable[[object, object], int] | None = None

    def open(self) -> None:
        """Load and initialize NVML, again where needed; raises `Absent` or `Denied`."""
        nvml = self._nvml
        try:
            nvml.nvmlInit()
        except nvml.NVMLError_LibraryNotFound as missing:
            raise Absent("no NVIDIA driver here (libnvidia-ml.so.1 was not found)") from missing
        except nvml.NVMLError_DriverNotLoaded as missing:
            raise Absent("the NVIDIA driver is not loaded") from missing
        except nvml.NVMLError_NoPermission as refused:
            raise Denied(
                "NVML may not open the GPUs",
                "let the daemon's user read and write /dev/nvidiactl and /dev/nvidia*",
            ) from refused
        except self._errors as failed:
            raise self._mapped("nvmlInit", failed) from failed
        self._opened += 1
        # Asked ten times a second of every GPU: past the bindings it costs 0.6 us, not 1.0.
        self._read_energy = getattr(ctypes.CDLL(_LIBRARY), _ENERGY_CALL, None)

    def close(self) -> None:
        """Give up NVML as often as it was opened."""
        try:
            for _ in range(self._opened):
                self._call("nvmlShutdown")
        except Uninitialized:
            pass
        finally:
            self._opened = 0

    def count(self) -> int:
        """How many GPUs NVML enumerates."""
        return int(self._call("nvmlDeviceGetCount"))

    def handle_at(self, index: int) -> Handle:
        """The GPU at `index` of NVML's enumeration, which a reload may change."""
        return Handle(self._call("nvmlDeviceGetHandleByIndex", index))

    def handle_of(self, uuid: str) -> Handle:
        """The GPU with this UUID."""
        return Handle(self._call("nvmlDeviceGetHandleByUUID", uuid))

    def uuid(self, gpu: Handle) -> str:
        """The GPU's lasting name."""
        return str(self._call("nvmlDeviceGetUUID", gpu.pointer))

    def name(self, gpu: Handle) -> str:
        """The product name, e.g. `NVIDIA H200`."""
        return str(self._call("nvmlDeviceGetName", gpu.pointer))

    def energy_uj(self, gpu: Handle) -> int:
        """Energy of the whole board since the driver was loaded, microjoules (Volta or newer).

        With MIG on it is still the board's. Source: nvmlDeviceGetTotalEnergyConsumption, mJ.
        """
        if self._read_energy is None:
            raise NotSupported(f"{_ENERGY_CALL}: not in this driver")
        status = self._read_energy(gpu.pointer, self._energy_out)
        if status:
            raise self._mapped(_ENERGY_CALL, self._nvml.NVMLError(status))
        return self._energy_mj.value * _UJ_PER_MJ

    def power_uw(self, gpu: Handle) -> int:
        """Power now, microwatts; where the driver has no instant figure, its own mean.

        Source: NVML_FI_DEV_POWER_INSTANT (186), else nvmlDeviceGetPowerUsage; both mW.
        """
        try:
            fields = self._call("nvmlDeviceGetFieldValues", gpu.pointer, [_FIELD_POWER_INSTANT])
            if fields[0].nvmlReturn == self._nvml.NVML_SUCCESS:
                return int(fields[0].value.uiVal) * _UW_PER_MW
        except NotSupported:
            pass
        return int(self._call("nvmlDeviceGetPowerUsage", gpu.pointer)) * _UW_PER_MW

    def owners(self, gpu: Handle) -> dict[int, int | None]:
        """Memory in bytes (None: not told) by pid of every process that holds a context.

        A process on both lists holds its memory once; on several MIG instances, once in each.
        Source: nvmlDeviceGetComputeRunningProcesses, nvmlDeviceGetGraphicsRunningProcesses.
        """
        owners = self._running("nvmlDeviceGetComputeRunningProcesses", gpu)
        try:
            graphics = self._running("nvmlDeviceGetGraphicsRunningProcesses", gpu)
        except NotSupported:
            return owners
        for pid, memory_bytes in graphics.items():
            known_bytes = owners.get(pid)
            if known_bytes is None or known_bytes < (memory_bytes or 0):
                owners[pid] = memory_bytes
        return owners

    def sm_samples(self, gpu: Handle, after_stamp: int) -> list[SmSample]:
        """Samples newer than `after_stamp`, which must be a stamp of an earlier sample or 0.

        Empty where nobody was busy; raises `NotSupported` with MIG on. Source:
        nvmlDeviceGetProcessUtilization, whose stamps follow a clock that it does not name.
        """
        try:
            raw = self._call("nvmlDeviceGetProcessUtilization", gpu.pointer, after_stamp)
        except NothingFound:
            return []
        # A driver may pad the array with stale and impossible samples.
        return [
            SmSample(int(sample.pid), int(sample.timeStamp), int(sample.smUtil))
            for sample in raw
            if sample.timeStamp > after_stamp and sample.smUtil <= 100
        ]

    def _running(self, call: str, gpu: Handle) -> dict[int, int | None]:
        held_bytes: Counter[int] = Counter()
        untold: dict[int, int | None] = {}
        for process in self._call(call, gpu.pointer):
            if process.usedGpuMemory is None:
                untold[process.pid] = None
            else:
                held_bytes[process.pid] += process.usedGpuMemory
        return {**untold, **held_bytes}

    def _call(self, name: str, *args: object) -> Any:
        try:
            return getattr(self._nvml, name)(*args)
        except self._errors as failed:
            raise self._mapped(name, failed) from failed

    def _mapped(self, call: str, failed: Exception) -> NvmlError:
        """Our error for one of the binding's, naming the call."""
        nvml = self._nvml
        # Only an NVMLError has a code; the other one complains about a missing symbol.
        code = getattr(failed, "value", nvml.NVML_ERROR_FUNCTION_NOT_FOUND)
        message = f"{call}: {failed}"
        if code == nvml.NVML_ERROR_UNINITIALIZED:
            return Uninitialized(message)
        if code in {nvml.NVML_ERROR_NOT_SUPPORTED, nvml.NVML_ERROR_FUNCTION_NOT_FOUND}:
            return NotSupported(message)
        # The binding raises NVML_SUCCESS where the driver had no process sample to give.
        if code in {nvml.NVML_ERROR_NOT_FOUND, nvml.NVML_SUCCESS}:
            return NothingFound(message)
        return NvmlError(message)
