"""What a real NVIDIA GPU's meters are worth, as a Markdown table: `python -m benchmarks.gpu_truth`.

It reads and changes nothing. `--load COMMAND` is run on the GPU while it is watched; given twice,
both run at once, and how NVML splits their utilization is shown. Exit 3: there is no GPU here.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise

from wattledger.records import NS_PER_S
from wattledger_collectors.sensors.nvml_driver import Handle, NothingFound, NvmlDriver, NvmlError
from wattledger_collectors.sensors.nvml_power import PowerGauge
from wattledger_collectors.sensors.nvml_processes import ProcessLists
from wattledger_collectors.sensors.protocol import Absent, Denied

NO_GPU = 3
_POLL_S = 0.002
_SETTLE_S = 2.0
_LATENCY_CALLS = 300


@dataclass(frozen=True, slots=True)
class Watched:
    """A stretch of polling: counter and power as read, `(t_ns, uJ)` and `(t_ns, uW)`."""

    energy: list[tuple[int, int]]
    power: list[tuple[int, int]]

    def changes(self) -> list[tuple[int, int]]:
        """The readings at which the counter moved."""
        return [after for before, after in pairwise(self.energy) if after[1] != before[1]]

    def periods_ms(self) -> list[float]:
        """Milliseconds between moves of the counter."""
        return [(after[0] - before[0]) / 1e6 for before, after in pairwise(self.changes())]

    def counter_w(self) -> float | None:
        """Mean power by the counter, from its first move to its last."""
        changes = self.changes()
        if len(changes) < 2:
            return None
        (start_ns, first_uj), (end_ns, last_uj) = changes[0], changes[-1]
        return (last_uj - first_uj) * 1000 / (end_ns - start_ns)

    def gauge_w(self) -> float | None:
        """Mean power by the gauge over the same stretch, integrated by the trapezoid rule."""
        changes = self.changes()
        if len(changes) < 2:
            return None
        inside = [(t, p) for t, p in self.power if changes[0][0] <= t <= changes[-1][0]]
        if len(inside) < 2:
            return None
        area = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(inside))
        return area / (inside[-1][0] - inside[0][0]) / 1e6


def watch(driver: NvmlDriver, gpu: Handle, gauge: PowerGauge, seconds: float) -> Watched:
    """Poll the counter every 2 ms and the gauge every fifth time."""
    watched = Watched([], [])
    until_ns = time.monotonic_ns() + int(seconds * NS_PER_S)
    turn = 0
    while time.monotonic_ns() < until_ns:
        energy_uj = driver.energy_uj(gpu)
        watched.energy.append((time.monotonic_ns(), energy_uj))
        if turn % 5 == 0 and gauge.source is not None:
            power_uw = gauge.read_uw(gpu)
            watched.power.append((time.monotonic_ns(), power_uw))
        turn += 1
        time.sleep(_POLL_S)
    return watched


def latency_us(call: Callable[[], object]) -> tuple[float, float] | str:
    """(p50, p99) of a call in microseconds, or why it cannot be had."""
    took_us = []
    for _ in range(_LATENCY_CALLS):
        start_ns = time.perf_counter_ns()
        try:
            call()
        except NothingFound:
            pass
        except NvmlError as failed:
            return str(failed)
        took_us.append((time.perf_counter_ns() - start_ns) / 1000)
        time.sleep(_POLL_S)
    took_us.sort()
    return statistics.median(took_us), took_us[int(0.99 * len(took_us))]


@contextlib.contextmanager
def running(commands: Sequence[str]) -> Iterator[list[subprocess.Popen[bytes]]]:
    """The loads, each in a session of its own, which is ended with all that it started."""
    loads: list[subprocess.Popen[bytes]] = []
    try:
        for command in commands:
            parts = shlex.split(command)
            loads.append(subprocess.Popen(parts, stdout=subprocess.DEVNULL, start_new_session=True))
        yield loads
    finally:
        for load in loads:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(load.pid, signal.SIGTERM)
        for load in loads:
            load.wait(timeout=30)


def _rows_of(what: str, watched: Watched) -> Iterator[tuple[str, str]]:
    periods_ms = watched.periods_ms()
    if periods_ms:
        yield (
            f"{what}: the counter moves every (p50; least; most)",
            f"{statistics.median(periods_ms):.1f} ms; {min(periods_ms):.1f}; {max(periods_ms):.1f}",
        )
    counter_w, gauge_w = watched.counter_w(), watched.gauge_w()
    yield f"{what}: power by the counter", _watts(counter_w)
    yield f"{what}: power by the gauge, integrated", _watts(gauge_w)
    if counter_w and gauge_w:
        yield f"{what}: counter / integrated power", f"{counter_w / gauge_w:.4f}"


def _watts(power_w: float | None) -> str:
    return "not told" if power_w is None else f"{power_w:.2f} W"


def _latencies(driver: NvmlDriver, gpu: Handle, gauge: PowerGauge) -> Iterator[tuple[str, str]]:
    lists = ProcessLists(driver)
    calls: dict[str, Callable[[], object]] = {
        "energy counter": lambda: driver.energy_uj(gpu),
        "power": lambda: gauge.read_uw(gpu),
        "compute processes": lambda: lists.compute(gpu),
        "graphics processes": lambda: lists.graphics(gpu),
        "process utilization": lambda: lists.sm_samples(gpu, 0),
    }
    for name, call in calls.items():
        told = latency_us(call)
        text = told if isinstance(told, str) else f"{told[0]:.1f} us; {told[1]:.1f} us"
        yield f"latency of {name} (p50; p99)", text


def _split(driver: NvmlDriver, gpu: Handle, seconds: float) -> Iterator[tuple[str, str]]:
    """What NVML says of each process that holds the GPU, over some seconds of the load."""
    lists = ProcessLists(driver)
    stamp, rounds = 0, 0
    busy: Counter[int] = Counter()
    for turn in range(max(2, round(seconds))):
        samples = lists.sm_samples(gpu, stamp)
        stamp = max((sample.stamp for sample in samples), default=stamp)
        if turn:
            rounds += max(Counter(sample.pid for sample in samples).values(), default=0)
            busy.update(Counter({s.pid: 0 for s in samples}))
            for sample in samples:
                busy[sample.pid] += sample.sm_percent
        time.sleep(1.0)
    all_percent = sum(busy.values())
    for owner in sorted(lists.compute(gpu)):
        percent = busy[owner.pid] / rounds if rounds else 0.0
        share = f"{busy[owner.pid] / all_percent:.1%} of all" if all_percent else "nobody was busy"
        memory = "not told" if owner.memory_bytes is None else f"{owner.memory_bytes >> 20} MiB"
        yield f"under load: process {owner.pid}", f"SM {percent:.1f} %, {share}; memory {memory}"


def measure(driver: NvmlDriver, gpu: Handle, asked: argparse.Namespace) -> list[tuple[str, str]]:
    """Every row of the table."""
    gauge = PowerGauge(driver)
    try:
        gauge.settle(gpu, driver.name(gpu))
    except NvmlError as failed:
        print(f"gpu_truth: no power: {failed}", file=sys.stderr)
    rows = [("power is", gauge.note)]
    rows += _rows_of("as found", watch(driver, gpu, gauge, asked.seconds))
    rows += _latencies(driver, gpu, gauge)
    if not asked.load:
        return [*rows, ("under load", "not measured: no --load was given")]
    with running(asked.load) as loads:
        time.sleep(asked.warm_up)
        rows += _rows_of("under load", watch(driver, gpu, gauge, asked.seconds))
        try:
            rows += _split(driver, gpu, asked.seconds)
        except NvmlError as failed:
            rows.append(("under load: process utilization", str(failed)))
        for load in loads:
            if load.poll() is not None:
                rows.append(("**a load ended early**", f"with status {load.returncode}"))
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; the exit status."""
    parser = argparse.ArgumentParser(prog="gpu_truth", description=__doc__)
    parser.add_argument("--gpu", type=int, default=0, help="NVML's index of the GPU")
    parser.add_argument("--seconds", type=float, default=30.0, help="length of each stretch")
    parser.add_argument("--warm-up", type=float, default=_SETTLE_S, help="seconds of load before")
    parser.add_argument("--load", action="append", default=[], help="command; up to twice")
    asked = parser.parse_args(arguments)
    try:
        driver = NvmlDriver()
        driver.open()
        gpu = driver.handle_at(asked.gpu)
        rows = measure(driver, gpu, asked)
    except (Absent, Denied, NvmlError) as missing:
        print(f"gpu_truth: no GPU could be measured here: {missing}", file=sys.stderr)
        return NO_GPU
    except OSError as broken:
        print(f"gpu_truth: {broken.filename}: {broken.strerror}", file=sys.stderr)
        return 2
    print(
        f"\n{datetime.now(UTC):%Y-%m-%d}, {driver.name(gpu)}, driver {driver.version()}, ", end=""
    )
    print("`python -m benchmarks.gpu_truth`\n\n| what | seen |\n|---|---|")
    for what, seen in rows:
        print(f"| {what} | {seen} |")
    driver.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
