"""A daemon under traffic for a long time: does anything grow?

Time is compressed a little by a short period and short windows: 20 polls and one page a second
are an hour's 10 Hz polls in half an hour, and five times its pages.
"""

from __future__ import annotations

import csv
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from benchmarks.peers_tree import cost_of
from benchmarks.table import Figure
from fakes.daemon_process import DaemonProcess
from fakes.nvml import FakeNvml

EVERY_S = 5.0
GPUS = 8
ENGINES = 2
STEPS_PER_S = 10
RUNNING = 4
# The daemon keeps ten minutes of evidence, which fill first.
WARM_UP_S = 720.0
_LOAD = Path(__file__).with_name("engine_load.py")


class Sample(NamedTuple):
    """The daemon at one moment; CPU in percent of one core since the sample before."""

    t_s: float
    rss_mb: float
    cpu_percent: float
    files: int
    threads: int


@contextmanager
def _engines(socket: Path) -> Iterator[None]:
    command = [sys.executable, _LOAD, socket, str(STEPS_PER_S), str(RUNNING)]
    engines = [subprocess.Popen(command) for _ in range(ENGINES)]
    try:
        yield
    finally:
        for engine in engines:
            engine.kill()
            engine.wait()


def _script() -> list[str]:
    lines = []
    for gpu in range(GPUS):
        lines.append(f"gpu {gpu} NVIDIA_H100_80GB_HBM3 GPU-{gpu}")
        lines += [f"seg {gpu} {60 * t} {70_000 if t % 2 else 600_000}" for t in range(120)]
    return lines


def samples(minutes: float) -> Iterator[Sample]:
    """The daemon's state every few seconds."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        daemon = _Daemon(folder, FakeNvml(_script()).env())
        with daemon, _engines(daemon.socket):
            start_s = last_s = time.monotonic()
            cpu_s = cost_of(daemon.pid).cpu_s
            while last_s - start_s < minutes * 60:
                time.sleep(EVERY_S)
                now_s, cost = time.monotonic(), cost_of(daemon.pid)
                percent = (cost.cpu_s - cpu_s) / (now_s - last_s) * 100
                yield Sample(now_s - start_s, cost.rss_mb, percent, cost.files, cost.threads)
                last_s, cpu_s = now_s, cost.cpu_s


class _Daemon(DaemonProcess):
    """The tests' daemon (windows of a second), polling twice as often as by default."""

    def write_config(self, more: str) -> None:
        super().write_config(more)
        text = self.config.read_text()
        self.config.write_text(text.replace("[sampling]", "[sampling]\nperiod_s = 0.05"))


def _growth(values: Sequence[float]) -> float:
    """Median of the last tenth less that of the first."""
    tenth = max(1, len(values) // 10)
    return statistics.median(values[-tenth:]) - statistics.median(values[:tenth])


def measure(minutes: float, output: Path | None) -> list[Figure]:
    """Run so long; every sample goes to `output` as CSV, line by line."""
    taken: list[Sample] = []
    with (output or Path("/dev/null")).open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(Sample._fields)
        for sample in samples(minutes):
            taken.append(sample)
            writer.writerow([round(value, 3) for value in sample])
            file.flush()
    warm = [sample for sample in taken if sample.t_s >= min(WARM_UP_S, minutes * 30)]
    span_h = (warm[-1].t_s - warm[0].t_s) / 3600
    rss_mb = [sample.rss_mb for sample in warm]
    return [
        Figure(f"soak of {minutes:g} min: RSS at its end", rss_mb[-1], "MB", 60.0),
        Figure(f"RSS growth in the last {span_h * 60:.0f} min", _growth(rss_mb), "MB", 1.0),
        Figure("most RSS after warm-up, over the least", max(rss_mb) - min(rss_mb), "MB"),
        Figure("growth of open files", _growth([s.files for s in warm]), "", 0.0),
        Figure("growth of threads", _growth([s.threads for s in warm]), "", 0.0),
        Figure("CPU at 20 Hz and one window a second", _mean_cpu(warm), "% of a core"),
    ]


def _mean_cpu(warm: Sequence[Sample]) -> float:
    return statistics.fmean(sample.cpu_percent for sample in warm)
