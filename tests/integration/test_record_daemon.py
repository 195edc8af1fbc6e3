"""A real daemon recorded in mid-traffic: its trace replays to the books that it kept itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import pytest

from fakes.daemon_process import DaemonProcess
from fakes.nvml import FakeNvml
from fakes.push_client import PushClient
from wattledger.records import NS_PER_S, Account, Amounts
from wattledger.store.sqlite import SqliteLedger

STEP_NS = 40_000_000
CONFIG = """
[power]
static_w = { gpu0 = 70.0 }
[cost]
fake-1 = { f_j = 4.0, a_j = 0.05, b_j = 2.0, c_j = 0.001 }
never-came = { f_j = 1.0, a_j = 1.0, b_j = 1.0, c_j = 0.0 }
"""

Books = Counter[tuple[int, str, Account, str]]


@pytest.fixture
def folder() -> Iterator[Path]:
    # A Unix socket's path is short; pytest's own folders are not.
    with tempfile.TemporaryDirectory(prefix="wl") as name:
        yield Path(name)


def two_gpus() -> FakeNvml:
    """A GPU of this test beside another at a power that moves, and one that nobody holds."""
    own, other = os.getpid(), os.getppid()
    return FakeNvml(
        [
            "gpu 0 NVIDIA_H200 GPU-1",
            "gpu 1 NVIDIA_H200 GPU-2",
            *(f"seg 0 {t} {200_000 + t % 7 * 31_003}" for t in range(120)),
            "seg 1 0 61337",
            f"compute 0 {own} 1073741824 0 100000 60",
            f"compute 0 {other} 3221225472 0 100000 20",
        ],
        period_ms=20,
    )


@contextmanager
def traffic(client: PushClient) -> Iterator[None]:
    """An engine that works without a pause, and reports ten times a second."""
    over = threading.Event()

    def work() -> None:
        told, start_ns = 0, time.monotonic_ns()
        while not over.wait(0.1):
            while (end_ns := start_ns + STEP_NS) < time.monotonic_ns():
                told += 1
                client.tell(f"r{told}", start_ns, end_ns)
                start_ns = end_ns
            client.send()

    worker = threading.Thread(target=work)
    worker.start()
    try:
        yield
    finally:
        over.set()
        worker.join()


def wattledger(daemon: DaemonProcess, *arguments: str) -> subprocess.Popen[str]:
    environ = {**os.environ, "WATTLEDGER_CONFIG": str(daemon.config)}
    environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    return subprocess.Popen(
        [sys.executable, "-m", "wattledger_cli", *arguments],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def nanoseconds(instant: str) -> int:
    return round(datetime.fromisoformat(instant).timestamp()) * NS_PER_S


def books(path: Path, start_ns: int, end_ns: int) -> Books:
    """Every amount of every account of every device in each second."""
    found: Books = Counter()
    with SqliteLedger(path) as ledger:
        for one in ledger.slices(range(start_ns, end_ns + 1, NS_PER_S)).slices:
            for name in Amounts.__dataclass_fields__:
                found[one.start_ns, one.device.device, one.account, name] += getattr(
                    one.amounts, name
                )
    return found


def test_a_recording_replays_to_the_microjoule_what_the_daemon_booked(folder: Path) -> None:
    trace, replayed = folder / "run.jsonl", folder / "run.db"
    with DaemonProcess(folder, two_gpus().env(), CONFIG) as daemon:
        daemon.wait_for("event=ready")
        with traffic(PushClient(daemon.socket, job="4711")):
            time.sleep(3.0)
            recording = wattledger(
                daemon, "record", "--output", str(trace), "--for", "18s", "--format", "json"
            )
            out, err = recording.communicate(timeout=60)
            assert (recording.returncode, err) == (0, "")
            # What the recording holds is booked by the daemon some 10 s later.
            time.sleep(2.0)
        daemon.signal(signal.SIGTERM)
        assert daemon.exit_status() == 0
        told = json.loads(out)
        assert told["lines"] == len(trace.read_text().splitlines())
        ran = wattledger(
            daemon, "replay", str(trace), "--ledger", f"sqlite:{replayed}", "--window", "1s"
        )
        assert ran.communicate(timeout=60)[1] == ""
    start_ns, end_ns = nanoseconds(told["whole_from"]), nanoseconds(told["whole_to"])
    assert end_ns - start_ns >= 4 * NS_PER_S
    own, again = books(daemon.ledger, start_ns, end_ns), books(replayed, start_ns, end_ns)
    assert {(key, own[key], again[key]) for key in own | again if own[key] != again[key]} == set()
    with SqliteLedger(daemon.ledger) as ledger:
        noted = {(metric.part, metric.name): metric.value for metric in ledger.noted(0, 2**62)}
    assert noted["sensor/nvml", "reads"] > 100
    assert noted["daemon", "cpu_s"] > 0
    devices = {device for _, device, _, name in own if name == "dynamic_uj"}
    assert devices >= {"gpu0", "gpu1", "cpu0"}
    assert sum(n for (*_, name), n in own.items() if name == "decode_tokens") > 100
    assert {a.method for _, _, a, _ in own if a.engine and a.activity == "decode"} == {"pinned"}


def test_a_daemon_that_goes_away_leaves_a_trace_and_exit_4(folder: Path) -> None:
    trace = folder / "run.jsonl"
    with DaemonProcess(folder, two_gpus().env()) as daemon:
        daemon.wait_for("event=ready")
        recording = wattledger(daemon, "record", "--output", str(trace))
        time.sleep(4.0)
        daemon.signal(signal.SIGKILL)
        daemon.exit_status()
        _, err = recording.communicate(timeout=60)
    assert recording.returncode == 4
    assert f"{trace} holds what came before" in err
    lines = [json.loads(line) for line in trace.read_text().splitlines()]
    assert lines[0]["type"] == "header"
    assert any(line["type"] == "counter" for line in lines)
    assert [path.name for path in folder.iterdir() if "part" in path.name] == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_a_recording_well(folder: Path, number: signal.Signals) -> None:
    trace = folder / "run.jsonl"
    with DaemonProcess(folder, two_gpus().env()) as daemon:
        daemon.wait_for("event=ready")
        recording = wattledger(daemon, "record", "--output", str(trace))
        time.sleep(4.0)
        recording.send_signal(number)
        out, err = recording.communicate(timeout=60)
        assert (recording.returncode, err) == (0, "")
        assert "wattledger replay" in out
        assert trace.read_text().endswith("}\n")
        again = wattledger(daemon, "record", "--output", str(trace), "--for", "1s")
        assert "add --force" in again.communicate(timeout=60)[1]
        assert again.returncode == 2
