"""A fake NVML library, scripted: the C below it, a clock that tests set, and a process to use it.

The dynamic loader reads LD_LIBRARY_PATH once, at exec, and a library that was loaded stays: so
whatever uses the fake is a process of its own, started with `FakeNvml.env()`.

The script, one line each; times are in seconds, `idx` is a GPU, `gi` a MIG GPU instance:

    gpu <idx> <name, _ for space> <uuid> [noenergy] [nopower] [nofields] [noinstant] [mig] [gpm]
    seg <idx> <t> <power_mw>            power from t on
    module <idx> <t> <power_mw>         power of the whole module from t on (field scope 1); the
                                        energy counter counts this then, not `seg`
    reset <idx> <t>                     the energy counter starts at 0 again
    bump <idx> <t_on> <t_off> <mj>      the counter shows so much more in that time (or less)
    stuck <idx> <t_on> <t_off>          the counter stands still, then catches up
    garbage <idx> <t_on> <t_off>        counter and gauges tell nonsense (all bits set, NaN)
    refresh <idx> <period_s>            the counter moves once per period (power: as the fake)
    lag <idx> <delay_s>                 counter and power tell of so long ago
    duty <idx> <window_s> <period_s>    power is the mean over the last window of each period:
                                        `duty 0 0.025 0.1` sees 25 % of the time
    lost <idx> <t_on> <t_off>           every call says that the GPU is lost
    absent <idx> <t>                    an nvmlInit from t on does not find the GPU
    present <idx> <t_on> <t_off>        the GPU is plugged in only then: an nvmlInit finds it only
                                        then (once all users shut down), calls at other times: lost
    compute <idx> <pid> <bytes> <t_on> <t_off> <sm_percent> [gi]
    graphics <idx> <pid> <bytes> <t_on> <t_off> <sm_percent> [gi]
    instance <idx> <gi> <sms> <slices>  a GPU instance of a board with `mig`
    activity <idx> <gi> <t> <percent>   its SM activity from t on, told by GPM where `gpm` is
    reload <t>                          NVML forgets its users once
    slow <call> <t_on> <t_off> <s>      calls of this name (a part of it is enough) take so long,
                                        in real time: `slow RunningProcesses 0 60 0.05`
"""

from __future__ import annotations

import atexit
import functools
import mmap
import os
import pickle
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from wattledger.records import Device, Process, UseRecord
from wattledger_collectors.sensors.protocol import Reading, SensorSettings

_SOURCES = tuple(sorted(Path(__file__).parent.glob("fake_nvml*.c")))
_WORKER = Path(__file__).with_name("remote_sensor.py")
_SONAME = "libnvidia-ml.so.1"


def _scratch_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="wattledger-fake-nvml-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def library_folder(*defines: str) -> Path:
    """The folder of the compiled library, one per set of C defines and test run."""
    folder = _scratch_folder()
    subprocess.run(
        [
            *("gcc", "-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"),
            *(f"-D{define}" for define in defines),
            *(f"-Wl,-soname,{_SONAME}", "-o", folder / _SONAME),
            *map(str, _SOURCES),
            "-lpthread",
        ],
        check=True,
    )
    return folder


class FakeNvml:
    """GPUs as scripted (the language is at the top of this file).

    Script time 0 is when this object was made and runs with the real clock, until `set_time`,
    called before `env`, makes it stand where the test puts it.
    """

    def __init__(
        self,
        script: Iterable[str],
        folder: Path | None = None,
        *,
        period_ms: int = 100,
        defines: tuple[str, ...] = (),
    ) -> None:
        folder = folder or _scratch_folder()
        self._script = folder / "nvml-script.txt"
        self._script.write_text("".join(f"{line}\n" for line in script))
        self._clock_file = folder / "nvml-clock"
        self._clock: mmap.mmap | None = None
        self._period_ms = period_ms
        self._libraries = library_folder(*defines)
        self._origin_ns = time.monotonic_ns()

    def set_time(self, t_s: float) -> None:
        """Put script time at `t_s` seconds, for every process that uses this fake."""
        if self._clock is None:
            self._clock_file.write_bytes(bytes(8))
            with self._clock_file.open("r+b") as file:
                self._clock = mmap.mmap(file.fileno(), 8)
        struct.pack_into("=q", self._clock, 0, round(t_s * 1_000_000))

    def env(self) -> dict[str, str]:
        """The environment of a process that shall find the fake in the place of NVML."""
        env = {
            **os.environ,
            "LD_LIBRARY_PATH": str(self._libraries),
            "FAKE_NVML_SCRIPT": str(self._script),
            "FAKE_NVML_PERIOD_MS": str(self._period_ms),
            "FAKE_NVML_ORIGIN_NS": str(self._origin_ns),
        }
        if self._clock is not None:
            env["FAKE_NVML_CLOCK"] = str(self._clock_file)
        return env

    def sensor(self, target: str, settings: SensorSettings) -> RemoteSensor:
        """A sensor `module:Class` in a process that has the fake; its clock is script time."""
        self.set_time(0.0)
        return RemoteSensor(target, settings, self.env())


class RemoteSensor:
    """A sensor in another process; calls and what they return or raise travel by pickle."""

    def __init__(self, target: str, settings: SensorSettings, env: dict[str, str]) -> None:
        env = {**env, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._process = subprocess.Popen(
            [sys.executable, _WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=env,
        )
        self._send((target, settings))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.wait(timeout=10)
        self._process.stdout.close()

    def open(self) -> tuple[Device, ...]:
        devices: tuple[Device, ...] = self._call("open")
        return devices

    def read(self) -> list[Reading]:
        readings: list[Reading] = self._call("read")
        return readings

    def sample(self) -> list[UseRecord | Process]:
        records: list[UseRecord | Process] = self._call("sample")
        return records

    def note(self) -> str:
        note: str = self._call("note")
        return note

    def close(self) -> None:
        self._call("close")

    def _call(self, method: str) -> Any:
        self._send(method)
        assert self._process.stdout
        worked, result = pickle.load(self._process.stdout)
        if not worked:
            raise result
        return result

    def _send(self, message: object) -> None:
        assert self._process.stdin
        pickle.dump(message, self._process.stdin)
        self._process.stdin.flush()
