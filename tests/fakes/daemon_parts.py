"""Parts of a daemon that tests steer: time, sensors, a ledger that fails when told to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from wattledger.errors import UnreachableError
from wattledger.records import Clock, Device, Page
from wattledger.store.protocol import JournalEntry
from wattledger.store.sqlite import SqliteLedger
from wattledger_collectors.sensors.protocol import Reading
from wattledger_daemon.hosttime import HostTime

EPOCH_NS = 1_790_000_000_000_000_000
BOOT_ID = "11111111-2222-3333-4444-555555555555"
CLOCK = Clock("h1", BOOT_ID, EPOCH_NS)


class FakeTime:
    """Both clocks of a host, moved by hand; `wall_ns` may be stepped."""

    def __init__(self, now_ns: int = 0) -> None:
        self.now_ns = now_ns
        self.epoch_ns = EPOCH_NS

    @property
    def host(self) -> HostTime:
        return HostTime(lambda: self.now_ns, lambda: self.epoch_ns + self.now_ns)


class FakeSensor:
    """A sensor that does what its script says: each read takes the next answer."""

    def __init__(
        self, devices: Sequence[Device] = (), answers: Sequence[object] = (), name: str = "fake"
    ) -> None:
        self.name = name
        self.period_s = 0.1
        self.opened = 0
        self.closed = 0
        self.open_with: Callable[[], None] = lambda: None
        self._devices = tuple(devices)
        self._answers = list(answers)

    def grow(self, device: Device) -> None:
        self._devices += (device,)

    def open(self) -> tuple[Device, ...]:
        self.opened += 1
        self.open_with()
        return self._devices

    def read(self) -> list[Reading]:
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, list)
        return answer

    def close(self) -> None:
        self.closed += 1


class FlakyLedger(SqliteLedger):
    """A real ledger whose disk is full while `full` says so, for one kind of write or all."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, create=True)
        self.full: str | None = None
        self.appended: list[JournalEntry] = []

    def _write(self, what: str) -> None:
        if self.full in (what, "all"):
            raise UnreachableError("ledger.db: no space left on its disk: free some")

    def book(self, page: Page) -> bool:
        self._write("book")
        return super().book(page)

    def append(self, boot_id: str, entries: Sequence[JournalEntry]) -> None:
        self._write("append")
        super().append(boot_id, entries)
        self.appended += entries
