"""What beats are tested with: time that sleeping moves on, sensors that take theirs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from wattledger.records import (
    NS_PER_S,
    CounterReading,
    Device,
    DeviceKind,
    Evidence,
    Process,
    UseRecord,
)
from wattledger_daemon.sampling import SensorRunner, Source

GPU0 = Device("gpu0", DeviceKind.GPU)
MS = 1_000_000


@dataclass
class FakeTime:
    """A clock that sleeping moves on; `beats` sleeps later it says stop."""

    beats: int
    now_ns: int = 0
    waits: list[float] = field(default_factory=list)

    def clock(self) -> int:
        return self.now_ns

    def wait(self, seconds: float) -> bool:
        self.waits.append(seconds)
        self.now_ns += round(seconds * NS_PER_S)
        return len(self.waits) > self.beats


@dataclass
class Spawned:
    """Keeps the runners that left a beat instead of driving them."""

    groups: list[tuple[SensorRunner, ...]] = field(default_factory=list)

    def __call__(self, runners: tuple[SensorRunner, ...]) -> None:
        self.groups.append(runners)

    @property
    def names(self) -> list[list[str]]:
        return [[runner.name for runner in group] for group in self.groups]


def taking(
    time: FakeTime,
    name: str,
    spent_ms: Sequence[int],
    period_s: float = 0.1,
    *,
    costly: bool = False,
) -> tuple[SensorRunner, list[int]]:
    """A sensor whose polls take so long, the last figure for ever; and when each began, ms."""
    starts: list[int] = []

    def poll() -> list[CounterReading]:
        starts.append(time.now_ns // MS)
        time.now_ns += spent_ms[min(len(starts), len(spent_ms)) - 1] * MS
        return []

    source = Source(name, period_s, lambda: (GPU0,), poll, lambda: None, costly)
    return SensorRunner(source, accept, clock=time.clock), starts


def accept(_: Sequence[Evidence]) -> bool:
    return True


class FakeUse:
    """A use sensor that counts its samples."""

    name = "use"
    period_s = 1.0
    beside: tuple[str, ...] = ()

    def __init__(self, answers: Iterable[object]) -> None:
        self.told: list[str] = []
        self._answers = list(answers)

    def set_devices(self, devices: Iterable[Device]) -> None:
        pass

    def sample(self) -> list[UseRecord | Process]:
        self.told.append("sample")
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return [UseRecord("cpu0", len(self.told) - 1, len(self.told), ())]

    def close(self) -> None:
        self.told.append("close")
