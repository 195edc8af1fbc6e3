"""A SQLite connection to a ledger, and what its faults are called."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from wattledger.errors import UnreachableError
from wattledger.store.schema import SCHEMA_VERSION, migrate, version_of

_FAULTS = {
    sqlite3.SQLITE_BUSY: "locked by another process: try again when that has finished",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened: check the permissions of the file and its folder",
    sqlite3.SQLITE_CORRUPT: "damaged: restore it from a backup, or move it away",
    sqlite3.SQLITE_FULL: "no space left on its disk: free some",
    sqlite3.SQLITE_IOERR: "its disk fails: check the system log",
    sqlite3.SQLITE_NOTADB: "not a wattledger ledger: name another file",
    sqlite3.SQLITE_PERM: "not permitted: check the permissions of the file and its folder",
    sqlite3.SQLITE_READONLY: "read-only: open it for writing, as a user who may write it",
}


def fault(error: sqlite3.Error, path: Path) -> UnreachableError:
    """A SQLite error as one line that names the ledger and the mend.

    Source: https://www.sqlite.org/rescode.html (the low byte is the primary code).
    """
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return UnreachableError(f"{path}: {_FAULTS.get(code, error)}")


class LedgerLostError(UnreachableError):
    """The open ledger no longer lies at its path: what is written to it is lost."""


class Place:
    """Which file lies at a path, so that one deleted or replaced under an open ledger is noticed.

    SQLite writes on into a file that nobody can find any more, and says that all is well.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = self._found()

    def check(self) -> None:
        """Raises LedgerLostError where another file, or none, lies there now."""
        if self._found() != self._file:
            raise LedgerLostError(
                f"{self._path}: deleted or replaced while in use: put it back where you have it,"
                " then start again"
            )

    def _found(self) -> tuple[int, int] | None:
        try:
            status = self._path.stat()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UnreachableError(f"{self._path}: {error.strerror}: check its folder") from error
        return status.st_dev, status.st_ino


def connect(path: Path, *, writable: bool, create: bool, busy_s: float) -> sqlite3.Connection:
    """Open a ledger in autocommit mode; a reader never blocks, nor is blocked by, a writer.

    Raises:
        UnreachableError: missing, locked, damaged, too new or not permitted.
    """
    try:
        if create:
            path.parent.mkdir(parents=True, exist_ok=True)
        elif not path.is_file():
            raise UnreachableError(f"{path}: no such ledger: start wattledgerd or name another")
        if not (writable or create):
            return _connect_reader(path, busy_s)
        conn = _connect(path, "rwc" if create else "rw", busy_s)
        try:
            if not create:
                _refuse_before(1, version_of(conn, str(path)), path)
            migrate(conn, str(path))
            conn.execute("PRAGMA synchronous = NORMAL")
            conn.execute("PRAGMA foreign_keys = ON")
        except BaseException:
            conn.close()
            raise
    except OSError as error:
        raise UnreachableError(f"{path}: {error.strerror}: check its folder") from error
    except sqlite3.Error as error:
        raise fault(error, path) from error
    return conn


def _connect(path: Path, mode: str, busy_s: float) -> sqlite3.Connection:
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        timeout=busy_s,
        isolation_level=None,
        check_same_thread=False,
    )


def _connect_reader(path: Path, busy_s: float) -> sqlite3.Connection:
    conn = _connect(path, "ro", busy_s)
    try:
        try:
            version = version_of(conn, str(path))
        except sqlite3.OperationalError as error:
            # In a folder where nobody may write, SQLite cannot make the -shm file that a WAL
            # needs. Without a WAL all is in the file itself, which then cannot change.
            wal = path.with_name(path.name + "-wal")
            denied = error.sqlite_errorcode & 0xFF in {
                sqlite3.SQLITE_CANTOPEN,
                sqlite3.SQLITE_READONLY,
            }
            if not denied or (wal.exists() and wal.stat().st_size):
                raise
            conn.close()
            conn = _connect(path, "ro&immutable=1", busy_s)
            version = version_of(conn, str(path))
        _refuse_before(SCHEMA_VERSION, version, path)
    except BaseException:
        conn.close()
        raise
    return conn


def _refuse_before(needed: int, version: int, path: Path) -> None:
    if version < needed:
        raise UnreachableError(
            f"{path}: no ledger of this version in it (schema {version}, not {SCHEMA_VERSION}): "
            "let wattledgerd open it once"
        )
