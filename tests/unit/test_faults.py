"""Faults in the log: few lines, and each of them true, however often a source comes and goes."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattledger.records import NS_PER_S, CounterReading, Device, DeviceKind
from wattledger_collectors.sensors.protocol import ReadFault
from wattledger_daemon.faults import QUIET_NS, FaultLog
from wattledger_daemon.sampling import Polled, SensorRunner, SensorState, Source

GPU0 = Device("gpu0", DeviceKind.GPU)
RUNNING = "event=sensor_running sensor=nvml"
LOST = 'event=read_fault sensor=nvml device=gpu0 reason="GPU is lost"'


class Driven:
    """A sensor driven through fake time, ten polls a second, that answers by what time it is."""

    def __init__(
        self, answer: Callable[[float], Polled], period_s: float = 0.1, *, costly: bool = False
    ) -> None:
        self.now_ns = 0
        self.polls_s: list[float] = []

        def poll() -> Polled:
            self.polls_s.append(self.now_ns / NS_PER_S)
            return answer(self.polls_s[-1])

        source = Source("nvml", period_s, lambda: (GPU0,), poll, lambda: None, costly)
        self.runner = SensorRunner(source, lambda _: True, clock=lambda: self.now_ns)

    def until(self, end_s: float) -> Driven:
        while self.runner.due_ns < end_s * NS_PER_S:
            self.now_ns = max(self.now_ns, self.runner.due_ns)
            self.runner.turn()
        return self


def lost(now_s: float) -> Polled:
    return [ReadFault("gpu0", round(now_s * NS_PER_S), "GPU is lost")]


def read(now_s: float) -> Polled:
    return [CounterReading("gpu0", round(now_s * NS_PER_S), round(now_s * 1e6))]


@pytest.fixture(autouse=True)
def _all_levels(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)


def test_a_device_lost_in_the_middle_of_a_second_is_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    driven = Driven(lambda s: read(s) if s < 5.45 else lost(s)).until(200)
    driven.runner.flush()
    assert caplog.messages == [RUNNING, LOST]
    assert driven.runner.health.failures == len([s for s in driven.polls_s if s >= 5.45])


def test_a_device_is_read_again_after_a_minute_without_a_fault(
    caplog: pytest.LogCaptureFixture,
) -> None:
    driven = Driven(lambda s: lost(s) if 5 <= s < 5.25 or s == 30 else read(s)).until(90)
    assert caplog.messages == [RUNNING, LOST]
    driven.until(93)
    assert caplog.messages[2:] == ["event=read_again sensor=nvml device=gpu0 faults=4"]
    Driven(lambda s: lost(s) if s == 5 else read(s)).until(10)
    assert caplog.messages[3:] == [RUNNING, LOST]


def test_a_device_that_is_not_read_is_not_read_again(caplog: pytest.LogCaptureFixture) -> None:
    """As one that its sensor leaves alone for longer than that after each fault."""
    Driven(lambda s: lost(s) if s % 90 == 0 else []).until(300)
    assert caplog.messages == [LOST, RUNNING]


def test_what_comes_together_with_a_fault_does_not_begin_the_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Else a sensor that tries once a minute could be told well at the moment it fails again."""
    faults = FaultLog("nvml")
    faults.device_failed(ReadFault("gpu0", 0, "GPU is lost"))
    for now_ns in (0, NS_PER_S, QUIET_NS, NS_PER_S + QUIET_NS - 1):
        faults.look(now_ns, {"gpu0"})
    assert caplog.messages == [LOST]
    faults.look(NS_PER_S + QUIET_NS, {"gpu0"})
    assert caplog.messages[1:] == ["event=read_again sensor=nvml device=gpu0 faults=1"]


def test_a_use_sensor_is_well_where_it_tells_no_fault(caplog: pytest.LogCaptureFixture) -> None:
    Driven(lambda s: lost(s) if s == 5 else [], 1.0, costly=True).until(70)
    assert caplog.messages[2:] == ["event=read_again sensor=nvml device=gpu0 faults=1"]


def test_a_source_that_flaps_for_an_hour_takes_two_lines(caplog: pytest.LogCaptureFixture) -> None:
    driven = Driven(lambda s: read(s) if int(s) % 2 else lost(s)).until(3600)
    assert caplog.messages == [LOST, RUNNING]
    assert driven.runner.health.failures > 10_000


def test_a_sensor_that_raises_now_and_then_is_told_once_and_left_alone_for_longer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    failing = [True]

    def answer(now_s: float) -> Polled:
        failing.append(now_s < 600 and not failing[-1])
        if failing[-1]:
            raise OSError("broken")
        return read(now_s)

    driven = Driven(answer).until(600)
    told = [RUNNING, 'event=sensor_failing sensor=nvml reason="OSError: broken" was=running']
    assert caplog.messages == told
    waits = [b - a for a, b in zip(driven.polls_s, driven.polls_s[1:], strict=False) if b - a > 0.9]
    assert waits[:7] == pytest.approx([1, 2, 4, 8, 16, 32, 60])
    assert driven.runner.health.failures == failing.count(True) - 1
    driven.until(720)
    assert driven.runner.health.state is SensorState.RUNNING
    faults = driven.runner.health.failures
    assert caplog.messages[-1] == f"{RUNNING} was=failing faults={faults}"


def test_backoff_begins_anew_only_after_the_quiet(caplog: pytest.LogCaptureFixture) -> None:
    raises = {5.0, 7.0, 80.0}

    def answer(now_s: float) -> Polled:
        for at_s in raises:
            if now_s >= at_s:
                raises.discard(at_s)
                raise OSError("broken")
        return read(now_s)

    driven = Driven(answer).until(90)
    waits = [b - a for a, b in zip(driven.polls_s, driven.polls_s[1:], strict=False) if b - a > 0.9]
    assert waits == pytest.approx([1, 2, 1])
    assert [m.split()[0] for m in caplog.messages] == [
        "event=sensor_running",
        "event=sensor_failing",
        "event=sensor_running",
        "event=sensor_failing",
    ]


def test_calls_that_hang_are_told_and_their_end_too(caplog: pytest.LogCaptureFixture) -> None:
    faults = FaultLog("nvml")
    faults.stuck()
    faults.back(2_500_000_000)
    stuck = 'event=sensor_stuck sensor=nvml mend="it has its thread to itself"'
    assert caplog.messages == [stuck, "event=sensor_back sensor=nvml after_s=2.5"]
    for _ in range(5):
        faults.look(0, None)
        faults.stuck()
        faults.back(2_500_000_000)
    assert caplog.messages[2:] == [stuck]
    for now_ns in (0, 1, QUIET_NS, QUIET_NS + 1):
        faults.look(now_ns, None)
    assert caplog.messages[3:] == ["event=sensor_back sensor=nvml faults=6"]
    assert not faults.open


@given(st.lists(st.sampled_from(["fault", "good", "pause"]), max_size=200))
def test_lines_alternate_and_the_last_one_is_true(script: list[str]) -> None:
    """Law: fault and again take turns, a minute of good answers apart, and no fault is lost."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("wattledger_daemon.faults")
    logger.addHandler(handler)
    try:
        faults, now_ns, last_fault_ns, count = FaultLog("nvml"), 0, None, 0
        for what in script:
            now_ns += (20 if what == "pause" else 1) * NS_PER_S
            before = len(lines)
            if what == "fault":
                faults.device_failed(ReadFault("gpu0", now_ns, "GPU is lost"))
                last_fault_ns, count = now_ns, count + 1
                assert lines[before:] == ([LOST] if count == 1 else [])
            elif what == "good":
                faults.look(now_ns, {"gpu0"})
            for line in lines[before:] if what == "good" else []:
                assert last_fault_ns is not None
                assert now_ns - last_fault_ns >= QUIET_NS
                assert line == f"event=read_again sensor=nvml device=gpu0 faults={count}"
                count = 0
    finally:
        logger.removeHandler(handler)
    assert faults.open is (count > 0)
