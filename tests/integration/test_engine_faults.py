"""Never harm the engine: what can be wrong with the daemon, and what the engine notices of it.

The engine is arithmetic, its hook, reporter and wire are the real ones, and so is the daemon: a
fault between the two is the same for every engine.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import grpc
import pytest

from fakes.daemon_process import DaemonProcess
from fakes.ledger_reading import assert_balanced, finishes, posted_tokens
from fakes.push_client import Caller
from fakes.tiny_engine import TinyEngine
from fakes.vllm_server import is_of_outage, told_once_each
from wattledger_collectors.engines.attach import attach_environment

PATIENCE_S = 60.0
NO_OVERRIDE = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search")
"""Takes from root what lets it open any file."""


class World:
    """An engine that starts serving, and a folder in which daemons come and go."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.socket = folder / "w.sock"
        self.ledger = folder / "ledger.db"
        self._stack = stack

    def engine(self) -> TinyEngine:
        environ = attach_environment(dict(os.environ), socket=str(self.socket), model="tiny")
        before = NO_OVERRIDE if os.geteuid() == 0 else ()
        engine = self._stack.enter_context(TinyEngine(environ, self.folder / "log", before))
        engine.start()
        return engine

    def daemon(self) -> DaemonProcess:
        daemon = self._stack.enter_context(DaemonProcess(self.folder))
        daemon.wait_for("event=ready")
        return daemon

    def dropped_events(self) -> int:
        """As the daemon shows them."""
        with Caller(self.socket) as caller:
            return sum(engine.dropped_events for engine in caller.status().engines)

    def wait_until_heard(self, requests: int) -> None:
        """The daemon has been told of so many; what an outage held back comes in with them."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            with Caller(self.socket) as caller, suppress(grpc.RpcError):
                if sum(engine.finishes for engine in caller.status().engines) >= requests:
                    return
            time.sleep(0.1)

    def books_hold(self, daemon: DaemonProcess, engine: TinyEngine) -> None:
        """The engine ends, which hands over its last events; each request is booked once."""
        served = engine.stop()
        self.wait_until_heard(served.requests)
        assert engine.end() == 0
        daemon.signal(signal.SIGTERM)
        assert daemon.exit_status() == 0, daemon.log
        done = finishes(self.ledger)
        assert len(done) == served.requests
        assert sum(finish.prompt_tokens for finish in done) == served.prompt_tokens
        posted = posted_tokens(self.ledger)
        assert posted.prefill_tokens + posted.cached_tokens == served.prompt_tokens
        assert posted.decode_tokens == served.decode_tokens
        assert_balanced(self.ledger)


@pytest.fixture
def world() -> Iterator[World]:
    # Not tmp_path: under a long base folder a socket's path would not fit.
    with tempfile.TemporaryDirectory(prefix="wl") as folder, ExitStack() as stack:
        yield World(Path(folder), stack)


def served_as_well(engine: TinyEngine, seconds: float = 3.0) -> int:
    """The engine does not wait for anybody: it is told to serve about 100 a second.

    No timing: one that waited for its meter, a second per attempt, would serve next to nothing.
    """
    served = engine.served_in(seconds)
    assert served > 15 * seconds
    return served


def one_warning(engine: TinyEngine) -> None:
    """A line for the outage; no other for as long as it lasts."""
    assert len(engine.lines) == 1, engine.lines
    assert is_of_outage(engine.lines[0])


def test_absent_at_the_start(world: World) -> None:
    engine = world.engine()
    served_as_well(engine)
    one_warning(engine)
    world.books_hold(world.daemon(), engine)
    assert told_once_each(engine.lines)
    assert len(engine.lines) == 2


def test_killed_and_started_again(world: World) -> None:
    engine, first = world.engine(), world.daemon()
    served_as_well(engine)
    first.signal(signal.SIGKILL)
    first.exit_status()
    served_as_well(engine)
    second = world.daemon()
    served_as_well(engine)
    world.books_hold(second, engine)
    assert told_once_each(engine.lines), engine.lines


def test_stopped_in_mid_traffic(world: World) -> None:
    daemon = world.daemon()
    engine = world.engine()
    served_as_well(engine)
    daemon.signal(signal.SIGSTOP)
    served_as_well(engine, 5.0)
    assert "DEADLINE_EXCEEDED" in engine.lines[-1]
    daemon.signal(signal.SIGCONT)
    world.books_hold(daemon, engine)
    assert told_once_each(engine.lines), engine.lines


def test_socket_replaced_by_what_is_no_daemon(world: World) -> None:
    first = world.daemon()
    engine = world.engine()
    served_as_well(engine)
    first.signal(signal.SIGKILL)
    first.exit_status()
    for thing in ("file", "folder", "link", "deaf", "mute"):
        world.socket.unlink(missing_ok=True)
        with ExitStack() as stack:
            put_there(thing, world.socket, stack)
            served_as_well(engine)
    assert "no daemon" in engine.lines[-1]
    world.books_hold(world.daemon(), engine)
    assert told_once_each(engine.lines), engine.lines


def put_there(what: str, path: Path, stack: ExitStack) -> None:
    """Something that is no daemon, for as long as the stack is open."""
    if what == "file":
        path.write_text("no socket")
        stack.callback(path.unlink)
    elif what == "folder":
        path.mkdir()
        stack.callback(path.rmdir)
    elif what == "link":
        path.symlink_to(path.parent / "nowhere.sock")
        stack.callback(path.unlink)
    else:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(path))
        stack.callback(path.unlink)
        if what == "mute":  # takes connections and says nothing
            listener.listen()


def test_socket_that_the_engine_may_not_open(world: World) -> None:
    daemon = world.daemon()
    world.socket.chmod(0)
    engine = world.engine()
    served_as_well(engine)
    one_warning(engine)
    world.socket.chmod(0o600)
    world.books_hold(daemon, engine)


def test_disk_full(world: World) -> None:
    """A daemon that cannot write acknowledges nothing: the engine keeps what it told."""
    daemon = world.daemon()
    engine = world.engine()
    served_as_well(engine)
    limits = resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, (4096, limits[1]))
    served_as_well(engine, 6.0)
    daemon.wait_for("event=ledger_failing")
    resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, limits)
    served_as_well(engine)
    world.books_hold(daemon, engine)


def test_hours_of_absence_cost_bounded_memory_and_are_told(world: World) -> None:
    engine = world.engine()
    served_as_well(engine)
    warm = engine.stop()
    flooded = engine.flood(30_000)
    assert flooded.rss_bytes - warm.rss_bytes < 48 * 2**20
    one_warning(engine)
    daemon = world.daemon()
    deadline = time.monotonic() + PATIENCE_S
    while not world.dropped_events() and time.monotonic() < deadline:
        time.sleep(0.2)
    lost = world.dropped_events()
    assert 0 < lost < 30_000 * 22
    assert engine.end() == 0
    daemon.signal(signal.SIGTERM)
    assert daemon.exit_status() == 0, daemon.log
    assert_balanced(world.ledger, dropped_events=lost)
