"""An engine at full load on the wire: SOCKET STEPS_PER_S RUNNING SECONDS; prints what it told.

Each request has a prompt of a few hundred tokens, makes 200 to 300 and ends, and another takes its
place: about one begins and one ends in every step. Batches go out ten times a second, over gRPC.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from pathlib import Path
from urllib.parse import quote

import grpc

from wattledger_proto.v1 import collect_pb2

BATCHES_PER_S = 10
NS_PER_S = 1_000_000_000


class Engine:
    """A running batch, step by step; `tokens` and `finished` are what it has told so far."""

    def __init__(self, running: int) -> None:
        self._random = random.Random(os.getpid())
        self._born = self.tokens = self.finished = 0
        self._names: list[str] = []
        self._contexts: list[int] = []
        self._left: list[int] = []
        for _ in range(running):
            self._begin(self._random.randrange(300))

    def _begin(self, left: int) -> None:
        self._names.append(f"chatcmpl-{os.getpid():x}-{self._born:08d}")
        self._contexts.append(self._random.randrange(200, 600))
        self._left.append(left)
        self._born += 1

    def batch(self, start_ns: int, end_ns: int, steps: int) -> collect_pb2.Batch:
        """So many steps, side by side in [start_ns, end_ns)."""
        batch = collect_pb2.Batch()
        index: dict[str, int] = {}
        fresh: set[str] = set()
        for at in range(steps):
            low, high = (start_ns + (end_ns - start_ns) * n // steps for n in (at, at + 1))
            names, contexts = self._names, self._contexts
            prefill = [contexts[n] if name in fresh else 0 for n, name in enumerate(names)]
            batch.steps.add(
                start_ns=low,
                end_ns=high,
                requests=[index.setdefault(name, len(index)) for name in names],
                prefill_tokens=prefill,
                decode_tokens=[1] * len(names),
                context_tokens=contexts,
            )
            self.tokens += sum(prefill) + len(names)
            fresh = self._go_on(batch, index, high)
        batch.request_ids.extend(index)
        return batch

    def _go_on(self, batch: collect_pb2.Batch, index: dict[str, int], t_ns: int) -> set[str]:
        """After a step: who is done makes room; returns who is new."""
        self._contexts = [context + 1 for context in self._contexts]
        self._left = [left - 1 for left in self._left]
        done = [n for n, left in enumerate(self._left) if left <= 0]
        for n in reversed(done):
            batch.finishes.add(
                request=index[self._names[n]], t_ns=t_ns, prompt_tokens=300, decode_tokens=250
            )
            del self._names[n], self._contexts[n], self._left[n]
        for _ in done:
            self._begin(self._random.randrange(200, 300))
        self.finished += len(done)
        return set(self._names[len(self._names) - len(done) :])


def main(socket: str, steps_per_s: int, running: int, seconds: float) -> None:
    """Report for so long, wait until all is on disk, and print the sums."""
    channel = grpc.insecure_channel(f"unix:{quote(socket)}", [("grpc.enable_http_proxy", 0)])
    push = channel.unary_unary(
        "/wattledger.v1.Collector/Push",
        request_serializer=collect_pb2.Batch.SerializeToString,
        response_deserializer=collect_pb2.Receipt.FromString,
    )
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    engine, told, committed, late = Engine(running), 0, 0, 0
    kind = collect_pb2.EngineRegistration(
        engine=f"load-{os.getpid()}", kind="load", model="m", pids=[os.getpid()], job="bench"
    )

    def send(batch: collect_pb2.Batch, number: int) -> int:
        batch.source, batch.boot_id, batch.sequence = f"load/{os.getpid()}", boot_id, number
        batch.engine.CopyFrom(kind)
        batch.sent_ns = time.monotonic_ns()
        return int(push(batch, timeout=10, wait_for_ready=True).committed_sequence)

    begun_ns = last_ns = time.monotonic_ns()
    while last_ns < begun_ns + seconds * NS_PER_S:
        next_ns = begun_ns + (told + 1) * NS_PER_S // BATCHES_PER_S
        time.sleep(max(0.0, (next_ns - time.monotonic_ns()) / NS_PER_S))
        late += time.monotonic_ns() > next_ns + NS_PER_S // BATCHES_PER_S
        upto = [steps_per_s * n // BATCHES_PER_S for n in (told, told + 1)]
        told += 1
        committed = send(engine.batch(last_ns, next_ns, upto[1] - upto[0]), told)
        last_ns = next_ns
    while committed < told:
        time.sleep(0.2)
        committed = send(collect_pb2.Batch(), 0)
    print(json.dumps({"tokens": engine.tokens, "finished": engine.finished, "late": late}))


main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
