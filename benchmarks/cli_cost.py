"""Start-up and a day's statement, whole processes, cold start included."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.table import Figure
from wattledger.records import (
    NS_PER_S,
    Account,
    Activity,
    Amounts,
    Clock,
    Device,
    DeviceKind,
    Metered,
    Page,
    Posting,
    Quality,
    StaticBasis,
)
from wattledger.store import open_ledger

RUNS = 9
WINDOW_NS = 5 * NS_PER_S
DAY_NS = 86_400 * NS_PER_S
CPU = Device("cpu0", DeviceKind.CPU, "AMD EPYC 9654", 90.0, StaticBasis.CONFIG)
GPUS = tuple(
    Device(f"gpu{i}", DeviceKind.GPU, "NVIDIA H100 80GB HBM3", 70.0, StaticBasis.CONFIG)
    for i in range(8)
)


def _accounts() -> list[Account]:
    """Five accounts of each of the host's ten engines and jobs, as a busy host has them."""
    activities = (Activity.PREFILL, Activity.DECODE, Activity.ENGINE_IDLE, Activity.PROCESS)
    return [
        Account(
            activity,
            Quality.MEASURED,
            "default-weights",
            StaticBasis.CONFIG,
            f"vllm-{n}.service",
            f"job-{n}",
            f"vllm-{n}",
            "llama-3-8b",
        )
        for n in range(2)
        for activity in activities
    ]


def _page(clock: Clock, start_ns: int, accounts: list[Account]) -> Page:
    end_ns = start_ns + WINDOW_NS
    devices = (*GPUS, CPU)
    share_ns = WINDOW_NS // len(accounts)
    amounts = Amounts(40_000_000, 160_000_000, share_ns, 100, 0, 300)
    # 8 accounts on 6 devices: 48 postings a window.
    posted = (*devices[:5], CPU)
    return Page(
        clock,
        start_ns,
        end_ns,
        devices,
        tuple(
            Metered(d.device, start_ns, end_ns, 200_000_000 * len(accounts), WINDOW_NS)
            for d in posted
        ),
        tuple(Posting(d.device, a, start_ns, end_ns, amounts) for d in posted for a in accounts),
    )


def _day(path: Path) -> float:
    """A ledger of the last 24 h in 5 s windows; returns CPU milliseconds per booked window."""
    now_ns = time.time_ns()
    clock, accounts = Clock("bench", "boot", 0), _accounts()
    start_ns = (now_ns - DAY_NS) // WINDOW_NS * WINDOW_NS - 60 * NS_PER_S
    count = (now_ns + 600 * NS_PER_S - start_ns) // WINDOW_NS
    store = open_ledger(f"sqlite:{path}", writable=True, create=True)
    spent_s = time.process_time()
    for index in range(count):
        store.book(_page(clock, start_ns + index * WINDOW_NS, accounts))
    spent_s = time.process_time() - spent_s
    store.close()
    return spent_s / count * 1000


def _seconds(*arguments: str) -> float:
    """Median wall seconds of the command, after one run that warms the disk cache."""
    wattledger = Path(sys.executable).with_name("wattledger")
    took = []
    for _ in range(RUNS + 1):
        start_s = time.perf_counter()
        subprocess.run(
            [wattledger, *arguments],
            check=True,
            capture_output=True,
            env={**os.environ, "TZ": "UTC"},
        )
        took.append(time.perf_counter() - start_s)
    return statistics.median(took[1:])


def measure() -> list[Figure]:
    """`--help`, and `carbon --last 24h` over a day of raw windows with ragged edges."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "day.db"
        per_page_ms = _day(path)
        ledger = ("--ledger", f"sqlite:{path}")
        question = ("carbon", "--last", "24h", "--intensity", "262")
        return [
            Figure("`wattledger --help`", _seconds("--help"), "s", 0.2),
            Figure("`carbon --last 24h`, a day of windows", _seconds(*ledger, *question), "s", 0.5),
            Figure(
                "`carbon --last 24h --by job,hour`",
                _seconds(*ledger, *question, "--by", "job,hour"),
                "s",
                0.5,
            ),
            Figure("booking a window of 48 postings, CPU", per_page_ms, "ms"),
        ]
