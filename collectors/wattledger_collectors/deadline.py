"""What a socket receives until a deadline, for `http.client`. Standard library alone."""

from __future__ import annotations

import io
import socket
from collections.abc import Callable


class DeadlineReader(io.RawIOBase):
    """What a socket receives until a deadline, which no dribble of bytes puts off.

    `left_s` gives the time left, and raises TimeoutError where there is none.
    """

    def __init__(self, sock: socket.socket, left_s: Callable[[], float]) -> None:
        self._sock = sock
        self._raw = sock.makefile("rb", buffering=0)
        self._left_s = left_s

    def makefile(self, _mode: str) -> io.BufferedReader:
        """This as a file."""
        return io.BufferedReader(self)

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int | None:  # type: ignore[override]
        """Receive what there is; raises TimeoutError."""
        self._sock.settimeout(self._left_s())
        return self._raw.readinto(buffer)

    def close(self) -> None:
        """Let go of the socket."""
        self._raw.close()
        super().close()
