"""What exporting costs: a scrape of 8 GPUs x 40 workloads, an OTLP export, memory with each on."""

from __future__ import annotations

import http.client
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from benchmarks.daemon_cost import rss_mb
from benchmarks.table import Figure
from fakes.daemon_process import DaemonProcess
from fakes.figures import IDENTITY, busy_page, figures, gpus
from fakes.nvml import FakeNvml
from fakes.otlp_receiver import OtlpReceiver
from wattledger_daemon.export.addresses import split_address
from wattledger_daemon.export.http import HttpServer
from wattledger_daemon.export.otlp import Sender
from wattledger_daemon.export.prometheus import Page
from wattledger_daemon.export.totals import Totals

GPUS = 8
WORKLOADS = [f"kubepods/pod{number:032d}" for number in range(40)]
ROUNDS = 50
RUN_S = 20
PROMETHEUS = '[prometheus]\nlisten = "127.0.0.1:0"\n'


def _median_ms(act: Callable[[], object]) -> float:
    spent_s = []
    for _ in range(ROUNDS):
        start_s = time.perf_counter()
        act()
        spent_s.append(time.perf_counter() - start_s)
    return statistics.median(spent_s) * 1e3


def _scrape(address: str) -> None:
    caller = http.client.HTTPConnection(*split_address(address))
    caller.request("GET", "/metrics")
    caller.getresponse().read()
    caller.close()


def _in_process() -> list[Figure]:
    pages = [busy_page(w, devices=gpus(GPUS), workloads=WORKLOADS) for w in range(ROUNDS)]
    ahead, totals = iter(pages), Totals()
    booked_ms = _median_ms(lambda: totals.add(next(ahead)))
    told = [figures(*pages[:2])]
    server = HttpServer("127.0.0.1:0", "prometheus.listen", Page(lambda: told[-1]).answer)
    server.start()

    def scrape_anew() -> None:
        told[:] = [replace(told[0])]
        _scrape(server.address)

    anew_ms = _median_ms(scrape_anew)
    again_ms = _median_ms(lambda: _scrape(server.address))
    server.stop()
    with OtlpReceiver() as receiver:
        sender = Sender(receiver.endpoint, {}, IDENTITY, lambda: told[-1], 3600.0)
        export_ms = _median_ms(sender._turn)
        sender.stop()
    return [
        Figure("a booked page into the totals", booked_ms, "ms"),
        Figure("a scrape, the first of its turn", anew_ms, "ms"),
        Figure("a scrape, any other of its turn", again_ms, "ms"),
        Figure("an OTLP export, the receiver in the same process", export_ms, "ms"),
    ]


def _memory_mb(config: str) -> float:
    script = [f"gpu {n} NVIDIA_H200 GPU-{n}" for n in range(GPUS)]
    script += [f"seg {n} 0 250000" for n in range(GPUS)]
    fake = FakeNvml([*script, f"compute 0 {os.getpid()} 1073741824 0 100000 60"], period_ms=20)
    with (
        tempfile.TemporaryDirectory(prefix="wl") as folder,
        DaemonProcess(Path(folder), fake.env(), config) as daemon,
    ):
        daemon.wait_for("event=ready")
        address = ""
        if PROMETHEUS in config:
            line = daemon.wait_for("event=metrics_served")
            address = line.partition("http://")[2].partition("/")[0]
        for _ in range(RUN_S):
            time.sleep(1.0)
            if address:
                _scrape(address)
        return rss_mb(daemon.pid)


def measure() -> list[Figure]:
    """All of it; medians of 50."""
    found = _in_process()
    with OtlpReceiver() as receiver:
        otlp = f'[otlp]\nendpoint = "{receiver.endpoint}"\n'
        for what, config in (
            ("neither", ""),
            ("Prometheus", PROMETHEUS),
            ("OTLP", otlp),
            ("both", PROMETHEUS + otlp),
        ):
            found.append(Figure(f"daemon's RSS, {what} on", _memory_mb(config), "MB"))
    return found
