"""A pass-through proxy for an engine that tells its tokens in its answers alone (Ollama).

It changes nothing for the client: bytes pass as they come, in both directions, on one connection
to the engine per request; a client that leaves takes its request with it, and an engine's fault
reaches the client as it is. What `proxy_meter` makes of the answers never holds them up. Host,
Origin and all other end-to-end headers pass as well, so that the engine's own checks of them
keep their sense. Upgrades (websockets) are not passed on.
"""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from wattledger_collectors.engines.proxy_http import (
    HEAD_BYTES,
    BadMessageError,
    Body,
    Head,
    request_body,
    request_head,
    response_body,
    response_head,
)
from wattledger_collectors.engines.proxy_meter import Exchange, Meter

_READ_BYTES = 65_536
_MOST_FILES = 65_536
_BLANK = b"\r\n\r\n"
_REASONS = {
    400: "Bad Request",
    405: "Method Not Allowed",
    431: "Request Header Fields Too Large",
    501: "Not Implemented",
    502: "Bad Gateway",
    503: "Service Unavailable",
}


@dataclass(frozen=True, slots=True)
class Patience:
    """How long the proxy waits: for a connection, a next request, requests at its own end."""

    connect_s: float = 10.0
    idle_s: float = 300.0
    farewell_s: float = 10.0
    linger_s: float = 1.0


class _EngineLostError(Exception):
    """The engine closed, reset or garbled its side."""


class Inlet:
    """One end's bytes: its heads, then whatever follows; a stray byte is kept for later."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self._ahead = bytearray()

    async def head(self) -> bytes | None:
        """The next head without its blank line; None where the other end closed before it."""
        searched = 0
        while (end := self._ahead.find(_BLANK, searched)) < 0:
            searched = max(0, len(self._ahead) - len(_BLANK) + 1)
            if len(self._ahead) > HEAD_BYTES:
                raise BadMessageError("a head without end", 431)
            data = await self._reader.read(_READ_BYTES)
            if not data:
                if self._ahead.strip():
                    raise BadMessageError("half a head")
                return None
            # Empty lines before a request are to be passed over (RFC 9112, 2.2).
            self._ahead += data if self._ahead else data.lstrip(b"\r\n")
        head = bytes(self._ahead[:end])
        del self._ahead[: end + len(_BLANK)]
        return head

    async def read(self) -> bytes:
        """Some bytes; none where the other end has closed."""
        if self._ahead:
            data = bytes(self._ahead)
            self._ahead.clear()
            return data
        return await self._reader.read(_READ_BYTES)

    def put_back(self, data: bytes) -> None:
        """Bytes that belong to what comes next."""
        self._ahead[:0] = data

    async def closed(self) -> None:
        """Waits until the other end has closed; what it sends meanwhile is kept, up to a bound."""
        while len(self._ahead) <= HEAD_BYTES:
            data = await self._reader.read(_READ_BYTES)
            if not data:
                return
            self._ahead += data
        await asyncio.get_running_loop().create_future()


@dataclass(slots=True)
class _Relay:
    """One request on its way to the engine, and its response on the way back.

    The response is `started` once some of it is passed on, and `whole` at its end.
    """

    client: Inlet
    writer: asyncio.StreamWriter
    head: Head
    body: Body
    exchange: Exchange
    started: bool = False
    whole: bool = False

    async def send(self, writer: asyncio.StreamWriter) -> None:
        """Passes the request's body on, then waits until the client leaves."""
        reached = True
        while not self.body.done:
            data = await self.client.read()
            if not data:
                return
            used, pieces = self.body.feed(data)
            self.exchange.asked(pieces)
            self.client.put_back(data[used:])
            if reached:
                # An engine that answers early reads no more; the rest goes nowhere.
                try:
                    writer.write(data[:used])
                    await writer.drain()
                except OSError:
                    reached = False
        self.exchange.sent()
        await self.client.closed()

    async def receive(self, engine: Inlet) -> bool:
        """Passes the response on; whether the client's connection is good for another request.

        Raises _EngineLostError, and OSError where the client is gone.
        """
        response = await self._final_head(engine)
        with _engine():
            body = response_body(response, self.head.method)
        self.exchange.answered(response)
        keeps = self.head.minor == response.minor == 1 and self.head.keeps_alive
        keeps = keeps and self.body.done and not body.to_the_end
        self.started = True
        self.writer.write(response.relayed(*(() if keeps else (b"Connection: close",))))
        while not body.done:
            with _engine():
                data = await engine.read()
                used, pieces = body.feed(data)
            if not data:
                if body.to_the_end:
                    break
                raise _EngineLostError("closed in mid-answer")
            self.writer.write(data[:used])
            self.exchange.content(pieces)
            await self.writer.drain()
        self.exchange.complete()
        self.whole = True
        await self.writer.drain()
        return keeps

    async def _final_head(self, engine: Inlet) -> Head:
        """The response's head, interim ones (100 Continue) passed on."""
        while True:
            with _engine():
                block = await engine.head()
                response = None if block is None else response_head(block)
            if response is None:
                raise _EngineLostError("closed without an answer")
            if response.status == 101:
                raise _EngineLostError("changed its protocol unasked")
            if response.status >= 200:
                return response
            if self.head.minor == 1:
                self.writer.write(response.relayed())
                await self.writer.drain()


@dataclass(slots=True)
class Proxy:
    """Serves until `stop`; one per engine. `most_connections` bounds the clients at a time."""

    host: str
    port: int
    meter: Meter
    patience: Patience = field(default_factory=Patience)
    most_connections: int = 4096
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _busy: set[asyncio.Task[None]] = field(default_factory=set)
    _stopping: bool = False

    async def serve(
        self, host: str, port: int, stop: asyncio.Event, ready: Callable[[int], None]
    ) -> None:
        """Listens, and calls `ready` with the port; requests under way at `stop` may end.

        Raises OSError where the address cannot be had.
        """
        server = await asyncio.start_server(self._accept, host, port, backlog=1024)
        async with server:
            ready(server.sockets[0].getsockname()[1])
            await stop.wait()
            self._stopping = True
            server.close()
            for task in self._tasks - self._busy:
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=self.patience.farewell_s)
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None:
            return
        self._tasks.add(task)
        client = Inlet(reader)
        try:
            if len(self._tasks) > self.most_connections:
                await self._refuse(client, writer, 503, "too many connections")
            else:
                await self._serve(client, writer, task)
        except (OSError, TimeoutError):
            pass
        except asyncio.CancelledError:
            # asyncio would log the end that `serve` wanted as a fault.
            if not self._stopping:
                raise
        finally:
            self._tasks.discard(task)
            self._busy.discard(task)
            writer.close()

    async def _serve(
        self, client: Inlet, writer: asyncio.StreamWriter, task: asyncio.Task[None]
    ) -> None:
        """Requests of one client, one after the other."""
        keeps = True
        while keeps:
            self._busy.discard(task)
            try:
                async with asyncio.timeout(self.patience.idle_s):
                    block = await client.head()
                if block is None:
                    return
                self._busy.add(task)
                head = request_head(block)
                body = request_body(head)
            except BadMessageError as error:
                await self._refuse(client, writer, error.status, str(error))
                return
            relay = _Relay(client, writer, head, body, self.meter.begin(head))
            keeps = await self._pass(relay)
            if relay.whole and not body.done:
                # Answered early: a client may read nothing before it has sent everything.
                await self._linger(client, writer)

    async def _pass(self, relay: _Relay) -> bool:
        """One request; whether its client may send another."""
        try:
            async with asyncio.timeout(self.patience.connect_s):
                reader, writer = await asyncio.open_connection(self.host, self.port)
        except (OSError, TimeoutError):
            relay.exchange.dropped()
            return await self._bad_gateway(relay, "is not there")
        sending = receiving = None
        try:
            writer.write(relay.head.relayed(b"Connection: close"))
            sending = asyncio.create_task(relay.send(writer))
            receiving = asyncio.create_task(relay.receive(Inlet(reader)))
            await asyncio.wait({sending, receiving}, return_when=asyncio.FIRST_COMPLETED)
            # An answer that is through counts as such, even if its client left at once.
            return receiving.result() if receiving.done() else False
        except _EngineLostError as error:
            relay.exchange.broken()
            if relay.started:
                relay.writer.transport.abort()
                return False
            # One reader at a time.
            await _end(sending)
            return await self._bad_gateway(relay, str(error))
        finally:
            relay.exchange.broken()
            writer.transport.abort()
            await _end(sending, receiving)

    async def _bad_gateway(self, relay: _Relay, why: str) -> bool:
        told = f"the engine at {self.host}:{self.port} {why}: start it, or mend --to"
        await self._refuse(relay.client, relay.writer, 502, told)
        return False

    async def _refuse(
        self, client: Inlet, writer: asyncio.StreamWriter, status: int, why: str
    ) -> None:
        """An answer of our own, and the connection's end once the client has had time to read."""
        body = f"wattledger proxy: {why}\n".encode()
        start = f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: text/plain\r\n"
        writer.write(f"{start}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode())
        writer.write(body)
        await writer.drain()
        await self._linger(client, writer)

    async def _linger(self, client: Inlet, writer: asyncio.StreamWriter) -> None:
        """The end of what a client gets, and time to read it.

        To close on bytes that nobody read would reset the connection, and lose the answer.
        """
        writer.write_eof()
        with suppress(TimeoutError):
            async with asyncio.timeout(self.patience.linger_s):
                while await client.read():
                    pass


async def _end(*tasks: asyncio.Task[None] | asyncio.Task[bool] | None) -> None:
    for task in tasks:
        if task is not None:
            task.cancel()
            # The other one has told how the exchange ended.
            await asyncio.gather(task, return_exceptions=True)


@contextmanager
def _engine() -> Iterator[None]:
    """What goes wrong inside is the engine's fault."""
    try:
        yield
    except (OSError, BadMessageError) as error:
        raise _EngineLostError(f"broke off: {error}") from None


def room_for_connections() -> int:
    """Raises the soft limit of open files to the hard one; how many clients that has room for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    # Two per client, and some for everything else.
    return (min(soft, _MOST_FILES) - 64) // 2
