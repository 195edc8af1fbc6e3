"""Stdout, whose own faults are told apart from every other: a full disk, a closed descriptor."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from wattledger.errors import WattledgerError


class StdoutError(WattledgerError):
    """Stdout takes no more; what was written of the answer may be cut short."""


class Stdout(io.TextIOBase):
    """A stream that passes all on to another; None stands for one closed before the start.

    Raises StdoutError where that one fails, and BrokenPipeError where its reader left.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    @property
    def encoding(self) -> str:  # type: ignore[override]  # typeshed's is writable, io's is not
        """As the stream below."""
        return self._stream.encoding if self._stream else "utf-8"

    def write(self, text: str) -> int:
        """Pass `text` on."""
        with self._told():
            return self._open().write(text)

    def flush(self) -> None:
        """Have all written that was passed on."""
        if self._stream:
            with self._told():
                self._stream.flush()

    def isatty(self) -> bool:
        """Whether somebody looks on."""
        return self._stream is not None and self._stream.isatty()

    def fileno(self) -> int:
        """As the stream below."""
        return self._open().fileno()

    def abandon(self) -> None:
        """Lose what is left, so that the interpreter's flush at exit does not complain too."""
        if self._stream:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    def _open(self) -> TextIO:
        if self._stream is None:
            raise StdoutError("stdout cannot be written (it is closed): give it a file or a pipe")
        return self._stream

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            raise StdoutError(
                f"stdout cannot be written ({error.strerror}): the answer is cut short,"
                " mend that and ask again"
            ) from error
