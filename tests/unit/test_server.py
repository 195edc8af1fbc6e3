"""The daemon's socket: found again after it was removed, and rid of those who say nothing."""

from __future__ import annotations

import socket as sockets
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.collecting import NOW_NS, a_world, question
from fakes.daemon_parts import BOOT_ID
from fakes.push_client import Caller
from wattledger_daemon.health import Snapshot
from wattledger_daemon.ingest import CollectorService
from wattledger_daemon.node_service import NodeIdentity, NodeService
from wattledger_daemon.recording import Recorder
from wattledger_daemon.server import SocketServer


@pytest.fixture
def path() -> Iterator[Path]:
    # A Unix socket's path is short; pytest's own folders are not.
    with tempfile.TemporaryDirectory(prefix="wl") as name:
        yield Path(name) / "run" / "w.sock"


@pytest.fixture
def server(path: Path, tmp_path: Path) -> Iterator[SocketServer]:
    def clock() -> int:
        return NOW_NS

    identity = NodeIdentity("0.1.0", "d1", "h1", "sqlite:/l.db", NOW_NS)
    collector = CollectorService(
        a_world(tmp_path).sources, boot_id=BOOT_ID, daemon_id="d1", clock=clock
    )
    node = NodeService(identity, lambda: Snapshot(NOW_NS), Recorder(), clock)
    made = SocketServer(path, 0o660, silence_ms=300)
    made.bind()
    made.start(collector, node)
    yield made
    made.stop()


def test_a_socket_that_is_where_it_was_is_left_alone(
    server: SocketServer, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = path.lstat().st_ino
    server.look()
    assert path.lstat().st_ino == before
    assert caplog.text == ""


@pytest.mark.parametrize("folder_too", [False, True])
def test_a_socket_that_was_removed_is_bound_anew_and_found_by_those_who_had_it(
    server: SocketServer, path: Path, caplog: pytest.LogCaptureFixture, *, folder_too: bool
) -> None:
    with Caller(path) as before:
        assert before.push(question()).daemon_id == "d1"
        for _ in range(2):
            path.unlink()
            if folder_too:
                path.parent.rmdir()
            server.look()
            assert stat.S_IMODE(path.lstat().st_mode) == 0o660
            with Caller(path) as after:
                assert after.push(question()).daemon_id == "d1"
        assert before.push(question()).daemon_id == "d1"
    assert caplog.text.count("event=socket_bound_anew") == 2
    assert list(path.parent.iterdir()) == [path]
    server.stop()
    assert list(path.parent.iterdir()) == []


def test_what_lies_in_its_place_is_told_once_and_left_alone(
    server: SocketServer, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.unlink()
    path.write_text("mine")
    server.look()
    server.look()
    assert caplog.text.count("event=socket_lost") == 1
    assert "is not a socket" in caplog.text
    server.stop()
    assert path.read_text() == "mine"


def test_another_daemon_in_its_place_keeps_it(
    server: SocketServer, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.unlink()
    with sockets.socket(sockets.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        server.look()
        assert "another daemon answers there" in caplog.text
    server.look()
    assert "event=socket_bound_anew" in caplog.text


def test_whoever_connects_and_says_nothing_is_hung_up_on(server: SocketServer, path: Path) -> None:
    with sockets.socket(sockets.AF_UNIX) as silent, Caller(path) as caller:
        silent.settimeout(30)
        silent.connect(str(path))
        while silent.recv(4096):
            pass
        assert caller.push(question()).daemon_id == "d1"
