"""A machine with control groups, and the sensor of CPU use on it."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from fakes.cgroups import FakeCgroups
from fakes.sysfs import FakeProc
from wattledger.records import Process, UseRecord
from wattledger_collectors.sensors.cpu_use import CpuUseSensor
from wattledger_collectors.sensors.protocol import ReadFault, SensorSettings
from wattledger_collectors.workloads.rules import Rule

SECOND = 1_000_000_000
US_PER_TICK = 1_000_000 // os.sysconf("SC_CLK_TCK")


class Host:
    """A machine of eight CPUs; `after` lets a second pass, of which it spends `busy_us`."""

    def __init__(self, root: Path, *rules: Rule, version: int = 2) -> None:
        self.proc = FakeProc(root / "proc")
        self.groups = FakeCgroups(root / "sys", version=version)
        self.now_ns = 0
        self._busy = self._idle = 0
        self.sensor = CpuUseSensor(
            SensorSettings(proc_root=root / "proc", sysfs_root=root / "sys", rules=tuple(rules)),
            lambda: self.now_ns,
            lambda: self.now_ns + 1000 * SECOND,
        )

    def after(self, busy_us: int = 8_000_000) -> list[UseRecord | Process | ReadFault]:
        self.now_ns += SECOND
        self._busy += busy_us // US_PER_TICK
        self._idle += (8_000_000 - busy_us) // US_PER_TICK
        self.proc.cpu_ticks(self._busy, self._idle)
        return list(self.sensor.sample())

    def record(self, busy_us: int = 8_000_000) -> UseRecord:
        (record,) = (item for item in self.after(busy_us) if isinstance(item, UseRecord))
        return record

    def spent(self) -> dict[tuple[str | None, str | None], int]:
        """Microseconds by workload and job."""
        spent: Counter[tuple[str | None, str | None]] = Counter()
        for group in self.record().groups:
            spent[group.workload, group.job] += group.ticks or 0
        return dict(spent)

    def process(self, pid: int, group: str, **environ: str) -> None:
        self.proc.process(pid, start=pid, environ=environ, cgroup=self.groups.line(group))
