"""Threads of sensors: deadlines hold, and nobody waits for one that is slow or stuck."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from fakes.beats import FakeTime, FakeUse, Spawned, accept, taking
from fakes.daemon_parts import FakeSensor
from wattledger.records import (
    CounterReading,
    Device,
    DeviceKind,
    Evidence,
    UseRecord,
)
from wattledger_collectors.sensors.protocol import Absent, Denied
from wattledger_daemon.beats import Beat
from wattledger_daemon.sampling import SensorRunner, Source

GPU0 = Device("gpu0", DeviceKind.GPU)
MS = 1_000_000


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
