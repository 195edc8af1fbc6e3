"""AMD SMI behind a typed seam: units converted once, errors mapped once.

    AmdError             any failed call, any answer of another shape
    ├── NotSupported     not on this GPU or in this driver
    └── Uninitialized    the library forgot us (a driver reload)

Source: the Python API of ROCm's amd-smi (amdsmi_interface.py 7.0), written from its function
names and the shapes of their results. Not tested on hardware.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from types import ModuleType
from typing import Any, NamedTuple

from wattledger_collectors.sensors.drm_cards import pci_order
from wattledger_collectors.sensors.protocol import Absent, Denied

_UW_PER_W = 1_000_000
_MOST_W = 2000
_NO_COUNTER = (1 << 64) - 1
_NO_PERMISSION = 10
_NOT_INITIALIZED = 32
# amdsmi_status_t: not supported, not yet implemented, no data.
_NOT_SUPPORTED = frozenset({2, 3, 40})
# amdsmi_status_t: module or symbol not loaded, driver not loaded, no driver.
_NO_DRIVER = frozenset({4, 5, 34, 51})
_ENERGY_KEYS = ("energy_accumulator", "power")
_POWER_KEYS = ("current_socket_power", "socket_power", "average_socket_power")

LoadBindings = Callable[[], Any]
"""Gives the `amdsmi` module; raises `Absent`."""


class AmdError(Exception):
    """A call that AMD SMI refused or failed."""


class NotSupported(AmdError):  # noqa: N818 - AMD SMI's own name for it
    """This GPU or its driver does not offer the call."""


class Uninitialized(AmdError):  # noqa: N818 - AMD SMI's own name for it
    """AMD SMI must be initialized again, and every handle fetched anew."""


class AmdGpu(NamedTuple):
    """A GPU as AMD SMI knows it, and its PCI address in lower case."""

    pointer: object
    pci: str


def load_bindings() -> ModuleType:
    """Import `amdsmi`; raises `Absent`.

    Without ROCm's library the import prints to stdout and then raises KeyError.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return importlib.import_module("amdsmi")
    except ModuleNotFoundError as missing:
        raise Absent(
            "there is an AMD GPU, but amdsmi is not installed; "
            "run pip install with the amdsmi of your ROCm version (/opt/rocm/share/amd_smi)"
        ) from missing
    except (ImportError, KeyError, OSError, AttributeError) as failed:
        raise Absent(
            f"there is an AMD GPU, but amdsmi does not load ({type(failed).__name__}: {failed}); "
            "install amd-smi-lib and set ROCM_PATH"
        ) from failed


class AmdDriver:
    """One user of AMD SMI, on one thread; every method raises `AmdError` where it fails."""

    def __init__(self, load: LoadBindings = load_bindings) -> None:
        self._smi = load()
        self._opened = False

    def open(self) -> None:
        """Initialize the library; raises `Absent`, `Denied` or `AmdError`."""
        try:
            self._smi.amdsmi_init()
        except self._smi.AmdSmiException as failed:
            code = _code(failed)
            if code in _NO_DRIVER:
                raise Absent("the amdgpu driver is not loaded") from failed
            if code == _NO_PERMISSION:
                raise Denied(
                    "AMD SMI may not open the GPUs",
                    "add the daemon's user to the groups video and render",
                ) from failed
            raise _mapped("amdsmi_init", failed) from failed
        self._opened = True

    def close(self) -> None:
        """Give the library up."""
        if self._opened:
            self._opened = False
            with contextlib.suppress(AmdError):
                self._call("amdsmi_shut_down")

    def gpus(self) -> list[AmdGpu]:
        """Every GPU, dies and partitions too, in the order of their PCI addresses."""
        pointers = self._call("amdsmi_get_processor_handles")
        gpus = [
            AmdGpu(p, str(self._call("amdsmi_get_gpu_device_bdf", p)).lower()) for p in pointers
        ]
        try:
            return sorted(gpus, key=lambda gpu: pci_order(gpu.pci))
        except ValueError as garbage:
            raise AmdError(f"amdsmi_get_gpu_device_bdf: {garbage}") from garbage

    def gpu_at(self, pci: str) -> AmdGpu:
        """The GPU at this PCI address."""
        return AmdGpu(self._call("amdsmi_get_processor_handle_from_bdf", pci), pci)

    def model(self, gpu: AmdGpu) -> str | None:
        """The product name, e.g. `AMD Instinct MI300X`; None where it tells none."""
        name = self._answer("amdsmi_get_gpu_asic_info", gpu).get("market_name")
        return name if isinstance(name, str) and name not in {"", "N/A"} else None

    def energy_uj(self, gpu: AmdGpu) -> int:
        """Energy since the driver was loaded, microjoules; raises `NotSupported`.

        The accumulator times its resolution (e.g. 15.3 uJ), which comes as a 32-bit float: six
        digits of it are what was meant. Always from the whole count, so that it never drifts.
        Source: amdsmi_get_energy_count.
        """
        answer = self._answer("amdsmi_get_energy_count", gpu)
        count = next((answer[key] for key in _ENERGY_KEYS if key in answer), None)
        resolution_uj = answer.get("counter_resolution")
        if not isinstance(count, int) or not isinstance(resolution_uj, int | float):
            raise NotSupported(f"amdsmi_get_energy_count: {count!r} x {resolution_uj!r}")
        if count in {_NO_COUNTER, -1} or not math.isfinite(resolution_uj) or resolution_uj <= 0:
            raise NotSupported(f"amdsmi_get_energy_count: {count} x {resolution_uj}")
        exact_uj = Fraction(f"{resolution_uj:.6g}")
        return count * exact_uj.numerator // exact_uj.denominator

    def power_uw(self, gpu: AmdGpu) -> int:
        """Power of the socket, microwatts; raises `NotSupported`.

        The first of three figures that is told: what a GPU does not offer comes as 0, as
        `N/A` or as all bits set. Source: amdsmi_get_power_info, watts.
        """
        answer = self._answer("amdsmi_get_power_info", gpu)
        for key in _POWER_KEYS:
            power_w = answer.get(key)
            if isinstance(power_w, int | float) and 0 < power_w <= _MOST_W:
                return round(power_w * _UW_PER_W)
        raise NotSupported("amdsmi_get_power_info: no power is told")

    def _answer(self, name: str, gpu: AmdGpu) -> Mapping[str, object]:
        answer = self._call(name, gpu.pointer)
        if not isinstance(answer, Mapping):
            raise AmdError(f"{name}: {answer!r} is no answer")
        return answer

    def _call(self, name: str, *args: object) -> Any:
        try:
            return getattr(self._smi, name)(*args)
        except self._smi.AmdSmiException as failed:
            raise _mapped(name, failed) from failed
        except (AttributeError, KeyError, TypeError, ValueError) as failed:
            # The bindings are young: names go, and answers change their shape.
            raise AmdError(f"{name}: {type(failed).__name__}: {failed}") from failed


def _code(failed: Exception) -> int | None:
    code = getattr(failed, "err_code", None)
    return code if isinstance(code, int) else None


def _mapped(call: str, failed: Exception) -> AmdError:
    """Our error for one of the bindings', naming the call; theirs span several lines."""
    message = f"{call}: {' '.join(str(failed).split())}"
    if _code(failed) == _NOT_INITIALIZED:
        return Uninitialized(message)
    return NotSupported(message) if _code(failed) in _NOT_SUPPORTED else AmdError(message)
