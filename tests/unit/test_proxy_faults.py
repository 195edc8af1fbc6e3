"""Faults, departures and refusals: what goes wrong is told as it is, and to whom it belongs."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from fakes.http_engine import Asked, HttpEngine, chunk, chunked_head, plain
from fakes.running_proxy import GET, RunningProxy, Through, ask, proxies, read_all
from wattledger_collectors.engines.events import Event, EventBuffer
from wattledger_collectors.engines.proxy import Patience
from wattledger_collectors.engines.proxy_meter import Meter

PATIENCE_S = 30.0


@pytest.fixture
def through() -> Iterator[Through]:
    with proxies() as start:
        yield start


def test_an_engines_own_errors_pass_as_they_are(through: Through) -> None:
    def script(asked: Asked) -> None:
        asked.say(b'HTTP/1.1 404 Not Found\r\nContent-Length: 19\r\n\r\n{"error":"no such"}')

    said = ask(through(script), GET)
    assert said.startswith(b"HTTP/1.1 404 Not Found\r\n")
    assert said.endswith(b'{"error":"no such"}')


def test_a_client_that_leaves_takes_its_request_with_it(through: Through) -> None:
    gone = threading.Event()

    def script(asked: Asked) -> None:
        if asked.path == "/wait":
            asked.wait_until_gone()
        else:
            asked.say(chunked_head(), chunk(b"x"))
            asked.wait_until_gone()
        gone.set()

    proxy = through(script)
    for path, comes in [(b"/wait", False), (b"/stream", True)]:
        gone.clear()
        with proxy.connect() as link:
            link.sendall(b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n" % path)
            if comes:
                assert link.recv(65536)
            else:
                time.sleep(0.05)
        assert gone.wait(PATIENCE_S)


def test_an_engine_that_dies_in_mid_answer_is_not_covered_up(through: Through) -> None:
    def script(asked: Asked) -> None:
        asked.say(chunked_head(), chunk(b"half"))

    proxy = through(script)
    caller = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=PATIENCE_S)
    caller.request("GET", "/x")
    with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
        caller.getresponse().read()
    caller.close()


@pytest.mark.parametrize(
    "answer", [b"", b"SSH-2.0-x\r\n\r\n", b"HTTP/1.1 101 Y\r\n\r\n", b"HTTP/1.1 200 OK\r\nA"]
)
def test_an_engine_that_answers_nothing_of_sense_is_a_bad_gateway(
    through: Through, answer: bytes
) -> None:
    said = ask(through(lambda asked: asked.say(answer)), GET)
    assert said.startswith(b"HTTP/1.1 502 Bad Gateway\r\n")


def test_an_engine_that_dies_without_an_answer_is_no_fault_of_ours(
    through: Through, caplog: pytest.LogCaptureFixture
) -> None:
    """Its client waits, and was read for its end until then."""
    proxy = through(lambda asked: asked.say(asked.body()[:0]))
    request = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"
    for _ in range(10):
        assert ask(proxy, request).startswith(b"HTTP/1.1 502 ")
    proxy.stop()
    assert caplog.messages == []


@pytest.mark.parametrize("size", [1_000, 20_000_000])
def test_an_early_answer_reaches_a_client_that_sends_everything_first(
    through: Through, size: int
) -> None:
    def script(asked: Asked) -> None:
        answer = b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig"
        asked.say(answer)
        asked.wait_until_gone()

    with RunningProxy(through(script).proxy.port, Patience(linger_s=PATIENCE_S)) as proxy:
        for _ in range(5):
            head = b"POST /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: %d"
            assert ask(proxy, head % size + b"\r\n\r\n" + b"x" * size).endswith(b"big")


def test_an_engine_that_is_not_there_is_a_bad_gateway() -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    with RunningProxy(port) as proxy:
        body = b"a" * 300_000
        said = ask(
            proxy,
            b"POST /api/generate HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
            + body,
        )
        assert said.startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
        assert said.endswith(b"is not there: start it, or mend --to\n")
        assert proxy.events() == []


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"hello\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nA : b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nA: b\r\n folded\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nA: b\nB: c\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: +5\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
        (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"CONNECT a:443 HTTP/1.1\r\n\r\n", 405),
        (b"GET / HTTP/1.1\r\nA: " + b"b" * 200_000, 431),
    ],
)
def test_what_two_readers_could_read_in_two_ways_is_refused(
    through: Through, request_: bytes, status: int
) -> None:
    reached = threading.Event()
    said = ask(through(lambda _: reached.set()), request_)
    assert said.startswith(b"HTTP/1.1 %d " % status)
    assert not reached.is_set()


def test_more_clients_than_there_is_room_for_are_told_so() -> None:
    engine = HttpEngine(lambda asked: asked.say(plain(b"ok")))
    with RunningProxy(engine.port, most_connections=1) as proxy, proxy.connect() as first:
        first.sendall(GET[:10])
        deadline = time.monotonic() + PATIENCE_S
        while not (said := ask(proxy, GET)).startswith(b"HTTP/1.1 503 "):
            assert time.monotonic() < deadline, said
        first.sendall(GET[10:])
        assert read_all(first).endswith(b"ok")
    engine.close()


class _Full(EventBuffer):
    def add(self, event: Event) -> None:
        raise MemoryError("no room")


def test_a_meter_that_fails_is_not_the_clients_matter() -> None:
    body = b'{"model":"m","usage":{"prompt_tokens":5}}'
    engine = HttpEngine(lambda asked: asked.say(plain(body)))
    request = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with RunningProxy(engine.port, meter=lambda _: Meter(_Full())) as proxy:
        assert ask(proxy, request).endswith(body)
        assert proxy.meter.faults == 1
    engine.close()


def test_its_end_lets_a_request_end_and_no_idle_client_wait(
    caplog: pytest.LogCaptureFixture,
) -> None:
    asked_for, go_on = threading.Event(), threading.Event()

    def script(asked: Asked) -> None:
        asked_for.set()
        assert go_on.wait(PATIENCE_S)
        asked.say(plain(b"done"))

    engine = HttpEngine(script)
    with RunningProxy(engine.port, Patience(farewell_s=PATIENCE_S)) as proxy:
        idle, busy = proxy.connect(), proxy.connect()
        busy.sendall(GET)
        assert asked_for.wait(PATIENCE_S)
        stopping = threading.Thread(target=proxy.stop)
        stopping.start()
        assert read_all(idle) == b""
        go_on.set()
        assert read_all(busy).endswith(b"done")
        stopping.join(PATIENCE_S)
        idle.close()
        busy.close()
    engine.close()
    assert caplog.messages == []
