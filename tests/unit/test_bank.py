"""The bank: what joins the sensors, the estimate's turn above all, and their end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from fakes.daemon_parts import FakeSensor
from wattledger.errors import InputError
from wattledger.records import (
    NS_PER_S,
    CounterReading,
    Device,
    DeviceKind,
    Evidence,
    PowerReading,
    StaticBasis,
)
from wattledger_collectors.sensors.protocol import Absent, Reading
from wattledger_daemon.bank import SensorBank
from wattledger_daemon.config import DaemonConfig, SensorsConfig

CPU0 = Device("cpu0", DeviceKind.CPU, wrap_uj=2**32)
DRAM0 = Device("dram0", DeviceKind.DRAM)
GUESS = Device("cpu0", DeviceKind.CPU, estimated=True)
GPU0, GPU1 = (Device(name, DeviceKind.GPU) for name in ("gpu0", "gpu1"))
DEFAULTS = DaemonConfig()


class Sink:
    """Where readings go; what is to happen `before` one is taken."""

    def __init__(self) -> None:
        self.evidence: list[Evidence] = []
        self.before: Callable[[], None] = lambda: None

    def __call__(self, evidence: Sequence[Evidence]) -> bool:
        self.before()
        self.evidence += evidence
        return True


def a_bank(
    *sensors: FakeSensor | None,
    config: DaemonConfig = DEFAULTS,
    clock: Callable[[], int] = time.monotonic_ns,
) -> tuple[SensorBank, Sink]:
    """A bank with an estimate that tells its guess at each read."""
    sink = Sink()
    answers = [[PowerReading("cpu0", n, 1)] for n in range(99)]
    every = [FakeSensor([GUESS], answers, name="estimate"), *filter(None, sensors)]
    found = {one.name: lambda _, sensor=one: sensor for one in every}
    return SensorBank(config, sink, found, {}, clock=clock), sink


def states(bank: SensorBank) -> dict[str, str]:
    for runner in bank.runners:
        runner.tick()
    return {health.name: health.state.value for health in bank.health()}


def rapl(answers: Sequence[object], devices: Sequence[Device] = (CPU0,)) -> FakeSensor:
    return FakeSensor(devices, answers, name="rapl")


def opening(sensor: FakeSensor, *faults: Exception) -> FakeSensor:
    """The sensor, whose first openings fail."""

    def fail() -> None:
        if sensor.opened <= len(faults):
            raise faults[sensor.opened - 1]

    sensor.open_with = fail
    return sensor


# -------------------------------------------------------------------- the estimate


@pytest.mark.parametrize(
    ("meter", "estimate"),
    [
        (rapl([[]]), "absent"),
        (rapl([[]], [DRAM0]), "running"),
        (rapl([Absent("a virtual machine")], []), "running"),
        (opening(rapl([]), OSError("bus")), "running"),
        (rapl([OSError("bus")]), "absent"),
        (None, "running"),
    ],
)
def test_the_estimate_stands_in_only_where_rapl_gives_no_cpu(
    meter: FakeSensor | None, estimate: str
) -> None:
    bank, _ = a_bank(meter)
    assert states(bank)["estimate"] == estimate


def test_the_estimate_goes_before_the_books_hear_of_a_measured_cpu() -> None:
    bank, sink = a_bank(opening(rapl([[CounterReading("cpu0", 7, 7)], []]), OSError("bus")))
    assert states(bank)["estimate"] == "running"
    assert bank.devices == (GUESS,)
    measured = bank.runners[0]
    assert measured.tick()
    assert bank.devices == (CPU0,)
    at_once = len(sink.evidence)
    assert bank.set_static_w({}) == (CPU0,)
    assert states(bank)["estimate"] == "absent"
    assert bank.health()[1].reason == "another sensor measures this"
    estimate = bank.runners[1]
    assert (estimate.over, estimate.devices) == (True, ())
    assert sink.evidence[:at_once] == [
        GUESS,
        PowerReading("cpu0", 0, 1),
        CPU0,
        CounterReading("cpu0", 7, 7),
    ]
    assert sink.evidence[at_once:] == [CPU0]


def test_an_estimate_that_opens_while_rapl_does_comes_second_and_is_silent() -> None:
    """RAPL's Device line is on its way when the estimate, on another thread, has its turn."""
    bank, sink = a_bank(opening(rapl([[]]), OSError("bus")))
    measured, estimate = bank.runners[:2]
    worked: list[bool] = []
    sink.before = lambda: worked.append(estimate.tick()) if not worked else None
    assert not measured.tick()
    assert measured.tick()
    assert (worked, estimate.over, sink.evidence) == ([False], True, [CPU0])


def test_the_estimate_looks_each_second_while_rapl_is_in_its_opening_and_then_begins() -> None:
    """RAPL hangs in its opening for 30 s, from the first second on; then it opens after all."""
    now_s = [0.0]
    meter = rapl([[CounterReading("cpu0", 30 * NS_PER_S, 1)]])
    bank, sink = a_bank(meter, clock=lambda: round(now_s[0] * NS_PER_S))
    measured, estimate = bank.runners[:2]
    seen: list[tuple[float, str, str]] = []

    def hang() -> None:
        for second in range(1, 31):
            now_s[0] = float(second)
            if second == 5:
                measured.hang(0)
            while estimate.due_ns <= now_s[0] * NS_PER_S:
                estimate.turn()
            seen.append((now_s[0], estimate.health.state.value, estimate.health.reason))

    meter.open_with = hang
    assert measured.tick()
    now_s[0] += 1
    estimate.turn()
    assert seen[:10] == [(float(s), "starting", "waits for rapl") for s in range(1, 11)]
    assert {(state, reason) for _, state, reason in seen[10:]} == {("running", "")}
    assert (estimate.health.state.value, estimate.health.failures) == ("absent", 0)
    guesses = [isinstance(item, PowerReading) or item is GUESS for item in sink.evidence]
    assert guesses == sorted(guesses, reverse=True), "an estimate after the measured CPU's line"
    assert guesses.count(True) > 20, "the estimate told nothing meanwhile"
    assert sink.evidence[-2:] == [CPU0, CounterReading("cpu0", 30 * NS_PER_S, 1)]


# ---------------------------------------------------------------------- the config


def test_config_turns_sensors_off_and_requires_them() -> None:
    bank, _ = a_bank(config=DaemonConfig(sensors=SensorsConfig(estimate="off")))
    assert states(bank) == {}
    needed = DaemonConfig(sensors=SensorsConfig(rapl="require", nvml="require"))
    bank, _ = a_bank(rapl([Absent("a virtual machine")], []), config=needed)
    with pytest.raises(InputError, match=r'sensors.nvml = "require": it is not installed'):
        bank.require()
    needed = DaemonConfig(sensors=SensorsConfig(rapl="require"))
    bank, _ = a_bank(rapl([Absent("a virtual machine")], []), config=needed)
    with pytest.raises(InputError, match=r'sensors.rapl = "require": a virtual machine: mend'):
        bank.require()
    bank, _ = a_bank(rapl([[]]), config=needed)
    bank.require()


def test_idle_power_from_the_config_can_change_while_running() -> None:
    bank, sink = a_bank(rapl([[]] * 9))
    assert states(bank)["rapl"] == "running"
    assert [item for item in sink.evidence if isinstance(item, Device)] == [CPU0]
    dressed = replace(CPU0, static_w=12.0, static_basis=StaticBasis.CONFIG)
    assert bank.set_static_w({"cpu0": 12.0}) == (dressed,)
    assert bank.set_static_w({}) == (CPU0,)
    assert [item for item in sink.evidence if isinstance(item, Device)] == [CPU0, dressed, CPU0]


# ------------------------------------------------------------------------- the end


def test_a_slow_turn_while_the_bank_stops_leaves_no_thread_behind() -> None:
    """Real threads: the slow one is in its turn when the stop comes, and would get a thread."""
    slow, entered, go_on = FakeSensor([GPU0], [], name="slow"), threading.Event(), threading.Event()
    readings = iter(range(10**6))

    def read() -> list[Reading]:
        if next(readings) == 3:
            entered.set()
            go_on.wait(30)
        return []

    slow.read = read  # type: ignore[method-assign]
    quick = FakeSensor([GPU1], [[]] * 10**4, name="quick")
    found = {one.name: lambda _, sensor=one: sensor for one in (slow, quick)}
    before = set(threading.enumerate())
    bank = SensorBank(DEFAULTS, Sink(), found, {}, clock=ticking(go_on))
    bank.start()
    assert entered.wait(30)
    threading.Timer(0.05, go_on.set).start()
    bank.stop()
    assert (slow.closed, quick.closed) == (1, 1)
    left = {thread.name for thread in set(threading.enumerate()) - before}
    assert not {name for name in left if name.startswith("sensor")}


def ticking(slow: threading.Event) -> Callable[[], int]:
    """The real clock, that jumps by a second once `slow` is set."""
    return lambda: time.monotonic_ns() + (NS_PER_S if slow.is_set() else 0)


def test_a_stopped_bank_starts_no_thread_and_loses_nothing_that_was_polled() -> None:
    """The sensors of one that is stuck are freed too late: what they read is still handed over."""
    bank, sink = a_bank(rapl([[], [CounterReading("cpu0", 2, 2)]]))
    measured = bank.runners[0]
    measured.turn()
    measured.turn()
    assert sink.evidence == [CPU0]
    threads = threading.active_count()
    bank.stop()
    bank._spawn((measured,))
    assert sink.evidence == [CPU0, CounterReading("cpu0", 2, 2)]
    assert threading.active_count() == threads
