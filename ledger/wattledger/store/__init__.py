"""Where entries are kept: one `Store` protocol, and a function that opens a ledger by URL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from wattledger.errors import InputError, UnreachableError

if TYPE_CHECKING:
    from wattledger.store.sqlite import SqliteLedger

_FORMS = "write sqlite:PATH, or a path that ends in .db"


def open_ledger(url: str, *, writable: bool = False, create: bool = False) -> SqliteLedger:
    """Open the ledger that `url` names: `sqlite:PATH`, `sqlite:///ABSOLUTE/PATH` or `PATH.db`.

    `create` makes a missing ledger, its folder too, and implies `writable`.

    Raises:
        InputError: the URL has no form that this version knows.
        UnreachableError: the ledger is missing, locked, damaged, too new or not permitted.
    """
    from wattledger.store.sqlite import SqliteLedger

    path = ledger_path(url)
    _lies_at(path)
    return SqliteLedger(path, writable=writable, create=create)


@contextmanager
def book_into(url: str) -> Iterator[SqliteLedger]:
    """The ledger that `url` names, to write into for the length of a `with` block.

    A missing one is made, in a folder that is there; where the block fails nothing new is left.

    Raises:
        InputError: the URL has no form that this version knows.
        UnreachableError: no such folder, or a ledger that cannot be written.
    """
    from wattledger.store.sqlite import SqliteLedger

    path = ledger_path(url)
    missing = not _lies_at(path)
    if missing and not path.parent.exists():
        raise UnreachableError(f"{path.parent}: no such folder: mkdir -p {path.parent}")
    try:
        with SqliteLedger(path, writable=True, create=True) as ledger:
            yield ledger
    except BaseException:
        if missing and _holds_nothing(path):
            for end in ("", "-wal", "-shm", "-journal"):
                path.with_name(path.name + end).unlink(missing_ok=True)
        raise


def _holds_nothing(path: Path) -> bool:
    """Whether no other process has booked into a ledger that was new a moment ago."""
    from wattledger.store.sqlite import SqliteLedger

    try:
        with SqliteLedger(path) as ledger:
            return ledger.extent() is None
    except UnreachableError:
        return path.exists()


def _lies_at(path: Path) -> bool:
    """Whether a ledger's file is there; raises UnreachableError where a folder is."""
    try:
        if path.is_dir():
            raise UnreachableError(
                f"{path}: a directory, not a ledger file: name a file in it,"
                f" as {path / 'ledger.db'}"
            )
        return path.exists()
    except OSError as error:
        raise UnreachableError(f"{path}: {error.strerror}: check its folder") from error


def ledger_path(url: str) -> Path:
    """The file a ledger URL names.

    Raises:
        InputError: the URL has no form that this version knows.
    """
    scheme, _, rest = url.partition(":")
    if scheme == "influx":
        raise InputError(f"{url}: influx:// ledgers are not in this version; {_FORMS}")
    if scheme == "sqlite":
        path = rest.removeprefix("//")
        if not path or (path != rest and not path.startswith("/")):
            raise InputError(f"{url!r}: no ledger path in it; {_FORMS} (absolute: sqlite:///PATH)")
    elif url.endswith(".db") and "://" not in url:
        path = url
    else:
        raise InputError(f"{url!r}: not a ledger URL; {_FORMS}")
    return Path(path).expanduser()
