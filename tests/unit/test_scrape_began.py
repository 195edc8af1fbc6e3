"""When those who listen on a port began, on this very machine."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from contextlib import closing

from wattledger_collectors.scrape.processes import began_ns, start_ticks

LISTEN = """
import socket
taken = socket.create_server(("127.0.0.1", 0))
print(taken.getsockname()[1], flush=True)
input()
"""


def test_a_process_that_listens_began_when_it_did() -> None:
    before_ns = time.monotonic_ns()
    with subprocess.Popen(
        [sys.executable, "-c", LISTEN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout
        port = int(child.stdout.readline())
        found = began_ns(f"http://127.0.0.1:{port}/metrics")
        child.communicate("\n")
    assert found is not None
    # Ticks of a hundredth of a second, cut off.
    assert before_ns - 20_000_000 <= found <= time.monotonic_ns()


def test_nobody_who_listens_and_nobody_who_runs() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as freed:
        port = freed.getsockname()[1]
    assert began_ns(f"http://127.0.0.1:{port}/metrics") is None
    assert start_ticks(1 << 22) == 0
