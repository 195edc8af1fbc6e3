"""Collecting over real gRPC on a real socket."""

from __future__ import annotations

import socket as sockets
import stat
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from fakes.collecting import NOW_NS, S, World, a_world, batch_of, changed, question
from fakes.daemon_parts import BOOT_ID
from fakes.push_client import Caller
from wattledger.errors import UnreachableError
from wattledger_daemon.health import Snapshot
from wattledger_daemon.ingest import CollectorService
from wattledger_daemon.node_service import NodeIdentity, NodeService
from wattledger_daemon.recording import Recorder
from wattledger_daemon.server import SocketServer
from wattledger_proto.v1 import collect_pb2


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
        assert caller.push(batch_of(1)) == collect_pb2.Receipt(daemon_id="d1", takes_runs=True)
        served.world.commit()
        assert caller.push(question()).committed_sequence == 1


def test_push_names_the_wrong_field_and_counts_it_per_source(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    with Caller(served.socket) as caller:
        caller.push(question(source="good"))
        for _ in range(3):
            code, details = caller.refused(changed(lambda b: setattr(b.steps[0], "end_ns", 1)))
        caller.push(question())
    assert (code, details) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        f"steps[0].end_ns is 1, before its start {NOW_NS - S}",
    )
    # Both sources report for one engine.
    assert [engine.refused for engine in served.world.sources.engines()] == [3]
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
