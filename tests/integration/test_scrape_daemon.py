"""A real daemon that scrapes a real HTTP server: its tokens, its energy, and that they are coarse.

The engine's page is this test's; so are its processes, and the GPU that they hold.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.daemon_process import DaemonProcess
from fakes.metrics_server import MetricsServer, metrics_server
from fakes.nvml import FakeNvml
from wattledger.records import Account, Activity, Amounts
from wattledger.store.sqlite import SqliteLedger

PAGE = """\
# TYPE sglang:num_running_reqs gauge
sglang:num_running_reqs{{model_name="tiny"}} {running}
# TYPE sglang:realtime_tokens_total counter
sglang:realtime_tokens_total{{model_name="tiny",mode="prefill_compute"}} {prefill}
sglang:realtime_tokens_total{{model_name="tiny",mode="prefill_cache"}} {cached}
sglang:realtime_tokens_total{{model_name="tiny",mode="decode"}} {decode}
# TYPE sglang:num_requests_total counter
sglang:num_requests_total{{model_name="tiny",is_streaming="true"}} {ended}
"""
CONFIG = """
[power]
static_w = {{ gpu0 = 70.0 }}
[scrape]
sgl = {{ engine = "sglang", url = "{url}", period_s = 0.3, workload = "w", job = "4711" }}
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    # A Unix socket's path is short; pytest's own folders are not.
    with tempfile.TemporaryDirectory(prefix="wl") as name:
        yield Path(name)


def a_gpu() -> FakeNvml:
    """A GPU that this test holds."""
    return FakeNvml(
        [
            "gpu 0 NVIDIA_H200 GPU-1",
            *(f"seg 0 {t} {200_000 + t % 7 * 31_003}" for t in range(120)),
            f"compute 0 {os.getpid()} 1073741824 0 100000 60",
        ],
        period_ms=20,
    )


class Engine:
    """An engine that counts what it is told to do."""

    def __init__(self, server: MetricsServer) -> None:
        self.server = server
        self.prefill = self.cached = self.decode = self.ended = 0
        self.tell()

    def tell(self, running: int = 0) -> None:
        self.server.page = PAGE.format(
            running=running,
            **{name: getattr(self, name) for name in ("prefill", "cached", "decode", "ended")},
        )

    def work(self, seconds: int) -> None:
        """Some 10 steps a second, a request in each of them."""
        for _ in range(10 * seconds):
            self.prefill += 37
            self.cached += 5
            self.decode += 11
            self.ended += 1
            self.tell(running=3)
            time.sleep(0.1)

    def die(self) -> None:
        """Restart: the counters are another process's."""
        self.prefill = self.cached = self.decode = self.ended = 0
        self.tell()

    def seen(self, times: int = 2) -> None:
        """Wait until the daemon has asked again."""
        until = len(self.server.asked) + times
        for _ in range(600):
            if len(self.server.asked) >= until:
                return
            time.sleep(0.1)
        raise AssertionError("the daemon asks no more")


def booked(path: Path) -> dict[Account, Amounts]:
    """What each account of the engine holds of the GPU."""
    found: dict[Account, Amounts] = {}
    with SqliteLedger(path) as ledger:
        for one in ledger.slices((0, 2**62)).slices:
            if one.account.engine == "sgl" and one.device.device == "gpu0":
                assert one.account not in found
                found[one.account] = one.amounts
    return found


def usage(daemon: DaemonProcess) -> dict[str, object]:
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    ran = subprocess.run(
        [
            sys.executable,
            "-m",
            "wattledger_cli",
            "--ledger",
            f"sqlite:{daemon.ledger}",
            "usage",
            "--last",
            "1h",
            "--format",
            "json",
        ],
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    document: dict[str, object] = json.loads(ran.stdout)
    return document


def test_what_is_scraped_is_booked_once_by_phase_and_marked(folder: Path) -> None:
    with metrics_server() as server:
        engine = Engine(server)
        engine.work(1)
        before = engine.prefill, engine.cached, engine.decode, engine.ended
        config = CONFIG.format(url=server.url)
        with DaemonProcess(folder, a_gpu().env(), config) as daemon:
            daemon.wait_for("event=scrape_begins engine=sgl")
            engine.work(4)
            # Away, and back as it was: what it did meanwhile is told then.
            server.status = 503
            daemon.wait_for("event=scrape_failing engine=sgl")
            engine.work(1)
            server.status = 200
            daemon.wait_for("event=scrape_works_again engine=sgl")
            engine.seen()
            first = engine.prefill, engine.cached, engine.decode, engine.ended
            engine.die()
            engine.seen()
            daemon.wait_for("event=scrape_restarted engine=sgl")
            engine.work(2)
            second = engine.prefill, engine.cached, engine.decode, engine.ended
            # The last look is taken at the end: nothing waits for the next period.
            daemon.signal(signal.SIGTERM)
            assert daemon.exit_status() == 0
            assert not [line for line in daemon.log if "no_process" in line or "error" in line]
        expected = [a + b - c for a, b, c in zip(first, second, before, strict=True)]
        accounts = booked(daemon.ledger)
        document = usage(daemon)
    tokens = [
        sum(getattr(amounts, name) for amounts in accounts.values())
        for name in ("prefill_tokens", "cached_tokens", "decode_tokens", "requests")
    ]
    assert tokens == expected
    phases = {a: accounts[a] for a in accounts if a.activity in (Activity.PREFILL, Activity.DECODE)}
    assert {a.activity for a in phases} == {Activity.PREFILL, Activity.DECODE}
    assert all(amounts.energy_uj > 0 for amounts in phases.values())
    assert {a.method.partition("/")[0] for a in phases} == {"coarse"}
    assert {(a.workload, a.job, a.model) for a in phases} == {("w", "4711", "tiny")}
    with SqliteLedger(daemon.ledger) as ledger:
        assert ledger.requests(0, 2**62) == []
    warnings = document["warnings"]
    assert isinstance(warnings, list)
    assert [w for w in warnings if "is split coarsely between prefill and decode" in w]


def test_without_an_engine_to_scrape_nothing_of_it_is_loaded() -> None:
    """No thread, no import, no cost for those who do not scrape."""
    code = (
        "import sys, wattledger_daemon.app, wattledger_daemon.check\n"
        "found = [name for name in sys.modules if 'scrap' in name or name == 'http.client'"
        " or name.startswith('prometheus_client')]\n"
        "print(found)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "['wattledger_daemon.scrape_options']\n"
