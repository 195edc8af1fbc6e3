"""Where entries are kept: one `Store` protocol, and a function that opens a ledger by URL."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from wattledger.errors import InputError

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

    return SqliteLedger(ledger_path(url), writable=writable, create=create)


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
