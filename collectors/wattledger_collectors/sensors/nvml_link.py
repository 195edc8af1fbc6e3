"""One GPU's handle and its id, kept across losses, driver reloads and hot-plugging."""

from __future__ import annotations

import threading

from wattledger_collectors.sensors.nvml_driver import Handle, NvmlDriver, NvmlError, Uninitialized
from wattledger_collectors.sensors.protocol import Absent, Denied


class _Roster:
    """Which GPU has which id, by UUID, for as long as this process lives.

    An id is NVML's index at first sight. A GPU that is plugged in later shifts the indices of
    others, and must not take over their counters' past: it gets an id that nobody had.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._devices: dict[str, str] = {}

    def device(self, uuid: str, index: int) -> str:
        """The id of this GPU, which NVML lists at `index` now."""
        with self._lock:
            reserved = self._devices.pop(f"index {index}", None)
            if uuid not in self._devices:
                self._devices[uuid] = reserved or self._free(index)
            return self._devices[uuid]

    def reserve(self, index: int) -> str | None:
        """The id of a GPU that has not told its UUID yet; None where it may be one of ours."""
        with self._lock:
            key = f"index {index}"
            if key not in self._devices and self._free(index) != f"gpu{index}":
                return None
            return self._devices.setdefault(key, f"gpu{index}")

    def _free(self, index: int) -> str:
        taken = set(self._devices.values())
        while f"gpu{index}" in taken:
            index += 1
        return f"gpu{index}"


_ROSTER = _Roster()


class GpuLink:
    """One GPU, found again by UUID, since a reload may number the GPUs anew.

    `device` is its id, e.g. `gpu0`; None where a lost GPU may be one that is known by another.
    """

    __slots__ = ("_driver", "_generation", "_handle", "device", "index", "uuid")

    def __init__(self, driver: NvmlDriver, index: int) -> None:
        self._driver = driver
        self._generation = 0
        self._handle: Handle | None = None
        self.device: str | None = None
        self.index = index
        self.uuid: str | None = None
        try:
            self.handle()
        except NvmlError:
            # A GPU that is lost now may come back, and says so at each try.
            self.device = _ROSTER.reserve(index)

    def handle(self) -> Handle:
        """The handle, fetched where none of this generation is held; raises `NvmlError`."""
        generation = self._driver.generation
        if self._handle is None or self._generation != generation:
            self._handle = None
            try:
                found = self._find()
            except Uninitialized:
                self._revive(generation)
                found = self._find()
            self._handle, self._generation = found, self._driver.generation
        return self._handle

    def drop(self) -> None:
        """Forget the handle after a failed call."""
        self._handle = None

    def _revive(self, generation: int) -> None:
        try:
            self._driver.revive(generation)
        except (Absent, Denied) as gone:
            raise NvmlError(str(gone)) from gone

    def _find(self) -> Handle:
        if self.uuid is not None:
            return self._driver.handle_of(self.uuid)
        handle = self._driver.handle_at(self.index)
        uuid = self._driver.uuid(handle)
        device = _ROSTER.device(uuid, self.index)
        if self.device not in (None, device):
            raise NvmlError(f"NVML lists another GPU where {self.device} was")
        self.device, self.uuid = device, uuid
        return handle


def find_links(driver: NvmlDriver) -> list[GpuLink]:
    """A link to every GPU that NVML enumerates, in its order; raises `NvmlError`."""
    links = [GpuLink(driver, index) for index in range(driver.count())]
    return [link for link in links if link.device is not None]
