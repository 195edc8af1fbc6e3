"""One GPU's handle, kept alive across losses and driver reloads."""

from __future__ import annotations

from wattledger_collectors.sensors.nvml_driver import Handle, NvmlDriver, NvmlError, Uninitialized
from wattledger_collectors.sensors.protocol import Absent, Denied


class GpuLink:
    """One GPU, found again by UUID, since a reload may number the GPUs anew."""

    __slots__ = ("_driver", "_handle", "_uuid", "index")

    def __init__(self, driver: NvmlDriver, index: int) -> None:
        self._driver = driver
        self._handle: Handle | None = None
        self._uuid: str | None = None
        self.index = index

    @property
    def device(self) -> str:
        """The device id, e.g. `gpu0`, by NVML's index when first seen."""
        return f"gpu{self.index}"

    def handle(self) -> Handle:
        """The handle, fetched where none is held; raises `NvmlError`."""
        if self._handle is None:
            try:
                self._handle = self._find()
            except Uninitialized:
                self._initialize_again()
                self._handle = self._find()
        return self._handle

    def drop(self) -> None:
        """Forget the handle after a failed call."""
        self._handle = None

    def _initialize_again(self) -> None:
        try:
            self._driver.open()
        except (Absent, Denied) as gone:
            raise NvmlError(str(gone)) from gone

    def _find(self) -> Handle:
        if self._uuid is not None:
            return self._driver.handle_of(self._uuid)
        handle = self._driver.handle_at(self.index)
        self._uuid = self._driver.uuid(handle)
        return handle
