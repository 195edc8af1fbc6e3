"""A vLLM of several ranks exits as fast as one of a single rank, whatever the daemon does."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CODE = """
import os, sys, time
from wattledger_collectors.engines import vllm
from wattledger_collectors.engines.vllm_place import Place
place = Place(os.getpid(), ranks=8)
for rank in range(8):
    at_ns = time.monotonic_ns()
    vllm.hook().buffer(place, rank).add(("columns", "m", at_ns - 5, at_ns, ["a"], [1], [0], [0]))
time.sleep(1.0)
for rank in range(8):
    vllm.hook().buffer(place, rank).add(("columns", "m", at_ns - 5, at_ns, ["a"], [1], [0], [0]))
print(time.time(), flush=True)
"""


def test_all_ranks_say_goodbye_within_the_same_second() -> None:
    """The daemon is stopped: its socket takes connections, and nothing answers."""
    with tempfile.TemporaryDirectory(prefix="wl") as folder:
        path = Path(folder) / "w.sock"
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(path))
            listening.listen(64)
            environ = os.environ | {"WATTLEDGER_SOCKET": str(path)}
            command = [sys.executable, "-c", CODE]
            result = subprocess.run(
                command, env=environ, check=True, capture_output=True, text=True, timeout=60
            )
            took_s = time.time() - float(result.stdout)
    # One after the other they took 8 s.
    assert took_s < 4.0
