"""A reporter in miniature: it numbers batches, keeps them until committed, and sends them again."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc

from wattledger_daemon.hosttime import read_boot_id
from wattledger_proto.v1 import collect_pb2, collect_pb2_grpc, node_pb2, node_pb2_grpc

Tokens = tuple[str, int, int, int]


def a_batch(
    sequence: int,
    steps: Iterable[tuple[int, int, Sequence[Tokens]]] = (),
    finishes: Iterable[tuple[str, int, int, int, int]] = (),
    *,
    source: str = "fake/1/1",
    boot_id: str | None = None,
    sent_ns: int | None = None,
    engine: str = "fake-1",
    pids: Sequence[int] = (),
    workload: str = "",
    job: str = "",
) -> collect_pb2.Batch:
    """A batch; a step is (start_ns, end_ns, [(request, prefill, decode, context)]), a finish
    (request, t_ns, prompt, cached, decode)."""
    ids: dict[str, int] = {}
    batch = collect_pb2.Batch(
        source=source,
        boot_id=read_boot_id() if boot_id is None else boot_id,
        sequence=sequence,
        sent_ns=time.monotonic_ns() if sent_ns is None else sent_ns,
        engine=collect_pb2.EngineRegistration(
            engine=engine, kind="fake", model="tiny", pids=pids, workload=workload, job=job
        ),
    )
    for at, (start_ns, end_ns, requests) in enumerate(steps):
        batch.steps.add(
            sequence=at,
            start_ns=start_ns,
            end_ns=end_ns,
            requests=[ids.setdefault(name, len(ids)) for name, *_ in requests],
            prefill_tokens=[prefill for _, prefill, _, _ in requests],
            decode_tokens=[decode for _, _, decode, _ in requests],
            context_tokens=[context for *_, context in requests],
        )
    for name, t_ns, prompt, cached, decode in finishes:
        batch.finishes.add(
            request=ids.setdefault(name, len(ids)),
            t_ns=t_ns,
            prompt_tokens=prompt,
            cached_tokens=cached,
            decode_tokens=decode,
        )
    batch.request_ids.extend(ids)
    return batch


class Caller:
    """One channel to a daemon's socket."""

    def __init__(self, socket: Path) -> None:
        self._channel = grpc.insecure_channel(f"unix:{socket}")
        self._collector = collect_pb2_grpc.CollectorStub(self._channel)
        self._node = node_pb2_grpc.NodeStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._channel.close()

    def push(self, batch: collect_pb2.Batch) -> collect_pb2.Receipt:
        return self._collector.Push(batch, timeout=10.0)

    def refused(self, batch: collect_pb2.Batch) -> tuple[grpc.StatusCode, str]:
        """How the daemon refuses a batch; an AssertionError where it does not."""
        try:
            self.push(batch)
        except grpc.RpcError as error:
            return error.code(), error.details() or ""
        raise AssertionError("the batch was taken")

    def refused_bytes(self, message: bytes) -> tuple[grpc.StatusCode, str]:
        """How the daemon refuses a message; an AssertionError where it does not."""
        push: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(
            "/wattledger.v1.Collector/Push"
        )
        try:
            push(message, timeout=10.0)
        except grpc.RpcError as error:
            return error.code(), error.details() or ""
        raise AssertionError("the message was taken")

    def status(self) -> node_pb2.Status:
        return self._node.GetStatus(node_pb2.StatusRequest(), timeout=10.0)

    def request(self, request: str, wait_s: float = 0.0) -> node_pb2.RequestAnswer:
        question = node_pb2.RequestQuestion(request=request, wait_s=wait_s)
        return self._node.GetRequest(question, timeout=30.0)

    def record(self) -> Iterable[node_pb2.TraceLines]:
        return self._node.Record(node_pb2.RecordRequest(), timeout=30.0)


class PushClient:
    """Sends tokens of one engine, this process, through any number of daemons' lives."""

    def __init__(self, socket: Path, job: str = "") -> None:
        self._socket = socket
        self._job = job
        self._sent = 0
        self._kept: dict[int, collect_pb2.Batch] = {}
        self._sequence = 0
        self._daemon_id = ""
        self.prefill_tokens = 0
        self.decode_tokens = 0
        self.requests = 0

    @property
    def uncommitted(self) -> int:
        return len(self._kept)

    def tell(self, request: str, start_ns: int, end_ns: int) -> None:
        """Keep a batch of two steps and a finish: 100 tokens of prompt, then 7 more."""
        self._sequence += 1
        middle_ns = (start_ns + end_ns) // 2
        steps = [
            (start_ns, middle_ns, [(request, 100, 0, 0)]),
            (middle_ns, end_ns, [(request, 0, 7, 100)]),
        ]
        self._kept[self._sequence] = a_batch(
            self._sequence,
            steps,
            [(request, end_ns, 100, 0, 7)],
            pids=[os.getpid()],
            job=self._job,
        )
        self.prefill_tokens += 100
        self.decode_tokens += 7
        self.requests += 1

    def send(self) -> bool:
        """Send what this daemon has not had yet and ask how far it is; False if it is away."""
        try:
            with Caller(self._socket) as caller:
                self._heed(caller.push(a_batch(0, pids=[os.getpid()], job=self._job)))
                for sequence, batch in sorted(self._kept.items()):
                    if sequence > self._sent:
                        batch.sent_ns = time.monotonic_ns()
                        self._sent = sequence
                        self._heed(caller.push(batch))
        except grpc.RpcError:
            self._daemon_id = ""
            return False
        return True

    def _heed(self, receipt: collect_pb2.Receipt) -> None:
        if receipt.daemon_id != self._daemon_id:
            self._daemon_id = receipt.daemon_id
            self._sent = receipt.committed_sequence
        for sequence in [s for s in self._kept if s <= receipt.committed_sequence]:
            del self._kept[sequence]
