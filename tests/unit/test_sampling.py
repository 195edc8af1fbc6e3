"""Sensor threads: whatever a sensor does, nobody else notices and the log stays short."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Sequence

import pytest

from fakes.daemon_parts import FakeSensor
from wattledger.errors import InputError
from wattledger.records import (
    CounterReading,
    Device,
    DeviceKind,
    Evidence,
    Process,
    StaticBasis,
    UseRecord,
)
from wattledger_collectors.sensors.protocol import Absent, Denied, ReadFault
from wattledger_daemon.bank import SensorBank
from wattledger_daemon.config import DaemonConfig, SensorsConfig
from wattledger_daemon.sampling import SensorRunner, SensorState, Source

GPU0, GPU1 = (Device(name, DeviceKind.GPU) for name in ("gpu0", "gpu1"))
CPU0 = Device("cpu0", DeviceKind.CPU)
DEFAULTS = DaemonConfig()


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
        "event=sensor_running sensor=fake was=failing",
    ]
    assert (runner.health.failures, sensor.opened) == (2, 3)
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


def test_a_fault_of_one_device_leaves_the_others_and_is_told_on_change(
    caplog: pytest.LogCaptureFixture,
) -> None:
    answers = [[reading(1), fault(1)], [reading(2), fault(2)], [reading(3)], [reading(4, "gpu1")]]
    runner, sink = driven(FakeSensor([GPU0, GPU1], answers), 4)
    assert sink.evidence[2:] == [reading(1), reading(2), reading(3), reading(4, "gpu1")]
    assert told(caplog) == [
        'event=read_fault sensor=fake device=gpu1 reason="GPU is lost"',
        "event=sensor_running sensor=fake",
        "event=read_again sensor=fake device=gpu1",
    ]
    assert (runner.health.failures, runner.health.state) == (2, SensorState.RUNNING)


def test_a_reading_of_an_unknown_device_never_reaches_the_books() -> None:
    runner, sink = driven(FakeSensor([GPU0], [[reading(1, "gpu9")]]), 1)
    assert runner.health.state is SensorState.FAILING
    assert "gpu9" in runner.health.reason
    assert sink.evidence == [GPU0]


def test_a_sensor_that_blocks_delays_nobody_else() -> None:
    blocked, released, read = threading.Event(), threading.Event(), threading.Event()
    slow = FakeSensor([GPU0], [[]], name="slow")

    def block() -> None:
        blocked.set()
        released.wait()

    slow.open_with = block
    quick = FakeSensor([GPU1], [[reading(i, "gpu1")] for i in range(1000)], name="quick")
    slow_runner = SensorRunner(Source.of(slow), Sink())

    def emit(evidence: Sequence[Evidence]) -> bool:
        if any(isinstance(item, CounterReading) for item in evidence):
            read.set()
        return True

    quick_runner = SensorRunner(Source.of(quick), emit)
    slow_runner.start()
    assert blocked.wait(30)
    quick_runner.start()
    assert read.wait(30)
    for runner in (slow_runner, quick_runner):
        runner.ask_to_stop()
    quick_runner.join(30)
    slow_runner.join(0)
    assert quick.closed == 1
    assert slow_runner.health.state is SensorState.STARTING
    released.set()
    slow_runner.join(30)
    assert slow.closed == 1


def test_deadlines_are_absolute_and_missed_ticks_are_skipped() -> None:
    """Each read takes 30 ms, the third one 250 ms; the grid of 100 ms holds."""
    now_ns, starts = [0], []
    sensor = FakeSensor([GPU0])

    def poll() -> list[CounterReading]:
        starts.append(now_ns[0] // 1_000_000)
        now_ns[0] += 250_000_000 if len(starts) == 3 else 30_000_000
        return []

    def wait(seconds: float) -> bool:
        now_ns[0] += round(seconds * 1e9)
        return len(starts) == 6

    source = Source("fake", 0.1, sensor.open, poll, sensor.close)
    SensorRunner(source, Sink(), clock=lambda: now_ns[0], wait=wait).run()
    assert starts == [0, 100, 200, 500, 600, 700]


def test_failures_are_tried_again_later_and_later() -> None:
    waits: list[float] = []

    def wait(seconds: float) -> bool:
        waits.append(seconds)
        return len(waits) == 9

    sensor = FakeSensor([GPU0], [OSError("bus")] * 9)
    SensorRunner(Source.of(sensor), Sink(), clock=lambda: 0, wait=wait).run()
    assert waits == [0, 1, 2, 4, 8, 16, 32, 60, 60]


class FakeUse:
    """A use sensor that counts its samples."""

    name = "use"
    period_s = 1.0
    beside: tuple[str, ...] = ()

    def __init__(self, answers: Sequence[object]) -> None:
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
    sensor, waits, sink = FakeUse(answers), [0], Sink()

    def wait(_: float) -> bool:
        waits[0] += 1
        return waits[0] == 3

    source = Source.of_use(sensor, sensor.sample)
    SensorRunner(source, sink, clock=lambda: 0, wait=wait).run()
    assert sensor.told == told
    uses = [item for item in sink.evidence if isinstance(item, UseRecord)]
    assert len(uses) == answers.count(None)


# ------------------------------------------------------------------------ the bank


def a_bank(rapl: FakeSensor | None, config: DaemonConfig = DEFAULTS) -> tuple[SensorBank, Sink]:
    sink = Sink()
    sensors = {"estimate": FakeSensor([CPU0], [[]] * 9, name="estimate")}
    if rapl is not None:
        sensors["rapl"] = rapl
    found = {name: lambda _, sensor=sensor: sensor for name, sensor in sensors.items()}
    return SensorBank(config, sink, found), sink


def states(bank: SensorBank) -> dict[str, str]:
    for runner in bank.runners:
        runner.tick()
    return {health.name: health.state.value for health in bank.health()}


@pytest.mark.parametrize(
    ("rapl", "estimate"),
    [
        (FakeSensor([CPU0], [[]], name="rapl"), "absent"),
        (FakeSensor([Device("dram0", DeviceKind.DRAM)], [[]], name="rapl"), "running"),
        (FakeSensor([], [Absent("a virtual machine")], name="rapl"), "running"),
        (FakeSensor([CPU0], [OSError("bus")], name="rapl"), "starting"),
        (None, "running"),
    ],
)
def test_the_estimate_stands_in_only_where_rapl_gives_no_cpu(
    rapl: FakeSensor | None, estimate: str
) -> None:
    bank, _ = a_bank(rapl)
    assert states(bank)["estimate"] == estimate


def test_config_turns_sensors_off_and_requires_them() -> None:
    off = DaemonConfig(sensors=SensorsConfig(estimate="off"))
    bank, _ = a_bank(None, off)
    assert states(bank) == {"cpu_use": "running"}
    needed = DaemonConfig(sensors=SensorsConfig(rapl="require", nvml="require"))
    bank, _ = a_bank(FakeSensor([], [Absent("a virtual machine")], name="rapl"), needed)
    with pytest.raises(InputError, match=r'sensors.nvml = "require": it is not installed'):
        bank.require()
    needed = DaemonConfig(sensors=SensorsConfig(rapl="require"))
    bank, _ = a_bank(FakeSensor([], [Absent("a virtual machine")], name="rapl"), needed)
    with pytest.raises(InputError, match=r'sensors.rapl = "require": a virtual machine: mend'):
        bank.require()
    bank, _ = a_bank(FakeSensor([CPU0], [[]], name="rapl"), needed)
    bank.require()


def test_idle_power_from_the_config_can_change_while_running() -> None:
    bank, sink = a_bank(FakeSensor([CPU0], [[]] * 9, name="rapl"))
    assert states(bank)["rapl"] == "running"
    assert [item for item in sink.evidence if isinstance(item, Device)] == [CPU0]
    dressed = Device("cpu0", DeviceKind.CPU, static_w=12.0, static_basis=StaticBasis.CONFIG)
    assert bank.set_static_w({"cpu0": 12.0}) == (dressed,)
    assert bank.set_static_w({}) == (CPU0,)
