"""A small HTTP server in one thread, for callers that are slow, many or rude.

One selector serves all callers at once. Each gets a little time in all and is then hung up on;
where too many come, the oldest goes. Nothing here ever touches another thread of the daemon.
"""

from __future__ import annotations

import os
import selectors
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus

from wattledger.errors import InputError
from wattledger_daemon.export.addresses import split_address

_PATIENCE_S = 2.0
_MAX_CALLERS = 64
_MAX_HEAD = 16_384
_STOP_S = 0.5


@dataclass(frozen=True, slots=True)
class Request:
    """The head of a request; header names are lower case, the path is without its query."""

    method: str
    path: str
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request is answered with."""

    status: HTTPStatus
    headers: tuple[tuple[str, str], ...]
    body: bytes


@dataclass(slots=True)
class _Caller:
    """One connection: first its request comes in, then its answer goes out."""

    link: socket.socket
    until_s: float
    received: bytearray = field(default_factory=bytearray)
    to_send: memoryview | None = None


class HttpServer:
    """Answers every request by `answer`, which must neither block nor raise."""

    def __init__(self, address: str, key: str, answer: Callable[[Request], Answer]) -> None:
        """Take the address, in `address` as it is; callers wait until `start`.

        Raises InputError naming the config's `key` where the address cannot be had.
        """
        self._answer = answer
        self._callers: dict[int, _Caller] = {}
        self._stopping = False
        try:
            host, port = split_address(address)
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            family, where = found[0], found[4]
            self._listener = socket.create_server(where, family=family, backlog=_MAX_CALLERS)
        except socket.gaierror as error:
            raise _refused(key, address, str(error.strerror)) from error
        except OSError as error:
            raise _refused(key, address, os.strerror(error.errno or 0)) from error
        except UnicodeError as error:
            raise _refused(key, address, "no host is named so") from error
        self._listener.setblocking(False)
        host, port = self._listener.getsockname()[:2]
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._waker, self._woken = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._serve, name="http", daemon=True)

    def start(self) -> None:
        """Answer calls, on a thread of its own."""
        self._thread.start()

    def stop(self) -> None:
        """Hang up and give the address back; safe to call twice."""
        if self._stopping:
            return
        self._stopping = True
        self._waker.send(b"!")
        if self._thread.is_alive():
            self._thread.join(_STOP_S)
            if self._thread.is_alive():
                return
        for caller in self._callers.values():
            caller.link.close()
        for held in (self._selector, self._listener, self._waker, self._woken):
            held.close()

    def _serve(self) -> None:
        while not self._stopping:
            for key, _ in self._selector.select(self._wait_s()):
                if key.fileobj is self._listener:
                    self._accept()
                elif isinstance(key.data, _Caller) and self._callers.get(key.fd) is key.data:
                    self._advance(key.data)
            now_s = time.monotonic()
            for caller in [c for c in self._callers.values() if c.until_s <= now_s]:
                self._hang_up(caller)

    def _wait_s(self) -> float | None:
        """Seconds until the first caller's time is up; None without callers."""
        if not self._callers:
            return None
        first_s = min(caller.until_s for caller in self._callers.values())
        return max(0.0, first_s - time.monotonic())

    def _accept(self) -> None:
        try:
            link, _ = self._listener.accept()
        except OSError:
            # Gone again, or no file descriptor is left: the call stays queued, do not spin on it.
            time.sleep(0.05)
            return
        link.setblocking(False)
        if len(self._callers) >= _MAX_CALLERS:
            self._hang_up(next(iter(self._callers.values())))
        caller = _Caller(link, time.monotonic() + _PATIENCE_S)
        self._callers[link.fileno()] = caller
        self._selector.register(link, selectors.EVENT_READ, caller)

    def _advance(self, caller: _Caller) -> None:
        try:
            done = self._send(caller) if caller.to_send is not None else self._receive(caller)
        except BlockingIOError:
            return
        except OSError:
            done = True
        if done:
            self._hang_up(caller)

    def _receive(self, caller: _Caller) -> bool:
        """Take in what came; whether the caller is to be hung up on."""
        came = caller.link.recv(_MAX_HEAD)
        caller.received += came
        end = caller.received.find(b"\r\n\r\n")
        if end < 0 and len(caller.received) < _MAX_HEAD:
            return not came
        request = parse(bytes(caller.received[: max(end, 0)]))
        if request is None:
            answer = Answer(HTTPStatus.BAD_REQUEST, (), b"wattledgerd: not a request\n")
        else:
            answer = self._answer(request)
        headless = request is not None and request.method == "HEAD"
        caller.to_send = memoryview(written(answer, headless=headless))
        caller.received.clear()
        self._selector.modify(caller.link, selectors.EVENT_WRITE, caller)
        return self._send(caller)

    def _send(self, caller: _Caller) -> bool:
        """Send what can be sent; whether all is."""
        assert caller.to_send is not None
        caller.to_send = caller.to_send[caller.link.send(caller.to_send) :]
        if caller.to_send:
            return False
        # Not close at once: what the caller still says would reset the answer away.
        with suppress(OSError):
            caller.link.shutdown(socket.SHUT_WR)
        return True

    def _hang_up(self, caller: _Caller) -> None:
        self._callers.pop(caller.link.fileno(), None)
        with suppress(KeyError, ValueError):
            self._selector.unregister(caller.link)
        caller.link.close()


def _refused(key: str, address: str, reason: str) -> InputError:
    return InputError(f"{key} = {address!r}: {reason}: set another address")


def parse(head: bytes) -> Request | None:
    """The head of a request (RFC 9112), without the empty line; None where it is none."""
    first, *lines = head.decode("latin-1").split("\r\n")
    parts = first.split(" ")
    if len(parts) != 3 or not parts[2].startswith("HTTP/1.") or not parts[0].isalpha():
        return None
    headers = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon:
            return None
        headers[name.strip().lower()] = value.strip()
    return Request(parts[0], parts[1].partition("?")[0], headers)


def written(answer: Answer, *, headless: bool) -> bytes:
    """An answer as it goes over the wire; to a HEAD, without its body."""
    fields = (
        *answer.headers,
        ("Content-Length", str(len(answer.body))),
        ("Connection", "close"),
        ("X-Content-Type-Options", "nosniff"),
    )
    lines = [f"HTTP/1.1 {answer.status.value} {answer.status.phrase}"]
    lines += [f"{name}: {value}" for name, value in fields]
    head = "\r\n".join([*lines, "", ""]).encode("latin-1")
    return head if headless else head + answer.body
