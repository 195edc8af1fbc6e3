"""A hooked fake vLLM on one test bench: what it is fed, and what the hook tells of it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from fakes import vllm
from wattledger_collectors.engines.events import ColumnsEvent, Event, EventBuffer, FinishEvent
from wattledger_collectors.engines.vllm_hook import Hook
from wattledger_collectors.engines.vllm_place import Place

NS_PER_S = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Told:
    """A step as it was told, in seconds."""

    start_s: float
    end_s: float
    parts: dict[str, tuple[int, int, int]]


class Rig:
    """One processor, and a buffer per rank; times are seconds, as vLLM's own are."""

    def __init__(
        self, module: ModuleType | None = None, *, ranks: tuple[int, ...] = (0,), stats: bool = True
    ) -> None:
        self.module = module or vllm.a_module()
        self.buffers: defaultdict[int, EventBuffer] = defaultdict(EventBuffer)
        self.engines: dict[int, str] = {}
        self.lines: list[str] = []
        self.now_s = 0.0
        self.hook = Hook(self._outlet, self.lines.append, lambda: round(self.now_s * NS_PER_S))
        self.hook.attach(self.module)
        self.processor: Any = self.module.OutputProcessor(log_stats=stats)
        self.stats = stats
        if stats:
            for rank in ranks:
                self.hook.add_logger(None, rank)

    def _outlet(self, place: Place, rank: int) -> EventBuffer:
        self.engines[rank] = place.engine(rank)
        return self.buffers[rank]

    def add(self, request_id: str, prompt: int = 10, **more: Any) -> None:
        request = vllm.Request(request_id, more.pop("external", request_id), prompt)
        self.processor.add_request(request, None, *more.values())

    def step(
        self, end_s: float, *outputs: vllm.Output, rank: int = 0, scheduler_stats: object = None
    ) -> None:
        """One step of an engine and the call of its stat logger, if there are any."""
        self.now_s = max(self.now_s, end_s)
        stats = vllm.IterationStats() if self.stats and outputs else None
        self.processor.process_outputs(list(outputs), end_s, stats)
        if self.stats:
            self.hook.record(rank, scheduler_stats, stats)

    def take(self, rank: int = 0) -> list[Event]:
        return self.buffers[rank].take(100_000)


def steps(events: list[Event]) -> list[Told]:
    found = []
    for event in events:
        if event[0] == "columns":
            parts = zip(*event[5:], strict=True)
            names = dict(zip(event[4], parts, strict=True))
            assert len(names) == len(event[4]), "a request twice in one step"
            found.append(Told(event[2] / NS_PER_S, event[3] / NS_PER_S, names))
    return found


def finishes(events: list[Event]) -> list[FinishEvent]:
    return [event for event in events if event[0] == "finish"]


def columns(events: list[Event]) -> list[ColumnsEvent]:
    return [event for event in events if event[0] == "columns"]


def sums(events: list[Event]) -> tuple[int, int]:
    """Prefill and decode tokens of all steps."""
    told = columns(events)
    return sum(sum(event[5]) for event in told), sum(sum(event[6]) for event in told)


def one(request_id: str, tokens: int = 1, **more: Any) -> vllm.Output:
    """A later output of a request."""
    return vllm.Output(request_id, [7] * tokens, **more)


STOP = vllm.FinishReason.STOP
