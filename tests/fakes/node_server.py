"""A daemon's `Node` service in this process, that says what a test puts into it."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from wattledger_proto.v1.node_pb2 import (
    RecordRequest,
    RequestAnswer,
    RequestQuestion,
    Status,
    StatusRequest,
    TraceLines,
)
from wattledger_proto.v1.node_pb2_grpc import NodeServicer, add_NodeServicer_to_server


@dataclass
class FakeNode(NodeServicer):
    """Answers `status`; a recording is `chunks`, then `abort`, or silence until it is cancelled."""

    status: Status = field(default_factory=Status)
    chunks: list[list[str]] = field(default_factory=list)
    abort: tuple[grpc.StatusCode, str] | None = None
    path: Path = Path()
    answer: RequestAnswer = field(default_factory=RequestAnswer)
    asked: list[RequestQuestion] = field(default_factory=list)
    silent_s: float = 0.0
    abort_request: bool = False
    refusal: tuple[grpc.StatusCode, str] | None = None

    def GetStatus(self, request: StatusRequest, context: grpc.ServicerContext) -> Status:  # noqa: N802 - the wire's name
        return self.status

    def GetRequest(  # noqa: N802 - the wire's name
        self, request: RequestQuestion, context: grpc.ServicerContext
    ) -> RequestAnswer:
        self.asked.append(request)
        threading.Event().wait(self.silent_s)
        if self.refusal is not None:
            context.abort(*self.refusal)
        if self.abort_request:
            context.abort(grpc.StatusCode.UNAVAILABLE, "not now")
        return self.answer

    def Record(  # noqa: N802 - the wire's name
        self, request: RecordRequest, context: grpc.ServicerContext
    ) -> Iterator[TraceLines]:
        over = threading.Event()
        context.add_callback(over.set)
        for lines in self.chunks:
            yield TraceLines(lines=lines)
        if self.abort is not None:
            context.abort(*self.abort)
        over.wait(30.0)


@contextmanager
def serving(node: FakeNode) -> Iterator[FakeNode]:
    """A server of it on a socket of its own, `node.path`."""
    with tempfile.TemporaryDirectory(prefix="wl-") as folder:
        node.path = Path(folder) / "d.sock"
        server = grpc.server(ThreadPoolExecutor(4))
        add_NodeServicer_to_server(node, server)
        server.add_insecure_port(f"unix:{node.path}")
        server.start()
        try:
            yield node
        finally:
            server.stop(None).wait()
