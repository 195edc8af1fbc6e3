"""The example that docs/third_parties.md shows, as it stands there, against a real daemon."""

from __future__ import annotations

import ast
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
from fakes.ledger_reading import Booked, assert_balanced, finishes, posted_tokens

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "report.py"
PATIENCE_S = 60.0


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="wl") as name:
        yield Path(name)


def test_the_example_is_short_and_needs_grpc_and_the_stubs_alone() -> None:
    text = EXAMPLE.read_text()
    assert len(text.splitlines()) < 60
    imported = {
        name.partition(".")[0]
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else
                     [alias.name for alias in node.names])
    }  # fmt: skip
    assert imported - sys.stdlib_module_names == {"grpc", "wattledger_proto"}
    shown = (ROOT / "docs" / "third_parties.md").read_text()
    assert text in shown


def test_the_examples_tokens_are_booked_though_the_daemon_is_killed(folder: Path) -> None:
    socket = folder / "w.sock"
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "proto")}
    with subprocess.Popen([sys.executable, EXAMPLE, socket], env=environ) as reporter:
        time.sleep(1.0)  # nobody listens yet: it keeps what it has
        with DaemonProcess(folder) as daemon:
            daemon.wait_for("event=ready")
            # Killed soon after it took the batch: on disk or not, the next one has it once.
            deadline = time.monotonic() + PATIENCE_S
            while not daemon.ledger.exists() and time.monotonic() < deadline:
                time.sleep(0.05)
            time.sleep(0.3)
            daemon.signal(signal.SIGKILL)
            daemon.exit_status()
        with DaemonProcess(folder) as daemon:
            daemon.wait_for("event=ready")
            assert reporter.wait(PATIENCE_S) == 0
            deadline = time.monotonic() + PATIENCE_S
            while not finishes(daemon.ledger) and time.monotonic() < deadline:
                time.sleep(0.2)
            daemon.signal(signal.SIGTERM)
            assert daemon.exit_status() == 0
    (finish,) = finishes(folder / "ledger.db")
    assert (finish.request, finish.engine) == ("b", f"demo-{reporter.pid}")
    assert (finish.prompt_tokens, finish.cached_tokens, finish.decode_tokens) == (512, 500, 1)
    assert posted_tokens(folder / "ledger.db") == Booked(1000, 500, 1)
    assert_balanced(folder / "ledger.db")
