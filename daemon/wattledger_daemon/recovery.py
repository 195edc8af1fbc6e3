"""Stands the books where they stood, by folding the journal again.

The evidence is folded in the order in which it was first taken in, so that the accountant
makes the same pages. A boot that is over is booked to its end and forgotten.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from google.protobuf.message import DecodeError

from wattledger.errors import InputError
from wattledger.records import Clock, Device, Evidence, Page, PinnedCost, StaticBasis
from wattledger.store.named import RequestLookup
from wattledger.store.protocol import (
    FitBook,
    Journal,
    JournalEntry,
    Notebook,
    Retention,
    Store,
)
from wattledger.trace import TraceHeader, decode
from wattledger_daemon import journal
from wattledger_daemon.batches import events_of
from wattledger_daemon.heart.accountant import Accountant, AccountantSettings
from wattledger_daemon.hosttime import believed, stepped
from wattledger_daemon.journal import ClockEntry, Kind
from wattledger_daemon.logs import event
from wattledger_daemon.sources import Sources
from wattledger_proto.v1 import collect_pb2

_LOG = logging.getLogger(__name__)
_UNREADABLE = (InputError, DecodeError, ValueError, LookupError, TypeError)


class DaemonLedger(Store, RequestLookup, Journal, Notebook, FitBook, Protocol):
    """All that the daemon asks of its ledger."""

    def prune(self, retention: Retention, now_ns: int) -> int:
        """Delete a bounded number of rows that no tier is to keep; 0 when done."""

    def kept_ns(self) -> int:
        """From when on pages can be booked, UTC ns."""

    def last_page(self, host: str) -> tuple[Clock, int] | None:
        """The clock that a host's daemon last booked by, and the end of its latest page, UTC ns."""


class Scribe:
    """Writes pages; one that the ledger refuses for what it says is passed over.

    It would be refused for ever. The first of several is told, and in the end how many they were.
    """

    def __init__(self, ledger: DaemonLedger) -> None:
        self._ledger = ledger
        self._refused = 0

    def write(self, page: Page) -> bool:
        """Write a page; False where it is refused. Raises UnreachableError."""
        try:
            self._ledger.book(page)
        except InputError as error:
            if not self._refused:
                _LOG.error(event("page_refused", start_ns=page.start_ns, reason=error))
            self._refused += 1
            return False
        self.finish()
        return True

    def finish(self) -> None:
        """Tell how many pages were refused, where any was since this was told last."""
        if self._refused:
            _LOG.error(event("pages_not_booked", refused=self._refused))
        self._refused = 0


def _keep_learned(ledger: DaemonLedger, accountant: Accountant, learned_ns: int) -> None:
    """Keep what was learned that the journal alone may know of; `learned_ns` is UTC."""
    accountant.take_learned()
    devices = [item for item in accountant.roster() if isinstance(item, Device)]
    learned = [device for device in devices if device.static_basis is StaticBasis.LEARNED]
    if learned:
        ledger.learn(accountant.clock.host, learned, learned_ns)
    if told := accountant.costs.take(learned_ns, every=True):
        ledger.calibrate(accountant.clock.host, told)


@dataclass(frozen=True, slots=True)
class Recovered:
    """Where the books stand, and the clock entry that opens the new run in the journal."""

    accountant: Accountant
    clock_entry: ClockEntry


def settle(ledger: DaemonLedger, accountant: Accountant, until_ns: int) -> None:
    """Book everything before `until_ns`, without a word in the journal."""
    scribe = Scribe(ledger)
    for page in accountant.flush(until_ns):
        scribe.write(page)
        accountant.booked(page)
    scribe.finish()


def recover(
    ledger: DaemonLedger,
    sources: Sources,
    clock: Clock,
    now_ns: int,
    *,
    settings: AccountantSettings,
    pinned: Sequence[PinnedCost] = (),
) -> Recovered:
    """What the journal knows of this boot, under the present `clock` where that can be right.

    Cost models come from the config alone, as `pinned`. Raises UnreachableError where the
    ledger cannot be used, InputError for a clock that no ledger can hold.
    """
    clock = believed(clock, now_ns, ledger.kept_ns(), ledger.last_page(clock.host))
    accountant: Accountant | None = None
    for boot_id in ledger.boots():
        entries = ledger.entries(boot_id)
        current = boot_id == clock.boot_id
        fold = _Fold(ledger, sources if current else None, boot_id, settings, pinned)
        folded = fold.run(entries)
        if folded is None:
            _LOG.error(event("journal_without_clock", boot_id=boot_id, entries=len(entries)))
        elif current:
            accountant = folded
        else:
            settle(ledger, folded, entries[-1].t_ns + 1)
        if folded is not None:
            _keep_learned(ledger, folded, clock.epoch_ns + now_ns)
        if not current or folded is None:
            ledger.forget(boot_id)
        _LOG.info(event("journal_folded", boot_id=boot_id, entries=len(entries)))
    if accountant is None:
        accountant = _begun(Accountant(clock, settings), pinned, ledger)
    before = accountant.clock
    if before.host != clock.host or stepped(before, clock.epoch_ns):
        settle(ledger, accountant, now_ns)
        accountant.re_anchor(clock, now_ns)
    return Recovered(accountant, ClockEntry(accountant.clock, now_ns, before))


@dataclass(frozen=True, slots=True)
class _Fold:
    ledger: DaemonLedger
    sources: Sources | None
    boot_id: str
    settings: AccountantSettings
    pinned: Sequence[PinnedCost]

    def run(self, entries: Sequence[JournalEntry]) -> Accountant | None:
        """Fold one boot's entries; None where no clock says what their times mean."""
        first = next(filter(None, map(self._clock, entries)), None)
        if first is None:
            return None
        clock = first.clock_at(entries[0].t_ns)
        accountant = _begun(Accountant(clock, self.settings), self.pinned, self.ledger)
        evidence = [self._evidence(entry) for entry in entries]
        # A trim leaves readings that lie before the entry which next names their device.
        told: dict[str, Device] = {}
        for device in (item for part in evidence for item in part if isinstance(item, Device)):
            # The first word of each: a later one may be of another sensor, which came later.
            told.setdefault(device.device, device)
        for device in told.values():
            accountant.observe(device)
        for entry, part in zip(entries, evidence, strict=True):
            for item in part:
                accountant.observe(item)
            try:
                self._apply(accountant, entry)
            except _UNREADABLE as error:
                self._unreadable(entry, error)
        return accountant

    def _clock(self, entry: JournalEntry) -> ClockEntry | None:
        if entry.kind != Kind.CLOCK:
            return None
        try:
            return journal.read_clock(entry.body)
        except _UNREADABLE as error:
            self._unreadable(entry, error)
            return None

    def _evidence(self, entry: JournalEntry) -> list[Evidence]:
        if entry.kind != Kind.TRACE:
            return []
        found: list[Evidence] = []
        for line in entry.body.decode(errors="replace").split("\n"):
            try:
                record = decode(line)
            except InputError as error:
                self._unreadable(entry, error)
                continue
            if not isinstance(record, TraceHeader | PinnedCost):
                found.append(record)
        return found

    def _apply(self, accountant: Accountant, entry: JournalEntry) -> None:
        match entry.kind:
            case Kind.BATCH:
                batch = collect_pb2.Batch.FromString(entry.body)
                events = events_of(batch)
                accountant.observe_steps(events.steps)
                for finish in events.finishes:
                    accountant.observe(finish)
                if self.sources is not None:
                    self.sources.restore(batch.source, batch.sequence, 0, entry.t_ns)
            case Kind.COUNT:
                count = journal.read_count(entry.body)
                accountant.count(count.t_ns, duplicates=count.duplicates, dropped=count.dropped)
                if self.sources is not None and count.source:
                    self.sources.restore(count.source, 0, count.dropped_total, count.t_ns)
            case Kind.BOOKED:
                accountant.restore(entry.body.decode())
            case Kind.SOURCES if self.sources is not None:
                self.sources.load(entry.body.decode())
            case Kind.CLOCK:
                self._follow(accountant, journal.read_clock(entry.body))

    def _follow(self, accountant: Accountant, entry: ClockEntry) -> None:
        if entry.clock != accountant.clock:
            settle(self.ledger, accountant, entry.since_ns)
            accountant.re_anchor(entry.clock, entry.since_ns)

    def _unreadable(self, entry: JournalEntry, error: Exception) -> None:
        fields = {"kind": entry.kind, "t_ns": entry.t_ns, "reason": error}
        _LOG.error(event("journal_entry_unreadable", **fields))


def _begun(
    accountant: Accountant, pinned: Iterable[PinnedCost], ledger: DaemonLedger
) -> Accountant:
    """An accountant that knows what no journal tells: the config, and what was learned before."""
    host = accountant.clock.host
    accountant.remember_idle(ledger.learned(host))
    accountant.costs.remember(ledger.calibrations(host))
    for cost in pinned:
        accountant.observe(cost)
    return accountant
