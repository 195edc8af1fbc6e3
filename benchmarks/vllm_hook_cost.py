"""What the vLLM hook adds to a step: a bare front end against a hooked one, in turns.

The front end reads of an output what vLLM reads at the least, and makes no text. Every request
lives 256 tokens, so that some begin and end all the time. What the reporter's thread spends on the
same steps, under the engine's own interpreter lock, is shown beside it.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any

from benchmarks.table import Figure
from fakes import vllm
from wattledger_collectors.engines.events import Counts, EventBuffer
from wattledger_collectors.engines.vllm_hook import Hook
from wattledger_collectors.wire import Identity, Press

STEPS = 400
LIFE_TOKENS = 256
PROMPT_TOKENS = 300
ROUNDS = 9
FLUSH_STEPS = 10


class BareProcessor(vllm.OutputProcessor):
    """Knows its requests and computes nothing."""

    def process_outputs(self, outputs: list[Any], *_: Any) -> Any:
        for output in outputs:
            state = self.request_states[output.request_id]
            state.generated += len(output.new_token_ids)
            if output.events is not None or output.prefill_stats is not None:
                state.is_prefilling = False
            if output.finish_reason is not None:
                del self.request_states[output.request_id]


class Engine:
    """So many running requests; each step's outputs are new objects, as from the wire."""

    def __init__(self, processor: Any, running: int) -> None:
        self._processor = processor
        self._number = 0
        self._left: dict[str, int] = {}
        self._fresh = [self._arrive(1 + at * LIFE_TOKENS // running) for at in range(running)]

    def _arrive(self, left: int) -> str:
        self._number += 1
        external = f"cmpl-acme-{self._number:012d}-0"
        name = f"{external}-0a1b2c3d"
        self._processor.add_request(vllm.Request(name, external, PROMPT_TOKENS), None)
        self._left[name] = left
        return name

    def outputs(self, now_s: float) -> list[vllm.Output]:
        fresh, made = set(self._fresh), []
        for name in self._left:
            own = name.encode().decode()
            if name in fresh:
                made.append(vllm.first(own, PROMPT_TOKENS, 0, now_s - 0.005))
            else:
                made.append(vllm.Output(own, [7]))
            self._left[name] -= 1
            if not self._left[name]:
                made[-1].finish_reason = vllm.FinishReason.LENGTH
        ended = [name for name, left in self._left.items() if not left]
        for name in ended:
            del self._left[name]
        self._fresh = [self._arrive(LIFE_TOKENS) for _ in ended]
        return made


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU microseconds per step: the front end with its hook or without, and the reporter."""

    front_us: float
    reporter_us: float


def _drive(running: int, hooked: bool) -> Cost:
    module = vllm.a_module(BareProcessor)
    buffer = EventBuffer()
    hook = Hook(lambda place, rank: buffer, print)
    if hooked:
        hook.attach(module)
        hook.add_logger(None, 0)
    processor = module.OutputProcessor()
    engine, press = Engine(processor, running), Press(Identity("vllm", 1, 1, "boot"))
    front_ns = reporter_ns = 0
    for step in range(STEPS):
        # As an EngineCore on this host tells it.
        now_s = time.monotonic()
        outputs, stats = engine.outputs(now_s), vllm.IterationStats()
        start_ns = time.process_time_ns()
        processor.process_outputs(outputs, now_s, stats)
        if hooked:
            hook.record(0, None, stats)
        front_ns += time.process_time_ns() - start_ns
        if step % FLUSH_STEPS == FLUSH_STEPS - 1:
            events = buffer.take(512)
            start_ns = time.process_time_ns()
            press.batch("tiny", events, Counts())
            reporter_ns += time.process_time_ns() - start_ns
    return Cost(front_ns / STEPS / 1000, reporter_ns / STEPS / 1000)


def _added(running: int) -> tuple[float, float]:
    """Medians over rounds of the pairwise difference, and of the reporter's part."""
    added, reporter = [], []
    for _ in range(ROUNDS):
        bare, hooked = _drive(running, False), _drive(running, True)
        added.append(hooked.front_us - bare.front_us)
        reporter.append(hooked.reporter_us)
    return statistics.median(added), statistics.median(reporter)


def measure() -> list[Figure]:
    """CPU time, at 16 and at 256 running requests."""
    few_us, few_reporter_us = _added(16)
    many_us, many_reporter_us = _added(256)
    return [
        Figure("hook, vLLM: CPU per step, 16 running", few_us, "us", 5.0),
        Figure("hook, vLLM: CPU per token, 256 running", many_us / 256, "us", 0.3),
        Figure("its reporter: CPU per step, 16 running", few_reporter_us, "us"),
        Figure("its reporter: CPU per token, 256 running", many_reporter_us / 256, "us", 0.3),
    ]
