"""An engine's HTTP side that answers what a test says, byte by byte, on real sockets."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

PATIENCE_S = 30.0


@dataclass
class Asked:
    """One request as it reached the engine, and the connection to answer on."""

    link: socket.socket
    start: str
    headers: list[tuple[str, str]]
    ahead: bytes
    gone: threading.Event = field(default_factory=threading.Event)

    @property
    def path(self) -> str:
        return self.start.split(" ")[1]

    def header(self, name: str) -> str | None:
        return next((v for k, v in self.headers if k.lower() == name.lower()), None)

    def body(self) -> bytes:
        """All of it; chunked bodies as they came, framing included."""
        if self.header("Transfer-Encoding"):
            while not self.ahead.endswith(b"0\r\n\r\n"):
                self.ahead += self._more()
            return self.ahead
        length = int(self.header("Content-Length") or 0)
        while len(self.ahead) < length:
            self.ahead += self._more()
        return self.ahead

    def _more(self) -> bytes:
        data = self.link.recv(1 << 20)
        assert data, "the client left in mid-request"
        return data

    def say(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.link.sendall(piece)

    def wait_until_gone(self) -> None:
        """Until the other end has closed; sets `gone`."""
        with contextlib.suppress(OSError):
            while self.link.recv(65536):
                pass
        self.gone.set()


Script = Callable[[Asked], None]


class HttpEngine:
    """Runs `script` for every connection, in a thread each; a request per connection."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.asked: list[Asked] = []
        self.faults: list[BaseException] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port: int = self._listener.getsockname()[1]
        self._threads: list[threading.Thread] = []
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    def close(self) -> None:
        """Nobody listens any more; running scripts have ended."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._acceptor.join(PATIENCE_S)
        for thread in self._threads:
            thread.join(PATIENCE_S)

    def _accept(self) -> None:
        while True:
            try:
                link, _ = self._listener.accept()
            except OSError:
                return
            link.settimeout(PATIENCE_S)
            thread = threading.Thread(target=self._answer, args=(link,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _answer(self, link: socket.socket) -> None:
        with link:
            try:
                asked = self._read(link)
                if asked is not None:
                    self.asked.append(asked)
                    self._script(asked)
            except (BrokenPipeError, ConnectionResetError):
                pass
            except BaseException as fault:  # noqa: BLE001 - a test's thread: told by the test
                self.faults.append(fault)

    def _read(self, link: socket.socket) -> Asked | None:
        block = b""
        while b"\r\n\r\n" not in block:
            data = link.recv(65536)
            if not data:
                return None
            block += data
        head, _, ahead = block.partition(b"\r\n\r\n")
        start, *lines = head.decode("latin-1").split("\r\n")
        pairs = [line.split(":", 1) for line in lines]
        return Asked(link, start, [(k, v.strip()) for k, v in pairs], ahead)


def plain(body: bytes, kind: str = "application/json", *headers: str) -> bytes:
    """A response of known length."""
    lines = ["HTTP/1.1 200 OK", f"Content-Type: {kind}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def chunked_head(kind: str = "text/event-stream", *headers: str) -> bytes:
    lines = ["HTTP/1.1 200 OK", f"Content-Type: {kind}", "Transfer-Encoding: chunked", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


LAST = b"0\r\n\r\n"
