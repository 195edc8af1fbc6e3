"""How the daemon ends where something hangs: its start, a driver, another process's write."""

from __future__ import annotations

import resource
import signal
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.daemon_process import DaemonProcess
from fakes.nvml import FakeNvml
from fakes.push_client import Caller
from wattledger.store.sqlite import SqliteLedger

REQUIRED = "[sensors]\nnvml = 'require'\n"


@pytest.fixture
def folder() -> Iterator[Path]:
    # A Unix socket's path is short; pytest's own folders are not.
    with tempfile.TemporaryDirectory(prefix="wl") as name:
        yield Path(name)


def a_gpu(*more: str) -> FakeNvml:
    return FakeNvml(["gpu 0 NVIDIA_H200 GPU-1", "seg 0 0 250000", *more], period_ms=20)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_start_that_hangs_ends_at_once_when_asked(folder: Path, number: signal.Signals) -> None:
    environ = a_gpu("slow GetCount 0 600 600").env()
    lock = folder / "ledger.db.lock"
    with DaemonProcess(folder, environ, REQUIRED) as daemon:
        for _ in range(1200):
            if lock.exists() and lock.read_text():
                break
            time.sleep(0.05)
        daemon.signal(number)
        assert daemon.exit_status() == 0
    assert daemon.log[-1].endswith(f"event=stopped signal={number.name} was=starting")
    assert not daemon.socket.exists()


def test_a_write_of_another_process_does_not_hold_up_the_stop(folder: Path) -> None:
    with DaemonProcess(folder, a_gpu().env(), REQUIRED) as daemon:
        daemon.wait_for("event=ready")
        writer = sqlite3.connect(daemon.ledger, isolation_level=None)
        writer.execute("BEGIN IMMEDIATE")
        daemon.wait_for("event=ledger_failing")
        asked_s = time.monotonic()
        daemon.signal(signal.SIGTERM)
        assert daemon.exit_status() == 0
        assert time.monotonic() - asked_s < 5.0
        writer.close()
    (line,) = (line for line in daemon.log if "event=last_part_not_booked" in line)
    assert "locked by another process" in line
    with DaemonProcess(folder, a_gpu().env(), REQUIRED) as daemon:
        daemon.wait_for("event=ready")
        daemon.signal(signal.SIGTERM)
        assert daemon.exit_status() == 0
    with SqliteLedger(daemon.ledger) as ledger:
        assert ledger.check() == []


def test_it_may_hold_as_many_descriptors_as_the_system_lets_it(folder: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, soft), hard))
    try:
        with DaemonProcess(folder) as daemon, Caller(daemon.socket) as caller:
            daemon.wait_for("event=ready")
            assert caller.status().sensors
            given = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert given == (max(min(256, soft), min(hard, 65_536)), hard)
