"""Integer ids for what a ledger names once: clocks, devices, accounts, requests."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, field
from typing import NamedTuple

from wattledger.records import (
    Account,
    Activity,
    Clock,
    Device,
    DeviceKind,
    Quality,
    StaticBasis,
)

IMPORTED_BOOT_ID = "imported"
_CACHED = 10_000


class ClockIds(NamedTuple):
    """Ids of a clock and of the boot it belongs to."""

    clock: int
    boot: int


class _Seen(NamedTuple):
    id: int
    device: Device


@dataclass(slots=True)
class Names:
    """Writes names and remembers their ids; `forget` after a rollback or a deletion."""

    conn: sqlite3.Connection
    _clocks: dict[Clock, ClockIds] = field(default_factory=dict)
    _devices: dict[tuple[str, str], _Seen] = field(default_factory=dict)
    _slots: dict[tuple[str, str], frozenset[int]] = field(default_factory=dict)
    _accounts: dict[Account, int] = field(default_factory=dict)
    _requests: dict[tuple[int, str, str], int] = field(default_factory=dict)

    def forget(self) -> None:
        """Drop every remembered id."""
        for known in (self._clocks, self._devices, self._slots, self._accounts, self._requests):
            known.clear()

    def forget_surplus(self) -> None:
        """Drop remembered accounts and requests where they have grown many."""
        if len(self._accounts) > _CACHED:
            self._accounts.clear()
        if len(self._requests) > _CACHED:
            self._requests.clear()

    def clock(self, clock: Clock) -> ClockIds:
        """Ids of a clock, new or known."""
        if clock not in self._clocks:
            boot = self._id(
                "SELECT id FROM boot WHERE host = ? AND boot_id = ?",
                "INSERT INTO boot (host, boot_id) VALUES (?, ?)",
                (clock.host, clock.boot_id),
            )
            found = self._id(
                "SELECT id FROM clock WHERE boot = ? AND epoch_ns = ?",
                "INSERT INTO clock (boot, epoch_ns, imported, end_ns) VALUES (?, ?, ?, 0)",
                (boot, clock.epoch_ns),
                int(clock.boot_id == IMPORTED_BOOT_ID),
            )
            self._clocks[clock] = ClockIds(found, boot)
        return self._clocks[clock]

    def imported_clock(self, host: str) -> int:
        """Id of the pseudo clock of a host's imported entries."""
        return self.clock(Clock(host, IMPORTED_BOOT_ID, 0)).clock

    def device(self, host: str, device: Device, seen_ns: int) -> int:
        """Id of a device; its idle power is revised unless the ledger knows a later one."""
        slot = (host, device.device)
        seen = self._devices.get(slot)
        if seen is None or seen.device != device:
            seen = _Seen(self._write_device(host, device, seen_ns), device)
            self._devices[slot] = seen
            self._slots.pop(slot, None)
        return seen.id

    def slot(self, host: str, device: str) -> frozenset[int]:
        """Ids of all devices that ever bore this name on this host."""
        if (host, device) not in self._slots:
            rows = self.conn.execute(
                "SELECT id FROM device WHERE host = ? AND device = ?", (host, device)
            )
            self._slots[host, device] = frozenset(row[0] for row in rows)
        return self._slots[host, device]

    def account(self, account: Account) -> int:
        """Id of an account, new or known."""
        known = self._accounts.get(account)
        if known is None:
            known = self._id(
                """SELECT id FROM account WHERE ifnull(job, x'') = ifnull(?, x'')
                AND ifnull(workload, x'') = ifnull(?, x'') AND ifnull(engine, x'') = ifnull(?, x'')
                AND ifnull(model, x'') = ifnull(?, x'') AND activity = ? AND quality = ?
                AND method = ? AND static_basis = ?""",
                """INSERT INTO account (job, workload, engine, model, activity, quality, method,
                static_basis) VALUES (?, ?, ?, ?, ?, ?, ?, ?)""",
                (
                    account.job,
                    account.workload,
                    account.engine,
                    account.model,
                    account.activity.value,
                    account.quality.value,
                    account.method,
                    account.static_basis.value,
                ),
            )
            self._accounts[account] = known
        return known

    def request(self, boot: int, engine: str | None, request: str, booked_ns: int) -> int:
        """Id of a request of one engine and boot, new or known."""
        key = (boot, engine or "", request)
        known = self._requests.get(key)
        if known is None:
            # Most are new: to look first would take as long as to write.
            written = self.conn.execute(
                "INSERT OR IGNORE INTO request (boot, engine, request, booked_ns) "
                "VALUES (?, ?, ?, ?)",
                (*key, booked_ns),
            )
            if written.rowcount:
                known = written.lastrowid or 0
            else:
                find = "SELECT id FROM request WHERE boot = ? AND engine = ? AND request = ?"
                known = int(self.conn.execute(find, key).fetchone()[0])
            self._requests[key] = known
        return known

    def _id(self, select: str, insert: str, key: tuple[str | int | None, ...], *more: int) -> int:
        found = self.conn.execute(select, key).fetchone()
        if found is None:
            return self.conn.execute(insert, (*key, *more)).lastrowid or 0
        return int(found[0])

    def _write_device(self, host: str, device: Device, seen_ns: int) -> int:
        key = (host, device.device, device.kind.value, device.model)
        latest = (
            device.static_w,
            device.static_basis.value,
            device.wrap_uj,
            int(device.estimated),
        )
        found = self.conn.execute(
            """SELECT id, seen_ns, static_w, static_basis, wrap_uj, estimated FROM device
            WHERE host = ? AND device = ? AND kind = ? AND ifnull(model, x'') = ifnull(?, x'')""",
            key,
        ).fetchone()
        if found is None:
            insert = "INSERT INTO device VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
            return self.conn.execute(insert, (*key, *latest, seen_ns)).lastrowid or 0
        if seen_ns >= found[1] and found[2:] != latest:
            self.conn.execute(
                """UPDATE device SET static_w = ?, static_basis = ?, wrap_uj = ?, estimated = ?,
                seen_ns = ? WHERE id = ?""",
                (*latest, seen_ns, found[0]),
            )
        return int(found[0])


@dataclass(slots=True)
class Lookup:
    """Reads names back by id, each once."""

    conn: sqlite3.Connection
    _devices: dict[int, tuple[str, Device]] = field(default_factory=dict)
    _accounts: dict[int, Account] = field(default_factory=dict)
    _requests: dict[int, str] = field(default_factory=dict)

    def device(self, at: int) -> tuple[str, Device]:
        """The host and device behind an id."""
        if at not in self._devices:
            row = self.conn.execute(DEVICES + " WHERE id = ?", (at,)).fetchone()
            self._devices[at] = device_of(row)
        return self._devices[at]

    def account(self, at: int) -> Account:
        """The account behind an id."""
        if at not in self._accounts:
            row = self.conn.execute(
                """SELECT activity, quality, method, static_basis, workload, job, engine, model
                FROM account WHERE id = ?""",
                (at,),
            ).fetchone()
            self._accounts[at] = Account(
                Activity(row[0]), Quality(row[1]), row[2], StaticBasis(row[3]), *row[4:]
            )
        return self._accounts[at]

    def request(self, at: int) -> str:
        """The request's own id behind an id."""
        if at not in self._requests:
            row = self.conn.execute("SELECT request FROM request WHERE id = ?", (at,)).fetchone()
            self._requests[at] = row[0]
        return self._requests[at]


DEVICES = """SELECT host, device, kind, model, static_w, static_basis, wrap_uj, estimated
    FROM device"""


def device_of(
    row: tuple[str, str, str, str | None, float | None, str, int | None, int],
) -> tuple[str, Device]:
    """The host and device in a row of `DEVICES`."""
    host, device, kind, model, static_w, static_basis, wrap_uj, estimated = row
    return host, Device(
        device,
        DeviceKind(kind),
        model,
        static_w,
        StaticBasis(static_basis),
        wrap_uj,
        bool(estimated),
    )
