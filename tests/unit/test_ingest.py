"""Engines' batches: what is refused, what is acknowledged when, over real gRPC on a real socket."""

from __future__ import annotations

import socket as sockets
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from fakes.daemon_parts import BOOT_ID
from fakes.push_client import Caller, a_batch
from wattledger.errors import UnreachableError
from wattledger.records import NS_PER_S, Engine, Finish, Process, RequestTokens, Step
from wattledger_daemon import batches
from wattledger_daemon.batches import BadBatchError, check_batch, events_of
from wattledger_daemon.health import Snapshot
from wattledger_daemon.ingest import CollectorService
from wattledger_daemon.intake import Count, Delivery, Intake
from wattledger_daemon.node_service import NodeIdentity, NodeService
from wattledger_daemon.recording import Recorder
from wattledger_daemon.server import SocketServer
from wattledger_daemon.sources import (
    FORGETTABLE_NS,
    MAX_SOURCES,
    MAX_STRANGERS,
    BusyError,
    Sources,
)
from wattledger_proto.v1 import collect_pb2

S = 1_000_000_000
NOW_NS = 100_000 * S
STEP = (NOW_NS - S, NOW_NS, [("r1", 100, 0, 0), ("r2", 0, 1, 512)])
FINISH = ("r1", NOW_NS, 100, 20, 1)
Change = Callable[[collect_pb2.Batch], object]


def batch_of(sequence: int = 1, **changes: object) -> collect_pb2.Batch:
    batch = a_batch(sequence, [STEP], [FINISH], boot_id=BOOT_ID, sent_ns=NOW_NS, pids=[41])
    for name, value in changes.items():
        setattr(batch, name, value)
    return batch


def question(**changes: object) -> collect_pb2.Batch:
    batch = a_batch(0, boot_id=BOOT_ID, sent_ns=NOW_NS, pids=[41])
    for name, value in changes.items():
        setattr(batch, name, value)
    return batch


def changed(change: Change) -> collect_pb2.Batch:
    batch = batch_of()
    change(batch)
    return batch


REFUSED: list[tuple[str, Change]] = [
    ("source is empty", lambda b: setattr(b, "source", "")),
    ("source is longer than 512", lambda b: setattr(b, "source", "x" * 513)),
    ("boot_id is not this host's", lambda b: setattr(b, "boot_id", "another")),
    ("sent_ns is ", lambda b: setattr(b, "sent_ns", NOW_NS + 61 * S)),
    ("sent_ns is ", lambda b: setattr(b, "sent_ns", NOW_NS - 61 * S)),
    ("sequence is 0 for a batch with events", lambda b: setattr(b, "sequence", 0)),
    ("sequence above", lambda b: setattr(b, "sequence", 2**63)),
    ("dropped_events above", lambda b: setattr(b, "dropped_events", 2**63)),
    ("engine.engine is empty", lambda b: b.ClearField("engine")),
    ("engine.kind is empty", lambda b: setattr(b.engine, "kind", "")),
    ("engine.job is longer than 512", lambda b: setattr(b.engine, "job", "j" * 513)),
    ("engine.pids name no process", lambda b: b.engine.pids.append(0)),
    ("engine.pids name no process", lambda b: b.engine.pids.append(2**31)),
    ("engine.pids name a process twice", lambda b: b.engine.pids.extend([7, 7])),
    ("engine.pids name 1025, at most 1024", lambda b: b.engine.pids.extend(range(100, 1124))),
    ("request_ids is empty", lambda b: b.request_ids.append("")),
    ("request_ids name a request twice", lambda b: b.request_ids.append("r1")),
    ("steps[0].end_ns is 1, before its start", lambda b: setattr(b.steps[0], "end_ns", 1)),
    ("steps[0].start_ns is ", lambda b: setattr(b.steps[0], "start_ns", NOW_NS - 86_401 * S)),
    ("steps[0].end_ns is ", lambda b: setattr(b.steps[0], "end_ns", NOW_NS + 61 * S)),
    ("steps[0].requests point to 2", lambda b: b.steps[0].requests.__setitem__(0, 2)),
    ("steps[0].requests name a request twice", lambda b: b.steps[0].requests.__setitem__(0, 1)),
    ("steps[0].requests point to -1", lambda b: b.steps[0].ClearField("requests")),
    ("steps[0].prefill_tokens has 3 entries for 2", lambda b: b.steps[0].prefill_tokens.append(1)),
    ("steps[0].context_tokens has 0 entries", lambda b: b.steps[0].ClearField("context_tokens")),
    (
        "steps[0].decode_tokens counts above",
        lambda b: b.steps[0].decode_tokens.__setitem__(0, 2**31 + 1),
    ),
    ("finishes[0].request point to 9", lambda b: setattr(b.finishes[0], "request", 9)),
    ("finishes[0].t_ns is ", lambda b: setattr(b.finishes[0], "t_ns", NOW_NS + 61 * S)),
    ("finishes[0].cached_tokens is 101", lambda b: setattr(b.finishes[0], "cached_tokens", 101)),
    ("finishes[0].decode_tokens is ", lambda b: setattr(b.finishes[0], "decode_tokens", 2**32 - 1)),
]


@pytest.mark.parametrize(("said", "change"), REFUSED, ids=[said for said, _ in REFUSED])
def test_a_malformed_batch_is_refused_by_field(said: str, change: Change) -> None:
    with pytest.raises(BadBatchError) as refused:
        check_batch(changed(change), boot_id=BOOT_ID, now_ns=NOW_NS)
    assert str(refused.value).startswith(said)


def test_a_batch_of_too_many_entries_is_refused() -> None:
    batch = batch_of()
    for _ in range(batches.MAX_ENTRIES):
        batch.finishes.add(t_ns=NOW_NS)
    with pytest.raises(BadBatchError, match="entries, at most 100000"):
        check_batch(batch, boot_id=BOOT_ID, now_ns=NOW_NS)


def test_a_good_batch_becomes_evidence() -> None:
    batch = batch_of()
    batch.steps.add(start_ns=NOW_NS - 2 * S, end_ns=NOW_NS - S)
    check_batch(batch, boot_id=BOOT_ID, now_ns=NOW_NS)
    step, unknown, finish = events_of(batch)
    assert isinstance(step, Step)
    assert isinstance(unknown, Step)
    assert step.requests == (RequestTokens("r1", 100, 0, 0), RequestTokens("r2", 0, 1, 512))
    assert unknown.requests == ()
    assert finish == Finish("fake-1", "r1", NOW_NS, 100, 20, 1)
    assert events_of(batch) == (step, unknown, finish)


def test_steps_of_a_restarted_engine_are_other_steps() -> None:
    seqs = set()
    for sequence in (1, 2):
        for source in ("fake/1/1", "fake/2/9"):
            (step, _) = events_of(batch_of(sequence, source=source))
            assert isinstance(step, Step)
            assert 0 <= step.seq < 2**63
            seqs.add(step.seq)
    assert len(seqs) == 4


# ------------------------------------------------------------------------- sources


@dataclass
class World:
    """Sources over a queue of `capacity`, with a /proc in which process 41 lives."""

    intake: Intake
    sources: Sources
    tracked: list[int]

    def commit(self) -> list[object]:
        """What the pipeline does once a second; returns what it took."""
        items = self.intake.drain()
        deliveries = [item for item in items if isinstance(item, Delivery)]
        self.sources.commit(deliveries, [item for item in items if isinstance(item, Count)])
        return list(items)


def a_world(tmp_path: Path, capacity: int = 1000) -> World:
    stat_file = tmp_path / "41" / "stat"
    stat_file.parent.mkdir(exist_ok=True)
    stat_file.write_text(f"41 (a) b) S {' '.join(['0'] * 18)} 777 0 0")
    intake = Intake(capacity)
    tracked: list[int] = []
    return World(intake, Sources(intake, tracked.extend, tmp_path), tracked)


def test_only_what_is_on_disk_is_acknowledged(tmp_path: Path) -> None:
    world = a_world(tmp_path)
    assert world.sources.take(batch_of(1), NOW_NS) == 0
    assert world.sources.take(batch_of(2), NOW_NS) == 0
    assert world.sources.take(question(), NOW_NS) == 0
    world.commit()
    assert world.sources.take(question(), NOW_NS) == 2


def test_a_registration_is_told_once_with_its_processes(tmp_path: Path) -> None:
    world = a_world(tmp_path)
    batch = batch_of(1)
    batch.engine.pids.append(4_000_000)
    batch.engine.workload, batch.engine.job = "vllm.service", "4711"
    world.sources.take(batch, NOW_NS)
    batch.sequence = 2
    world.sources.take(batch, NOW_NS)
    first, second = world.commit()
    assert isinstance(first, Delivery)
    assert isinstance(second, Delivery)
    assert first.introduced == (
        Process(41, 777, "vllm.service", "4711"),
        Process(4_000_000, 0, "vllm.service", "4711"),
        Engine("fake-1", "fake", "tiny", (41, 4_000_000)),
    )
    assert second.introduced == ()
    assert world.tracked == [41, 4_000_000]


def test_a_changed_or_long_idle_registration_is_told_again(tmp_path: Path) -> None:
    world = a_world(tmp_path)
    world.sources.take(question(), NOW_NS)
    assert Engine("fake-1", "fake", "tiny", (41,)) in world.commit()
    world.sources.take(batch_of(1), NOW_NS)
    world.sources.take(batch_of(2, sent_ns=NOW_NS), NOW_NS + 61 * S)
    renamed = batch_of(3)
    renamed.engine.model = "large"
    world.sources.take(renamed, NOW_NS + 62 * S)
    told = [item.introduced[-1] for item in world.commit() if isinstance(item, Delivery)]
    models = [item.model for item in told if isinstance(item, Engine)]
    assert models == ["tiny", "tiny", "large"]


def test_a_host_process_keeps_what_its_engine_said_of_it(tmp_path: Path) -> None:
    world = a_world(tmp_path)
    batch = batch_of(1)
    batch.engine.job = "4711"
    world.sources.take(batch, NOW_NS)
    claim = world.sources.claim
    assert claim(Process(41, 777, "ssh.service", "9")) == Process(41, 777, "ssh.service", "4711")
    assert claim(Process(41, 778, "ssh.service", "9")) == Process(41, 778, "ssh.service", "9")
    assert claim(Process(42, 777, "ssh.service", None)) == Process(42, 777, "ssh.service", None)


def test_duplicates_are_counted_and_acknowledged(tmp_path: Path) -> None:
    world = a_world(tmp_path)
    world.sources.take(batch_of(1), NOW_NS)
    world.commit()
    assert world.sources.take(batch_of(1), NOW_NS) == 1
    assert world.commit() == [Count(NOW_NS, duplicates=2)]
    assert [engine.duplicates for engine in world.sources.engines()] == [2]


def test_a_batch_waits_for_those_before_it(tmp_path: Path) -> None:
    world = a_world(tmp_path)
    world.sources.take(batch_of(1), NOW_NS)
    with pytest.raises(BusyError, match="batch 2 of fake/1/1 comes first"):
        world.sources.take(batch_of(3), NOW_NS)
    for sequence in (2, 3):
        world.sources.take(batch_of(sequence), NOW_NS)
    world.commit()
    assert world.sources.take(question(), NOW_NS) == 3


def test_a_gap_that_stays_is_passed_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = a_world(tmp_path)
    world.sources.take(batch_of(1), NOW_NS)
    for waited_s in (0, 9):
        with pytest.raises(BusyError):
            world.sources.take(batch_of(5), NOW_NS + waited_s * NS_PER_S)
    world.sources.take(batch_of(5), NOW_NS + 10 * NS_PER_S)
    world.commit()
    assert world.sources.take(question(), NOW_NS) == 5
    assert [record.getMessage() for record in caplog.records] == [
        "event=batches_missing source=fake/1/1 after=1 before=5"
    ]


def test_a_source_not_seen_before_may_start_anywhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = a_world(tmp_path)
    world.sources.take(batch_of(500), NOW_NS)
    world.commit()
    assert world.sources.take(question(), NOW_NS) == 500
    assert not caplog.records


def test_dropped_events_are_counted_by_their_growth(tmp_path: Path) -> None:
    world = a_world(tmp_path)
    world.sources.take(batch_of(1, dropped_events=3), NOW_NS)
    world.sources.take(batch_of(2, dropped_events=3), NOW_NS)
    world.sources.take(question(dropped_events=10), NOW_NS)
    counts = [item for item in world.commit() if isinstance(item, Count)]
    assert counts == [
        Count(NOW_NS, dropped=3, source="fake/1/1", dropped_total=3),
        Count(NOW_NS, dropped=7, source="fake/1/1", dropped_total=10),
    ]


def test_a_full_queue_refuses_a_batch_whole_and_it_may_come_again(tmp_path: Path) -> None:
    world = a_world(tmp_path, capacity=10)
    world.sources.take(batch_of(1), NOW_NS)
    with pytest.raises(BusyError):
        world.sources.take(batch_of(2), NOW_NS)
    assert len(world.commit()) == 1
    world.sources.take(batch_of(2), NOW_NS)
    (second,) = world.commit()
    assert isinstance(second, Delivery)
    assert [type(item) for item in second.introduced] == [Process, Engine]
    assert world.sources.take(question(), NOW_NS) == 2


def test_a_restarted_daemon_knows_what_it_had(tmp_path: Path) -> None:
    before, after = a_world(tmp_path), a_world(tmp_path)
    before.sources.take(batch_of(7, dropped_events=5), NOW_NS)
    before.commit()
    before.sources.take(batch_of(8), NOW_NS)
    after.sources.load(before.sources.dump())
    assert after.sources.take(question(dropped_events=5), NOW_NS) == 7
    assert after.sources.take(batch_of(7, dropped_events=5), NOW_NS) == 7
    counts = [item for item in after.commit() if isinstance(item, Count)]
    assert counts == [Count(NOW_NS, duplicates=2)]


def test_drops_that_are_not_yet_on_disk_are_not_dumped(tmp_path: Path) -> None:
    world, after = a_world(tmp_path), a_world(tmp_path)
    world.sources.take(question(dropped_events=5), NOW_NS)
    world.commit()
    world.sources.take(question(dropped_events=8), NOW_NS)
    after.sources.load(world.sources.dump())
    after.sources.take(question(dropped_events=8), NOW_NS)
    counts = [item for item in after.commit() if isinstance(item, Count)]
    assert counts == [Count(NOW_NS, dropped=3, source="fake/1/1", dropped_total=8)]


def test_malformed_batches_of_many_names_take_nobodys_place(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = a_world(tmp_path)
    for _ in range(2):
        for number in range(2 * MAX_SOURCES):
            world.sources.refuse(f"junk/{number}", "sequence above")
    assert len(caplog.records) == MAX_STRANGERS + 1
    assert 'event=batch_refused source="(others)"' in caplog.records[-1].getMessage()
    for number in range(MAX_SOURCES):
        world.sources.take(question(source=f"s/{number}"), NOW_NS)
    world.sources.refuse("s/7", "sequence above")
    assert "source=s/7" in caplog.records[-1].getMessage()


def test_a_new_source_takes_the_place_of_the_longest_silent(tmp_path: Path) -> None:
    world = a_world(tmp_path, capacity=10_000)
    for number in range(MAX_SOURCES):
        world.sources.take(batch_of(4, source=f"s/{number}"), NOW_NS + number)
    world.commit()
    late_ns = NOW_NS + FORGETTABLE_NS
    world.sources.take(question(source="new"), late_ns)
    with pytest.raises(BusyError):
        world.sources.take(question(source="newer"), late_ns)
    world.commit()
    assert world.sources.take(question(source="s/1"), late_ns) == 4
    assert '"s/0"' not in world.sources.dump()
    assert '"s/1"' in world.sources.dump()


def test_a_silent_source_with_batches_on_their_way_keeps_its_place(tmp_path: Path) -> None:
    world = a_world(tmp_path, capacity=10_000)
    for number in range(MAX_SOURCES):
        world.sources.take(batch_of(1, source=f"s/{number}"), NOW_NS)
    with pytest.raises(BusyError):
        world.sources.take(question(source="new"), NOW_NS + FORGETTABLE_NS)


def test_sources_are_bounded_and_the_silent_are_forgotten(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = a_world(tmp_path, capacity=10_000)
    for number in range(MAX_SOURCES):
        world.sources.take(question(source=f"s/{number}"), NOW_NS)
    for name in ("one more", "and another"):
        with pytest.raises(BusyError):
            world.sources.take(question(source=name), NOW_NS)
    assert [record.getMessage() for record in caplog.records] == [
        'event=sources_full sources=1024 refused="any other"'
    ]
    world.sources.forget_silent(NOW_NS + batches.MAX_AGE_NS)
    assert len(world.sources.engines()) == MAX_SOURCES
    world.sources.forget_silent(NOW_NS + batches.MAX_AGE_NS + 1)
    assert world.sources.engines() == []


# --------------------------------------------------------------------- over the wire


@dataclass
class Served:
    """A server over a world."""

    world: World
    socket: Path
    recorder: Recorder
    server: SocketServer
    collector: CollectorService
    node: NodeService

    def start(self) -> None:
        self.server.bind()
        self.server.start(self.collector, self.node)


def a_server(world: World, socket: Path, mode: int = 0o660) -> Served:
    def clock() -> int:
        return NOW_NS

    recorder = Recorder()
    identity = NodeIdentity("0.1.0", "d1", "h1", "sqlite:/l.db", NOW_NS - 5 * S)
    snapshot = Snapshot(NOW_NS, queue_depth=3, windows_booked=9)
    collector = CollectorService(world.sources, boot_id=BOOT_ID, daemon_id="d1", clock=clock)
    node = NodeService(identity, lambda: snapshot, recorder, clock)
    return Served(world, socket, recorder, SocketServer(socket, mode), collector, node)


@pytest.fixture
def folder() -> Iterator[Path]:
    # A Unix socket's path is short; pytest's own folders are not.
    with tempfile.TemporaryDirectory(prefix="wl") as name:
        yield Path(name)


@pytest.fixture
def served(tmp_path: Path, folder: Path) -> Iterator[Served]:
    served = a_server(a_world(tmp_path), folder / "run" / "w.sock")
    served.start()
    yield served
    served.server.stop()


def test_push_answers_at_once_with_what_is_committed(served: Served) -> None:
    with Caller(served.socket) as caller:
        assert caller.push(batch_of(1)) == collect_pb2.Receipt(daemon_id="d1")
        served.world.commit()
        assert caller.push(question()).committed_sequence == 1


def test_push_names_the_wrong_field_and_counts_it_per_source(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    with Caller(served.socket) as caller:
        caller.push(question(source="good"))
        for _ in range(3):
            code, details = caller.refused(changed(REFUSED[17][1]))
        caller.push(question())
    assert (code, details) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        f"steps[0].end_ns is 1, before its start {NOW_NS - S}",
    )
    refused = {engine.refused for engine in served.world.sources.engines()}
    assert refused == {0, 3}
    assert sum("event=batch_refused source=fake/1/1" in r.getMessage() for r in caplog.records) == 1


def test_push_says_unavailable_where_the_daemon_cannot_keep_up(
    tmp_path: Path, folder: Path
) -> None:
    served = a_server(a_world(tmp_path, capacity=1), folder / "w.sock")
    served.start()
    with Caller(served.socket) as caller:
        assert caller.refused(batch_of(1))[0] is grpc.StatusCode.UNAVAILABLE
    served.server.stop()


def test_status_tells_the_last_snapshot(served: Served) -> None:
    with Caller(served.socket) as caller:
        status = caller.status()
    assert (status.host, status.ledger, status.uptime_s) == ("h1", "sqlite:/l.db", 5.0)
    assert (status.queue_depth, status.windows_booked) == (3, 9)


def test_a_recording_begins_with_the_preamble_and_ends_with_a_reason(served: Served) -> None:
    with Caller(served.socket) as caller:
        stream = iter(caller.record())
        while not served.recorder.active:
            threading.Event().wait(0.01)
        served.recorder.publish(["late"], lambda: ["header", "roster"])
        served.recorder.publish(["line"], lambda: ["header", "roster"])
        assert [list(next(stream).lines), list(next(stream).lines)] == [
            ["header", "roster"],
            ["line"],
        ]
        served.recorder.end("the wall clock was stepped")
        with pytest.raises(grpc.RpcError) as ended:
            next(stream)
    assert ended.value.code() is grpc.StatusCode.ABORTED


def test_a_recording_that_falls_behind_is_ended_not_waited_for() -> None:
    recorder = Recorder()
    slow, quick = recorder.subscribe(), recorder.subscribe()
    assert slow
    assert quick
    assert recorder.subscribe() is None
    for number in range(200):
        recorder.publish([str(number)], lambda: ["header"])
        assert quick.next() == (["header"] if number == 0 else [str(number)])
    assert slow.ended
    assert quick.ended is None
    recorder.unsubscribe(slow)
    assert recorder.subscribe() is not None


def test_the_socket_is_private_as_configured_and_goes_with_the_server(served: Served) -> None:
    assert stat.S_IMODE(served.socket.stat().st_mode) == 0o660
    assert stat.S_IMODE(served.socket.parent.stat().st_mode) == 0o700
    served.server.stop()
    assert not served.socket.exists()


def test_a_second_server_is_refused_and_the_first_goes_on(served: Served, tmp_path: Path) -> None:
    second = a_server(a_world(tmp_path), served.socket)
    with pytest.raises(UnreachableError, match="another daemon answers there"):
        second.server.bind()
    second.server.stop()
    with Caller(served.socket) as caller:
        assert caller.push(question()).daemon_id == "d1"


def test_a_dead_daemons_socket_is_replaced(tmp_path: Path, folder: Path) -> None:
    path = folder / "w.sock"
    with sockets.socket(sockets.AF_UNIX) as dead:
        dead.bind(str(path))
    served = a_server(a_world(tmp_path), path)
    served.start()
    with Caller(path) as caller:
        assert caller.push(question()).daemon_id == "d1"
    served.server.stop()


def test_a_file_in_the_sockets_place_is_not_touched(tmp_path: Path, folder: Path) -> None:
    path = folder / "w.sock"
    path.write_text("precious")
    with pytest.raises(UnreachableError, match="is not a socket: set another"):
        a_server(a_world(tmp_path), path).server.bind()
    assert path.read_text() == "precious"


def test_a_stopped_server_leaves_the_socket_that_another_has_bound_since(
    tmp_path: Path, folder: Path
) -> None:
    path = folder / "w.sock"
    first, second = (a_server(a_world(tmp_path), path) for _ in range(2))
    first.start()
    path.unlink()
    second.start()
    first.server.stop()
    with Caller(path) as caller:
        assert caller.push(question()).daemon_id == "d1"
    second.server.stop()
    assert list(folder.iterdir()) == []


def test_calls_wait_from_the_moment_the_socket_is_bound(tmp_path: Path, folder: Path) -> None:
    served = a_server(a_world(tmp_path), folder / "w.sock")
    served.server.bind()
    with pytest.raises(UnreachableError, match="another daemon answers there"):
        a_server(a_world(tmp_path), served.socket).server.bind()
    served.server.start(served.collector, served.node)
    with Caller(served.socket) as caller:
        assert caller.push(question()).daemon_id == "d1"
    served.server.stop()


@pytest.mark.parametrize("name", ["w", "~", "w~", "s" * 90])
def test_a_socket_may_have_any_name(tmp_path: Path, folder: Path, name: str) -> None:
    served = a_server(a_world(tmp_path), folder / name)
    served.start()
    assert [path.name for path in folder.iterdir()] == [name]
    with Caller(served.socket) as caller:
        assert caller.push(question()).daemon_id == "d1"
    served.server.stop()


def test_a_message_that_is_no_batch_is_refused_and_told_once(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    with Caller(served.socket) as caller:
        for _ in range(3):
            code, details = caller.refused_bytes(b"\xff" * 40)
        assert caller.push(question()).daemon_id == "d1"
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert details.startswith("message of 40 bytes is no Batch")
    assert [record.getMessage().split(" reason=")[0] for record in caplog.records] == [
        'event=batch_refused source=""'
    ]
