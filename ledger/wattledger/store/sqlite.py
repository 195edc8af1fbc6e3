"""A ledger in one SQLite file: `Store`, `Journal` and `Notebook` of `wattledger.store.protocol`."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from wattledger.errors import InputError
from wattledger.fits import Calibrated, KeptFit
from wattledger.records import Clock, Device, Page, SelfMetric
from wattledger.store import (
    calibrated,
    journal,
    notebook,
    sqlite_books,
    sqlite_named,
    sqlite_read,
    sqlite_requests,
    sqlite_write,
)
from wattledger.store.check import check
from wattledger.store.connection import Place, connect, fault
from wattledger.store.named import NamedRequest, NameRule
from wattledger.store.names import DEVICES, Names, device_of
from wattledger.store.protocol import (
    Books,
    Filters,
    ImportedEntry,
    JournalEntry,
    MeteredSlice,
    RequestEnergy,
    Retention,
    SliceSet,
)
from wattledger.store.prune import prune
from wattledger.store.restate import read_kept

PRUNE_ROWS = 5000
_ALL = Filters()


class SqliteLedger:
    """A ledger file, opened for reading or, by one daemon or import at a time, for writing.

    Every write is one transaction, every answer one snapshot. Methods may be called from any
    thread; they take turns. All raise UnreachableError where the file cannot be used, and those
    that write raise its LedgerLostError where it was deleted or replaced since it was opened.
    """

    def __init__(
        self, path: Path, *, writable: bool = False, create: bool = False, busy_s: float = 5.0
    ) -> None:
        """Open `path`; wait at most `busy_s` seconds for another process's write.

        Raises:
            UnreachableError: missing, locked, damaged, too new or not permitted.
        """
        self._path = path
        self._conn = connect(path, writable=writable, create=create, busy_s=busy_s)
        self._place = Place(path)
        self._names = Names(self._conn)
        self._boots = journal.BootIds(self._conn)
        self._turn = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _writing(self) -> AbstractContextManager[sqlite3.Connection]:
        self._place.check()
        return self._transaction("BEGIN IMMEDIATE")

    @contextmanager
    def _transaction(self, begin: str = "BEGIN") -> Iterator[sqlite3.Connection]:
        with self._turn:
            try:
                self._conn.execute(begin)
                try:
                    yield self._conn
                    self._conn.execute("COMMIT")
                except BaseException:
                    self._names.forget()
                    self._boots.forget()
                    if self._conn.in_transaction:
                        self._conn.execute("ROLLBACK")
                    raise
            except (OverflowError, sqlite3.IntegrityError) as error:
                if isinstance(error, sqlite3.Error) and "NOT NULL" not in str(error):
                    raise fault(error, self._path) from error
                raise InputError(
                    f"{self._path}: an amount, a sum or a time exceeds 64 bits: check its unit"
                ) from error
            except sqlite3.Error as error:
                raise fault(error, self._path) from error

    def book(self, page: Page) -> bool:
        """As `Store.book`.

        Raises:
            InputError: the page lies where raw windows are pruned.
            WattledgerError: the page contradicts itself.
        """
        with self._writing() as conn:
            return sqlite_write.book(conn, self._names, page)

    def book_all(self, pages: Iterable[Page]) -> int:
        """As `Store.book_all`, in one transaction; raises as `book`."""
        with self._writing() as conn:
            return sum(sqlite_write.book(conn, self._names, page) for page in pages)

    def post(self, entries: Iterable[ImportedEntry]) -> int:
        """As `Store.post`; what an entry says counts as metered too, so that books balance.

        Raises:
            InputError: an entry lies before what the ledger keeps, or exceeds 64 bits.
        """
        with self._writing() as conn:
            return sqlite_write.post(conn, self._names, entries)

    def slices(self, edges_ns: Sequence[int], filters: Filters = _ALL) -> SliceSet:
        """As `Store.slices`; per request only as far back as raw windows are kept."""
        with self._transaction() as conn:
            return sqlite_read.slices(conn, edges_ns, filters)

    def books(self, start_ns: int, end_ns: int) -> Books:
        """As `Store.books`."""
        with self._transaction() as conn:
            return sqlite_books.books(conn, start_ns, end_ns)

    def metered(self, edges_ns: Sequence[int]) -> list[MeteredSlice]:
        """As `MeterSeries.metered`."""
        with self._transaction() as conn:
            return sqlite_books.metered(conn, edges_ns)

    def requests(self, start_ns: int, end_ns: int, filters: Filters = _ALL) -> list[RequestEnergy]:
        """As `Store.requests`."""
        with self._transaction() as conn:
            return sqlite_requests.requests(conn, start_ns, end_ns, filters)

    def named(self, rule: NameRule) -> list[NamedRequest]:
        """As `RequestLookup.named`."""
        with self._transaction() as conn:
            return sqlite_named.named(conn, rule)

    def append(self, boot_id: str, entries: Sequence[JournalEntry]) -> None:
        """As `Journal.append`."""
        with self._writing() as conn:
            journal.append(conn, self._boots.id_of(boot_id), entries)

    def entries(self, boot_id: str) -> list[JournalEntry]:
        """As `Journal.entries`."""
        with self._transaction() as conn:
            return journal.entries(conn, boot_id)

    def boots(self) -> list[str]:
        """As `Journal.boots`."""
        with self._transaction() as conn:
            return journal.boots(conn)

    def trim(self, boot_id: str, before_t_ns: int) -> None:
        """As `Journal.trim`."""
        with self._writing() as conn:
            journal.trim(conn, boot_id, before_t_ns)

    def forget(self, boot_id: str) -> None:
        """As `Journal.forget`."""
        with self._writing() as conn:
            journal.forget(conn, boot_id)
            self._boots.forget()

    def note(self, metrics: Iterable[SelfMetric]) -> None:
        """As `Notebook.note`; a value that is no finite number is left out."""
        with self._writing() as conn:
            notebook.note(conn, metrics)

    def noted(self, start_ns: int, end_ns: int) -> list[SelfMetric]:
        """As `Notebook.noted`."""
        with self._transaction() as conn:
            return notebook.noted(conn, start_ns, end_ns)

    def learn(self, host: str, devices: Iterable[Device], learned_ns: int) -> None:
        """As `Notebook.learn`."""
        with self._writing() as conn:
            notebook.learn(conn, host, devices, learned_ns)

    def learned(self, host: str) -> list[Device]:
        """As `Notebook.learned`."""
        with self._transaction() as conn:
            return notebook.learned(conn, host)

    def calibrate(self, host: str, told: Iterable[Calibrated]) -> None:
        """As `FitBook.calibrate`."""
        with self._writing() as conn:
            calibrated.calibrate(conn, host, told)

    def calibrations(self, host: str) -> list[str]:
        """As `FitBook.calibrations`."""
        with self._transaction() as conn:
            return calibrated.calibrations(conn, host)

    def fits(self, start_ns: int, end_ns: int) -> list[KeptFit]:
        """As `FitBook.fits`."""
        with self._transaction() as conn:
            return calibrated.fits(conn, start_ns, end_ns)

    def prune(self, retention: Retention, now_ns: int, *, limit: int = PRUNE_ROWS) -> int:
        """Delete at most `limit` rows older than `retention`; returns how many, 0 when done."""
        with self._writing() as conn:
            deleted = prune(conn, retention, now_ns, limit)
            if deleted:
                self._names.forget()
            return deleted

    def kept_ns(self) -> int:
        """From when on pages can be booked, UTC ns; 0 where nothing was ever pruned."""
        with self._transaction() as conn:
            return read_kept(conn).raw_ns

    def wait_at_most(self, busy_s: float) -> None:
        """Wait no longer than this for another process's write from now on."""
        with self._turn:
            self._conn.execute(f"PRAGMA busy_timeout = {round(busy_s * 1000)}")

    def last_page(self, host: str) -> tuple[Clock, int] | None:
        """The clock that a host's daemon last booked by, and the end of its latest page, UTC ns."""
        with self._transaction() as conn:
            row = conn.execute(
                """SELECT boot.boot_id, clock.epoch_ns, clock.end_ns FROM clock
                JOIN boot ON boot.id = clock.boot WHERE boot.host = ? AND NOT clock.imported
                ORDER BY clock.id DESC LIMIT 1""",
                (host,),
            ).fetchone()
        return None if row is None else (Clock(host, row[0], row[1]), row[2])

    def get_meta(self, key: str) -> str | None:
        """A setting that the daemon keeps in the ledger; None where it was never set."""
        with self._transaction() as conn:
            row = conn.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def set_meta(self, key: str, value: str) -> None:
        """Keep a setting in the ledger."""
        with self._writing() as conn:
            conn.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def devices(self) -> list[tuple[str, Device]]:
        """Every (host, device) that the ledger knows, as last described, in that order."""
        with self._transaction() as conn:
            rows = conn.execute(DEVICES + " ORDER BY host, device, kind, model").fetchall()
        return [device_of(row) for row in rows]

    def extent(self) -> tuple[int, int] | None:
        """Start of the first and end of the last entry kept, UTC ns; None where there is none.

        Where finer tiers are pruned, the first start is that of its minute or hour.
        """
        with self._transaction() as conn:
            row = conn.execute(_EXTENT, read_kept(conn)._asdict()).fetchone()
        return None if row[0] is None else (row[0], row[1])

    def check(self) -> list[str]:
        """What is wrong with the file and its sums, one line each; empty where nothing is."""
        with self._transaction() as conn:
            return check(conn)

    def close(self) -> None:
        """As `Store.close`."""
        with self._turn:
            self._conn.close()


_EXTENT = """SELECT MIN(start_ns), MAX(end_ns) FROM (
    SELECT MIN(start_ns) AS start_ns, NULL AS end_ns FROM posting_raw
    UNION ALL SELECT NULL, MAX(end_ns) FROM posting_raw WHERE start_ns >=
        (SELECT MAX(start_ns) - 60000000000 FROM posting_raw)
    UNION ALL SELECT NULL, MAX(end_ns) FROM posting_raw WHERE span > 0 AND span = 1
    UNION ALL SELECT NULL, MAX(end_ns) FROM posting_raw WHERE span > 0 AND span = 2
    UNION ALL SELECT MIN(start_ns), NULL FROM posting_minute WHERE start_ns < :raw_ns
    UNION ALL SELECT NULL, MAX(start_ns) + 60000000000 FROM posting_minute
        WHERE start_ns < :raw_ns
    UNION ALL SELECT MIN(start_ns), NULL FROM posting_hour WHERE start_ns < :minute_ns
    UNION ALL SELECT NULL, MAX(start_ns) + 3600000000000 FROM posting_hour
        WHERE start_ns < :minute_ns)"""
