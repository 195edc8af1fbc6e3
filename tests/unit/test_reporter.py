"""The reporter against a real gRPC service on a Unix socket that behaves and misbehaves."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from fakes.collector_server import Disk, FakeCollector, Mode
from wattledger_collectors.engines.events import EventBuffer
from wattledger_collectors.outbox import Bounds
from wattledger_collectors.reporter import Pace, Reporter, Reporting
from wattledger_collectors.socket_path import default_socket_path
from wattledger_collectors.wire import Identity

FAST = Pace(
    flush_s=0.01,
    deadline_s=5.0,
    poll_s=0.02,
    heartbeat_s=0.05,
    least_backoff_s=0.01,
    most_backoff_s=0.05,
    farewell_s=5.0,
)
HASTY = Pace(flush_s=0.01, deadline_s=0.05, least_backoff_s=0.01, most_backoff_s=0.02)
ROOT = Path(__file__).resolve().parents[2]


class World:
    """One engine process's buffer and reporter, and the daemons that come and go."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.socket = folder / "w.sock"
        self.buffer = EventBuffer(limit=1_000)
        self.lines: list[str] = []
        self.disk = Disk()
        self._stack = stack
        self._steps = 0

    def daemon(self, mode: Mode = Mode.ACK, daemon_id: str = "d1") -> FakeCollector:
        daemon = FakeCollector(self.socket, mode, self.disk, daemon_id)
        self._stack.callback(daemon.stop)
        return daemon

    def reporter(
        self,
        pace: Pace = FAST,
        bounds: Bounds | None = None,
        socket: Callable[[], str] | None = None,
    ) -> Reporter:
        identity = Identity("llama_cpp", os.getpid(), 77, "boot", "w1", "j\udcff1")
        reporter = Reporter(
            self.buffer,
            identity,
            socket or (lambda: str(self.socket)),
            pace=pace,
            bounds=bounds,
            tell=self.lines.append,
        )
        reporter.start()
        self._stack.callback(reporter.stop)
        return reporter

    def tell_steps(self, count: int, model: str = "tiny.gguf") -> None:
        for _ in range(count):
            self._steps += 1
            t_ns = self._steps * 10
            self.buffer.add(("step", model, t_ns, t_ns + 10, (("r1", 0, 1, self._steps),)))

    def contexts(self) -> list[int]:
        """What is on disk, told by the context of each step, which no two steps share."""
        return [
            step.context_tokens[0]
            for batches in self.disk.batches.values()
            for _, batch in sorted(batches.items())
            for step in batch.steps
        ]


@pytest.fixture
def world() -> Iterator[World]:
    # Not tmp_path: under a long base folder a socket's path would not fit.
    with tempfile.TemporaryDirectory(prefix="wl") as folder, ExitStack() as stack:
        yield World(Path(folder), stack)


def eventually(reached: Callable[[], bool], timeout_s: float = 30.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while not reached():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def test_a_batch_says_who_what_and_when(world: World) -> None:
    daemon = world.daemon()
    world.buffer.add(("step", "tiny", 100, 200, (("r1", 7, 0, 0), ("r2", 0, 1, 50))))
    world.buffer.add(("step", "tiny", 200, 300, ()))
    world.buffer.add(("token", "tiny", 300, 400, "r2", 51))
    world.buffer.add(("finish", "tiny", 400, "r2", 60, 10, 9, True))
    world.reporter()
    assert daemon.wait(lambda: bool(daemon.batches))
    (batch,) = daemon.batches
    assert (batch.source, batch.boot_id, batch.sequence) == (
        f"llama_cpp/{os.getpid()}/77",
        "boot",
        1,
    )
    assert 0 < batch.sent_ns <= time.monotonic_ns()
    engine = batch.engine
    assert (engine.engine, engine.kind) == (f"llama_cpp-{os.getpid()}", "llama_cpp")
    assert (engine.model, engine.workload, engine.job) == ("tiny", "w1", "j?1")
    assert list(engine.pids) == [os.getpid()]
    first, second, third = batch.steps
    assert (first.sequence, first.start_ns, first.end_ns) == (1, 100, 200)
    assert [batch.request_ids[index] for index in first.requests] == ["r1", "r2"]
    assert (list(first.prefill_tokens), list(first.decode_tokens)) == ([7, 0], [0, 1])
    assert list(first.context_tokens) == [0, 50]
    assert (second.sequence, list(second.requests)) == (2, [])
    assert (third.start_ns, third.end_ns, list(third.requests)) == (300, 400, [1])
    counts = (third.prefill_tokens, third.decode_tokens, third.context_tokens)
    assert [list(count) for count in counts] == [[0], [1], [51]]
    (finish,) = batch.finishes
    assert batch.request_ids[finish.request] == "r2"
    assert (finish.t_ns, finish.prompt_tokens, finish.cached_tokens) == (400, 60, 10)
    assert (finish.decode_tokens, finish.aborted) == (9, True)
    totals = batch.totals
    assert (totals.steps, totals.prefill_tokens, totals.decode_tokens) == (3, 7, 2)
    assert (totals.finishes, batch.dropped_events) == (1, 0)


def test_batches_are_small_numbered_and_of_one_model(world: World) -> None:
    daemon = world.daemon()
    world.tell_steps(700, "a")
    world.tell_steps(10, "b")
    world.reporter(Pace(flush_s=0.01, batch_events=256))
    assert daemon.wait(lambda: len(world.contexts()) == 710)
    assert world.contexts() == list(range(1, 711))
    assert [batch.sequence for batch in daemon.batches] == [1, 2, 3, 4]
    assert [len(batch.steps) for batch in daemon.batches] == [256, 256, 188, 10]
    assert [batch.engine.model for batch in daemon.batches] == ["a", "a", "a", "b"]


def test_an_idle_engine_only_says_that_it_lives(world: World) -> None:
    daemon = world.daemon()
    world.reporter()
    assert daemon.wait(lambda: len(daemon.pushes) >= 4)
    assert not daemon.deliveries()
    assert {push.engine.kind for push in daemon.pushes} == {"llama_cpp"}


def test_what_is_delivered_but_not_committed_is_asked_after_not_resent(world: World) -> None:
    daemon = world.daemon(Mode.HOLD)
    world.tell_steps(5)
    reporter = world.reporter()
    assert daemon.wait(lambda: len(daemon.pushes) >= 6)
    assert daemon.deliveries() == {1: 1}
    assert reporter.outbox.uncommitted
    daemon.commit()
    assert eventually(lambda: not reporter.outbox.uncommitted)
    assert world.lines == []


def test_a_restarted_daemon_gets_what_the_first_had_not_on_disk(world: World) -> None:
    first = world.daemon()
    world.tell_steps(5)
    reporter = world.reporter()
    assert first.wait(lambda: len(world.contexts()) == 5)
    first.mode = Mode.HOLD
    world.tell_steps(6)
    assert first.wait(lambda: len(first.deliveries()) == 2)
    world.tell_steps(7)
    assert first.wait(lambda: len(first.deliveries()) == 3)
    first.stop()
    world.tell_steps(8)
    second = world.daemon(daemon_id="d2")
    assert second.wait(lambda: len(world.contexts()) == 26)
    assert world.contexts() == list(range(1, 27))
    assert second.pushes[0].sequence == 0
    assert set(second.deliveries().values()) == {1}
    assert eventually(lambda: not reporter.outbox.uncommitted)


def test_a_daemon_back_before_anybody_noticed_gets_the_same(world: World) -> None:
    daemon = world.daemon(Mode.HOLD)
    world.tell_steps(5)
    world.reporter()
    assert daemon.wait(lambda: bool(daemon.deliveries()))
    daemon.held.clear()
    daemon.daemon_id, daemon.mode = "d2", Mode.ACK
    assert daemon.wait(lambda: world.contexts() == [1, 2, 3, 4, 5])
    assert daemon.deliveries() == {1: 2}


def test_refused_events_are_dropped_counted_and_told_once(world: World) -> None:
    daemon = world.daemon(Mode.REFUSE)
    world.tell_steps(5)
    world.reporter()
    assert daemon.wait(lambda: daemon.deliveries()[1] == 1)
    world.tell_steps(6)
    assert daemon.wait(lambda: daemon.deliveries()[2] == 1)
    daemon.mode = Mode.HOLD
    world.tell_steps(7)
    daemon.wait(lambda: bool(daemon.deliveries()[3]))
    assert daemon.pushes[-1].dropped_events == 11
    assert daemon.pushes[-1].totals.steps == 18
    daemon.commit()
    assert world.contexts() == list(range(12, 19))
    assert [batch.sequence for batch in daemon.batches] == [1, 2, 3]
    assert world.lines == ["the daemon refuses events (no such model): dropped and counted"]


def test_a_daemon_that_starts_later_gets_everything(world: World) -> None:
    world.tell_steps(5)
    world.reporter()
    assert eventually(lambda: len(world.lines) == 1)
    world.tell_steps(5)
    daemon = world.daemon()
    assert daemon.wait(lambda: len(world.contexts()) == 10)
    assert world.contexts() == list(range(1, 11))
    assert eventually(lambda: len(world.lines) == 2)
    lost, back = world.lines
    assert (
        lost
        == f"no daemon at {world.socket} (UNAVAILABLE): tokens are kept for it; run: wattledgerd"
    )
    assert back == "the daemon is back"


def test_a_daemon_that_answers_late_once_is_not_lost(world: World) -> None:
    slow = world.daemon(Mode.SLOW)
    world.tell_steps(5)
    world.reporter(replace(HASTY, patience_s=60.0))
    assert slow.wait(lambda: False, timeout_s=0.3) is False
    slow.stop()
    daemon = world.daemon(daemon_id="d2")
    assert daemon.wait(lambda: len(world.contexts()) == 5)
    assert [line for line in world.lines if "DEADLINE" in line] == []


def test_events_that_cannot_be_told_are_dropped_and_counted(world: World) -> None:
    daemon = world.daemon()
    world.buffer.add(("step", "m", -(2**70), 1, (("r", 1, 2, 3),)))
    world.reporter()
    assert eventually(lambda: len(world.lines) == 1)
    assert "cannot be told" in world.lines[0]
    world.tell_steps(5)
    assert daemon.wait(lambda: len(world.contexts()) == 5)
    last = daemon.batches[-1]
    assert (last.dropped_events, last.totals.steps, last.totals.decode_tokens) == (1, 6, 7)


def test_a_stopped_daemon_holds_nobody_up(world: World) -> None:
    stopped = world.daemon(Mode.SLOW)
    world.tell_steps(5)
    world.reporter(replace(HASTY, patience_s=0.2))
    assert eventually(lambda: len(world.lines) == 1)
    assert "(DEADLINE_EXCEEDED)" in world.lines[0]
    world.tell_steps(5)
    stopped.stop()
    daemon = world.daemon(daemon_id="d2")
    assert daemon.wait(lambda: len(world.contexts()) == 10)
    assert world.contexts() == list(range(1, 11))


def test_a_long_outage_costs_bounded_memory_and_is_counted(world: World) -> None:
    bounds = Bounds(payload_bytes=10_000, batches=3)
    reporter = world.reporter(Pace(flush_s=0.001, batch_events=2, most_backoff_s=0.2), bounds)
    for _ in range(50):
        world.tell_steps(10)
        assert eventually(lambda: not len(world.buffer))
    assert eventually(lambda: reporter.outbox.dropped_events == 494)
    assert len(reporter.outbox) == 3
    daemon = world.daemon()
    assert daemon.wait(lambda: len(world.contexts()) == 6)
    assert world.contexts() == list(range(495, 501))
    last = daemon.batches[-1]
    assert (last.dropped_events, last.totals.steps, last.totals.decode_tokens) == (494, 500, 500)


def test_what_the_hook_lost_is_told(world: World) -> None:
    world.tell_steps(1_010)
    daemon = world.daemon()
    world.reporter()
    assert daemon.wait(lambda: len(world.contexts()) == 1_000)
    assert daemon.batches[-1].dropped_events == 10
    assert daemon.batches[-1].totals.decode_tokens == 1_010


def test_the_last_events_are_handed_over_at_the_end(world: World) -> None:
    daemon = world.daemon()
    reporter = world.reporter(Pace(flush_s=60.0, farewell_s=30.0))
    world.tell_steps(5)
    reporter.stop()
    assert len(daemon.told()) == 1
    assert world.contexts() == [1, 2, 3, 4, 5]


def test_a_socket_path_that_cannot_be_is_told_once(world: World) -> None:
    long_path = "/tmp/" + "x" * 120  # only its length matters
    world.buffer.add(("finish", "tiny", 1, "r", 1, 0, 1, False))
    reporter = world.reporter(socket=lambda: default_socket_path({"WATTLEDGER_SOCKET": long_path}))
    assert eventually(lambda: len(world.lines) == 1)
    assert eventually(lambda: len(reporter.outbox) == 1)
    assert world.lines[0].startswith(f"tokens are not reported: socket path {long_path} has 125")


PROGRAM = """
import os, sys
from wattledger_collectors.engines.events import EventBuffer
from wattledger_collectors.reporter import Reporting
buffer = EventBuffer()
reporting = Reporting("llama_cpp", buffer, os.environ)
def tell(name, count):
    reporting.ensure_running()
    for t in range(count):
        buffer.add(("step", "tiny", t, t + 1, ((name, 0, 1, t),)))
"""


def run(code: str, socket: Path) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "WATTLEDGER_SOCKET": str(socket), "WATTLEDGER_JOB": "j7"}
    command = [sys.executable, "-c", PROGRAM + code]
    return subprocess.run(
        command, env=environ, check=True, capture_output=True, text=True, timeout=60
    )


def test_an_engine_that_exits_at_once_loses_nothing(world: World) -> None:
    daemon = world.daemon()
    result = run("tell('r1', 3_000)", world.socket)
    assert daemon.told()["r1"].decode == 3_000
    assert {batch.engine.job for batch in daemon.batches} == {"j7"}
    assert result.stderr == ""


@pytest.mark.parametrize("mode", [Mode.SLOW, None])
def test_an_engine_exits_with_its_own_status_whatever_the_daemon_does(
    world: World, mode: Mode | None
) -> None:
    if mode:
        world.daemon(mode)
    result = run("tell('r1', 3_000); print('done')", world.socket)
    assert result.stdout == "done\n"
    assert len(result.stderr.splitlines()) <= 1


def test_a_forked_child_reports_for_itself(world: World) -> None:
    daemon = world.daemon()
    run(
        "tell('parent', 100)\n"
        "child = os.fork()\n"
        "tell('child' if child == 0 else 'parent', 50)\n"
        "if child: assert os.waitpid(child, 0)[1] == 0\n",
        world.socket,
    )
    assert daemon.told()["parent"].decode == 150
    assert daemon.told()["child"].decode == 50
    assert len({batch.source for batch in daemon.batches}) == 2
    assert all(len(set(batch.request_ids)) == 1 for batch in daemon.batches)


def test_without_grpc_the_mend_is_told() -> None:
    folders = [str(ROOT / name) for name in ("collectors", "ledger", "proto")]
    code = (
        "from wattledger_collectors.engines.events import EventBuffer\n"
        "from wattledger_collectors.reporter import Reporting\n"
        "try: Reporting('llama_cpp', EventBuffer(), {})\n"
        "except ImportError as error: print(error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env={"PYTHONPATH": os.pathsep.join(folders)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert result.stdout == (
        "grpc is not installed here; run: pip install 'wattledger[collector]'\n"
    )


def test_a_reporting_that_runs_is_not_started_twice(world: World) -> None:
    result = run(
        "import threading\n"
        "tell('r1', 1); tell('r1', 1)\n"
        "print([t.name for t in threading.enumerate()].count('wattledger-reporter'))\n",
        world.socket,
    )
    assert result.stdout == "1\n"
    assert Reporting("llama_cpp", EventBuffer(), {}) is not None
