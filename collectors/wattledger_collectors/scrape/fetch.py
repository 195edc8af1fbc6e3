"""Asks for a page: bounded in time and size, and of nobody but the one that was named.

Built on http.client and not on urllib: it follows no redirect and asks no proxy.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from urllib.parse import urlsplit

from wattledger_collectors.deadline import DeadlineReader
from wattledger_collectors.scrape.protocol import NoAnswerError, NoPageError, ScrapeError

MOST_BYTES = 4 * 1024 * 1024
_HEADERS = {
    "Accept": "text/plain;version=0.0.4, */*;q=0.1",
    "Accept-Encoding": "identity",
    "Connection": "close",
    "User-Agent": "wattledger",
}


def fetch(
    url: str,
    headers: Mapping[str, str] | None = None,
    timeout_s: float = 2.0,
    clock_s: Callable[[], float] = time.monotonic,
) -> bytes:
    """The body of an http or https URL; `timeout_s` is for the whole of it but a name's look-up.

    Raises ScrapeError for any other answer than 200, one that is compressed, cut off or beyond
    4 MiB, and NoAnswerError where there is none.
    """
    parts = urlsplit(url)
    until_s = clock_s() + timeout_s

    def left_s() -> float:
        left = until_s - clock_s()
        if left <= 0.0:
            raise TimeoutError
        return left

    https = parts.scheme == "https"
    connection = (HTTPSConnection if https else HTTPConnection)(
        parts.hostname or "", parts.port, timeout=timeout_s
    )
    # A class to the library, which only ever calls it.
    connection.response_class = _bounded(left_s)  # type: ignore[assignment]
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        connection.request("GET", path, headers=_HEADERS | dict(headers or {}))
        answer = connection.getresponse()
        return _body(answer)
    except TimeoutError:
        raise NoAnswerError(f"no whole answer in {timeout_s:g} s") from None
    except HTTPException as error:
        raise ScrapeError(f"the answer is not HTTP, or cut off: {type(error).__name__}") from error
    except OSError as error:
        raise NoAnswerError(error.strerror or str(error)) from error
    finally:
        connection.close()


def _bounded(left_s: Callable[[], float]) -> Callable[..., HTTPResponse]:
    def respond(sock: socket.socket, *_: object, method: str | None = None) -> HTTPResponse:
        # All it asks of a socket is a file.
        return HTTPResponse(DeadlineReader(sock, left_s), method=method)  # type: ignore[arg-type]

    return respond


def _body(answer: HTTPResponse) -> bytes:
    if 300 <= answer.status < 400:
        raise ScrapeError(f"it redirects (HTTP {answer.status}): set url to where it leads")
    if answer.status in (401, 403):
        raise ScrapeError(f"it refuses (HTTP {answer.status}): set headers_file")
    # llama-server says 501 of pages that are switched off.
    if answer.status in (404, 501):
        raise NoPageError(f"HTTP {answer.status}")
    if answer.status != 200:
        raise ScrapeError(f"HTTP {answer.status}")
    encoding = answer.getheader("Content-Encoding", "identity")
    if encoding.lower() != "identity":
        raise ScrapeError(f"the answer is encoded ({encoding[:40]!r}), which was not asked for")
    body = answer.read(MOST_BYTES + 1)
    if len(body) > MOST_BYTES:
        raise ScrapeError(f"the page is larger than {MOST_BYTES} bytes")
    if answer.length:
        # Read with a bound, http.client takes a body that ends early for a whole one.
        raise ScrapeError(f"the page is cut off, {answer.length} bytes before its end")
    return body
