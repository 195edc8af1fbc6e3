"""Signals during a start, and how many descriptors a daemon may hold."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading

import pytest

from fakes.daemon_parts import FakeSensor
from wattledger.errors import InputError
from wattledger.records import Device, DeviceKind
from wattledger_daemon.bank import SensorBank
from wattledger_daemon.config import DaemonConfig, SensorsConfig
from wattledger_daemon.descriptors import raise_limit
from wattledger_daemon.signals import Signals


class EndedError(Exception):
    """The process would be gone."""


def ending(status: int) -> None:
    raise EndedError(status)


@pytest.fixture
def signals() -> Signals:
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    made = Signals(ending)
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    return made


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_start_is_ended_at_once_with_its_socket_removed(
    signals: Signals, number: signal.Signals, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    cleaned: list[str] = []
    signals.before_end(lambda: cleaned.append("socket"))
    with pytest.raises(EndedError, match="0"):
        signals.take(number)
    assert cleaned == ["socket"]
    assert f"event=stopped signal={number.name} was=starting" in caplog.text


def test_once_ready_signals_wait_for_the_end_of_a_turn(signals: Signals) -> None:
    signals.take(signal.SIGHUP)
    signals.ready()
    signals.take(signal.SIGTERM)
    taken = [signals.next(0.0) for _ in range(3)]
    assert taken == [signal.SIGHUP, signal.SIGTERM, None]


def test_a_poke_ends_the_wait_and_hides_no_signal(signals: Signals) -> None:
    signals.ready()
    poking = threading.Timer(0.05, signals.poke)
    poking.start()
    assert signals.next(30.0) is None
    poking.join()
    for _ in range(3):
        signals.poke()
    signals.take(signal.SIGHUP)
    assert [signals.next(0.0) for _ in range(3)] == [None, signal.SIGHUP, None]


def test_a_required_sensor_whose_driver_hangs_refuses_the_start() -> None:
    hung = threading.Event()
    sensor = FakeSensor([Device("cpu0", DeviceKind.CPU)], [[]], name="rapl")

    def hang() -> None:
        hung.wait()

    sensor.open_with = hang
    config = DaemonConfig(sensors=SensorsConfig(rapl="require"))
    bank = SensorBank(config, lambda _: True, {"rapl": lambda _: sensor}, {})
    try:
        with pytest.raises(InputError, match=r'sensors.rapl = "require": it does not answer: mend'):
            bank.require(0.05)
    finally:
        hung.set()


@pytest.mark.parametrize(
    ("soft", "hard", "limit"), [(100, 300, 300), (100, 5000, 1000), (2000, 5000, 2000)]
)
def test_the_soft_limit_of_descriptors_is_raised_and_never_lowered(
    soft: int, hard: int, limit: int
) -> None:
    script = (
        "import resource, sys\n"
        "from wattledger_daemon.descriptors import raise_limit\n"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))\n"
        "print(raise_limit(1000), *resource.getrlimit(resource.RLIMIT_NOFILE))\n"
    )
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    told = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env=environ,
    )
    assert told.stdout.split() == [str(limit), str(limit), str(hard)]


def test_a_limit_that_is_high_enough_is_left_alone() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert raise_limit(1) == before[0]
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == before
