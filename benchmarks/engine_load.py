"""An engine that computes nothing and reports steps: SOCKET STEPS_PER_S RUNNING_REQUESTS."""

from __future__ import annotations

import sys
import time

from wattledger_collectors.engines.events import EventBuffer
from wattledger_collectors.reporter import Reporting


def main(socket: str, steps_per_s: int, running: int) -> None:
    """Report until killed; without steps only the heartbeat goes out."""
    buffer = EventBuffer()
    Reporting(
        "bench", buffer, {"WATTLEDGER_SOCKET": socket, "WATTLEDGER_JOB": "bench"}
    ).ensure_running()
    start_ns = time.monotonic_ns()
    count = 0
    while True:
        time.sleep(1 / steps_per_s if steps_per_s else 3600)
        end_ns = time.monotonic_ns()
        # Every 200th step starts new requests.
        batch = count // 200
        parts = tuple((f"{batch}-{n}", 0, 1, count % 200) for n in range(running))
        buffer.add(("step", "bench", start_ns, end_ns, parts))
        start_ns, count = end_ns, count + 1


main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
