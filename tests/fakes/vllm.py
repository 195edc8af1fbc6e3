"""Stands in for vLLM's front end: its OutputProcessor's bookkeeping, and its own counters.

Shaped after 0.32.0 (vllm/v1/engine/output_processor.py, vllm/v1/metrics/stats.py), in our words:
what reaches a hook, and what `/metrics` would say of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from types import ModuleType, SimpleNamespace
from typing import Any

QUEUED, SCHEDULED, PREEMPTED = 1, 2, 3


class FinishReason(IntEnum):
    STOP = 0
    LENGTH = 1
    ABORT = 2

    def __str__(self) -> str:
        return ("stop", "length", "abort")[self.value]


@dataclass(slots=True)
class Event:
    type: int
    timestamp: float


@dataclass(slots=True)
class PrefillStats:
    num_prompt_tokens: int
    num_computed_tokens: int
    num_cached_tokens: int


@dataclass(slots=True)
class Output:
    """An EngineCoreOutput; `stop_string` plays the detokenizer, which finds one."""

    request_id: str
    new_token_ids: list[int]
    finish_reason: FinishReason | None = None
    events: list[Event] | None = None
    prefill_stats: PrefillStats | None = None
    stop_string: bool = False


@dataclass(slots=True)
class Finished:
    request_id: str
    num_prompt_tokens: int
    num_cached_tokens: int
    num_generation_tokens: int


@dataclass(slots=True)
class PromptTokenStats:
    computed: int = 0
    cached_tokens: int = 0


@dataclass
class IterationStats:
    num_generation_tokens: int = 0
    prompt_token_stats: PromptTokenStats = field(default_factory=PromptTokenStats)
    finished_requests: list[Finished] = field(default_factory=list)
    time_to_first_tokens_iter: list[float] = field(default_factory=list)
    inter_token_latencies_iter: list[float] = field(default_factory=list)


@dataclass(slots=True)
class Request:
    request_id: str
    external_req_id: str
    prompt_len: int


@dataclass(slots=True)
class State:
    request_id: str
    external_req_id: str
    prompt_len: int
    parent_req: object = None
    request_index: int = 0
    is_prefilling: bool = True
    num_cached_tokens: int = 0
    generated: int = 0


@dataclass(slots=True)
class Parent:
    request_id: str
    child_requests: set[str]


class OutputProcessor:
    """Counts as vLLM does: `counters` is what `/metrics` would say, statistics on or off."""

    def __init__(self, log_stats: bool = True) -> None:
        self.log_stats = log_stats
        self.request_states: dict[str, State] = {}
        self.parent_requests: dict[str, Parent] = {}
        self.counters = IterationStats()
        self.broken: Exception | None = None
        # What a session's next word does, which comes as a request of the same id.
        self.on_add: Callable[[], object] = lambda: None

    def add_request(
        self, request: Request, prompt: str | None, parent: Parent | None = None, index: int = 0
    ) -> None:
        if request.request_id in self.request_states:
            self.on_add()
            return
        state = State(
            request.request_id, request.external_req_id, request.prompt_len, parent, index
        )
        self.request_states[request.request_id] = state
        if parent is not None:
            self.parent_requests[parent.request_id] = parent

    def process_outputs(
        self,
        engine_core_outputs: list[Output],
        engine_core_timestamp: float | None = None,
        iteration_stats: IterationStats | None = None,
        weight_version: str | None = None,
    ) -> list[str]:
        if self.broken is not None:
            raise self.broken
        answered = []
        for output in engine_core_outputs:
            state = self.request_states.get(output.request_id)
            if state is None:
                continue
            for stats in (self.counters, iteration_stats):
                if stats is not None:
                    self._count(stats, state, output)
            state.generated += len(output.new_token_ids)
            if state.is_prefilling and output.prefill_stats is not None:
                state.num_cached_tokens = output.prefill_stats.num_cached_tokens
            state.is_prefilling = False
            if output.stop_string:
                del output.new_token_ids[1:]
            answered.append(state.external_req_id)
            if output.finish_reason is not None or output.stop_string:
                self._finish(state, iteration_stats)
        return answered

    def _count(self, stats: IterationStats, state: State, output: Output) -> None:
        stats.num_generation_tokens += len(output.new_token_ids)
        if not state.is_prefilling:
            stats.inter_token_latencies_iter.append(0.01)
            return
        stats.time_to_first_tokens_iter.append(0.02)
        if output.prefill_stats is not None:
            stats.prompt_token_stats.computed += output.prefill_stats.num_computed_tokens
            stats.prompt_token_stats.cached_tokens += output.prefill_stats.num_cached_tokens

    def _finish(self, state: State, iteration_stats: IterationStats | None) -> None:
        del self.request_states[state.request_id]
        finished = Finished(
            state.external_req_id, state.prompt_len, state.num_cached_tokens, state.generated
        )
        for stats in (self.counters, iteration_stats):
            if stats is not None:
                stats.finished_requests.append(finished)

    def abort_requests(self, request_ids: Iterable[str], internal: bool = True) -> list[str]:
        aborted = []
        for request_id in request_ids:
            if self.request_states.pop(request_id, None) is not None:
                aborted.append(request_id)
            elif parent := self.parent_requests.pop(request_id, None):
                aborted += self.abort_requests(sorted(parent.child_requests), internal)
        return aborted


class LLMEngine:
    """The offline engine: what our hook reads of it."""

    def __init__(self, config: Any, core_pid: int | None = None) -> None:
        self.vllm_config = config
        self.output_processor = OutputProcessor(log_stats=False)
        if core_pid is not None:
            manager = SimpleNamespace(processes=[SimpleNamespace(pid=core_pid)])
            self.engine_core = SimpleNamespace(resources=SimpleNamespace(engine_manager=manager))


def a_module(processor: type[Any] = OutputProcessor) -> ModuleType:
    """A `vllm.v1.engine.output_processor` of its own, so that no test wraps another's class."""
    module = ModuleType("vllm.v1.engine.output_processor")
    module.OutputProcessor = type("OutputProcessor", (processor,), {})  # type: ignore[attr-defined]
    return module


def first(
    request_id: str, computed: int, cached: int = 0, at_s: float | None = 1.0, **more: Any
) -> Output:
    """A request's first output, scheduled at `at_s`."""
    events = None if at_s is None else [Event(QUEUED, at_s), Event(SCHEDULED, at_s)]
    stats = PrefillStats(computed + cached, computed, cached)
    return Output(request_id, [7], events=events, prefill_stats=stats, **more)
