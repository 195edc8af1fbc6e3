"""One daemon per ledger."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from wattledger.errors import UnreachableError


class LedgerLock:
    """Holds `<ledger>.lock` as long as it is entered; the kernel lets go of it at any death.

    The lock lies beside the file itself, wherever links to it lie.
    """

    def __init__(self, ledger: Path) -> None:
        self._ledger = ledger
        file = Path(os.path.realpath(ledger))
        self._path = file.with_name(f"{file.name}.lock")
        self._descriptor = -1

    def __enter__(self) -> Self:
        """Take the lock.

        Raises UnreachableError where another daemon holds it, or the folder cannot be used.
        """
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            self._descriptor = os.open(self._path, flags, 0o600)
        except OSError as error:
            raise UnreachableError(
                f"{self._path}: {error.strerror}: mend its permissions or set ledger.path"
            ) from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(self._descriptor, 32, 0).decode(errors="replace").strip()
            os.close(self._descriptor)
            raise UnreachableError(
                f"{self._ledger}: wattledgerd, pid {holder or 'unknown'}, writes this ledger:"
                " stop it or set another ledger.path"
            ) from error
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let go; the file stays, since removing it would race with the next daemon."""
        os.close(self._descriptor)
