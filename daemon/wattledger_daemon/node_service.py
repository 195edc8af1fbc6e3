"""Tells of the host over gRPC: the daemon's live state, and its evidence as it comes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import grpc

from wattledger.records import NS_PER_S
from wattledger_daemon.health import DeviceHealth, EngineHealth, Snapshot
from wattledger_daemon.recording import Recorder
from wattledger_daemon.sampling import SensorHealth
from wattledger_proto.v1 import node_pb2, node_pb2_grpc

_POLL_S = 0.5


@dataclass(frozen=True, slots=True)
class NodeIdentity:
    """What never changes while the daemon runs; `started_ns` is CLOCK_MONOTONIC."""

    software: str
    daemon_id: str
    host: str
    ledger: str
    started_ns: int


class NodeService(node_pb2_grpc.NodeServicer):
    """`wattledger.v1.Node`, answered from the pipeline's last snapshot."""

    def __init__(
        self,
        identity: NodeIdentity,
        snapshot: Callable[[], Snapshot],
        recorder: Recorder,
        clock: Callable[[], int],
    ) -> None:
        self._identity = identity
        self._snapshot = snapshot
        self._recorder = recorder
        self._clock = clock

    def GetStatus(  # noqa: N802 - named by the generated base class
        self, request: node_pb2.StatusRequest, context: grpc.ServicerContext
    ) -> node_pb2.Status:
        """The daemon's state as of its last turn, at most a second or so old."""
        identity, snapshot, now_ns = self._identity, self._snapshot(), self._clock()
        return node_pb2.Status(
            software=identity.software,
            daemon_id=identity.daemon_id,
            host=identity.host,
            ledger=identity.ledger,
            uptime_s=(now_ns - identity.started_ns) / NS_PER_S,
            devices=map(_device, snapshot.devices),
            engines=[_engine(engine, now_ns) for engine in snapshot.engines],
            sensors=map(_sensor, snapshot.sensors),
            queue_depth=snapshot.queue_depth,
            windows_booked=snapshot.windows_booked,
        )

    def Record(  # noqa: N802 - named by the generated base class
        self, request: node_pb2.RecordRequest, context: grpc.ServicerContext
    ) -> Iterator[node_pb2.TraceLines]:
        """Stream evidence, begun by a header and all that is known of the host.

        Ends with RESOURCE_EXHAUSTED where too many record already, and with ABORTED where the
        reader fell behind or the wall clock was stepped.
        """
        subscription = self._recorder.subscribe()
        if subscription is None:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "two recordings run already")
        try:
            while context.is_active():
                if lines := subscription.next(_POLL_S):
                    yield node_pb2.TraceLines(lines=lines)
                elif subscription.ended:
                    context.abort(grpc.StatusCode.ABORTED, subscription.ended)
        finally:
            self._recorder.unsubscribe(subscription)


def _device(health: DeviceHealth) -> node_pb2.DeviceStatus:
    return node_pb2.DeviceStatus(
        device=health.device.device,
        kind=health.device.kind.value,
        model=health.device.model or "",
        power_w=health.power_w,
        quality=health.quality.value,
        gaps=health.gaps,
        resets=health.resets,
    )


def _engine(health: EngineHealth, now_ns: int) -> node_pb2.EngineStatus:
    return node_pb2.EngineStatus(
        engine=health.engine,
        kind=health.kind,
        model=health.model,
        pids=health.pids,
        prefill_tokens=health.prefill_tokens,
        decode_tokens=health.decode_tokens,
        finishes=health.finishes,
        dropped_events=health.dropped_events,
        duplicates=health.duplicates,
        refused=health.refused,
        silent_s=max(0, now_ns - health.last_ns) / NS_PER_S,
    )


def _sensor(health: SensorHealth) -> node_pb2.SensorStatus:
    return node_pb2.SensorStatus(
        sensor=health.name,
        state=health.state.value,
        reason=health.reason,
        reads=health.reads,
        failures=health.failures,
        last_duration_s=health.last_duration_s,
    )
