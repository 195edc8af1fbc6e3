"""The benchmark that is for real GPUs, on the fake one: what it prints is what is scripted."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from fakes.nvml import FakeNvml

ROOT = Path(__file__).parents[2]
GIB = 1 << 30


def run(env: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.gpu_truth", *arguments]
    env = {**env, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False
    )


def test_the_table_says_what_the_gpu_does() -> None:
    fake = FakeNvml(
        [
            "gpu 0 NVIDIA_H200 GPU-a",
            "seg 0 0 400000",
            f"compute 0 41 {10 * GIB} 0 99 60",
            f"compute 0 42 {30 * GIB} 0 99 20",
        ]
    )
    load = f"{sys.executable} -c 'import time; time.sleep(60)'"
    done = run(fake.env(), "--seconds", "2", "--warm-up", "0", "--load", load)
    assert done.returncode == 0, done.stderr
    rows = dict(re.findall(r"^\| (.+?) \| (.+) \|$", done.stdout, re.MULTILINE))
    assert rows["power is"] == "instant power (field 186)"
    for when in ("as found", "under load"):
        assert f"{when}: the counter moves every (p50; least; most)" in rows
        assert rows[f"{when}: power by the gauge, integrated"] == "400.00 W"
        # A machine that is busy reads late: the exact ratio is the next test's.
        assert 0.5 <= float(rows[f"{when}: counter / integrated power"]) <= 2.0
    assert rows["under load: process 41"] == "SM 60.0 %, 75.0% of all; memory 10240 MiB"
    assert rows["under load: process 42"] == "SM 20.0 %, 25.0% of all; memory 30720 MiB"
    assert len([what for what in rows if what.startswith("latency of")]) == 5
    assert "NVIDIA H200, driver 999.00-FAKE" in done.stdout


def test_the_ratio_is_over_the_same_stretch() -> None:
    ms, uj = 1_000_000, 40_000_000
    energy = [(t * 50 * ms, t // 2 * uj) for t in range(1, 41)]
    power = [(t * 50 * ms, 380_000_000 if 2 < t < 40 else 0) for t in range(1, 41)]
    watched = runpy.run_path(str(ROOT / "benchmarks/gpu_truth.py"))["Watched"](energy, power)
    assert set(watched.periods_ms()) == {100.0}
    assert watched.counter_w() == pytest.approx(400.0)
    assert watched.gauge_w() == pytest.approx(380 * 37 / 38)


def test_a_load_that_cannot_be_started_is_one_line() -> None:
    fake = FakeNvml(["gpu 0 NVIDIA_H200 GPU-a", "seg 0 0 400000"])
    done = run(fake.env(), "--seconds", "0.1", "--load", "/no/such/load")
    assert done.returncode == 2
    assert "gpu_truth: /no/such/load: No such file" in done.stderr


def test_without_a_gpu_it_says_so_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "libnvidia-ml.so.1").write_bytes(b"not a library")
    done = run({**os.environ, "LD_LIBRARY_PATH": str(tmp_path)})
    assert (done.returncode, done.stdout) == (3, "")
    assert re.fullmatch(r"gpu_truth: no GPU could be measured here: [^\n]+\n", done.stderr)
