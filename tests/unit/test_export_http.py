"""The HTTP server: polite callers, slow ones, many, and those that do not speak HTTP."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Iterator
from http import HTTPStatus

import pytest

from wattledger.errors import InputError
from wattledger_daemon.export.addresses import http_url, listen_address, split_address
from wattledger_daemon.export.http import Answer, HttpServer, Request, parse

BIG = b"x" * 30_000_000
PATIENCE_S = 20.0


def answer(request: Request) -> Answer:
    body = BIG if request.path == "/big" else f"{request.method} {request.path}".encode()
    return Answer(HTTPStatus.OK, (("Content-Type", "text/plain"),), body)


@pytest.fixture
def server() -> Iterator[HttpServer]:
    found = HttpServer("127.0.0.1:0", "prometheus.listen", answer)
    found.start()
    yield found
    found.stop()


def call(server: HttpServer) -> socket.socket:
    return socket.create_connection(split_address(server.address), PATIENCE_S)


def get(server: HttpServer, path: str, method: str = "GET") -> tuple[int, bytes]:
    host, port = split_address(server.address)
    caller = http.client.HTTPConnection(host, port, timeout=PATIENCE_S)
    try:
        caller.request(method, path)
        response = caller.getresponse()
        return response.status, response.read()
    finally:
        caller.close()


def read_all(link: socket.socket) -> bytes:
    said = b""
    while came := link.recv(65536):
        said += came
    return said


def test_get_and_head(server: HttpServer) -> None:
    assert get(server, "/metrics?name[]=x") == (200, b"GET /metrics")
    assert get(server, "/metrics", "HEAD") == (200, b"")
    assert get(server, "/big") == (200, BIG)


@pytest.mark.parametrize(
    "said",
    [b"\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/2\r\n\r\n", b"\x16\x03\x01\x02\r\n\r\n",
     b"GET / HTTP/1.1\r\nno colon\r\n\r\n", b"G T / HTTP/1.1 x\r\n\r\n", b"A" * 16_384],
)  # fmt: skip
def test_what_is_no_request_is_told_so(server: HttpServer, said: bytes) -> None:
    with call(server) as link:
        link.sendall(said)
        assert read_all(link).startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert get(server, "/still")[0] == 200


def test_slow_callers_hold_nobody_up_and_are_hung_up_on(server: HttpServer) -> None:
    silent, dribbling, deaf = call(server), call(server), call(server)
    deaf.sendall(b"GET /big HTTP/1.1\r\n\r\n")
    began_s = time.monotonic()
    for _ in range(30):
        dribbling.sendall(b"G")
        assert get(server, "/metrics")[0] == 200
    # Were one of the three waited for, the first answer would have come after its time was up.
    assert time.monotonic() - began_s < 2.0
    assert silent.recv(1) == b""
    with pytest.raises(OSError, match=r"reset|Broken pipe"):
        while time.monotonic() - began_s < PATIENCE_S:
            dribbling.sendall(b"G")
    assert len(read_all(deaf)) < len(BIG)
    for link in (silent, dribbling, deaf):
        link.close()


def test_where_too_many_come_the_oldest_goes(server: HttpServer) -> None:
    idle = [call(server) for _ in range(200)]
    assert get(server, "/metrics") == (200, b"GET /metrics")
    assert idle[0].recv(1) == b""
    for link in idle:
        link.close()


def test_many_at_once_are_all_answered(server: HttpServer) -> None:
    found: list[int] = []

    def scrape() -> None:
        for _ in range(10):
            found.append(get(server, "/metrics")[0])

    threads = [threading.Thread(target=scrape) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert found == [200] * 160


def test_a_caller_that_is_gone_before_its_answer_hurts_nobody(server: HttpServer) -> None:
    for _ in range(50):
        link = call(server)
        link.sendall(b"GET /big HTTP/1.1\r\n\r\n")
        link.close()
    assert get(server, "/metrics")[0] == 200


def test_it_stops_at_once_whoever_is_calling(server: HttpServer) -> None:
    with call(server) as link:
        link.sendall(b"GET /metr")
        began_s = time.monotonic()
        server.stop()
        assert time.monotonic() - began_s < 1.0
    again = HttpServer(server.address, "prometheus.listen", answer)
    again.stop()


def test_an_address_that_cannot_be_had_is_one_line(server: HttpServer) -> None:
    with pytest.raises(InputError, match="in use: set another address") as refused:
        HttpServer(server.address, "prometheus.listen", answer)
    assert str(refused.value).startswith(f"prometheus.listen = '{server.address}': ")
    for address in ("192.0.2.1:9464", "[::1%nope]:1", f"{'x' * 70}:1"):
        with pytest.raises(InputError, match="set another address"):
            HttpServer(address, "prometheus.listen", answer)


def test_header_names_are_lower_case_and_the_query_is_gone() -> None:
    head = b"GET /metrics?a=1 HTTP/1.1\r\nHost: h\r\nAccept:  text/plain "
    assert parse(head) == Request("GET", "/metrics", {"host": "h", "accept": "text/plain"})


@pytest.mark.parametrize("address", ["127.0.0.1:9464", "[::1]:9464", "localhost:0", "0.0.0.0:1"])
def test_addresses(address: str) -> None:
    assert listen_address(address) == address


@pytest.mark.parametrize(
    "address", ["", "9464", ":9464", "h", "h:", "h:x", "h:65536", "h:1/x", "u@h:1", "h :1", 9464]
)
def test_what_is_no_address(address: object) -> None:
    with pytest.raises(ValueError, match=r"must be an address like"):
        listen_address(address)


@pytest.mark.parametrize("url", ["http://127.0.0.1:4318", "https://h/otlp/v1/metrics"])
def test_urls(url: str) -> None:
    assert http_url(url) == url


@pytest.mark.parametrize(
    "url",
    [
        "",
        "h:4318",
        "ftp://h",
        "http://",
        "http://u:p@h",
        "http://h:x",
        "http://h#f",
        "http://h h",
        1,
    ],
)
def test_what_is_no_url(url: object) -> None:
    with pytest.raises(ValueError, match=r"must be a URL like"):
        http_url(url)
