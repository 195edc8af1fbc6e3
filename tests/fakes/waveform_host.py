"""Instruments behind the real library path: a driver library, and files of a powercap tree."""

from __future__ import annotations

import functools
import mmap
import os
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fakes.nvml import RemoteSensor
from fakes.sysfs import FakePowercap
from fakes.waveform import EnergyRegister, PowerRegister, RaplRegister
from wattledger.records import Device
from wattledger_collectors.sensors.protocol import Reading, SensorSettings
from wattledger_collectors.sensors.rapl import RaplSensor

_SOURCE = Path(__file__).with_name("waveform_nvml.c")
_SONAME = "libnvidia-ml.so.1"
_PAGE = 4096
# Script time 0 is a microsecond that no sensor takes for its own beginning.
_START_US = 1_000_000


@dataclass(frozen=True, slots=True)
class Gpu:
    """What a GPU tells; one without an energy counter is metered by its gauge."""

    energy: EnergyRegister | None
    power: PowerRegister | None


class Host(Protocol):
    """Devices whose instruments follow the time that the rig sets."""

    devices: tuple[Device, ...]

    def read(self, t_us: int) -> list[Reading]:
        """One tick of the sensor at `t_us`."""


class GpuHost:
    """GPUs read by the real sensor, bindings and all, in a process that has the fake library."""

    def __init__(self, gpus: Sequence[Gpu], folder: Path, stack: ExitStack) -> None:
        self._gpus = gpus
        path = folder / "page"
        path.write_bytes(bytes(_PAGE))
        with path.open("r+b") as file:
            self._page = mmap.mmap(file.fileno(), _PAGE)
        self._put(0)
        env = {
            **os.environ,
            "LD_LIBRARY_PATH": str(_library_folder()),
            "FAKE_NVML_CLOCK": str(path),
        }
        target = "wattledger_collectors.sensors.nvml:NvmlSensor"
        self._sensor = stack.enter_context(RemoteSensor(target, SensorSettings(), env))
        self.devices = self._sensor.open()

    def read(self, t_us: int) -> list[Reading]:
        self._put(t_us)
        return self._sensor.read()

    def _put(self, t_us: int) -> None:
        values = [_START_US + t_us, len(self._gpus)]
        for gpu in self._gpus:
            values.append(gpu.energy.show(t_us) if gpu.energy else -1)
            values.append(gpu.power.show(t_us) if gpu.power else -1)
        struct.pack_into(f"={len(values)}q", self._page, 0, *values)


class RaplHost:
    """CPU packages read by the real sensor from files that change under it."""

    def __init__(self, packages: Sequence[RaplRegister], folder: Path, stack: ExitStack) -> None:
        self._packages = packages
        tree = FakePowercap(folder / "sys")
        for index, package in enumerate(packages):
            zone = f"intel-rapl:{index}"
            tree.zone(zone, f"package-{index}", package.show(0), package.range_uj)
        # Kept: opening a file anew at every tick would be most of the rig's time.
        self._files = [
            os.open(tree.energy_file(f"intel-rapl:{index}"), os.O_WRONLY)
            for index in range(len(packages))
        ]
        for file in self._files:
            stack.callback(os.close, file)
        self._now_us = 0
        settings = SensorSettings(sysfs_root=tree.root, proc_root=folder / "proc")
        self._sensor = RaplSensor(settings, lambda: (_START_US + self._now_us) * 1000)
        stack.callback(self._sensor.close)
        self.devices = self._sensor.open()

    def read(self, t_us: int) -> list[Reading]:
        self._now_us = t_us
        for file, package in zip(self._files, self._packages, strict=True):
            text = f"{package.show(t_us)}\n".encode()
            os.pwrite(file, text, 0)
            os.ftruncate(file, len(text))
        return self._sensor.read()


@contextmanager
def host_of(instruments: Sequence[Gpu | RaplRegister]) -> Iterator[Host]:
    """A host with these instruments, all of one kind."""
    gpus = [item for item in instruments if isinstance(item, Gpu)]
    packages = [item for item in instruments if isinstance(item, RaplRegister)]
    assert not (gpus and packages)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if gpus:
            yield GpuHost(gpus, folder, stack)
        else:
            yield RaplHost(packages, folder, stack)


def script_us(t_ns: int) -> int:
    """The rig's time of a reading's stamp."""
    return t_ns // 1000 - _START_US


@functools.cache
def _library_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="wattledger-waveform-nvml-"))
    options = ("-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC")
    output = (f"-Wl,-soname,{_SONAME}", "-o", folder / _SONAME, _SOURCE)
    subprocess.run(["gcc", *options, *output], check=True)
    return folder
