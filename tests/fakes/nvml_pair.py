"""Both sensors of NVIDIA GPUs in one process, as the daemon has them."""

from __future__ import annotations

from wattledger.records import Device, Process, UseRecord
from wattledger_collectors.sensors.nvml import NvmlSensor
from wattledger_collectors.sensors.nvml_use import NvmlUseSensor
from wattledger_collectors.sensors.protocol import MonotonicClock, Reading, SensorSettings

PAIR = "fakes.nvml_pair:NvmlPair"


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
