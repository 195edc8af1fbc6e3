"""NVML behind a typed seam: units converted once, errors mapped once.

    NvmlError             any failed call
    ├── NotSupported      not on this GPU, in this mode or in this driver
    ├── NothingFound      nothing to tell
    └── Uninitialized     the library forgot us (a driver reload)

Source: NVML API reference, nvml.h 13.5; bindings by nvidia-ml-py.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, NamedTuple

from wattledger_collectors.sensors.protocol import Absent, Denied

_LIBRARY = "libnvidia-ml.so.1"
_ENERGY_CALL = "nvmlDeviceGetTotalEnergyConsumption"
_UJ_PER_MJ = 1000
_PATIENCE_S = 0.5
_PATIENCE_OPENING_S = 4.0

RawCall = Callable[..., int]
"""A function of the library itself: it takes C values and answers with a status."""

EnergyCall = tuple[RawCall, object, ctypes.c_ulonglong]
"""The counter's own function, its second argument, and where it leaves millijoules."""


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


class _Household:
    """NVML in this process: it counts its users, and enumerates GPUs when the first one comes.

    A handle belongs to one generation; after the next enumeration it may mean another GPU.
    """

    __slots__ = ("generation", "lock", "users")

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.generation = 0
        self.users = 0


_HOUSE = _Household()


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
        self.nvml = pynvml
        # A missing symbol is told by an exception that is no NVMLError.
        self._errors: tuple[type[Exception], ...] = (
            pynvml.NVMLError,
            pynvml.NVMLLibraryMismatchError,
        )
        self._opened = False
        self._patience_s = _PATIENCE_OPENING_S
        self._library: ctypes.CDLL | None = None
        self._energy_mj = ctypes.c_ulonglong()
        self._energy_out = ctypes.byref(self._energy_mj)
        self._read_energy: RawCall | None = None

    @property
    def generation(self) -> int:
        """How often NVML enumerated its GPUs; handles of an earlier generation are void."""
        return _HOUSE.generation

    @property
    def steady(self) -> AbstractContextManager[object]:
        """Held by whoever makes many calls in a row: meanwhile nobody has NVML enumerate anew.

        Entering raises `NvmlError` where another user keeps NVML busy.
        """
        return self._alone(_PATIENCE_S)

    def open(self) -> None:
        """Load and initialize NVML; raises `Absent`, `Denied` or `NvmlError`."""
        # Another user may be initializing it just now, which takes seconds on a cold driver.
        with self._alone(_PATIENCE_OPENING_S):
            if not self._opened:
                self._initialize()
                self._opened = True
                if not _HOUSE.users:
                    _HOUSE.generation += 1
                _HOUSE.users += 1
        self._library = ctypes.CDLL(_LIBRARY)
        self._read_energy = self.raw(_ENERGY_CALL)

    def revive(self, generation: int) -> None:
        """Initialize NVML again for all its users, if a driver reload ended that generation."""
        with self._alone(_PATIENCE_S):
            if _HOUSE.generation == generation:
                for _ in range(_HOUSE.users):
                    self._initialize()
                _HOUSE.generation += 1

    def enumerate_anew(self) -> bool:
        """Have NVML look for GPUs again; False where it is in use right now: try again later.

        NVML looks only when its first user comes, so all its users in this process must go first.
        """
        if not _HOUSE.lock.acquire(blocking=False):
            return False
        try:
            for _ in range(_HOUSE.users):
                self._shut_down()
            for _ in range(_HOUSE.users):
                self._initialize()
        except (Absent, Denied) as gone:
            raise NvmlError(str(gone)) from gone
        finally:
            _HOUSE.generation += 1
            _HOUSE.lock.release()
        return True

    def close(self) -> None:
        """Give up NVML; where it is busy that can be tried again."""
        with self._alone(_PATIENCE_S):
            if not self._opened:
                return
            self._opened = False
            _HOUSE.users -= 1
            self._shut_down()

    @contextmanager
    def _alone(self, patience_s: float) -> Iterator[None]:
        """Hold the house; raises `NvmlError` where another user does for longer than that.

        A call of theirs may hang in the driver for ever, and must not take this thread with it.
        Who waited in vain waits no more until it worked again: there may be eight GPUs to ask for.
        """
        if not _HOUSE.lock.acquire(timeout=min(patience_s, self._patience_s)):
            self._patience_s = 0.0
            raise NvmlError("NVML is busy")
        self._patience_s = _PATIENCE_OPENING_S
        try:
            yield
        finally:
            _HOUSE.lock.release()

    def _shut_down(self) -> None:
        # A reload may have done that for us.
        with suppress(Uninitialized):
            self.call("nvmlShutdown")

    def _initialize(self) -> None:
        nvml = self.nvml
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

    # ---------------------------------------------------------------------- GPUs

    def version(self) -> str:
        """The driver's version."""
        return str(self.call("nvmlSystemGetDriverVersion"))

    def count(self) -> int:
        """How many GPUs NVML enumerates."""
        return int(self.call("nvmlDeviceGetCount"))

    def handle_at(self, index: int) -> Handle:
        """The GPU at `index` of NVML's enumeration, which a reload may change."""
        return Handle(self.call("nvmlDeviceGetHandleByIndex", index))

    def handle_of(self, uuid: str) -> Handle:
        """The GPU with this UUID."""
        return Handle(self.call("nvmlDeviceGetHandleByUUID", uuid))

    def uuid(self, gpu: Handle) -> str:
        """The GPU's lasting name."""
        return str(self.call("nvmlDeviceGetUUID", gpu.pointer))

    def name(self, gpu: Handle) -> str:
        """The GPU's model, e.g. `NVIDIA H200`."""
        return str(self.call("nvmlDeviceGetName", gpu.pointer))

    def energy_uj(self, gpu: Handle) -> int:
        """The board's energy counter in microjoules (Volta or newer).

        With MIG on it is still the board's. Source: nvmlDeviceGetTotalEnergyConsumption, mJ.
        """
        call, out, cell = self.energy_call()
        if status := call(gpu.pointer, out):
            raise self.error(_ENERGY_CALL, status)
        return int(cell.value) * _UJ_PER_MJ

    def energy_call(self) -> EnergyCall:
        """The counter past the bindings.

        Asked ten times a second of every GPU: past the bindings it costs 0.6 us, not 1.0.
        Raises `NotSupported` where the library lacks it.
        """
        if self._read_energy is None:
            raise NotSupported(f"{_ENERGY_CALL}: not in this driver")
        return self._read_energy, self._energy_out, self._energy_mj

    def energy_error(self, status: int) -> NvmlError:
        """What a status other than 0 of the counter's own function means."""
        return self.error(_ENERGY_CALL, status)

    # ---------------------------------------------------------------------- calls

    def raw(self, name: str) -> RawCall | None:
        """A function of the library past the bindings; None where the driver lacks it."""
        return getattr(self._library, name, None)

    def call(self, name: str, *args: object) -> Any:
        """A call through the bindings."""
        try:
            return getattr(self.nvml, name)(*args)
        except self._errors as failed:
            raise self._mapped(name, failed) from failed

    def error(self, call: str, status: int) -> NvmlError:
        """What a status other than 0 of a raw call means."""
        return self._mapped(call, self.nvml.NVMLError(status))

    def _mapped(self, call: str, failed: Exception) -> NvmlError:
        """Our error for one of the binding's, naming the call."""
        nvml = self.nvml
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
