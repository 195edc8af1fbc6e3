"""Sensor threads: whatever a sensor does, nobody else notices and the log stays short."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import pytest

from fakes.daemon_parts import FakeSensor
from wattledger.records import (
    CounterReading,
    Device,
    DeviceKind,
    Evidence,
)
from wattledger_collectors.sensors.protocol import Absent, Denied, DevicesChanged, ReadFault
from wattledger_daemon.sampling import SensorRunner, SensorState, Source

GPU0, GPU1 = (Device(name, DeviceKind.GPU) for name in ("gpu0", "gpu1"))


class Sink:
    """Where readings go; refuses them while `full`."""

    def __init__(self) -> None:
        self.evidence: list[Evidence] = []
        self.full = False

    def __call__(self, evidence: Sequence[Evidence]) -> bool:
        if not self.full:
            self.evidence += evidence
        return not self.full


def reading(t_ns: int, device: str = "gpu0") -> CounterReading:
    return CounterReading(device, t_ns, t_ns)


def fault(t_ns: int, device: str = "gpu1") -> ReadFault:
    return ReadFault(device, t_ns, "GPU is lost")


def driven(sensor: FakeSensor, times: int) -> tuple[SensorRunner, Sink]:
    sink = Sink()
    runner = SensorRunner(Source.of(sensor), sink)
    for _ in range(times):
        runner.tick()
    return runner, sink


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


@pytest.fixture(autouse=True)
def _all_levels(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)


def test_devices_come_before_their_readings() -> None:
    runner, sink = driven(FakeSensor([GPU0], [[reading(1)], [], [reading(2)]]), 3)
    assert sink.evidence == [GPU0, reading(1), reading(2)]
    assert (runner.health.state, runner.health.reads) == (SensorState.RUNNING, 3)


def test_a_device_that_the_queue_refused_is_told_again() -> None:
    sensor, sink = FakeSensor([GPU0], [[reading(1)]]), Sink()
    runner = SensorRunner(Source.of(sensor), sink)
    sink.full = True
    assert not runner.tick()
    sink.full = False
    assert runner.tick()
    assert sink.evidence == [GPU0, reading(1)]


def test_a_sensor_that_raises_is_told_once_and_opened_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sensor = FakeSensor([GPU0], [[reading(1)], OSError("bus"), ValueError("odd"), [reading(2)]])
    runner, sink = driven(sensor, 4)
    assert told(caplog) == [
        "event=sensor_running sensor=fake",
        'event=sensor_failing sensor=fake reason="OSError: bus" was=running',
    ]
    assert (runner.health.failures, sensor.opened) == (2, 3)
    assert (runner.health.state, runner.health.reason) == (SensorState.RUNNING, "")
    assert sink.evidence[-1] == reading(2)


def test_absent_is_told_as_information_and_denied_as_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    driven(FakeSensor([GPU0], [Absent("no driver here")]), 1)
    driven(FakeSensor([GPU0], [Denied("energy_uj is not readable", "run chmod")]), 1)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", 'event=sensor_absent sensor=fake reason="no driver here"'),
        (
            "WARNING",
            'event=sensor_denied sensor=fake reason="energy_uj is not readable; run chmod"',
        ),
    ]


def test_a_fault_of_one_device_leaves_the_others_and_is_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    answers = [[reading(1), fault(1)], [reading(2), fault(2)], [reading(3)], [reading(4, "gpu1")]]
    runner, sink = driven(FakeSensor([GPU0, GPU1], answers), 4)
    assert sink.evidence[2:] == [reading(1), reading(2), reading(3), reading(4, "gpu1")]
    assert told(caplog) == [
        'event=read_fault sensor=fake device=gpu1 reason="GPU is lost"',
        "event=sensor_running sensor=fake",
    ]
    assert (runner.health.failures, runner.health.state) == (2, SensorState.RUNNING)


def test_devices_that_come_later_are_told_and_read_at_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sensor = FakeSensor(
        [GPU0],
        [[reading(1)], DevicesChanged("gpu1 was plugged in"), [reading(2), reading(2, "gpu1")]],
    )
    sensor.open_with = lambda: sensor.grow(GPU1) if sensor.opened == 2 else None
    runner, sink = driven(sensor, 2)
    assert sink.evidence == [GPU0, reading(1), GPU0, GPU1, reading(2), reading(2, "gpu1")]
    assert (runner.health.state, runner.health.failures) == (SensorState.RUNNING, 0)
    assert told(caplog)[1] == 'event=devices_changed sensor=fake what="gpu1 was plugged in"'


def test_a_reading_of_an_unknown_device_never_reaches_the_books() -> None:
    runner, sink = driven(FakeSensor([GPU0], [[reading(1, "gpu9")]]), 1)
    assert runner.health.state is SensorState.FAILING
    assert "gpu9" in runner.health.reason
    assert sink.evidence == [GPU0]


def test_what_somebody_waits_for_is_handed_over_at_the_next_poll() -> None:
    now_ns = [0]
    sensor, sink = FakeSensor([GPU0], [[reading(n)] for n in range(1, 9)]), Sink()
    runner = SensorRunner(Source.of(sensor), sink, clock=lambda: now_ns[0])

    def polls(times: int) -> int:
        """How many readings have come after so many polls more."""
        for _ in range(times):
            runner.turn()
            now_ns[0] += 100_000_000
        return len(sink.evidence) - 1

    # The first is told with its device, the others once a second.
    assert polls(4) == 1
    runner.asked = True
    assert polls(1) == 5
    assert polls(3) == 5
