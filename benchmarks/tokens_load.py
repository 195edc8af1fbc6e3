"""An engine at full load on the wire: SOCKET STEPS_PER_S RUNNING SECONDS; prints what it told.

Each request has a prompt of a few hundred tokens, makes 200 to 300 and ends, and another takes its
place: about one begins and one ends in every step. The hook's events are made up; they go through
the reporter's own press and channel, five times a second as the reporter does.
"""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path

from wattledger_collectors.engines.events import Counts, Event
from wattledger_collectors.wire import Identity, Link, Press

NS_PER_S = 1_000_000_000
BATCHES_PER_S = 5


class Engine:
    """A running batch, step by step; `tokens` and `finished` are what it has told so far."""

    def __init__(self, running: int, name: str) -> None:
        self._random = random.Random(name)
        self._name = name
        self._born = self.tokens = self.finished = 0
        self._names: list[str] = []
        self._contexts: list[int] = []
        self._left: list[int] = []
        self._fresh = 0
        for _ in range(running):
            self._begin(self._random.randrange(300))

    def _begin(self, left: int) -> None:
        self._names = [*self._names, f"chatcmpl-{self._name}-{self._born:08d}"]
        self._contexts.append(self._random.randrange(200, 600))
        self._left.append(left)
        self._born += 1

    def events(self, start_ns: int, end_ns: int, steps: int) -> list[Event]:
        """So many steps, side by side in [start_ns, end_ns), and who ended after each."""
        events: list[Event] = []
        for at in range(steps):
            low, high = (start_ns + (end_ns - start_ns) * n // steps for n in (at, at + 1))
            count = len(self._names)
            prefill = [0] * (count - self._fresh) + self._contexts[count - self._fresh :]
            context = list(self._contexts)
            events.append(("columns", "m", low, high, self._names, prefill, [1] * count, context))
            self.tokens += sum(prefill) + count
            events += self._go_on(high)
        return events

    def _go_on(self, t_ns: int) -> list[Event]:
        """After a step: who is done makes room."""
        self._contexts = [context + 1 for context in self._contexts]
        self._left = [left - 1 for left in self._left]
        done = [n for n, left in enumerate(self._left) if left <= 0]
        ends: list[Event] = [
            ("finish", "m", t_ns, self._names[n], 300, 0, 250, False) for n in done
        ]
        if done:
            self._names = list(self._names)
        for n in reversed(done):
            del self._names[n], self._contexts[n], self._left[n]
        for _ in done:
            self._begin(self._random.randrange(200, 300))
        self.finished += len(done)
        self._fresh = len(done)
        return ends


def main(socket: str, steps_per_s: int, running: int, seconds: float) -> None:
    """Report for so long, wait until all is on disk, and print the sums."""
    identity = Identity.of_this_process("load", {"WATTLEDGER_JOB": "bench"})
    engine, press, link = Engine(running, str(identity.pid)), Press(identity), Link()
    while not Path(socket).exists():
        time.sleep(0.1)
    time.sleep(0.5)
    link.open(socket)
    told, committed, late = 0, 0, 0

    def send(body: bytes, number: int) -> int:
        receipt = link.push(body + press.stamp(number, time.monotonic_ns(), 0), 10.0)
        press.tells_runs = receipt.takes_runs
        return int(receipt.committed_sequence)

    send(press.empty(Counts()), 0)
    begun_ns = last_ns = time.monotonic_ns()
    while last_ns < begun_ns + seconds * NS_PER_S:
        next_ns = begun_ns + (told + 1) * NS_PER_S // BATCHES_PER_S
        time.sleep(max(0.0, (next_ns - time.monotonic_ns()) / NS_PER_S))
        late += time.monotonic_ns() > next_ns + NS_PER_S // BATCHES_PER_S
        upto = [steps_per_s * n // BATCHES_PER_S for n in (told, told + 1)]
        told += 1
        events = engine.events(last_ns, next_ns, upto[1] - upto[0])
        committed = send(press.batch("m", events, Counts()), told)
        last_ns = next_ns
    while committed < told:
        time.sleep(0.2)
        committed = send(press.empty(Counts()), 0)
    print(json.dumps({"tokens": engine.tokens, "finished": engine.finished, "late": late}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
