"""Who uses AMD and Intel GPUs: engine time and memory per process, as of DRM's fdinfo."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping

from wattledger.records import NS_PER_S, Device, DeviceKind, Process, ProcessUse, UseRecord
from wattledger_collectors.sensors.amdsmi_boards import has_two_dies
from wattledger_collectors.sensors.drm_cards import Card, find_cards
from wattledger_collectors.sensors.drm_fdinfo import Client, busy_percent, caught_up, read_client
from wattledger_collectors.sensors.drm_holders import GpuHolders, OpenFiles, open_files
from wattledger_collectors.sensors.protocol import Absent, Denied, MonotonicClock, SensorSettings

# A little less than a multiple of the usual sample period, lest jitter skip a sample.
_RESCAN_PERIOD_NS = int(3.5 * NS_PER_S)
_FDINFO_BYTES = 16_384
_VENDORS = ("amd", "intel")
_HIDDEN = "hidden-owners"
_MEND = (
    "run the daemon as root, or give it CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH "
    "(AmbientCapabilities= in its unit)"
)

_Clients = Mapping[tuple[str, int], tuple[int, Client]]
"""Each client's holder and what it tells, by its GPU and number."""


class DrmUseSensor:
    """One `UseRecord` per AMD or Intel GPU that is metered, and interval between samples.

    `sm_percent` is the share of the engine that a process kept busiest, None where it is new or
    where the driver does not tell. ROCm's compute queues (KFD) are not in fdinfo: where such a
    process holds a GPU nobody's `sm_percent` is told, so that memory decides. A client that
    several processes hold is the lowest pid's. Where processes may not be looked into, nobody is
    never told to hold a GPU, and `basis` is `hidden-owners`. Not tested on hardware.
    Source: drm_fdinfo.py, drm_holders.py.
    """

    name = "drm_use"
    beside: tuple[str, ...] = ("amdsmi", "hwmon")
    note = "not tested on hardware"

    def __init__(
        self,
        settings: SensorSettings,
        clock: MonotonicClock = time.monotonic_ns,
        look: OpenFiles = open_files,
    ) -> None:
        self.period_s = settings.use_period_s
        self._settings = settings
        self._clock = clock
        self._look = look
        self._devices: tuple[Device, ...] = ()
        self._device_of: Mapping[str, str] = {}
        self._found: tuple[Card, ...] = ()
        self._holders = GpuHolders(settings.proc_root, look)
        self._rescan_due_ns = 0
        self._clients: _Clients = {}
        self._last_ns: int | None = None

    def set_devices(self, devices: Iterable[Device]) -> None:
        """Say which GPUs are metered; those of other makers are not told."""
        known = tuple(
            d for d in devices if d.kind is DeviceKind.GPU and d.device.startswith(_VENDORS)
        )
        if known != self._devices:
            self._devices = known
            # Found anew, since a driver's reload may have added cards.
            self._found = find_cards(self._settings.sysfs_root)
            self._device_of = _by_address(self._found, known)

    def sample(self) -> list[UseRecord | Process]:
        """Use since the last sample; raises `Absent` or `Denied`, or OSError."""
        if not self._devices:
            # Nothing is metered yet, or other makers' GPUs alone: /proc is left in peace.
            self._found = self._found or find_cards(self._settings.sysfs_root)
            if not self._found:
                raise Absent("no AMD or Intel GPU here")
            self._last_ns = None
            return []
        now_ns = self._clock()
        if now_ns >= self._rescan_due_ns:
            self._rescan_due_ns = now_ns + _RESCAN_PERIOD_NS
            self._scan(now_ns)
        before, self._clients = self._clients, self._read(self._clients)
        start_ns, self._last_ns = self._last_ns, self._clock()
        if start_ns is None:
            return []
        return self._records(before, start_ns, self._last_ns)

    def close(self) -> None:
        """Forget all; the next sample starts anew."""
        self._holders = GpuHolders(self._settings.proc_root, self._look)
        self._rescan_due_ns = 0
        self._clients = {}
        self._last_ns = None
        self._found = ()

    def _scan(self, now_ns: int) -> None:
        try:
            self._holders.scan(now_ns)
        except FileNotFoundError as missing:
            raise Absent(f"no {self._settings.proc_root} here") from missing
        holders = self._holders
        if holders.hidden and holders.complete and not holders.read:
            raise Denied("no other process's open files may be read", _MEND)

    def _read(self, before: _Clients) -> dict[tuple[str, int], tuple[int, Client]]:
        """Every client of a metered GPU now, each at its lowest pid."""
        clients: dict[tuple[str, int], tuple[int, Client]] = {}
        for pid, holder in sorted(self._holders.holders.items()):
            for descriptor in holder.descriptors:
                client = self._client(pid, descriptor)
                if client is None or client.pci not in self._device_of:
                    continue
                key = (client.pci, client.number)
                if key not in clients:
                    if key in before:
                        client = caught_up(before[key][1], client)
                    clients[key] = (pid, client)
        return clients

    def _client(self, pid: int, descriptor: str) -> Client | None:
        path = f"{self._settings.proc_root}/{pid}/fdinfo/{descriptor}"
        try:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                raw = os.read(file, _FDINFO_BYTES)
            finally:
                os.close(file)
        except OSError:
            # The process or the descriptor is gone; the next scan forgets it.
            return None
        return read_client(raw.decode(errors="replace"))

    def _records(self, before: _Clients, start_ns: int, end_ns: int) -> list[UseRecord | Process]:
        held_bytes: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
        busy: dict[str, dict[int, float]] = defaultdict(lambda: defaultdict(float))
        for key, (pid, client) in self._clients.items():
            device = self._device_of[client.pci]
            held_bytes[device][pid] += client.memory_bytes
            earlier = before.get(key)
            percent = busy_percent(earlier[1], client, end_ns - start_ns) if earlier else None
            if percent is not None:
                busy[device][pid] = min(busy[device][pid] + percent, 100.0)
        basis = _HIDDEN if self._holders.hidden else ""
        records: list[UseRecord | Process] = []
        for device in sorted(set(self._device_of.values())):
            told = {} if self._any_computes(held_bytes[device]) else busy[device]
            uses = tuple(
                ProcessUse(pid, told.get(pid), memory_bytes)
                for pid, memory_bytes in sorted(held_bytes[device].items())
            )
            if uses or not basis:
                records.append(UseRecord(device, start_ns, end_ns, uses, basis=basis))
        return records

    def _any_computes(self, pids: Iterable[int]) -> bool:
        holders = self._holders.holders
        return any(holders[pid].computes for pid in pids if pid in holders)


def _by_address(cards: Iterable[Card], devices: Iterable[Device]) -> dict[str, str]:
    """The metered device of each PCI address; an MI250's odd die is its even die's board."""
    models = {device.device: device.model for device in devices}
    found: dict[str, str] = {}
    board: str | None = None
    for card in cards:
        if not card.device.startswith(_VENDORS[0]):
            board = None
        if card.device in models:
            found[card.pci] = card.device
            board = card.device if has_two_dies(models[card.device]) else None
        elif board is not None:
            found[card.pci], board = board, None
    return found
