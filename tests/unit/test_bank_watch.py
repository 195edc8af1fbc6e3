"""Who frees a sensor that waits behind a stuck one while the thread that writes is held up."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from wattledger.records import CounterReading, Device, DeviceKind, UseRecord
from wattledger_collectors.sensors.protocol import Reading
from wattledger_daemon.bank import SensorBank
from wattledger_daemon.config import DaemonConfig


class CallingSensor:
    """A sensor that calls `before` ahead of each read."""

    period_s = 0.1

    def __init__(self, name: str, before: Callable[[], None]) -> None:
        self.name = name
        self._before = before

    def open(self) -> tuple[Device, ...]:
        return (Device(f"{self.name}0", DeviceKind.GPU),)

    def read(self) -> list[Reading]:
        self._before()
        return [CounterReading(f"{self.name}0", 1, 1)]

    def close(self) -> None:
        pass


class IdleUse:
    """A use sensor with nothing to tell."""

    name = "use"
    period_s = 0.1
    beside: tuple[str, ...] = ()

    def set_devices(self, devices: Iterable[Device]) -> None:
        pass

    def sample(self) -> list[UseRecord]:
        return []

    def close(self) -> None:
        pass


def test_the_thread_of_the_use_sensors_frees_who_waits() -> None:
    """Nobody else calls `watch` here, as where a disk holds up the pipeline's turn."""
    hung, freed, end = threading.Event(), threading.Event(), threading.Event()
    reads: list[int] = []

    def hang() -> None:
        reads.append(1)
        if len(reads) == 3:
            hung.set()
            end.wait()

    def go_on() -> None:
        if hung.is_set():
            freed.set()

    stuck, waiting = CallingSensor("a", hang), CallingSensor("b", go_on)
    found = {"a": lambda _: stuck, "b": lambda _: waiting}
    bank = SensorBank(DaemonConfig(), lambda _: True, found, {"use": lambda _: IdleUse()})
    bank.start()
    try:
        assert hung.wait(30)
        assert freed.wait(30)
    finally:
        end.set()
        bank.stop()
