"""The daemon as a process: its signals, its neighbours, and its death in mid-traffic."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fakes.daemon_process import DaemonProcess
from fakes.nvml import FakeNvml
from fakes.push_client import Caller, PushClient, a_batch
from wattledger.records import CounterReading
from wattledger.store.sqlite import SqliteLedger
from wattledger.trace import decode
from wattledger_daemon.hosttime import read_boot_id

ALL_TIME = (0, 2**62)
KILLS = 6
STEP_NS = 20_000_000


@pytest.fixture
def folder() -> Iterator[Path]:
    # A Unix socket's path is short; pytest's own folders are not.
    with tempfile.TemporaryDirectory(prefix="wl") as name:
        yield Path(name)


def owned_gpu() -> FakeNvml:
    """A GPU at 250 W whose one owner is this test."""
    script = ["gpu 0 NVIDIA_H200 GPU-1", "seg 0 0 250000"]
    return FakeNvml([*script, f"compute 0 {os.getpid()} 1073741824 0 100000 60"], period_ms=20)


def until(reached: Callable[[], object]) -> None:
    """Wait until it is true; AssertionError where it never is."""
    for _ in range(1200):
        if reached():
            return
        time.sleep(0.05)
    raise AssertionError("it never came about")


def balanced(ledger: SqliteLedger) -> int:
    """Energy in the ledger, microjoules, after an audit of its books."""
    assert ledger.check() == []
    devices = ledger.books(*ALL_TIME).devices
    assert [book.metered_uj - book.posted_uj for book in devices] == [0] * len(devices)
    return sum(book.posted_uj for book in devices if book.device.device == "gpu0")


def counters(ledger: SqliteLedger) -> list[int]:
    """Every reading of gpu0 that the daemon ever journalled."""
    entries = [entry for entry in ledger.entries(read_boot_id()) if entry.kind == "trace"]
    records = [decode(line) for entry in entries for line in entry.body.decode().split("\n")]
    return [r.energy_uj for r in records if isinstance(r, CounterReading) and r.device == "gpu0"]


def gpu_is_metered(caller: Caller) -> bool:
    """Whether the daemon has read gpu0 for long enough to know its power."""
    return any(d.power_w for d in caller.status().devices if d.device == "gpu0")


def test_killed_again_and_again_in_mid_traffic_it_loses_and_doubles_nothing(folder: Path) -> None:
    environ = owned_gpu().env()
    client = PushClient(folder / "w.sock", job="4711")
    told = [0]

    def traffic() -> None:
        """Tell of the last 20 ms, and send what is kept if anybody is there."""
        end_ns = time.monotonic_ns()
        told[0] += 1
        client.tell(f"r{told[0]}", end_ns - STEP_NS, end_ns)
        client.send()
        time.sleep(0.02)

    for life in range(KILLS):
        with DaemonProcess(folder, environ) as daemon:
            daemon.wait_for("event=ready")
            for _ in range(20 + 17 * life):
                traffic()
            daemon.signal(signal.SIGKILL)
            assert daemon.exit_status() == -signal.SIGKILL
        for _ in range(10):
            traffic()
    with DaemonProcess(folder, environ) as daemon:
        daemon.wait_for("event=ready")
        until(lambda: client.send() and not client.uncommitted)
        daemon.signal(signal.SIGTERM)
        assert daemon.exit_status() == 0
    with SqliteLedger(daemon.ledger) as ledger:
        slices = ledger.slices(ALL_TIME).slices
        assert sum(s.amounts.prefill_tokens for s in slices) == client.prefill_tokens
        assert sum(s.amounts.decode_tokens for s in slices) == client.decode_tokens
        assert sum(s.amounts.requests for s in slices) == client.requests
        assert len(ledger.requests(*ALL_TIME)) == client.requests
        assert {s.account.job for s in slices if s.amounts.requests} == {"4711"}
        readings = counters(ledger)
        assert balanced(ledger) == max(readings) - min(readings) > 0


def test_stopped_for_longer_than_a_turn_it_goes_on_and_loses_nothing(folder: Path) -> None:
    with DaemonProcess(folder, owned_gpu().env()) as daemon:
        daemon.wait_for("event=ready")
        client = PushClient(daemon.socket)
        for turn in range(2):
            for number in range(20):
                end_ns = time.monotonic_ns()
                client.tell(f"r{turn}-{number}", end_ns - STEP_NS, end_ns)
                client.send()
                time.sleep(0.02)
            daemon.signal(signal.SIGSTOP)
            time.sleep(3.2)
            daemon.signal(signal.SIGCONT)
            until(lambda: client.send() and not client.uncommitted)
        daemon.signal(signal.SIGTERM)
        assert daemon.exit_status() == 0
        daemon.wait_for("event=stopping signal=SIGTERM")
    with SqliteLedger(daemon.ledger) as ledger:
        slices = ledger.slices(ALL_TIME).slices
        assert sum(s.amounts.prefill_tokens for s in slices) == client.prefill_tokens
        assert sum(s.amounts.decode_tokens for s in slices) == client.decode_tokens
        assert sum(s.amounts.requests for s in slices) == client.requests == 40
        readings = counters(ledger)
        assert balanced(ledger) == max(readings) - min(readings) > 0


def test_a_ledger_deleted_under_it_ends_it_and_the_next_one_makes_another(folder: Path) -> None:
    client = PushClient(folder / "w.sock")

    def tell(request: str) -> None:
        client.tell(request, time.monotonic_ns() - STEP_NS, time.monotonic_ns())

    with DaemonProcess(folder, owned_gpu().env()) as daemon:
        daemon.wait_for("event=ready")
        tell("r1")
        until(lambda: client.send() and not client.uncommitted)
        for path in folder.glob("ledger.db*"):
            path.unlink()
        tell("r2")
        client.send()
        assert daemon.exit_status() == 4
        daemon.wait_for("event=ledger_lost")
    assert daemon.log[-1].startswith(f"wattledgerd: {daemon.ledger}: deleted or replaced")
    assert not daemon.ledger.exists()
    with DaemonProcess(folder, owned_gpu().env()) as daemon:
        daemon.wait_for("event=ready")
        until(lambda: client.send() and not client.uncommitted)
        daemon.signal(signal.SIGTERM)
        assert daemon.exit_status() == 0
    with SqliteLedger(daemon.ledger) as ledger:
        assert sum(s.amounts.requests for s in ledger.slices(ALL_TIME).slices) == 1


def test_sigterm_books_the_last_partial_window_and_leaves_no_socket(folder: Path) -> None:
    with DaemonProcess(folder, owned_gpu().env(), "[sensors]\nnvml = 'require'\n") as daemon:
        daemon.wait_for("event=ready")
        client = PushClient(daemon.socket)
        end_ns = time.monotonic_ns()
        client.tell("r1", end_ns - STEP_NS, end_ns)
        until(lambda: client.send() and not client.uncommitted)
        daemon.signal(signal.SIGTERM)
        assert daemon.exit_status() == 0
        daemon.wait_for("event=stopped")
    assert not daemon.socket.exists()
    with SqliteLedger(daemon.ledger) as ledger:
        assert balanced(ledger) > 0
        assert len(ledger.requests(*ALL_TIME)) == 1


def test_status_tells_of_devices_engines_and_sensors(folder: Path) -> None:
    with DaemonProcess(folder, owned_gpu().env()) as daemon, Caller(daemon.socket) as caller:
        daemon.wait_for("event=ready")
        client = PushClient(daemon.socket)
        client.tell("r1", time.monotonic_ns() - STEP_NS, time.monotonic_ns())
        client.send()
        until(lambda: gpu_is_metered(caller))
        status = caller.status()
        (gpu,) = (device for device in status.devices if device.device == "gpu0")
        assert (gpu.model, gpu.quality) == ("NVIDIA H200", "measured")
        assert 150 < gpu.power_w < 350
        assert [engine.engine for engine in status.engines] == ["fake-1"]
        states = {sensor.sensor: sensor.state for sensor in status.sensors}
        assert states["nvml"] == states["nvml_use"] == states["cpu_use"] == "running"
        lines = next(iter(caller.record())).lines
        assert '"type":"header"' in lines[0]
        assert any('"device":"gpu0"' in line for line in lines)


def test_sighup_applies_what_it_can_and_says_what_it_cannot(folder: Path) -> None:
    with DaemonProcess(folder, owned_gpu().env()) as daemon, Caller(daemon.socket) as caller:
        daemon.wait_for("event=ready")
        daemon.write_config("[log]\nlevel = 'loud'\n")
        daemon.signal(signal.SIGHUP)
        assert "log.level: must be one of" in daemon.wait_for("event=reload_failed")
        daemon.write_config(
            "[log]\nlevel = 'debug'\n[power]\nstatic_w = { gpu0 = 70.0 }\n[sensors]\nrapl = 'off'\n"
        )
        daemon.signal(signal.SIGHUP)
        daemon.wait_for("event=reloaded")
        applied = [line for line in daemon.log if "event=applied" in line]
        assert [line.rpartition("key=")[2] for line in applied] == ["power.static_w", "log.level"]
        assert daemon.wait_for("event=needs_restart").endswith("key=sensors.rapl")
        until(lambda: gpu_is_metered(caller))
        daemon.signal(signal.SIGTERM)
        assert daemon.exit_status() == 0
    with SqliteLedger(daemon.ledger) as ledger:
        bases = {s.account.static_basis.value for s in ledger.slices(ALL_TIME).slices}
        assert "config" in bases


def test_a_second_daemon_on_the_ledger_is_refused(folder: Path) -> None:
    with DaemonProcess(folder) as first:
        first.wait_for("event=ready")
        with DaemonProcess(folder) as second:
            assert second.exit_status() == 4
        assert second.log == [
            f"wattledgerd: {first.ledger}: wattledgerd, pid {first.pid}, writes this ledger:"
            " stop it or set another ledger.path"
        ]
        with Caller(first.socket) as caller:
            assert caller.push(a_batch(0)).daemon_id


def test_a_second_daemon_on_a_link_to_the_ledger_is_refused(folder: Path) -> None:
    with DaemonProcess(folder) as first:
        first.wait_for("event=ready")
        other = folder / "other"
        other.mkdir()
        (other / "ledger.db").symlink_to(first.ledger)
        with DaemonProcess(other) as second:
            assert second.exit_status() == 4
    assert f"wattledgerd, pid {first.pid}, writes this ledger" in second.log[-1]


def test_a_start_refused_for_its_socket_leaves_no_ledger(folder: Path) -> None:
    with DaemonProcess(folder) as first:
        first.wait_for("event=ready")
        other = folder / "other"
        other.mkdir()
        with DaemonProcess(other, socket=first.socket) as second:
            assert second.exit_status() == 4
        with Caller(first.socket) as caller:
            assert caller.push(a_batch(0)).daemon_id
    assert f"{first.socket}: another daemon answers there" in second.log[-1]
    assert not second.ledger.exists()


def test_a_socket_that_nobody_answers_is_no_obstacle(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(folder / "w.sock"))
    with DaemonProcess(folder) as daemon, Caller(daemon.socket) as caller:
        daemon.wait_for("event=ready")
        assert caller.push(a_batch(0)).daemon_id


def test_a_required_sensor_that_is_missing_refuses_the_start(folder: Path) -> None:
    absent = {**os.environ, "LD_LIBRARY_PATH": ""}
    with DaemonProcess(folder, absent, "[sensors]\nnvml = 'require'\n") as daemon:
        assert daemon.exit_status() == 2
    assert 'wattledgerd: sensors.nvml = "require": ' in daemon.log[-1]


def wattledgerd(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "wattledger_daemon", *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_check_says_what_each_sensor_would_do_and_writes_nothing(folder: Path) -> None:
    config = folder / "w.toml"
    config.write_text(f'[ledger]\npath = "{folder}/ledger.db"\n[sensors]\nrapl = "off"\n')
    found = wattledgerd("--check", "--config", str(config), **owned_gpu().env())
    assert (found.returncode, found.stderr) == (0, "")
    lines = dict(line.split(maxsplit=1) for line in found.stdout.splitlines())
    assert lines["config"] == str(config)
    assert lines["nvml"] == "would read gpu0 (NVIDIA H200)"
    assert lines["estimate"].endswith(", estimated)")
    assert list(folder.iterdir()) == [config]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[sampling]\nperiods = 1\n", "sampling.periods: unknown key, did you mean period_s?"),
        (f"[collect]\nsocket = '/{'s' * 200}'\n", "a Unix socket takes 107"),
        ("[sensors]\nnvml = 'require'\n", 'sensors.nvml = "require"'),
    ],
)
def test_check_refuses_what_the_daemon_would_refuse(folder: Path, text: str, said: str) -> None:
    config = folder / "w.toml"
    config.write_text(text)
    found = wattledgerd("--check", WATTLEDGER_CONFIG=str(config), LD_LIBRARY_PATH="")
    assert (found.returncode, found.stdout) == (2, "")
    assert said in found.stderr
    assert found.stderr.startswith("wattledgerd: ")
    assert found.stderr.count("\n") == 1


def test_without_grpc_it_says_what_to_install(folder: Path) -> None:
    (folder / "sitecustomize.py").write_text("import sys\nsys.modules['grpc'] = None\n")
    path = os.pathsep.join([str(folder), *filter(None, sys.path)])
    found = wattledgerd("--check", PYTHONPATH=path)
    assert (found.returncode, found.stderr) == (
        2,
        "wattledgerd: grpc is not installed: run pip install 'wattledger[daemon]'\n",
    )


def test_systemd_is_told_of_every_state(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(folder / "notify"))
        listener.settimeout(60)

        def next_state() -> str:
            while (state := listener.recv(100).decode().partition("\n")[0]) == "WATCHDOG=1":
                watched.append(state)
            return state

        watched: list[str] = []
        environ = {
            **os.environ,
            "NOTIFY_SOCKET": str(folder / "notify"),
            "WATCHDOG_USEC": "10000000",
        }
        with DaemonProcess(folder, environ) as daemon:
            assert next_state() == "READY=1"
            until(lambda: listener.recv(100) == b"WATCHDOG=1")
            daemon.signal(signal.SIGHUP)
            assert [next_state(), next_state()] == ["RELOADING=1", "READY=1"]
            daemon.signal(signal.SIGTERM)
            assert next_state() == "STOPPING=1"
            assert daemon.exit_status() == 0
