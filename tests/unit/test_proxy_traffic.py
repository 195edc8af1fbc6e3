"""The proxy changes nothing: bytes and their framing pass as they are, in both directions."""

from __future__ import annotations

import hashlib
import http.client
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from fakes.http_engine import LAST, Asked, chunk, chunked_head, plain
from fakes.running_proxy import GET, Through, ask, proxies, read_all

PATIENCE_S = 30.0


@pytest.fixture
def through() -> Iterator[Through]:
    with proxies() as start:
        yield start


def test_heads_pass_in_order_and_case_without_what_was_meant_for_one_hop(through: Through) -> None:
    seen: list[Asked] = []

    def script(asked: Asked) -> None:
        seen.append(asked)
        asked.body()
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
