"""Takes engines' batches in over gRPC.

A reply never waits for the disk: it says what is committed so far, and a source keeps its
batches until a reply covers them.
"""

from __future__ import annotations

from collections.abc import Callable

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from wattledger_daemon.batches import BadBatchError, check_batch
from wattledger_daemon.sources import BusyError, Sources, Told
from wattledger_proto.v1 import collect_pb2

_SERVICE = collect_pb2.DESCRIPTOR.services_by_name["Collector"]
PushContext = grpc.aio.ServicerContext[bytes, collect_pb2.Receipt]


class CollectorService:
    """`wattledger.v1.Collector`: refuses what is malformed and queues the rest."""

    def __init__(
        self, sources: Sources, *, boot_id: str, daemon_id: str, clock: Callable[[], int]
    ) -> None:
        self._sources = sources
        self._boot_id = boot_id
        self._daemon_id = daemon_id
        self._clock = clock

    def handler(self) -> grpc.GenericRpcHandler:
        """The service as a gRPC server takes it.

        Batches come as bytes: what gRPC itself cannot parse it would answer INTERNAL, which asks
        for the same again, with a traceback in the log each time.
        """
        push: grpc.RpcMethodHandler[bytes, collect_pb2.Receipt] = (
            grpc.unary_unary_rpc_method_handler(
                self.push, response_serializer=collect_pb2.Receipt.SerializeToString
            )
        )
        return grpc.method_handlers_generic_handler(_SERVICE.full_name, {"Push": push})

    async def push(self, message: bytes, context: PushContext) -> collect_pb2.Receipt:
        """Queue a batch and say how far this source's batches are on disk.

        Ends the call with INVALID_ARGUMENT for a malformed batch, which must not be sent
        again, and with UNAVAILABLE where the daemon cannot keep up.
        """
        now_ns = self._clock()
        request = collect_pb2.Batch()
        try:
            _parse(request, message)
            events = check_batch(request, boot_id=self._boot_id, now_ns=now_ns)
            committed = self._sources.take(request, now_ns, Told(events, message))
        except BadBatchError as error:
            self._sources.refuse(request.source, str(error))
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except BusyError as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        return collect_pb2.Receipt(
            daemon_id=self._daemon_id, committed_sequence=committed, takes_runs=True
        )


def _parse(batch: collect_pb2.Batch, message: bytes) -> None:
    try:
        batch.ParseFromString(message)
    except DecodeError as error:
        batch.Clear()
        raise BadBatchError(f"message of {len(message)} bytes is no Batch: {error}") from error
