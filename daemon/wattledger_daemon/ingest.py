"""Takes engines' batches in over gRPC.

A reply never waits for the disk: it says what is committed so far, and a source keeps its
batches until a reply covers them.
"""

from __future__ import annotations

from collections.abc import Callable

import grpc

from wattledger_daemon.batches import BadBatchError, check_batch
from wattledger_daemon.sources import BusyError, Sources
from wattledger_proto.v1 import collect_pb2, collect_pb2_grpc


class CollectorService(collect_pb2_grpc.CollectorServicer):
    """`wattledger.v1.Collector`: refuses what is malformed and queues the rest."""

    def __init__(
        self, sources: Sources, *, boot_id: str, daemon_id: str, clock: Callable[[], int]
    ) -> None:
        self._sources = sources
        self._boot_id = boot_id
        self._daemon_id = daemon_id
        self._clock = clock

    def Push(  # noqa: N802 - named by the generated base class
        self, request: collect_pb2.Batch, context: grpc.ServicerContext
    ) -> collect_pb2.Receipt:
        """Queue a batch and say how far this source's batches are on disk.

        Ends the call with INVALID_ARGUMENT for a malformed batch, which must not be sent
        again, and with UNAVAILABLE where the daemon cannot keep up.
        """
        now_ns = self._clock()
        try:
            check_batch(request, boot_id=self._boot_id, now_ns=now_ns)
            committed = self._sources.take(request, now_ns)
        except BadBatchError as error:
            self._sources.refuse(request.source, str(error))
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except BusyError as error:
            context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        return collect_pb2.Receipt(daemon_id=self._daemon_id, committed_sequence=committed)
