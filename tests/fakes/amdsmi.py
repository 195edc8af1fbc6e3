"""A fake `amdsmi`: names and shapes of ROCm's bindings, 7.0, without its library."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

RESOLUTION_UJ = 15.300000190734863  # 15.3 as the 32-bit float that ctypes gives
NOT_SUPPORTED, NO_PERMISSION, NOT_INITIALIZED, DRIVER_NOT_LOADED, BUSY = 2, 10, 32, 34, 30


class AmdSmiException(Exception):  # noqa: N818 - the bindings' own name
    """The bindings' own base class."""


class AmdSmiLibraryException(AmdSmiException):
    def __init__(self, err_code: int) -> None:
        super().__init__(err_code)
        self.err_code = err_code

    def __str__(self) -> str:
        return f"Error code:\n\t{self.err_code} | AMDSMI_STATUS - {self.err_code}"


@dataclass
class FakeGpu:
    """One processor; energy as its power since time 0, scaled by `counter_scale`."""

    bdf: str
    model: str = "AMD Instinct MI300X"
    power_w: float = 300.0
    counter_scale: float = 1.0
    energy_key: str = "energy_accumulator"
    power_key: str = "current_socket_power"
    resolution_uj: float = RESOLUTION_UJ
    base_uj: float = 1e9
    energy_error: int | None = None
    power_error: int | None = None
    name_error: int | None = None
    added_uj: float = 0.0


@dataclass
class FakeAmdSmi:
    """Stands in for the module; `now_s` is its clock."""

    gpus: list[FakeGpu]
    now_s: Callable[[], float] = lambda: 0.0
    init_error: int | None = None
    inits: int = 0
    shut_downs: int = 0
    initialized: bool = False
    garbage: object = None
    calls: list[str] = field(default_factory=list)
    AmdSmiException: type[Exception] = AmdSmiException

    def amdsmi_init(self) -> None:
        self.inits += 1
        if self.init_error is not None:
            raise AmdSmiLibraryException(self.init_error)
        self.initialized = True

    def amdsmi_shut_down(self) -> None:
        self.shut_downs += 1
        self.initialized = False

    def amdsmi_get_processor_handles(self) -> list[FakeGpu]:
        self._check()
        return self.gpus

    def amdsmi_get_gpu_device_bdf(self, gpu: FakeGpu) -> str:
        return gpu.bdf

    def amdsmi_get_processor_handle_from_bdf(self, bdf: str) -> FakeGpu:
        self._check()
        return next(gpu for gpu in self.gpus if gpu.bdf.lower() == bdf)

    def amdsmi_get_gpu_asic_info(self, gpu: FakeGpu) -> dict[str, object]:
        self._check(gpu.name_error)
        return {"market_name": gpu.model, "vendor_id": "0x1002", "num_compute_units": 304}

    def amdsmi_get_energy_count(self, gpu: FakeGpu) -> object:
        self._check(gpu.energy_error)
        if isinstance(self.garbage, Exception):
            raise self.garbage
        if self.garbage is not None:
            return self.garbage
        energy_uj = gpu.base_uj + gpu.added_uj
        energy_uj += gpu.counter_scale * gpu.power_w * self.now_s() * 1e6
        return {
            gpu.energy_key: int(energy_uj / RESOLUTION_UJ),
            "counter_resolution": gpu.resolution_uj,
            "timestamp": 123,
        }

    def amdsmi_get_power_info(self, gpu: FakeGpu) -> dict[str, object]:
        self._check(gpu.power_error)
        figures: dict[str, object] = {
            "socket_power": 0,
            "current_socket_power": "N/A",
            "average_socket_power": 0xFFFF_FFFF,
            "power_limit": 750,
        }
        return {**figures, gpu.power_key: gpu.power_w}

    def _check(self, error: int | None = None) -> None:
        if not self.initialized:
            raise AmdSmiLibraryException(NOT_INITIALIZED)
        if error is not None:
            raise AmdSmiLibraryException(error)
