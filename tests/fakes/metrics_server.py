"""An engine's /metrics: a real HTTP server on a free port of 127.0.0.1."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import SHUT_WR

Answer = Callable[[BaseHTTPRequestHandler], None]


@dataclass
class MetricsServer:
    """Answers with `page`, or as `answer` does; keeps the headers that it was asked with."""

    page: str = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    answer: Answer | None = None
    asked: list[dict[str, str]] = field(default_factory=list)
    url: str = ""

    def reply(self, handler: BaseHTTPRequestHandler) -> None:
        self.asked.append(dict(handler.headers.items()) | {"path": handler.path})
        if self.answer is not None:
            self.answer(handler)
            return
        body = self.page.encode()
        handler.send_response(self.status)
        for name, value in {"Content-Length": str(len(body)), **self.headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)


@contextmanager
def metrics_server(page: str = "", port: int = 0) -> Iterator[MetricsServer]:
    """A running server; `port` 0 takes a free one."""
    fake = MetricsServer(page)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            fake.reply(self)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    fake.url = f"http://127.0.0.1:{server.server_address[1]}/metrics"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def cut_off(told_bytes: int, body: bytes) -> Answer:
    """An answer that says it is longer than it is."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {told_bytes}\r\n\r\n"
        handler.wfile.write(head.encode() + body)
        handler.wfile.flush()
        handler.connection.shutdown(SHUT_WR)

    return answer


def raw(answer: bytes, then: Callable[[], object] = lambda: None) -> Answer:
    """These very bytes, and the connection held until `then` returns."""

    def write(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(answer)
        handler.wfile.flush()
        then()
        handler.close_connection = True

    return write
