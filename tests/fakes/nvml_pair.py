"""Both sensors of NVIDIA GPUs in one process, as the daemon has them."""

from __future__ import annotations

from threading import Event, Thread

from wattledger.records import Device, Process, UseRecord
from wattledger_collectors.sensors.nvml import NvmlSensor
from wattledger_collectors.sensors.nvml_driver import NvmlDriver
from wattledger_collectors.sensors.nvml_use import NvmlUseSensor
from wattledger_collectors.sensors.protocol import MonotonicClock, Reading, SensorSettings

PAIR = "fakes.nvml_pair:NvmlPair"
HUNG = "fakes.nvml_pair:HungPair"


class NvmlPair:
    """`open` and `read` are the energy sensor's, `sample` is the use sensor's."""

    def __init__(self, settings: SensorSettings, clock: MonotonicClock) -> None:
        self._energy = NvmlSensor(settings, clock)
        self._use = NvmlUseSensor(settings, clock)

    def open(self) -> tuple[Device, ...]:
        return self._energy.open()

    def read(self) -> list[Reading]:
        return self._energy.read()

    def sample(self) -> list[UseRecord | Process]:
        return self._use.sample()

    def note(self) -> str:
        return self._energy.note

    def close(self) -> None:
        self._use.close()
        self._energy.close()


class HungPair(NvmlPair):
    """Every other `sample`, from the first, is a call that hangs until the next `sample`."""

    def __init__(self, settings: SensorSettings, clock: MonotonicClock) -> None:
        super().__init__(settings, clock)
        self._held, self._done = Event(), Event()
        self._caller: Thread | None = None

    def sample(self) -> list[UseRecord | Process]:
        if self._caller is None:
            self._caller = Thread(target=self._hang)
            self._caller.start()
            self._held.wait()
            return []
        self._done.set()
        self._caller.join()
        self._caller = None
        self._held.clear()
        self._done.clear()
        return []

    def _hang(self) -> None:
        with NvmlDriver().steady:
            self._held.set()
            self._done.wait()
