"""The proxy on a loop of its own, in a thread, with what it tells at hand."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Self

from fakes.http_engine import HttpEngine, Script
from wattledger_collectors.engines.events import Event, EventBuffer
from wattledger_collectors.engines.proxy import Patience, Proxy
from wattledger_collectors.engines.proxy_meter import Meter

PATIENCE_S = 30.0


class RunningProxy:
    """Serves from `with` on; `lines` is what it would write to stderr."""

    def __init__(
        self,
        engine_port: int,
        patience: Patience | None = None,
        meter: Callable[[EventBuffer], Meter] | None = None,
        most_connections: int = 4096,
    ) -> None:
        self.buffer = EventBuffer()
        self.lines: list[str] = []
        made = meter(self.buffer) if meter else Meter(self.buffer, tell=self.lines.append)
        self.meter = made
        quick = patience or Patience(farewell_s=5.0, linger_s=0.2)
        self.proxy = Proxy("127.0.0.1", engine_port, made, quick, most_connections)
        self.port = 0
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(PATIENCE_S)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        if not self._thread.is_alive():
            return
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), PATIENCE_S)

    def events(self) -> list[Event]:
        """What it told since the last call."""
        return self.buffer.take(100_000)

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        await self.proxy.serve("127.0.0.1", 0, self._stop, self._listening)

    def _listening(self, port: int) -> None:
        self.port = port
        self._ready.set()


Through = Callable[[Script], RunningProxy]
GET = b"GET /api/tags HTTP/1.1\r\nHost: me\r\nConnection: close\r\n\r\n"


@contextmanager
def proxies() -> Iterator[Through]:
    """Starts engines with a script, and a proxy before each; no script may have failed."""
    engines: list[HttpEngine] = []
    with ExitStack() as stack:

        def start(script: Script) -> RunningProxy:
            engine = HttpEngine(script)
            engines.append(engine)
            stack.callback(engine.close)
            return stack.enter_context(RunningProxy(engine.port))

        yield start
    assert [fault for engine in engines for fault in engine.faults] == []


def read_all(link: socket.socket) -> bytes:
    said = b""
    while data := link.recv(1 << 20):
        said += data
    return said


def ask(proxy: RunningProxy, request: bytes) -> bytes:
    """What comes back until the connection ends."""
    with proxy.connect() as link:
        link.sendall(request)
        return read_all(link)
