"""Threads of sensors: deadlines hold, and nobody waits for one that is slow or stuck."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import pytest

from fakes.daemon_parts import FakeSensor
from wattledger.records import (
    NS_PER_S,
    CounterReading,
    Device,
    DeviceKind,
    Evidence,
    Process,
    UseRecord,
)
from wattledger_collectors.sensors.protocol import Absent, Denied
from wattledger_daemon.beats import Beat
from wattledger_daemon.sampling import SensorRunner, SensorState, Source

GPU0, GPU1 = (Device(name, DeviceKind.GPU) for name in ("gpu0", "gpu1"))
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


def run(time: FakeTime, *runners: SensorRunner) -> Spawned:
    spawned = Spawned()
    Beat("test", runners, spawned, clock=time.clock, wait=time.wait).run()
    return spawned


def test_deadlines_are_absolute_and_missed_polls_are_skipped_and_counted() -> None:
    """Each poll takes 30 ms, the third one 250 ms; the grid of 100 ms holds."""
    time = FakeTime(6)
    runner, starts = taking(time, "fake", [30, 30, 250, 30])
    assert run(time, runner).names == []
    assert starts == [0, 100, 200, 500, 600, 700]
    health = runner.health
    assert (health.skipped, health.reads) == (2, 6)
    assert (health.last_duration_s, health.longest_duration_s) == (0.03, 0.25)


def test_sensors_of_one_beat_keep_periods_of_their_own() -> None:
    time = FakeTime(21)
    quick, quick_starts = taking(time, "quick", [1])
    calm, calm_starts = taking(time, "calm", [2], period_s=1.0)
    run(time, quick, calm)
    assert calm_starts == [1, 1000 + 1, 2000 + 1]
    assert quick_starts == [100 * n for n in range(21)]


def test_a_slow_sensor_gets_a_thread_of_its_own_but_not_for_a_slow_start() -> None:
    time = FakeTime(8)
    slow_start, _ = taking(time, "slow_start", [900, 1])
    slow, _ = taking(time, "slow", [1, 1, 300, 1])
    quick, quick_starts = taking(time, "quick", [1])
    assert run(time, slow_start, slow, quick).names == [["slow"]]
    assert quick_starts[2:] == [1401, 1501, 1601, 1701]
    alone = FakeTime(3)
    assert run(alone, taking(alone, "slow", [1, 300])[0]).names == []


def test_a_stuck_sensor_keeps_its_thread_and_the_others_go_on() -> None:
    time, stuck_now = FakeTime(10**9), [False]
    spawned = Spawned()
    quick, quick_starts = taking(time, "quick", [1])

    def poll() -> list[CounterReading]:
        if len(quick_starts) < 3:
            return []
        time.now_ns += NS_PER_S - 1
        beat.watch()
        assert spawned.names == []
        time.now_ns += 1
        beat.watch()
        beat.watch()
        stuck_now[0] = stuck.health.state is SensorState.STUCK
        raise Absent("gone at last")

    source = Source("stuck", 0.1, lambda: (GPU1,), poll, lambda: None)
    stuck = SensorRunner(source, accept, clock=time.clock)
    beat = Beat("test", [stuck, quick], spawned, clock=time.clock, wait=time.wait)
    before = 3
    beat.run()
    assert stuck_now == [True]
    assert (stuck.health.state, stuck.health.failures) == (SensorState.ABSENT, 1)
    assert spawned.names == [["quick"]]
    assert len(quick_starts) == before, "two threads drove one sensor"


def test_a_sensor_that_blocks_for_ever_holds_up_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """The same with real threads: the bank's way of watching and spawning."""
    caplog.set_level(logging.INFO)
    blocked, released, read = threading.Event(), threading.Event(), threading.Event()
    now_ns = [0]
    slow = FakeSensor([GPU0], [[]], name="slow")
    spawned: list[Beat] = []

    def block() -> None:
        blocked.set()
        released.wait()

    def emit(evidence: Sequence[Evidence]) -> bool:
        if any(isinstance(item, CounterReading) for item in evidence):
            read.set()
        return True

    def spawn(runners: tuple[SensorRunner, ...]) -> None:
        spawned.append(Beat("new", runners, spawn))
        spawned[-1].start()

    slow.open_with = block
    quick = FakeSensor([GPU1], [[CounterReading("gpu1", i, i)] for i in range(1000)], name="quick")
    def clock() -> int:
        return now_ns[0] + 2**62

    runners = [SensorRunner(Source.of(sensor), emit, clock=clock) for sensor in (slow, quick)]
    beat = Beat("first", runners, spawn, clock=clock)
    beat.start()
    assert blocked.wait(30)
    now_ns[0] += 5 * NS_PER_S
    beat.watch()
    assert read.wait(30)
    for each in (beat, *spawned):
        each.ask_to_stop()
    spawned[0].join(30)
    assert (quick.closed, runners[0].health.state) == (1, SensorState.STUCK)
    assert [m for m in caplog.messages if "sensor_stuck" in m and "sensor=slow" in m]
    released.set()
    beat.join(30)
    assert slow.closed == 1


@pytest.mark.parametrize("finding", [Absent("no driver here"), Denied("no", "run chmod")])
def test_a_sensor_that_is_not_here_leaves_and_is_closed(finding: Exception) -> None:
    time = FakeTime(3)
    gone = FakeSensor([], [finding], name="gone")
    quick, starts = taking(time, "quick", [1])
    run(time, SensorRunner(Source.of(gone), accept, clock=time.clock), quick)
    assert (gone.closed, gone.opened, len(starts)) == (1, 1, 3)


def test_a_close_that_raises_hurts_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    time = FakeTime(3)
    quick, starts = taking(time, "quick", [1])

    def fail() -> None:
        raise OSError("stale handle")

    def find() -> tuple[Device, ...]:
        raise Absent("none here")

    odd = SensorRunner(Source("odd", 0.1, find, list, fail), accept, clock=time.clock)
    run(time, odd, quick)
    assert len(starts) == 3
    assert "sensor=odd" in caplog.text
    assert "stale handle" in caplog.text


def test_failures_are_tried_again_later_and_later() -> None:
    time = FakeTime(9)
    sensor = FakeSensor([GPU0], [OSError("bus")] * 9)
    run(time, SensorRunner(Source.of(sensor), accept, clock=time.clock))
    assert time.waits == [0, 1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_a_costly_sensor_is_slowed_down_while_its_driver_is_slow_and_no_longer() -> None:
    time = FakeTime(14)
    spent = [10, 10, 10, 240, 240, 240, 10, 10, 10, 10, 10, 10, 10, 10]
    runner, starts = taking(time, "use", spent, period_s=1.0, costly=True)
    periods: list[float] = []

    def wait(seconds: float) -> bool:
        periods.append(runner.health.period_s)
        return time.wait(seconds)

    Beat("test", [runner], Spawned(), clock=time.clock, wait=wait).run()
    assert set(periods) == {1.0, 4.8}
    assert (periods[-1], runner.health.throttles) == (1.0, 1)
    assert starts == sorted(starts)


def test_a_single_long_poll_slows_nothing_down() -> None:
    time = FakeTime(9)
    runner, _ = taking(time, "use", [10, 10, 10, 240, 10], period_s=1.0, costly=True)
    run(time, runner)
    assert runner.health.throttles == 0


def test_readings_are_handed_over_once_a_second_in_order_and_to_the_last() -> None:
    time, told = FakeTime(25), []

    def emit(evidence: Sequence[Evidence]) -> bool:
        told.append((time.now_ns // MS, list(evidence)))
        return True

    def poll() -> list[CounterReading]:
        return [CounterReading("gpu0", time.now_ns, time.now_ns)]

    source = Source("fake", 0.1, lambda: (GPU0,), poll, lambda: None)
    run(time, SensorRunner(source, emit, clock=time.clock))
    readings = [r for _, group in told for r in group if isinstance(r, CounterReading)]
    assert [r.t_ns // MS for r in readings] == [100 * n for n in range(25)]
    assert len(told) <= 5
    assert told[0][1] == [GPU0]


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


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        ([None] * 3, ["sample", "sample", "sample", "close"]),
        ([None, OSError("gone")], ["sample", "sample", "close"]),
    ],
)
def test_use_is_told_up_to_the_stop(answers: Sequence[object], told: list[str]) -> None:
    time, sensor = FakeTime(2), FakeUse(answers)
    evidence: list[Evidence] = []

    def take(items: Sequence[Evidence]) -> bool:
        evidence.extend(items)
        return True

    run(time, SensorRunner(Source.of_use(sensor, sensor.sample), take, clock=time.clock))
    assert sensor.told == told
    assert len([e for e in evidence if isinstance(e, UseRecord)]) == answers.count(None)
