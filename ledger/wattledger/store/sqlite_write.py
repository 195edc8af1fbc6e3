"""Booking pages and posting imports; the caller holds the transaction."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from operator import attrgetter
from typing import NamedTuple

from wattledger.errors import InputError, WattledgerError
from wattledger.records import NS_PER_S, Account, Amounts, Page, Posting
from wattledger.store.names import ClockIds, Lookup, Names
from wattledger.store.protocol import ImportedEntry
from wattledger.store.restate import Change, Rows, read_kept, restate, roll, summed
from wattledger.store.tiers import METERED, POSTING, REQUEST, Family, Ids, Values, sql

_DEVICE_AT = 2


@dataclass(frozen=True, slots=True)
class _Booking:
    """A page in terms of ids: its rows per table."""

    names: Names
    page: Page
    ids: ClockIds
    devices: dict[str, int]
    # By identity: many postings share an account, and to hash one takes longer than all the rest.
    accounts: dict[int, int] = field(default_factory=dict)

    def metered(self) -> Iterator[tuple[Ids, Values]]:
        for item in self.page.metered:
            key = (self._start(item.start_ns), item.end_ns, self._device(item.device))
            yield key, (item.energy_uj, item.device_ns, item.gaps, item.resets, item.wraps)

    def postings(self) -> Iterator[tuple[Ids, Values]]:
        for item in self.page.postings:
            yield self._key(item), _values(item.amounts)

    def shares(self) -> Iterator[tuple[Ids, Values]]:
        requests: dict[tuple[str | None, str], int] = {}
        last: tuple[int, str, int, int] | None = None
        key: Ids = ()
        for item in self.page.request_postings:
            if item.request is None:
                raise WattledgerError(f"page of {self.page.start_ns}: a share names no request")
            named = item.account.engine, item.request
            request = requests.get(named)
            if request is None:
                request = requests[named] = self._request(*named)
            # Those of one account on one device follow each other, thousands of them.
            here = (id(item.account), item.device, item.start_ns, item.end_ns)
            if here != last:
                last, key = here, self._key(item)
            yield (*key, request), _values(item.amounts)

    def finishes(self) -> Iterator[tuple[object, ...]]:
        for item in self.page.finished:
            request = self._request(item.engine, item.request)
            tokens = (item.prompt_tokens, item.cached_tokens, item.decode_tokens)
            whose = (item.model, item.workload, item.job)
            yield request, self._start(item.finished_ns), self.ids.clock, *whose, *tokens

    def events(self) -> Iterator[tuple[int, ...]]:
        counts = (self.page.late, self.page.duplicates, self.page.dropped)
        if any(counts):
            yield self.page.start_ns, self.ids.clock, self.page.end_ns, *counts

    def _key(self, item: Posting) -> Ids:
        account = self.accounts.get(id(item.account))
        if account is None:
            account = self.accounts[id(item.account)] = self.names.account(item.account)
        return self._start(item.start_ns), item.end_ns, self._device(item.device), account

    def _start(self, start_ns: int) -> int:
        # An entry from outside would not be found again when the page is booked again.
        if not self.page.start_ns <= start_ns < self.page.end_ns:
            raise WattledgerError(f"page of {self.page.start_ns}: an entry of {start_ns} is in it")
        return start_ns

    def _device(self, device: str) -> int:
        if device not in self.devices:
            raise WattledgerError(f"page of {self.page.start_ns}: {device} is not in its devices")
        return self.devices[device]

    def _request(self, engine: str | None, request: str) -> int:
        return self.names.request(self.ids.boot, engine, request, self.page.start_ns)


def book(conn: sqlite3.Connection, names: Names, page: Page) -> bool:
    """Write a page over what its clock and devices said of its window; whether it changed any.

    Raises:
        InputError: raw windows of that time are pruned, so that nothing could be replaced
            exactly.
        WattledgerError: an entry lies outside the page, or names a device it does not list.
    """
    before = conn.total_changes
    _refuse_before(read_kept(conn).raw_ns, page.start_ns, "replay it into a fresh ledger")
    host = page.clock.host
    names.forget_surplus()
    ids = names.clock(page.clock)
    devices = {item.device: names.device(host, item, page.start_ns) for item in page.devices}
    booking = _Booking(names, page, ids, devices)
    slots = frozenset[int]().union(*(names.slot(host, device) for device in devices))
    for family, pairs in ((METERED, booking.metered()), (POSTING, booking.postings())):
        old = _booked(conn, family, page, ids.clock, slots)
        roll(conn, family, restate(conn, family, ids.clock, old, summed(pairs)))
    old = _booked(conn, REQUEST, page, ids.clock, slots)
    _total(conn, restate(conn, REQUEST, ids.clock, old, summed(booking.shares())))
    window = (page.start_ns, page.end_ns, ids.clock)
    _book_finishes(conn, window, {row[:3]: row for row in booking.finishes()})
    _book_events(conn, window, list(booking.events()))
    conn.execute(
        "UPDATE clock SET end_ns = :end WHERE id = :id AND end_ns < :end",
        {"end": page.end_ns, "id": ids.clock},
    )
    return conn.total_changes != before


def post(conn: sqlite3.Connection, names: Names, entries: Iterable[ImportedEntry]) -> int:
    """Replace what was imported for the same things before; returns rows changed.

    Raises:
        InputError: an entry lies before what the ledger keeps.
    """
    kept_ns = read_kept(conn).hour_ns
    new: dict[int, Rows] = defaultdict(dict)
    subjects: set[_Subject] = set()
    for entry in entries:
        item = entry.posting
        _refuse_before(kept_ns, item.start_ns, "keep hours for longer")
        names.forget_surplus()
        device = names.device(entry.host, entry.device, item.start_ns)
        key = (item.start_ns, item.end_ns, device, names.account(item.account))
        new[names.imported_clock(entry.host)][key] = _values(item.amounts)
        subjects.add(_subject_of(entry))
    changed = 0
    for host in {subject.host for subject in subjects}:
        clock = names.imported_clock(host)
        old = _told(conn, names, clock, {s for s in subjects if s.host == host})
        changes = restate(conn, POSTING, clock, old, new[clock])
        roll(conn, POSTING, changes)
        _meter(conn, clock, changes)
        changed += len(changes)
    return changed


class _Subject(NamedTuple):
    """What an imported entry is about; the rest of it is what it says."""

    host: str
    device: str
    start_ns: int
    end_ns: int
    whose: tuple[str | None, ...]


def _subject_of(entry: ImportedEntry) -> _Subject:
    item = entry.posting
    return _Subject(
        entry.host, entry.device.device, item.start_ns, item.end_ns, _whose(item.account)
    )


def _whose(account: Account) -> tuple[str | None, ...]:
    return account.workload, account.job, account.engine, account.model, account.activity.value


def _told(conn: sqlite3.Connection, names: Names, clock: int, subjects: set[_Subject]) -> Rows:
    """The rows that earlier imports wrote about any of `subjects` of one host."""
    lookup = Lookup(conn)
    whose: dict[tuple[str, str, int, int], set[tuple[str | None, ...]]] = defaultdict(set)
    for subject in subjects:
        whose[subject[:4]].add(subject.whose)
    rows: Rows = {}
    text = sql(
        POSTING,
        """SELECT start_ns, end_ns, $dims, $amounts FROM ${name}_raw
        WHERE start_ns = ? AND end_ns = ? AND device = ? AND clock = ?""",
    )
    for (host, device, start_ns, end_ns), wanted in whose.items():
        for at in names.slot(host, device):
            for row in conn.execute(text, (start_ns, end_ns, at, clock)):
                if _whose(lookup.account(row[3])) in wanted:
                    rows[row[:4]] = row[4:]
    return rows


_values: Callable[[Amounts], Values] = attrgetter(*(field.name for field in fields(Amounts)))


def _refuse_before(kept_ns: int, start_ns: int, mend: str) -> None:
    if start_ns < kept_ns:
        start, kept = (
            datetime.fromtimestamp(t_ns // NS_PER_S, UTC).isoformat()
            for t_ns in (start_ns, kept_ns)
        )
        raise InputError(f"entries of {start} lie before what the ledger keeps ({kept}): {mend}")


def _booked(
    conn: sqlite3.Connection, family: Family, page: Page, clock: int, slots: frozenset[int]
) -> Rows:
    """What a clock said of the devices in `slots` within a page's window."""
    found = conn.execute(
        sql(
            family,
            """SELECT start_ns, end_ns, $dims, $amounts FROM ${name}_raw
            WHERE start_ns >= ? AND start_ns < ? AND clock = ?""",
        ),
        (page.start_ns, page.end_ns, clock),
    )
    width = 2 + len(family.dims)
    return {row[:width]: row[width:] for row in found if row[_DEVICE_AT] in slots}


def _stored(conn: sqlite3.Connection, family: Family, clock: int, keys: Iterable[Values]) -> Rows:
    """The raw rows of a clock that bear any of `keys`."""
    text = sql(
        family,
        """SELECT $amounts FROM ${name}_raw
        WHERE start_ns = ? AND end_ns = ? AND $match AND clock = ?""",
    )
    found = ((key, conn.execute(text, (*key, clock)).fetchone()) for key in keys)
    return {key: row for key, row in found if row is not None}


def _meter(conn: sqlite3.Connection, clock: int, changes: list[Change]) -> None:
    """Count imported postings as metered too: their meter is the one they came from."""
    more = summed(
        (change.key[:3], (change.values[0] + change.values[1], change.values[2], 0, 0, 0))
        for change in changes
    )
    old = _stored(conn, METERED, clock, more)
    both = summed([*old.items(), *more.items()])
    new = {key: values for key, values in both.items() if any(values)}
    roll(conn, METERED, restate(conn, METERED, clock, old, new))


def _total(conn: sqlite3.Connection, changes: list[Change]) -> None:
    """Adjust the sums per request and account, which outlive the rows they are made of."""
    sums = summed(
        ((key[4], key[3]), (parts, values[0] + values[1])) for key, values, parts in changes
    )
    conn.executemany(
        """INSERT INTO request_total (request, account, parts, energy_uj) VALUES (?, ?, ?, ?)
        ON CONFLICT (request, account) DO UPDATE SET parts = parts + excluded.parts,
        energy_uj = energy_uj + excluded.energy_uj""",
        [(*key, *values) for key, values in sums.items() if any(values)],
    )


def _book_finishes(
    conn: sqlite3.Connection,
    window: tuple[int, int, int],
    rows: dict[tuple[object, ...], tuple[object, ...]],
) -> None:
    found = conn.execute(
        "SELECT * FROM finish WHERE finished_ns >= ? AND finished_ns < ? AND clock = ?", window
    )
    old, new = set(found), set(rows.values())
    conn.executemany(
        "DELETE FROM finish WHERE request = ? AND finished_ns = ? AND clock = ?",
        [row[:3] for row in old - new],
    )
    conn.executemany("INSERT INTO finish VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", new - old)


def _book_events(
    conn: sqlite3.Connection, window: tuple[int, int, int], new: list[tuple[int, ...]]
) -> None:
    where = "FROM event WHERE start_ns >= ? AND start_ns < ? AND clock = ?"
    if conn.execute("SELECT * " + where, window).fetchall() != new:
        conn.execute("DELETE " + where, window)
        conn.executemany("INSERT INTO event VALUES (?, ?, ?, ?, ?, ?)", new)
