"""The proxy changes nothing: bytes, framing, faults and departures pass as they are."""

from __future__ import annotations

import hashlib
import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from fakes.http_engine import LAST, Asked, HttpEngine, Script, chunk, chunked_head, plain
from fakes.running_proxy import RunningProxy
from wattledger_collectors.engines.events import Event, EventBuffer
from wattledger_collectors.engines.proxy import Patience
from wattledger_collectors.engines.proxy_meter import Meter

PATIENCE_S = 30.0
Through = Callable[[Script], RunningProxy]


@pytest.fixture
def through() -> Iterator[Through]:
    """Starts an engine with a script, and a proxy before it."""
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


GET = b"GET /api/tags HTTP/1.1\r\nHost: me\r\nConnection: close\r\n\r\n"


def test_heads_pass_in_order_and_case_without_what_was_meant_for_one_hop(through: Through) -> None:
    seen: list[Asked] = []

    def script(asked: Asked) -> None:
        seen.append(asked)
        hops = "Keep-Alive: timeout=5\r\nConnection: X-Mine\r\nX-Mine: 1"
        asked.say(plain(b"{}", "application/json", "X-OdD: A", "X-odd: b", hops))

    said = ask(
        through(script),
        b"POST /v1/x?y=%20z HTTP/1.1\r\nhOsT: a.example:11435\r\nX-One: 1\r\nX-One: 2\r\n"
        b"Connection: close, x-hop\r\nX-Hop: gone\r\nTE: trailers\r\nContent-Length: 2\r\n\r\nhi",
    )
    assert seen[0].start == "POST /v1/x?y=%20z HTTP/1.1"
    assert seen[0].headers == [
        ("hOsT", "a.example:11435"),
        ("X-One", "1"),
        ("X-One", "2"),
        ("Content-Length", "2"),
        ("Connection", "close"),
    ]
    assert seen[0].body() == b"hi"
    head, _, body = said.partition(b"\r\n\r\n")
    assert body == b"{}"
    assert head.split(b"\r\n") == [
        b"HTTP/1.1 200 OK",
        b"Content-Type: application/json",
        b"Content-Length: 2",
        b"X-OdD: A",
        b"X-odd: b",
        b"Connection: close",
    ]


@pytest.mark.parametrize("kind", ["text/event-stream", "application/x-ndjson", "image/png"])
def test_a_stream_passes_piece_by_piece_as_it_comes(through: Through, kind: str) -> None:
    go_on = threading.Semaphore(0)

    def script(asked: Asked) -> None:
        asked.say(chunked_head(kind))
        for number in range(5):
            asked.say(chunk(b"data: %d\n\n" % number))
            assert go_on.acquire(timeout=PATIENCE_S)
        asked.say(b"0\r\nX-Trailer: yes\r\n\r\n")

    with through(script).connect() as link:
        link.sendall(GET)
        said = b""
        for number in range(5):
            # The engine goes on only once this piece has arrived.
            while not said.endswith(chunk(b"data: %d\n\n" % number)):
                said += link.recv(65536)
            go_on.release()
        assert read_all(link).endswith(b"0\r\nX-Trailer: yes\r\n\r\n")


def test_a_body_that_only_the_connection_ends(through: Through) -> None:
    def script(asked: Asked) -> None:
        asked.say(b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\n", b"a", b"b" * 100_000)

    said = ask(through(script), GET.replace(b"Connection: close\r\n", b""))
    assert said.endswith(b"\r\n\r\na" + b"b" * 100_000)


def test_one_connection_serves_many_requests(through: Through) -> None:
    def script(asked: Asked) -> None:
        if asked.path == "/stream":
            asked.say(chunked_head(), chunk(b"x" * 9), LAST)
        elif asked.path == "/nothing":
            asked.say(b"HTTP/1.1 204 No Content\r\n\r\n")
        else:
            asked.say(plain(asked.body(), "text/plain", "X-Path: " + asked.path))

    proxy = through(script)
    caller = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=PATIENCE_S)
    port_of: set[object] = set()
    for method, path, body in [
        ("GET", "/a", b""),
        ("POST", "/stream", b"hello"),
        ("HEAD", "/a", b""),
        ("DELETE", "/nothing", b""),
        ("PUT", "/b", b"z" * 70_000),
    ]:
        caller.request(method, path, body or None)
        port_of.add(caller.sock.getsockname())
        response = caller.getresponse()
        found = response.read()
        assert found == {"/stream": b"x" * 9, "/b": b"z" * 70_000}.get(path, b"")
    caller.close()
    assert len(port_of) == 1


def test_pipelined_requests_are_answered_in_order(through: Through) -> None:
    def script(asked: Asked) -> None:
        asked.say(plain(asked.path.encode()))

    requests = b"".join(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % n for n in range(3))
    said = ask(through(script), requests + GET)
    found = [part.split(b"HTTP/")[0] for part in said.split(b"\r\n\r\n")[1:]]
    assert found == [b"/0", b"/1", b"/2", b"/api/tags"]


def test_a_big_upload_passes_in_little_memory(through: Through) -> None:
    size, digest = 200_000_000, hashlib.sha256()

    def script(asked: Asked) -> None:
        taken = len(asked.ahead)
        digest.update(asked.ahead)
        while taken < size:
            data = asked.link.recv(1 << 20)
            digest.update(data)
            taken += len(data)
        asked.say(plain(b"{}"))

    expected, piece = hashlib.sha256(), bytes(range(250)) * 4000
    with through(script).connect() as link:
        link.sendall(b"POST /api/blobs/sha256:1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n")
        link.sendall(b"Content-Length: %d\r\n\r\n" % size)
        for _ in range(size // len(piece)):
            link.sendall(piece)
            expected.update(piece)
        assert read_all(link).endswith(b"{}")
    assert digest.digest() == expected.digest()


def test_chunked_uploads_and_expectations(through: Through) -> None:
    def script(asked: Asked) -> None:
        assert asked.header("Expect") == "100-continue"
        asked.say(b"HTTP/1.1 100 Continue\r\n\r\n")
        asked.say(plain(asked.body()))

    with through(script).connect() as link:
        link.sendall(
            b"POST /x HTTP/1.1\r\nHost: x\r\nConnection: close\r\nExpect: 100-continue\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        assert link.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        body = chunk(b"one") + chunk(b"two" * 5000) + LAST
        for at in range(0, len(body), 777):
            link.sendall(body[at : at + 777])
        assert read_all(link).endswith(b"\r\n\r\n" + body)


def test_an_engines_own_errors_pass_as_they_are(through: Through) -> None:
    def script(asked: Asked) -> None:
        asked.say(b'HTTP/1.1 404 Not Found\r\nContent-Length: 19\r\n\r\n{"error":"no such"}')

    said = ask(through(script), GET)
    assert said.startswith(b"HTTP/1.1 404 Not Found\r\n")
    assert said.endswith(b'{"error":"no such"}')


def test_an_answer_before_the_upload_is_through(through: Through) -> None:
    def script(asked: Asked) -> None:
        asked.say(b"HTTP/1.1 413 Too Much\r\nContent-Length: 2\r\n\r\nno")

    with through(script).connect() as link:
        link.sendall(
            b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n" + b"a" * 9000
        )
        said = read_all(link)
    assert said.startswith(b"HTTP/1.1 413 Too Much\r\n")
    # The rest of the upload is nobody's next request.
    assert b"Connection: close\r\n" in said


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


def test_a_client_that_does_not_read_is_not_read_for(through: Through) -> None:
    sent, stuck = [0], threading.Event()

    def script(asked: Asked) -> None:
        asked.say(chunked_head("application/octet-stream"))
        asked.link.settimeout(1.0)
        piece = chunk(b"x" * 65536)
        try:
            while sent[0] < 1_000_000_000:
                sent[0] += asked.link.send(piece)
        except TimeoutError:
            stuck.set()

    with through(script).connect() as link:
        link.sendall(GET)
        assert stuck.wait(PATIENCE_S)
    # What the kernel holds for three sockets, and little of our own.
    assert sent[0] < 64_000_000


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


def test_its_end_lets_a_request_end_and_no_idle_client_wait() -> None:
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


def test_a_hundred_clients_at_once_get_the_engines_very_bytes(through: Through) -> None:
    def pieces(number: int) -> list[bytes]:
        text = [b'data: {"choices":[{"delta":{"content":"%d.%d"}}]}\n\n' % (number, at)
                for at in range(40)]  # fmt: skip
        return [*text, b"data: [DONE]\n\n"]

    together = threading.Barrier(100)

    def script(asked: Asked) -> None:
        number = int(asked.body())
        asked.say(chunked_head())
        together.wait(PATIENCE_S)
        for piece in pieces(number):
            asked.say(chunk(piece))
            time.sleep(0.001)
        asked.say(LAST)

    proxy = through(script)

    def call(number: int) -> bytes:
        body = b"%d" % number
        request = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        return ask(proxy, request + b"Content-Length: %d\r\n\r\n" % len(body) + body)

    with ThreadPoolExecutor(100) as pool:
        answers = list(pool.map(call, range(100)))
    for number, said in enumerate(answers):
        body = said.partition(b"\r\n\r\n")[2]
        assert body == b"".join(map(chunk, pieces(number))) + LAST
    # None of these streams told counts: 100 times work that is nobody's.
    assert [event[4] for event in proxy.events()] == [()] * 100
