"""Tells of the host over gRPC: the daemon's live state, and its evidence as it comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from wattledger.records import NS_PER_S, UJ_PER_J
from wattledger_daemon.health import DeviceHealth, EngineHealth, Running, Snapshot
from wattledger_daemon.live import EngineSums, Figures, figures, per_token
from wattledger_daemon.questions import Questions
from wattledger_daemon.recording import Recorder
from wattledger_daemon.request_answers import answer
from wattledger_daemon.sampling import SensorHealth
from wattledger_daemon.selfmetrics import OwnCost, own_cost
from wattledger_proto.v1 import node_pb2, node_pb2_grpc

_POLL_S = 0.5
_SILENT_NS = 5 * NS_PER_S
_Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True, slots=True)
class NodeIdentity:
    """What never changes while the daemon runs; `started_ns` is CLOCK_MONOTONIC."""

    software: str
    daemon_id: str
    host: str
    ledger: str
    started_ns: int
    window_s: int = 0


class NodeService(node_pb2_grpc.NodeServicer):
    """`wattledger.v1.Node`, answered from the pipeline's last snapshot."""

    def __init__(
        self,
        identity: NodeIdentity,
        snapshot: Callable[[], Snapshot],
        recorder: Recorder,
        clock: Callable[[], int],
        cost: Callable[[], OwnCost] = own_cost,
        *,
        questions: Questions | None = None,
    ) -> None:
        self._identity = identity
        self._snapshot = snapshot
        self._recorder = recorder
        self._clock = clock
        self._cost = cost
        self._questions = questions

    async def GetStatus(  # noqa: N802 - named by the generated base class
        self, request: node_pb2.StatusRequest, context: _Context
    ) -> node_pb2.Status:
        """The daemon's state as of its last turn, at most a second or so old."""
        identity, snapshot, now_ns = self._identity, self._snapshot(), self._clock()
        booked = figures(snapshot.windows)
        return node_pb2.Status(
            software=identity.software,
            daemon_id=identity.daemon_id,
            host=identity.host,
            ledger=identity.ledger,
            uptime_s=(now_ns - identity.started_ns) / NS_PER_S,
            devices=map(_device, snapshot.devices),
            engines=[_engine(engine, snapshot, booked, now_ns) for engine in snapshot.engines],
            sensors=map(_sensor, snapshot.sensors),
            queue_depth=snapshot.queue_depth,
            windows_booked=snapshot.windows_booked,
            groups=_groups(booked),
            booked=_stretch(booked, now_ns),
            daemon=self._daemon(snapshot),
        )

    def _daemon(self, snapshot: Snapshot) -> node_pb2.DaemonStatus:
        cost, work = self._cost(), snapshot.work
        return node_pb2.DaemonStatus(
            cpu_s=cost.cpu_s,
            rss_bytes=cost.rss_bytes,
            turn_s=work.turn_s,
            longest_turn_s=work.longest_turn_s,
            late_events=work.late,
            duplicate_events=work.duplicates,
            dropped_events=work.dropped,
            journal_bytes=work.journal_bytes,
            window_s=self._identity.window_s,
        )

    async def GetRequest(  # noqa: N802 - named by the generated base class
        self, request: node_pb2.RequestQuestion, context: _Context
    ) -> node_pb2.RequestAnswer:
        """What a request took so far, `request_answers.answer`."""
        if self._questions is None:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "nobody answers here")
        return await answer(self._questions, request, context)

    async def Record(  # noqa: N802 - named by the generated base class
        self, request: node_pb2.RecordRequest, context: _Context
    ) -> AsyncIterator[node_pb2.TraceLines]:
        """Stream evidence, begun by a header and all that is known of the host.

        Ends with RESOURCE_EXHAUSTED where too many record already, and with ABORTED where the
        reader fell behind, the wall clock was stepped, or what a replay takes for true all along
        has changed.
        """
        subscription = self._recorder.subscribe()
        if subscription is None:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "two recordings run already")
        try:
            # A reader that goes away ends this by cancelling it.
            while True:
                if lines := subscription.next():
                    yield node_pb2.TraceLines(lines=lines)
                elif subscription.ended:
                    await context.abort(grpc.StatusCode.ABORTED, subscription.ended)
                else:
                    await asyncio.sleep(_POLL_S)
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
        counter_ratio=health.counter_ratio,
        static_w=health.device.static_w,
        static_basis=health.device.static_basis.value,
    )


def _stretch(booked: Figures | None, now_ns: int) -> node_pb2.BookedStretch | None:
    if booked is None:
        return None
    return node_pb2.BookedStretch(
        span_s=booked.span_ns / NS_PER_S, age_s=max(0, now_ns - booked.end_ns) / NS_PER_S
    )


def _groups(booked: Figures | None) -> Iterator[node_pb2.GroupStatus]:
    for group, sums in booked.groups if booked else ():
        assert booked
        yield node_pb2.GroupStatus(
            workload=group.workload,
            job=group.job,
            nobody=group.nobody,
            power_w=booked.power_w(sums.energy_uj),
            estimated_w=booked.power_w(sums.estimated_uj),
            prefill_tokens_per_s=booked.per_s(sums.prefill_tokens),
            decode_tokens_per_s=booked.per_s(sums.decode_tokens),
            requests_per_s=booked.per_s(sums.requests),
            j_per_token=per_token(sums.energy_uj, sums.prefill_tokens + sums.decode_tokens),
        )


def _engine(
    health: EngineHealth, snapshot: Snapshot, booked: Figures | None, now_ns: int
) -> node_pb2.EngineStatus:
    status = node_pb2.EngineStatus(
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
        running_requests=_running(snapshot.running.get(health.engine), health, now_ns),
        coarse=health.coarse,
    )
    if booked is not None and health.engine in booked.engines:
        _tell_booked(status, booked, booked.engines[health.engine])
    return status


def _running(running: Running | None, health: EngineHealth, now_ns: int) -> int | None:
    """Requests of the latest step, 0 where it is over for long and the engine still reports."""
    if running is None or running.requests is None or now_ns - health.last_ns > _SILENT_NS:
        return None
    return running.requests if now_ns - running.end_ns <= _SILENT_NS else 0


def _tell_booked(status: node_pb2.EngineStatus, booked: Figures, engine: EngineSums) -> None:
    sums = engine.sums
    if engine.workload is not None:
        status.workload = engine.workload
    if engine.job is not None:
        status.job = engine.job
    status.power_w = booked.power_w(sums.energy_uj)
    status.prefill_power_w = booked.power_w(sums.prefill_uj)
    status.decode_power_w = booked.power_w(sums.decode_uj)
    status.estimated_w = booked.power_w(sums.estimated_uj)
    status.prefill_tokens_per_s = booked.per_s(sums.prefill_tokens)
    status.decode_tokens_per_s = booked.per_s(sums.decode_tokens)
    status.requests_per_s = booked.per_s(sums.requests)
    tokens = sums.prefill_tokens + sums.decode_tokens
    if tokens:
        status.j_per_token = sums.energy_uj / UJ_PER_J / tokens
    if sums.prefill_tokens:
        status.j_per_prefill_token = sums.prefill_uj / UJ_PER_J / sums.prefill_tokens
    if sums.decode_tokens:
        status.j_per_decode_token = sums.decode_uj / UJ_PER_J / sums.decode_tokens


def _sensor(health: SensorHealth) -> node_pb2.SensorStatus:
    return node_pb2.SensorStatus(
        sensor=health.name,
        state=health.state.value,
        reason=health.reason,
        reads=health.reads,
        failures=health.failures,
        last_duration_s=health.last_duration_s,
        longest_duration_s=health.longest_duration_s,
        skipped=health.skipped,
        throttles=health.throttles,
        period_s=health.period_s,
    )
