"""The daemon's own CPU and memory: 8 GPUs through the real pynvml on a fake driver library."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.table import Figure
from fakes.nvml import FakeNvml

WARM_UP_S = 25
MEASURE_S = 60
GPUS = 8
PROCESSES = 300
ENGINES = 4
_EMPTY_LOOP = "import time\nwhile True:\n    time.sleep(0.1)\n"
LOAD = Path(__file__).with_name("engine_load.py")


@contextlib.contextmanager
def _idle_processes(count: int) -> Iterator[None]:
    crowd = [subprocess.Popen(["sleep", "1000"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in crowd:
            process.kill()
        for process in crowd:
            process.wait()


@contextlib.contextmanager
def _engines(socket: Path, steps_per_s: int, running: int) -> Iterator[list[int]]:
    """Engines that report `steps_per_s` steps of `running` requests each."""
    command = [sys.executable, LOAD, socket, str(steps_per_s), str(running)]
    engines = [subprocess.Popen(command) for _ in range(ENGINES)]
    try:
        yield [engine.pid for engine in engines]
    finally:
        for engine in engines:
            engine.kill()
            engine.wait()


def cpu_s(pid: int) -> float:
    """CPU time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss_mb(pid: int) -> float:
    """Resident set, MB (10^6 bytes): proc_pid_status(5), VmRSS in KiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (rss,) = (line.split()[1] for line in lines if line.startswith("VmRSS"))
    return int(rss) * 1024 / 1e6


def _script(pids: list[int]) -> list[str]:
    """Eight GPUs under a square wave; each engine holds two."""
    lines = []
    for gpu in range(GPUS):
        lines.append(f"gpu {gpu} NVIDIA_H100_80GB_HBM3 GPU-{gpu}")
        lines += [f"seg {gpu} {t} {70_000 if t % 2 else 600_000}" for t in range(100)]
        pid = pids[gpu // 2]
        lines.append(f"compute {gpu} {pid} 10737418240 0 10000 60")
    return lines


def _run(hz: float, steps_per_s: int, running: int) -> tuple[float, float]:
    """(percent of one core, RSS in MB) over the measured minute."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        socket = folder / "s.sock"
        with _engines(socket, steps_per_s, running) as pids:
            config = folder / "wattledger.toml"
            config.write_text(
                f'[ledger]\npath = "{folder}/ledger.db"\n[sampling]\nperiod_s = {1 / hz}\n'
                f'[collect]\nsocket = "{socket}"\n'
            )
            command = [Path(sys.executable).with_name("wattledgerd"), "--config", config]
            fake = FakeNvml(_script(pids))
            daemon = subprocess.Popen(command, env=fake.env(), stderr=subprocess.DEVNULL)
            try:
                time.sleep(WARM_UP_S)
                before_s, start_s = cpu_s(daemon.pid), time.monotonic()
                time.sleep(MEASURE_S)
                spent_s = cpu_s(daemon.pid) - before_s
                percent = spent_s / (time.monotonic() - start_s) * 100
                return percent, rss_mb(daemon.pid)
            finally:
                daemon.terminate()
                daemon.wait(timeout=10)


def _empty_loop() -> float:
    """Percent of one core that a Python process takes to wake ten times a second for nothing."""
    loop = subprocess.Popen([sys.executable, "-c", _EMPTY_LOOP])
    try:
        time.sleep(1)
        before_s, start_s = cpu_s(loop.pid), time.monotonic()
        time.sleep(MEASURE_S)
        return (cpu_s(loop.pid) - before_s) / (time.monotonic() - start_s) * 100
    finally:
        loop.kill()
        loop.wait()


def measure() -> list[Figure]:
    """1 and 10 Hz with quiet engines, and 10 Hz with 80 steps/s of 16 requests each.

    An empty loop in Python beside them tells what waking up alone costs on this machine.
    """
    figures = [Figure("an empty 10 Hz loop in Python: CPU", _empty_loop(), "% of a core", None)]
    with _idle_processes(PROCESSES):
        for hz, steps_per_s, running in ((1.0, 0, 0), (10.0, 0, 0), (10.0, 20, 16)):
            percent, rss_mb = _run(hz, steps_per_s, running)
            tokens = ENGINES * steps_per_s * running
            what = f"daemon, {hz:g} Hz, 8 GPUs, 4 engines, 300 processes, {tokens:,} tokens/s"
            bar = 0.5 if not tokens else None
            figures.append(Figure(f"{what}: CPU", percent, "% of a core", bar))
            figures.append(Figure(f"{what}: RSS", rss_mb, "MB", 60.0))
    return figures
