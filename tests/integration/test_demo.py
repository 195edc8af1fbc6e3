"""The whole path, as `make demo` runs it: daemon, real engines, clients, statement, audit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.cli import Cli
from fakes.llama_server import engine_python

pytestmark = pytest.mark.engine


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    # What runs in the background of a shell is born deaf to SIGINT, and so would the demo be.
    command = ["env", "--default-signal=INT", sys.executable]
    command += ["-m", "wattledger_cli", "demo", "--seconds", "4"]
    command += ["--engine-python", str(engine_python())]
    process = subprocess.Popen(
        [*command, "--workdir", str(tmp_path / "run")],
        env={**os.environ, **Cli(tmp_path).environ()},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        yield process
        process.kill()


def left_over(folder: Path) -> list[str]:
    """Processes that still name the demo's folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if any(str(folder) in word for word in words):
            found.append(" ".join(words))
    return found


def test_from_an_engine_to_grams(demo: subprocess.Popen[str], tmp_path: Path) -> None:
    out, err = demo.communicate(timeout=240)
    assert demo.returncode == 0, err
    for row in ("chat       decode", "chat       prefill", "summarize  prefill"):
        assert row in out
    assert "books     balanced: 0 uJ and 0 ns are off" in out
    assert "0 late, 0 duplicates, 0 dropped" in out
    (counted,) = (line for line in err.splitlines() if "tokens booked" in line)
    prompt, answer = counted.split("prompt ")[1].split(", answer ")
    assert len(set(prompt.split(" of "))) == len(set(answer.split(" of "))) == 1
    assert left_over(tmp_path / "run") == []


def test_an_interrupted_demo_leaves_nothing_running(
    demo: subprocess.Popen[str], tmp_path: Path
) -> None:
    assert demo.stderr is not None
    for line in demo.stderr:
        if "clients ask" in line:
            break
    demo.send_signal(signal.SIGINT)
    demo.communicate(timeout=60)
    assert demo.returncode == 130
    assert left_over(tmp_path / "run") == []
