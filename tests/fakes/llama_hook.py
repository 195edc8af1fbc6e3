"""A hooked stand-in of a Llama, and what its hook has told."""

from __future__ import annotations

from dataclasses import dataclass

from fakes.llama import FakeLlama
from wattledger_collectors.engines.events import Counts, EventBuffer, FinishEvent, StepEvent
from wattledger_collectors.engines.llama_cpp import Hook


class Clock:
    """One microsecond per look, and what is added by hand."""

    def __init__(self) -> None:
        self.ns = 0

    def __call__(self) -> int:
        self.ns += 1_000
        return self.ns


@dataclass
class Told:
    """What a hook has told."""

    steps: list[StepEvent]
    finishes: list[FinishEvent]

    @property
    def counts(self) -> Counts:
        counts = Counts()
        for step in self.steps:
            counts.count(step)
        for finish in self.finishes:
            counts.count(finish)
        return counts


class World:
    """A class of its own, hooked, with one instance."""

    def __init__(self, llama: FakeLlama | None = None, model: str | None = None) -> None:
        self.buffer = EventBuffer()
        self.clock = Clock()
        self.begun = 0
        self.llama = llama or FakeLlama()
        self.hook = Hook(self.buffer, self._begin, model, self.clock)
        self.llama.__class__ = hooked(self.hook, type(self.llama))

    def _begin(self) -> None:
        self.begun += 1

    def told(self) -> Told:
        told = Told([], [])
        for event in self.buffer.take(1_000_000):
            if event[0] == "step":
                told.steps.append(event)
            elif event[0] == "token":
                _, model, start_ns, end_ns, name, context = event
                told.steps.append(("step", model, start_ns, end_ns, ((name, 0, 1, context),)))
            elif event[0] == "finish":
                told.finishes.append(event)
        return told


def hooked(hook: Hook, base: type[FakeLlama]) -> type[FakeLlama]:
    """A subclass of `base`, hooked."""
    llama_class = type("HookedLlama", (base,), {})
    hook.attach(llama_class)
    return llama_class


def parts(told: Told) -> list[tuple[int, int, int]]:
    return [part[1:] for step in told.steps for part in step[4]]
