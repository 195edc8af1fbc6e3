"""The whole chain under fire: a real engine and a real daemon that is killed and stopped."""

from __future__ import annotations

import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fakes.daemon_process import DaemonProcess
from fakes.ledger_reading import assert_balanced, finishes, posted_tokens
from fakes.llama_server import LlamaServer, make_model, plain_environment
from wattledger_collectors.engines.attach import attach_environment

pytestmark = pytest.mark.engine

PATIENCE_S = 60.0


@dataclass
class Traffic:
    """Clients that ask until told to stop, and what the server's `usage` said they got."""

    server: LlamaServer
    clients: int = 3
    requests: int = 0
    prompt_tokens: int = 0
    decode_tokens: int = 0
    failures: list[Exception] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> Traffic:
        self._threads = [
            threading.Thread(target=self._ask, args=(number,)) for number in range(self.clients)
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, number: int) -> None:
        turn = 0
        while not self._stop.is_set():
            turn += 1
            try:
                reply = self.server.complete(f"client {number} asks {turn} " * 4, 12)
            except Exception as error:  # noqa: BLE001 - a test's thread: told by the test
                self.failures.append(error)
                return
            with self._lock:
                self.requests += 1
                self.prompt_tokens += reply["usage"]["prompt_tokens"]
                self.decode_tokens += reply["usage"]["completion_tokens"]

    def served_in(self, seconds: float) -> int:
        """Requests answered in the next `seconds`."""
        before = self.requests
        time.sleep(seconds)
        return self.requests - before


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="wl") as name:
        yield Path(name)


def wait_until_booked(daemon: DaemonProcess, traffic: Traffic) -> None:
    """Stop the daemon once it has heard of every request; it books what is left."""
    deadline = time.monotonic() + PATIENCE_S
    while len(finishes(daemon.ledger)) < traffic.requests and time.monotonic() < deadline:
        time.sleep(0.5)
    daemon.signal(signal.SIGTERM)
    assert daemon.exit_status() == 0


def test_killed_and_stopped_daemons_lose_and_double_nothing(folder: Path) -> None:
    with ExitStack() as stack:
        environ = attach_environment(
            plain_environment(), socket=str(folder / "w.sock"), job="j", workload="w", model="tiny"
        )
        server = LlamaServer(make_model(folder), environ, folder / "log")
        stack.callback(server.process.wait)
        stack.callback(server.process.kill)
        traffic = Traffic(server)
        with traffic:
            time.sleep(2)  # nobody listens yet
            for down_s in (0.3, 3.0):
                with DaemonProcess(folder) as daemon:
                    daemon.wait_for("event=ready")
                    time.sleep(4)
                    daemon.signal(signal.SIGKILL)
                    daemon.exit_status()
                    time.sleep(down_s)
            last = stack.enter_context(DaemonProcess(folder))
            last.wait_for("event=ready")
            heard = traffic.served_in(4)
            last.signal(signal.SIGSTOP)
            deaf = traffic.served_in(6)
            last.signal(signal.SIGCONT)
            time.sleep(3)
        assert traffic.failures == []
        # Not a timing: a server that waited for its meter would serve next to nothing.
        assert deaf > heard / 2
        wait_until_booked(last, traffic)
        done = finishes(last.ledger)
        assert len(done) == traffic.requests
        assert sum(finish.prompt_tokens for finish in done) == traffic.prompt_tokens
        assert sum(finish.decode_tokens for finish in done) == traffic.decode_tokens
        posted = posted_tokens(last.ledger)
        assert posted.prefill_tokens + posted.cached_tokens == traffic.prompt_tokens
        assert posted.decode_tokens == traffic.decode_tokens
        assert_balanced(last.ledger)
