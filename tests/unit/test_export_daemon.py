"""A real daemon that exports: what it tells equals its ledger, and what it must refuse."""

from __future__ import annotations

import http.client
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fakes.daemon_process import DaemonProcess
from fakes.nvml import FakeNvml
from fakes.otlp_receiver import OtlpReceiver
from fakes.push_client import PushClient
from wattledger.records import NS_PER_S, UJ_PER_J
from wattledger.store.sqlite import SqliteLedger
from wattledger_daemon.export.addresses import split_address

ALL_TIME = (0, 2**62)
STEP_NS = 20_000_000
PATIENCE_S = 60.0
QUIET = '[sensors]\nrapl = "off"\nestimate = "off"\namdsmi = "off"\nhwmon = "off"\n'
PROMETHEUS = '[prometheus]\nlisten = "127.0.0.1:0"\n'


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="wl") as name:
        yield Path(name)


def two_gpus() -> FakeNvml:
    script = [
        "gpu 0 NVIDIA_H200 GPU-1",
        "seg 0 0 250000",
        "gpu 1 NVIDIA_H200 GPU-2",
        "seg 1 0 90000",
    ]
    return FakeNvml([*script, f"compute 0 {os.getpid()} 1073741824 0 100000 60"], period_ms=20)


def otlp(endpoint: str, more: str = "") -> str:
    return f'[otlp]\nendpoint = "{endpoint}"\nperiod_s = 1\n{more}'


def scrape(daemon: DaemonProcess) -> dict[str, float]:
    """Every metric's sum over its series."""
    url = re.search(r'url="?http://([^/"]+)/metrics', daemon.wait_for("event=metrics_served"))
    assert url
    caller = http.client.HTTPConnection(*split_address(url[1]), timeout=PATIENCE_S)
    caller.request("GET", "/metrics")
    response = caller.getresponse()
    page = response.read().decode()
    caller.close()
    if response.status == 503:
        return {}
    found: dict[str, list[float]] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample.value)
    return {name: math.fsum(values) for name, values in found.items()}


def scrape_until(daemon: DaemonProcess, name: str, least: float) -> dict[str, float]:
    until_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < until_s:
        found = scrape(daemon)
        if found.get(name, 0.0) >= least:
            return found
        time.sleep(0.1)
    raise AssertionError(f"{name} never came to {least}: {found}")


def booked_j(daemon: DaemonProcess, windows: int) -> float:
    """What the ledger says of its first windows, each a second of UTC; joules."""
    now_s = time.time_ns() // NS_PER_S
    edges = [second * NS_PER_S for second in range(now_s - 120, now_s + 1)]
    energy_uj: Counter[int] = Counter()
    with SqliteLedger(daemon.ledger) as ledger:
        for found in ledger.slices(edges).slices:
            energy_uj[found.start_ns] += found.amounts.energy_uj
    assert len(energy_uj) >= windows
    return sum(energy_uj[start_ns] for start_ns in sorted(energy_uj)[:windows]) / UJ_PER_J


def test_what_is_scraped_and_what_is_sent_is_what_the_ledger_says(folder: Path) -> None:
    with OtlpReceiver() as receiver:
        config = QUIET + PROMETHEUS + otlp(receiver.endpoint)
        with DaemonProcess(folder, two_gpus().env(), config) as daemon:
            daemon.wait_for("event=ready")
            client = PushClient(daemon.socket, job="4711")
            for number in range(20):
                end_ns = time.monotonic_ns()
                client.tell(f"r{number}", end_ns - STEP_NS, end_ns)
                time.sleep(0.02)
            assert client.send()
            scrape_until(daemon, "wattledger_requests_total", 20)
            found = scrape_until(daemon, "wattledger_metered_energy_joules_total", 500.0)
            check_scrape(daemon, found)
            assert found["wattledger_decode_tokens_total"] == client.decode_tokens
            # A request of a window that is booked by now: the window comes again, whole.
            client.tell("late", end_ns, end_ns + STEP_NS)
            assert client.send()
            found = scrape_until(daemon, "wattledger_late_events_total", 1)
            assert found["wattledger_decode_tokens_total"] == client.decode_tokens
            daemon.signal(signal.SIGTERM)
            assert daemon.exit_status() == 0
        with SqliteLedger(daemon.ledger) as ledger:
            books = ledger.books(*ALL_TIME).devices
            slices = ledger.slices(ALL_TIME).slices
        metered_j = sum(book.metered_uj for book in books) / UJ_PER_J
        told_j = receiver.total("wattledger.energy") - receiver.total("wattledger.energy.ahead")
        assert receiver.total("hw.energy") == pytest.approx(metered_j, rel=1e-9)
        assert told_j == pytest.approx(metered_j, rel=1e-9)
        decoded = sum(s.amounts.decode_tokens for s in slices)
        assert receiver.total("wattledger.tokens", {"gen_ai.token.type": "output"}) == decoded
        assert receiver.resource["host.name"] == "h1"


def check_scrape(daemon: DaemonProcess, found: dict[str, float]) -> None:
    """Hold a scrape against the ledger, which may have gone on since."""
    energy_j = found["wattledger_energy_joules_total"]
    assert energy_j == pytest.approx(found["wattledger_metered_energy_joules_total"], rel=1e-9)
    windows = round(found["wattledger_windows_booked_total"])
    # The first window may be too short to have any energy.
    booked = [booked_j(daemon, windows), booked_j(daemon, windows - 1)]
    assert any(energy_j == pytest.approx(one_j, rel=1e-9) for one_j in booked)
    assert found["wattledger_device_power_watts"] == pytest.approx(340.0, rel=0.1)
    assert found["wattledger_energy_ahead_joules"] == 0.0


def test_a_hanging_receiver_holds_neither_the_daemon_nor_its_stop(folder: Path) -> None:
    with OtlpReceiver() as receiver:
        receiver.hang()
        config = QUIET + PROMETHEUS + otlp(receiver.endpoint)
        with DaemonProcess(folder, two_gpus().env(), config) as daemon:
            receiver.wait_for_tries(1)
            uptime_s = scrape_until(daemon, "wattledger_uptime_seconds", 1)[
                "wattledger_uptime_seconds"
            ]
            scrape_until(daemon, "wattledger_uptime_seconds", uptime_s + 2)
            daemon.signal(signal.SIGTERM)
            began_s = time.monotonic()
            assert daemon.exit_status() == 0
            assert time.monotonic() - began_s < 5.0
            daemon.wait_for("event=stopped")


def test_a_taken_address_is_one_line_and_no_start(folder: Path) -> None:
    other = folder / "other"
    other.mkdir()
    with DaemonProcess(other, two_gpus().env(), QUIET + PROMETHEUS) as first:
        line = first.wait_for("event=metrics_served")
        address = line.partition("http://")[2].partition("/")[0]
        config = QUIET + f'[prometheus]\nlisten = "{address}"\n'
        with DaemonProcess(folder, two_gpus().env(), config) as second:
            assert second.exit_status() == 2
        said = f"wattledgerd: prometheus.listen = '{address}': Address already in use"
        assert second.wait_for("wattledgerd: ").startswith(said)
        assert not second.ledger.exists()


def test_a_token_is_sent_and_never_logged(folder: Path) -> None:
    headers = folder / "headers"
    headers.write_text("authorization: Bearer s3cret\n")
    headers.chmod(0o600)
    more = f'headers_file = "{headers}"\n[log]\nlevel = "debug"\n'
    with OtlpReceiver() as receiver:
        receiver.status = 401
        config = QUIET + otlp(receiver.endpoint, more)
        with DaemonProcess(folder, two_gpus().env(), config) as daemon:
            daemon.wait_for("event=otlp_failing")
            receiver.wait_for_tries(2)
            daemon.signal(signal.SIGTERM)
            assert daemon.exit_status() == 0
        assert receiver.headers["authorization"] == "Bearer s3cret"
    log = "\n".join(daemon.log)
    assert "s3cret" not in log
    assert log.count("otlp_failing") == 1


def python(code: str, *paths: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([*map(str, paths), *filter(None, sys.path)])
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def test_neither_library_is_imported_unless_it_is_asked_for() -> None:
    made = python(
        "import sys\n"
        "from wattledger_daemon.app import Daemon\n"
        "from wattledger_daemon.config import DaemonConfig\n"
        "Daemon(DaemonConfig(), None, {})\n"
        "from wattledger_daemon.export.exports import Exports\n"
        "from wattledger_daemon.export.figures import Identity\n"
        "assert Exports(DaemonConfig(), Identity('h', '1', 'i', 0)).listeners == ()\n"
        "heavy = {'prometheus_client', 'opentelemetry', 'requests', 'http.server'}\n"
        "print(sorted({name for name in sys.modules} & heavy))\n"
    )
    assert made.stdout == "[]\n", made.stderr


@pytest.mark.parametrize(
    ("library", "extra", "config"),
    [
        ("prometheus_client", "prometheus", PROMETHEUS),
        ("opentelemetry", "otlp", otlp("http://127.0.0.1:1")),
    ],
)
def test_a_library_that_is_not_there_is_one_line(
    folder: Path, library: str, extra: str, config: str
) -> None:
    # As where it is not installed: the import system finds nothing of that name.
    (folder / "sitecustomize.py").write_text(
        "import sys\n"
        "class Hidden:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] == {library!r}:\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Hidden())\n"
    )
    (folder / "w.toml").write_text(f"[ledger]\npath = '{folder}/ledger.db'\n{config}")
    for flags in ("['--config', {0!r}]", "['--config', {0!r}, '--check']"):
        arguments = flags.format(str(folder / "w.toml"))
        done = python(
            f"import os, sys\nfrom wattledger_daemon.app import run\n"
            f"sys.exit(run({arguments}, os.environ))",
            folder,
        )
        assert done.returncode == 2, done.stderr
        [line] = [line for line in done.stderr.splitlines() if line.startswith("wattledgerd: ")]
        assert f"run pip install 'wattledger[{extra}]'" in line


def test_check_says_what_would_be_exported(folder: Path) -> None:
    config = folder / "w.toml"
    config.write_text(PROMETHEUS + otlp("http://127.0.0.1:4318"))
    done = subprocess.run(
        [sys.executable, "-m", "wattledger_daemon", "--config", config, "--check"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "would serve http://127.0.0.1:0/metrics\n" in done.stdout
    assert "would send to http://127.0.0.1:4318 every 1 s\n" in done.stdout
