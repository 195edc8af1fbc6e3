"""A daemon's collector service, real gRPC on a real Unix socket, that only takes notes."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import grpc

from wattledger_proto.v1 import collect_pb2, collect_pb2_grpc


class Mode(Enum):
    """What the service does with a batch."""

    ACK = "takes it and has it on disk at once"
    HOLD = "takes it and commits nothing"
    REFUSE = "answers INVALID_ARGUMENT if it holds events"
    SLOW = "answers later than anybody waits"


@dataclass
class Tokens:
    """What a source has told of one request, or of all."""

    prefill: int = 0
    cached: int = 0
    decode: int = 0
    steps: int = 0


@dataclass
class Disk:
    """What outlives a daemon: the committed batches of each source, by number."""

    batches: dict[str, dict[int, collect_pb2.Batch]] = field(default_factory=dict)

    def committed(self, source: str) -> int:
        """The last number up to which there is no hole, counting from the first one seen."""
        numbers = self.batches.get(source, {})
        last = min(numbers, default=1) - 1
        while last + 1 in numbers:
            last += 1
        return last


class FakeCollector(collect_pb2_grpc.CollectorServicer):
    """One run of a daemon; give a later one the same `disk`.

    `pushes` holds every batch as it came, `held` what is taken but not committed.
    """

    def __init__(
        self, socket: Path, mode: Mode = Mode.ACK, disk: Disk | None = None, daemon_id: str = "d1"
    ) -> None:
        self.mode = mode
        self.daemon_id = daemon_id
        self.disk = disk or Disk()
        self.pushes: list[collect_pb2.Batch] = []
        self.held: list[collect_pb2.Batch] = []
        self._changed = threading.Condition()
        self._ended = threading.Event()
        self._server = grpc.server(ThreadPoolExecutor(max_workers=4))
        collect_pb2_grpc.add_CollectorServicer_to_server(self, self._server)
        self._server.add_insecure_port(f"unix:{socket}")
        self._server.start()

    def Push(  # noqa: N802 - the name in the .proto
        self, request: collect_pb2.Batch, context: grpc.ServicerContext
    ) -> collect_pb2.Receipt:
        if self.mode is Mode.SLOW:
            self._ended.wait()
        if self.mode is Mode.REFUSE and (request.steps or request.finishes):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no such model")
        with self._changed:
            self.pushes.append(request)
            if request.sequence:
                self.held.append(request)
            if self.mode is Mode.ACK:
                self._commit()
            self._changed.notify_all()
            return collect_pb2.Receipt(
                daemon_id=self.daemon_id,
                committed_sequence=self.disk.committed(request.source),
            )

    def commit(self) -> None:
        """Puts what is held on disk."""
        with self._changed:
            self._commit()

    def _commit(self) -> None:
        for batch in self.held:
            self.disk.batches.setdefault(batch.source, {}).setdefault(batch.sequence, batch)
        self.held.clear()

    def wait(self, reached: Callable[[], bool], timeout_s: float = 30.0) -> bool:
        """Whether `reached` came true; it is asked after each push."""
        with self._changed:
            return self._changed.wait_for(reached, timeout_s)

    def stop(self) -> None:
        """The daemon is gone; what it held is lost."""
        self._ended.set()
        self._server.stop(grace=None).wait()

    @property
    def batches(self) -> list[collect_pb2.Batch]:
        """What is on disk, in order."""
        sources = self.disk.batches.values()
        return [batches[number] for batches in sources for number in sorted(batches)]

    def told(self) -> dict[str, Tokens]:
        """Tokens on disk by request: prefill and decode from steps, cached from finishes."""
        tokens: dict[str, Tokens] = {}
        for batch in self.batches:
            for step in batch.steps:
                parts = zip(step.requests, step.prefill_tokens, step.decode_tokens, strict=True)
                for index, prefill, decode in parts:
                    request = tokens.setdefault(batch.request_ids[index], Tokens())
                    request.prefill += prefill
                    request.decode += decode
                    request.steps += 1
            for finish in batch.finishes:
                request = tokens.setdefault(batch.request_ids[finish.request], Tokens())
                request.cached += finish.cached_tokens
        return tokens

    def finishes(self) -> dict[str, collect_pb2.Finish]:
        """Finished requests on disk."""
        return {
            batch.request_ids[finish.request]: finish
            for batch in self.batches
            for finish in batch.finishes
        }

    def deliveries(self) -> Counter[int]:
        """How often each number came, polls apart."""
        return Counter(batch.sequence for batch in self.pushes if batch.sequence)
