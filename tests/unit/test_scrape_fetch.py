"""Asking for a page: what answers are taken, and that no answer takes for ever."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from http.server import BaseHTTPRequestHandler

import pytest

from fakes.metrics_server import MetricsServer, cut_off, metrics_server, raw
from wattledger_collectors.scrape.fetch import MOST_BYTES, fetch
from wattledger_collectors.scrape.protocol import ScrapeError


@pytest.fixture
def server() -> Iterator[MetricsServer]:
    with metrics_server("x 1\n") as found:
        yield found


def test_a_page_is_fetched_with_its_headers_and_uncompressed(server: MetricsServer) -> None:
    assert fetch(f"{server.url}?a=1", {"Authorization": "Bearer t"}) == b"x 1\n"
    asked = server.asked[0]
    assert asked["path"] == "/metrics?a=1"
    assert asked["Authorization"] == "Bearer t"
    assert asked["Accept-Encoding"] == "identity"


@pytest.mark.parametrize(
    ("status", "headers", "why"),
    [
        (302, {"Location": "http://127.0.0.1:1/"}, r"redirects \(HTTP 302\): set url"),
        (401, {}, r"refuses \(HTTP 401\): set headers_file"),
        (404, {}, "HTTP 404"),
        (500, {}, "HTTP 500"),
        (200, {"Content-Encoding": "gzip"}, "is encoded"),
    ],
)
def test_any_other_answer_is_refused(
    server: MetricsServer, status: int, headers: dict[str, str], why: str
) -> None:
    server.status, server.headers = status, headers
    with pytest.raises(ScrapeError, match=why):
        fetch(server.url)
    assert len(server.asked) == 1


def test_a_page_that_is_cut_off_is_refused(server: MetricsServer) -> None:
    server.answer = cut_off(100, b"x 1\n")
    with pytest.raises(ScrapeError, match="cut off, 96 bytes before its end"):
        fetch(server.url)
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nx 1\n\r\n8\r\ny"
    server.answer = raw(chunked)
    with pytest.raises(ScrapeError, match="cut off: IncompleteRead"):
        fetch(server.url)


def test_a_page_without_bound_is_refused(server: MetricsServer) -> None:
    def endless(handler: BaseHTTPRequestHandler) -> None:
        with suppress(OSError):
            handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
            for _ in range(1 + 2 * MOST_BYTES // 65_536):
                handler.wfile.write(b"x" * 65_536)

    server.answer = endless
    with pytest.raises(ScrapeError, match=f"larger than {MOST_BYTES} bytes"):
        fetch(server.url, timeout_s=20.0)


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\n\r\nx 1\n"])
def test_a_server_that_hangs_is_left(server: MetricsServer, head: bytes) -> None:
    done = threading.Event()
    server.answer = raw(head, lambda: done.wait(30.0))
    try:
        with pytest.raises(ScrapeError, match=r"no whole answer in 0\.2 s"):
            fetch(server.url, timeout_s=0.2)
    finally:
        done.set()


def test_a_server_that_dribbles_is_left(server: MetricsServer) -> None:
    done = threading.Event()

    def dribble(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        with suppress(OSError):
            while not done.wait(0.02):
                handler.wfile.write(b"X-More: x\r\n")

    server.answer = dribble
    begun_s = time.monotonic()
    try:
        with pytest.raises(ScrapeError, match="no whole answer"):
            fetch(server.url, timeout_s=0.3)
    finally:
        done.set()
    assert time.monotonic() - begun_s < 20.0


def test_nobody_and_no_http_are_told(server: MetricsServer) -> None:
    server.answer = raw(b"SSH-2.0-x\r\n\r\n")
    with pytest.raises(ScrapeError, match="not HTTP"):
        fetch(server.url)
    with closing(socket.socket()) as unheard:
        unheard.bind(("127.0.0.1", 0))
        port = unheard.getsockname()[1]
        with pytest.raises(ScrapeError, match="refused"):
            fetch(f"http://127.0.0.1:{port}/metrics")
    with pytest.raises(ScrapeError):
        fetch("http://no-such-host.invalid/metrics")


def test_https_is_verified(server: MetricsServer) -> None:
    with pytest.raises(ScrapeError):
        fetch(server.url.replace("http://", "https://"))
