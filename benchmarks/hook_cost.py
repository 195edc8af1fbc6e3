"""What the hooks add: a bare engine against a hooked one, in turns. llama.cpp here, and vLLM's."""

from __future__ import annotations

import statistics
import time
from collections.abc import Generator, Sequence
from typing import Any

from benchmarks import vllm_hook_cost
from benchmarks.table import Figure
from wattledger_collectors.engines.events import EventBuffer
from wattledger_collectors.engines.llama_cpp import Hook

TOKENS = 50_000
# What a fast engine tells between two turns of the reporter, which runs on a thread of its own.
BETWEEN_TURNS = 500
ROUNDS = 15


_ONE = (7,)


class BareLlama:
    """Yields tokens as llama_cpp.Llama does, and computes nothing."""

    model_path = "/models/tiny.gguf"
    n_tokens = 0

    def eval(self, tokens: Sequence[int]) -> None:
        self.n_tokens += len(tokens)

    def generate(self, tokens: Sequence[int]) -> Generator[int, Sequence[int] | None, None]:
        while True:
            self.eval(tokens)
            tokens = (yield 7) or _ONE

    def token_eos(self) -> int:
        return 2


class HookedLlama(BareLlama):
    """The same, hooked."""


def _drain(llama: Any, buffer: EventBuffer) -> float:
    """CPU microseconds per token of one request; the reporter's part is not counted."""
    vars(llama)  # A real Llama has more attributes than Python keeps without a dictionary.
    run = llama.generate([1, 2, 3])
    next(run)
    spent_ns = 0
    for _ in range(TOKENS // BETWEEN_TURNS):
        start_ns = time.process_time_ns()
        for _ in range(BETWEEN_TURNS):
            next(run)
        spent_ns += time.process_time_ns() - start_ns
        buffer.take(BETWEEN_TURNS + 1)
    run.close()
    return spent_ns / TOKENS / 1000


def measure() -> list[Figure]:
    """Median over rounds of the pairwise difference, CPU time."""
    buffer = EventBuffer()
    Hook(buffer, lambda: None).attach(HookedLlama)
    added, bare = [], []
    for _ in range(ROUNDS):
        bare.append(_drain(BareLlama(), buffer))
        added.append(_drain(HookedLlama(), buffer) - bare[-1])
    return [
        Figure("hook, llama-cpp-python: CPU per token", statistics.median(added), "us", 0.3),
        Figure("the same loop without the hook", statistics.median(bare), "us"),
        *vllm_hook_cost.measure(),
    ]
