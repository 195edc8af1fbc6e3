"""Sensors that do not come back, and the end: nobody waits, nothing is lost, and all is told."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

import pytest

from fakes.beats import FakeTime, FakeUse, Spawned, accept, taking
from fakes.daemon_parts import FakeSensor
from wattledger.records import NS_PER_S, CounterReading, Device, DeviceKind, Evidence
from wattledger_collectors.sensors.protocol import Absent
from wattledger_daemon.beats import Beat
from wattledger_daemon.sampling import SensorRunner, SensorState, Source

GPU0, GPU1 = (Device(name, DeviceKind.GPU) for name in ("gpu0", "gpu1"))


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

    def clock() -> int:
        return now_ns[0]

    def block() -> None:
        blocked.set()
        released.wait()

    def emit(evidence: Sequence[Evidence]) -> bool:
        if any(isinstance(item, CounterReading) for item in evidence):
            read.set()
        return True

    def spawn(runners: tuple[SensorRunner, ...]) -> None:
        spawned.append(Beat("new", runners, spawn, clock=clock))
        spawned[-1].start()

    slow.open_with = block
    quick = FakeSensor([GPU1], [[CounterReading("gpu1", i, i)] for i in range(1000)], name="quick")
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


def test_a_sensor_alone_is_stuck_too_and_says_since_when(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    time, spawned = FakeTime(4), Spawned()
    told: list[tuple[str, str, int, bool]] = []

    def look() -> None:
        beat.watch()
        health = runner.health
        told.append((health.state.value, health.reason, health.failures, runner.settled))

    def poll() -> list[CounterReading]:
        if runner.health.reads == 2 and not told:
            time.now_ns += NS_PER_S - 1
            look()
            time.now_ns += 1
            look()
            time.now_ns += 26 * NS_PER_S + 1
            look()
        return []

    source = Source("lone", 0.1, lambda: (GPU0,), poll, lambda: None)
    runner = SensorRunner(source, accept, clock=time.clock)
    beat = Beat("test", [runner], spawned, clock=time.clock, wait=time.wait)
    beat.run()
    assert told == [
        ("running", "", 0, True),
        ("stuck", "in a call since 1 s", 1, False),
        ("stuck", "in a call since 27 s", 1, False),
    ]
    assert (runner.health.state, runner.health.reason) == (SensorState.RUNNING, "")
    assert (spawned.names, runner.health.reads) == ([], 4)
    assert caplog.messages == [
        "event=sensor_running sensor=lone",
        'event=sensor_stuck sensor=lone mend="it has its thread to itself"',
        "event=sensor_back sensor=lone after_s=27.0",
    ]


def test_a_meter_of_a_long_period_may_take_it_but_holds_up_nobody() -> None:
    """A management controller, say, that is asked each 4 s and answers after 3."""
    time, spawned = FakeTime(50), Spawned()
    quick, _ = taking(time, "quick", [1])
    states: list[SensorState] = []

    def poll() -> list[CounterReading]:
        if calm.health.reads == 1:
            for _ in range(4):
                time.now_ns += NS_PER_S
                beat.watch()
                states.append(calm.health.state)
        return []

    source = Source("calm", 4.0, lambda: (GPU1,), poll, lambda: None)
    calm = SensorRunner(source, accept, clock=time.clock)
    beat = Beat("test", [quick, calm], spawned, clock=time.clock, wait=time.wait)
    beat.run()
    assert states == [*[SensorState.RUNNING] * 3, SensorState.STUCK]
    assert spawned.names == [["quick"]]


def test_a_turn_that_was_over_just_before_it_was_found_stuck_leaves_no_trace() -> None:
    """Watched between the poll's end and the turn's: a state that nothing else would undo."""
    time = FakeTime(2)
    stuck: list[SensorState] = []

    def refuse(_: Sequence[Evidence]) -> bool:
        time.now_ns += 6 * NS_PER_S
        beat.watch()
        stuck.append(runner.health.state)
        return False

    source = Source("odd", 0.1, lambda: (GPU0,), list, lambda: None)
    runner = SensorRunner(source, refuse, clock=time.clock)
    beat = Beat("test", [runner], Spawned(), clock=time.clock, wait=time.wait)
    beat.run()
    assert stuck == [SensorState.STUCK] * 2
    assert runner.health.state is SensorState.STARTING


def test_at_the_end_a_close_that_hangs_costs_nobody_a_reading() -> None:
    """The first sensor's close sees what was handed over before it: all of it."""
    time = FakeTime(15)
    told: list[CounterReading] = []
    seen: list[int] = []

    def emit(evidence: Sequence[Evidence]) -> bool:
        told.extend(item for item in evidence if isinstance(item, CounterReading))
        return True

    def poll() -> list[CounterReading]:
        return [CounterReading("gpu0", time.now_ns, time.now_ns)]

    def hang() -> None:
        seen.append(len(told))

    sources = [
        Source("hangs", 0.1, lambda: (GPU0,), poll, hang),
        Source("quick", 0.1, lambda: (GPU0,), poll, lambda: None),
    ]
    use = FakeUse([None] * 9)
    runners = [SensorRunner(source, emit, clock=time.clock) for source in sources]
    runners.append(SensorRunner(Source.of_use(use, use.sample), emit, clock=time.clock))
    Beat("test", runners, Spawned(), clock=time.clock, wait=time.wait).run()
    assert seen == [2 * 15]
    assert use.told[-2:] == ["sample", "close"]


def test_a_slow_sensor_stays_where_it_is_once_the_stop_is_asked_for() -> None:
    time, spawned = FakeTime(9), Spawned()
    quick, quick_starts = taking(time, "quick", [1])

    def poll() -> list[CounterReading]:
        if slow.health.reads == 3:
            beat.ask_to_stop()
            time.now_ns += 2 * NS_PER_S
            beat.watch()
        return []

    source = Source("slow", 0.1, lambda: (GPU1,), poll, lambda: None)
    slow = SensorRunner(source, accept, clock=time.clock)
    beat = Beat("test", [slow, quick], spawned, clock=time.clock, wait=time.wait)
    beat.run()
    assert spawned.names == []
    assert quick_starts[3] >= 2300, "nobody drove it any more"
