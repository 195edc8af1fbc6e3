from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from fakes.daemon_parts import CLOCK, EPOCH_NS
from wattledger.records import (
    DEFAULT_COST_MODEL,
    NS_PER_S,
    Account,
    Activity,
    Amounts,
    CostModel,
    Device,
    DeviceKind,
    Engine,
    Evidence,
    Page,
    PinnedCost,
    Posting,
    Process,
    Quality,
    StaticBasis,
)
from wattledger.trace import decode
from wattledger_daemon.health import DeviceHealth, EngineHealth, Running, Snapshot, Work
from wattledger_daemon.live import window_sums
from wattledger_daemon.node_service import NodeIdentity, NodeService
from wattledger_daemon.recording import Recorder, Transcript
from wattledger_daemon.sampling import SensorHealth, SensorState
from wattledger_daemon.selfmetrics import OwnCost
from wattledger_proto.v1 import node_pb2

S = NS_PER_S
GPU = Device("gpu0", DeviceKind.GPU, "NVIDIA H200", 70.0, StaticBasis.LEARNED)
COST = CostModel(1.0, 2.0, 3.0, 4.0)


def a_page() -> Page:
    account = Account(Activity.DECODE, Quality.MEASURED, "m", workload="w", engine="e")
    amounts = Amounts(0, 1_000_000_000, S, 0, 0, 500, 10)
    posting = Posting("gpu0", account, EPOCH_NS, EPOCH_NS + 5 * S, amounts)
    return Page(CLOCK, EPOCH_NS, EPOCH_NS + 5 * S, (GPU,), (), (posting,))


def an_engine(name: str = "e", last_ns: int = 15 * S) -> EngineHealth:
    return EngineHealth(name, "vllm", "m", (1,), 0, 0, 0, 0, 0, 0, last_ns)


def status_of(snapshot: Snapshot, now_s: float = 16) -> node_pb2.Status:
    identity = NodeIdentity("0.1.0", "d1", "h1", "sqlite:/l.db", 0, window_s=5)
    cost = OwnCost(2.5, 60_000_000)
    service = NodeService(
        identity, lambda: snapshot, Recorder(), lambda: round(now_s * S), lambda: cost
    )
    answer = service.GetStatus(node_pb2.StatusRequest(), None)  # type: ignore[arg-type]  # unused
    return asyncio.run(answer)


def test_a_coarse_engine_is_told_as_such() -> None:
    engines = (replace(an_engine(), coarse=True), an_engine("fine"))
    told = status_of(Snapshot(0, engines=engines))
    assert {engine.engine: engine.coarse for engine in told.engines} == {"e": True, "fine": False}


def test_status_tells_of_groups_and_engines_over_the_booked_stretch() -> None:
    windows = (window_sums(a_page()),)
    snapshot = Snapshot(
        0,
        engines=(an_engine(), an_engine("new")),
        windows=windows,
        running={"e": Running(14 * S, 7)},
    )
    status = status_of(snapshot)
    assert (status.booked.span_s, status.booked.age_s) == (5.0, 11.0)
    (group,) = status.groups
    assert (group.workload, group.HasField("job"), group.nobody) == ("w", False, "")
    assert group.power_w == pytest.approx(200.0)
    assert group.j_per_token == pytest.approx(2.0)
    engine, new = status.engines
    assert engine.decode_tokens_per_s == pytest.approx(100.0)
    assert engine.requests_per_s == pytest.approx(2.0)
    assert engine.j_per_decode_token == pytest.approx(2.0)
    assert not engine.HasField("j_per_prefill_token")
    assert engine.running_requests == 7
    assert not new.HasField("power_w")
    assert not new.HasField("running_requests")


def test_before_any_window_nothing_is_claimed() -> None:
    status = status_of(Snapshot(0, engines=(an_engine(),)))
    assert not status.HasField("booked")
    assert not status.groups
    assert not status.engines[0].HasField("decode_tokens_per_s")


@pytest.mark.parametrize(("ended_s", "reported_s", "told"), [(15, 15, 3), (9, 15, 0), (9, 9, None)])
def test_running_requests_of_an_engine_that_rests_and_of_one_that_is_silent(
    ended_s: int, reported_s: int, told: int | None
) -> None:
    snapshot = Snapshot(
        0, engines=(an_engine(last_ns=reported_s * S),), running={"e": Running(ended_s * S, 3)}
    )
    (engine,) = status_of(snapshot).engines
    assert (engine.running_requests if engine.HasField("running_requests") else None) == told


def test_status_tells_what_the_daemon_measures_of_itself() -> None:
    sensor = SensorHealth("nvml", SensorState.RUNNING, "", 9, 2, 0.1, 0.4, 3, 1, 0.2)
    device = DeviceHealth(GPU, 300.0, Quality.MEASURED, 1, 2, 0.97)
    status = status_of(Snapshot(0, (device,), sensors=(sensor,), work=Work(0.1, 0.2, 300, 4, 5, 6)))
    (told,) = status.devices
    assert told.counter_ratio == pytest.approx(0.97)
    assert (told.static_w, told.static_basis) == (70.0, "learned")
    (runner,) = status.sensors
    assert (runner.longest_duration_s, runner.skipped, runner.throttles) == (0.4, 3, 1)
    own = status.daemon
    assert (own.cpu_s, own.rss_bytes, own.window_s) == (2.5, 60_000_000, 5)
    assert (own.late_events, own.duplicate_events, own.dropped_events) == (4, 5, 6)
    assert (own.turn_s, own.longest_turn_s, own.journal_bytes) == (0.1, 0.2, 300)


def test_an_older_client_reads_what_it_knows() -> None:
    """Field numbers never move: these bytes are of the first `Status`."""
    first = bytes.fromhex("0a05302e312e301a02683129000000000000f43f48035009")
    status = node_pb2.Status.FromString(first)
    assert (status.software, status.host, status.uptime_s) == ("0.1.0", "h1", 1.25)
    assert (status.queue_depth, status.windows_booked) == (3, 9)
    assert not status.HasField("booked")


# ------------------------------------------------------------------------- recording


def lines(
    transcript: Transcript, evidence: Sequence[Evidence], known: Sequence[Evidence]
) -> list[object]:
    assert transcript.changed(known) is None
    return [decode(line) for line in transcript.lines_of(evidence, known)]


def test_a_cost_model_is_told_with_its_engine_never_before() -> None:
    transcript = Transcript()
    pinned, engine = PinnedCost("e", COST), Engine("e", "vllm", "m", (1,))
    assert transcript.changed([GPU, pinned]) is None
    assert transcript.preamble([GPU, pinned]) == [GPU]
    assert lines(transcript, [engine], [GPU, pinned, engine]) == [engine, pinned]
    assert transcript.preamble([GPU, engine, pinned]) == [GPU, engine, pinned]


def test_a_cost_model_that_is_the_default_is_none() -> None:
    transcript = Transcript()
    known: list[Evidence] = [
        Engine("e", "vllm", "m", (1,)),
        PinnedCost("e", DEFAULT_COST_MODEL),
    ]
    transcript.changed(known)
    assert transcript.preamble(known) == known[:1]


def test_who_and_what_is_told_as_it_is_known() -> None:
    found = replace(GPU, static_w=None, static_basis=StaticBasis.UNKNOWN)
    known: list[Evidence] = [GPU, Process(1, 5, "w", "4711")]
    assert lines(Transcript(), [found, Process(1, 5, None, None)], known) == known


@pytest.mark.parametrize(
    ("after", "told"),
    [
        (replace(GPU, static_w=60.0), "gpu0"),
        (Engine("e", "vllm", "m", (2,)), "engine e"),
        (PinnedCost("e", replace(COST, f_j=9.0)), "cost model of e"),
    ],
)
def test_what_a_replay_takes_for_true_all_along_ends_a_recording_when_it_changes(
    after: Evidence, told: str
) -> None:
    transcript = Transcript()
    known: list[Evidence] = [GPU, Engine("e", "vllm", "m", (1,)), PinnedCost("e", COST)]
    assert transcript.changed(known) is None
    assert transcript.changed(known) is None
    changed = [after if type(item) is type(after) else item for item in known]
    reason = transcript.changed(changed)
    assert reason is not None
    assert told in reason
    assert reason.endswith(": record again")
    assert transcript.changed(changed) is None


def test_a_recording_that_begins_in_the_turn_of_a_change_goes_on() -> None:
    recorder = Recorder()
    old, new = recorder.subscribe(), recorder.subscribe()
    assert old
    assert new
    old.begun = True
    recorder.end("changed")
    recorder.publish(["more"], lambda: ["header"])
    assert (old.ended, list(old.next())) == ("changed", [])
    assert (new.ended, list(new.next())) == (None, ["header"])
