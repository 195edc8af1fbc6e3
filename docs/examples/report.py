"""A whole reporter: tells the daemon at the socket given what a pretended engine computes."""

import os
import sys
import time
from pathlib import Path

import grpc

from wattledger_proto.v1 import collect_pb2 as pb
from wattledger_proto.v1.collect_pb2_grpc import CollectorStub


class Reporter:
    """Numbers batches and keeps each until the daemon has it on disk. Bound `kept` in earnest."""

    def __init__(self, socket: str, model: str) -> None:
        self.push = CollectorStub(grpc.insecure_channel(f"unix:{socket}")).Push
        pid, start = os.getpid(), Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
        engine = pb.EngineRegistration(engine=f"demo-{pid}", kind="demo", model=model, pids=[pid])
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        self.who = pb.Batch(source=f"demo/{pid}/{start}", boot_id=boot_id, engine=engine)
        self.kept, self.last, self.sent, self.daemon = dict[int, pb.Batch](), 0, 0, ""

    def tell(self, batch: pb.Batch) -> None:
        """Takes in steps and finishes; from now on its number means them and nothing else."""
        self.last += 1
        batch.MergeFrom(self.who)
        batch.sequence, self.kept[self.last] = self.last, batch

    def flush(self) -> bool:
        """Sends what is to be sent; whether all is on disk. Call it every second or so."""
        try:
            self._send(self.who)  # a question: a daemon that restarted must be asked first
            while waiting := [number for number in self.kept if number > self.sent]:
                self._send(self.kept[waiting[0]])
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
                raise  # it will never do: send its number without events, and count them dropped
        return not self.kept

    def _send(self, batch: pb.Batch) -> None:
        batch.sent_ns = time.monotonic_ns()
        receipt = self.push(batch, timeout=1.0)
        new, self.daemon = receipt.daemon_id != self.daemon, receipt.daemon_id
        self.sent = receipt.committed_sequence if new else max(self.sent, batch.sequence)
        self.kept = {n: kept for n, kept in self.kept.items() if n > receipt.committed_sequence}


if __name__ == "__main__":
    reporter, now, ms = Reporter(sys.argv[1], "pretend-1b"), time.monotonic_ns(), 1_000_000
    told = pb.Batch(request_ids=["a", "b"], request_tenants=["blue", ""])
    step = told.steps.add(sequence=1, start_ns=now - 50 * ms, end_ns=now - 20 * ms)
    step.requests[:], step.context_tokens[:] = [0, 1], [0, 512]
    step.prefill_tokens[:], step.decode_tokens[:] = [1000, 0], [0, 1]  # a's prompt, b's next token
    told.finishes.add(request=1, t_ns=now, prompt_tokens=512, cached_tokens=500, decode_tokens=1)
    reporter.tell(told)
    while not reporter.flush():
        time.sleep(0.2)
