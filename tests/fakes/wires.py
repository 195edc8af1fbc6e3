"""The wire of other versions: an older one, as it was, and a newer one with fields of its own."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

from wattledger_proto.v1 import collect_pb2

DATA = Path(__file__).parents[1] / "data" / "wire"
SERVICE = "wattledger.v1.Collector"


@dataclass(frozen=True, slots=True)
class Wire:
    """The messages of one version."""

    batch: Any
    receipt: Any


def older_wire() -> Wire:
    """Before coarse engines, tenants and anonymous requests."""
    text = (DATA / "collect_0_1.txtpb").read_text(encoding="utf-8")
    return _wire(text_format.Parse(text, descriptor_pb2.FileDescriptorProto()))


def newer_wire() -> Wire:
    """Ours, and in each message a field `newer` that we do not know."""
    file = descriptor_pb2.FileDescriptorProto()
    collect_pb2.DESCRIPTOR.CopyToProto(file)
    kinds = descriptor_pb2.FieldDescriptorProto
    for message in file.message_type:
        message.field.add(
            name="newer", number=999, type=kinds.TYPE_STRING, label=kinds.LABEL_OPTIONAL
        )
    return _wire(file)


def _wire(file: descriptor_pb2.FileDescriptorProto) -> Wire:
    # A pool of its own: the names are those of our own messages.
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    batch, receipt = (
        message_factory.GetMessageClass(pool.FindMessageTypeByName(f"wattledger.v1.{name}"))
        for name in ("Batch", "Receipt")
    )
    return Wire(batch, receipt)


class OtherDaemon:
    """A daemon of another version: takes every batch, has it on disk, and answers in its words."""

    def __init__(self, socket: Path, wire: Wire, **answer: object) -> None:
        self.batches: list[Any] = []
        self._wire = wire
        self._answer = answer
        self._committed: dict[str, int] = {}
        self._changed = threading.Condition()
        self._server = grpc.server(ThreadPoolExecutor(max_workers=4))
        push = grpc.unary_unary_rpc_method_handler(
            self._push,
            request_deserializer=wire.batch.FromString,
            response_serializer=wire.receipt.SerializeToString,
        )
        handler = grpc.method_handlers_generic_handler(SERVICE, {"Push": push})
        self._server.add_generic_rpc_handlers((handler,))
        self._server.add_insecure_port(f"unix:{socket}")

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.stop(grace=None).wait()

    def _push(self, batch: Any, _: grpc.ServicerContext) -> Any:
        with self._changed:
            committed = self._committed.setdefault(batch.source, 0)
            if batch.sequence == committed + 1:
                self.batches.append(batch)
                self._committed[batch.source] += 1
            self._changed.notify_all()
            committed = self._committed[batch.source]
        return self._wire.receipt(daemon_id="d1", committed_sequence=committed, **self._answer)

    def decoded(self) -> int:
        """Decode tokens of all steps."""
        steps = [step for batch in self.batches for step in batch.steps]
        return sum(sum(step.decode_tokens) for step in steps)

    def finished(self) -> int:
        """Requests told as finished."""
        return sum(len(batch.finishes) for batch in self.batches)
