"""An OTLP receiver in this process: a real HTTP server that parses the real protobuf."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import AGGREGATION_TEMPORALITY_CUMULATIVE

PATIENCE_S = 30.0
Point = tuple[float, dict[str, str]]


class OtlpReceiver:
    """Takes metrics at `/v1/metrics` and answers `status`; while `hanging` it never answers."""

    def __init__(self) -> None:
        self.status = 200
        self.redirect = ""
        self.tries = 0
        self.headers: dict[str, str] = {}
        self.resource: dict[str, str] = {}
        self.metrics: dict[str, list[Point]] = {}
        self.kinds: dict[str, tuple[str, str]] = {}
        self._released = threading.Event()
        self._released.set()
        self._changed = threading.Condition()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                receiver._post(self)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._released.set()
        self._server.shutdown()
        self._thread.join(PATIENCE_S)
        self._server.server_close()

    def hang(self) -> None:
        self._released.clear()

    def wait_for_tries(self, tries: int) -> None:
        """Wait until it was called so often; AssertionError where it never is."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.tries >= tries, PATIENCE_S), self.tries

    def total(self, name: str, wanted: Mapping[str, str] | None = None) -> float:
        """The sum of a metric's points that carry the wanted attributes."""
        points = self.metrics.get(name, [])
        return sum(value for value, found in points if (wanted or {}).items() <= found.items())

    def _post(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers["Content-Length"]))
        with self._changed:
            self.tries += 1
            self.headers = {k.lower(): v for k, v in handler.headers.items()}
            if handler.path == "/v1/metrics" and self.status == 200:
                self._take(ExportMetricsServiceRequest.FromString(body))
            self._changed.notify_all()
        self._released.wait(PATIENCE_S)
        answer = ExportMetricsServiceResponse().SerializeToString()
        handler.send_response(self.status)
        if self.redirect:
            handler.send_header("Location", self.redirect)
        handler.send_header("Content-Length", str(len(answer)))
        handler.end_headers()
        handler.wfile.write(answer)

    def _take(self, request: ExportMetricsServiceRequest) -> None:
        [told] = request.resource_metrics
        self.resource = _plain(told.resource.attributes)
        self.metrics, self.kinds = {}, {}
        for metric in (m for scope in told.scope_metrics for m in scope.metrics):
            kind = metric.WhichOneof("data") or ""
            if kind == "sum":
                assert metric.sum.is_monotonic
                assert metric.sum.aggregation_temporality == AGGREGATION_TEMPORALITY_CUMULATIVE
            points = metric.sum.data_points if kind == "sum" else metric.gauge.data_points
            self.kinds[metric.name] = (kind, metric.unit)
            self.metrics[metric.name] = [
                (
                    p.as_double if p.WhichOneof("value") == "as_double" else p.as_int,
                    _plain(p.attributes),
                )
                for p in points
            ]


def _plain(attributes: Iterable[KeyValue]) -> dict[str, str]:
    return {item.key: item.value.string_value for item in attributes}
