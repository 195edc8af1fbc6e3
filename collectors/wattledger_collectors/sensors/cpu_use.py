"""Who uses the CPUs and the memory: CPU time and resident memory per process."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from wattledger.records import NS_PER_S, Device, DeviceKind, Process, ProcessUse, UseRecord
from wattledger_collectors.sensors.procfs import (
    STAT_BYTES,
    MachineTicks,
    ProcessTicks,
    machine_ticks,
    memory_total_bytes,
    open_readonly,
    process_ticks,
    resident_bytes,
)
from wattledger_collectors.sensors.protocol import Absent, MonotonicClock, SensorSettings
from wattledger_collectors.workloads.discovery import DeclaredProcesses
from wattledger_collectors.workloads.identity import identify

# A little less than a multiple of the usual sample period, lest jitter skip a sample.
_RESCAN_PERIOD_NS = int(4.5 * NS_PER_S)
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_ASKED_AT_MOST = 4096
_KEPT_AT_MOST = 256
_UNREADABLE = (OSError, ValueError, IndexError)


class _Tracked:
    """One process; its kept descriptor answers ESRCH once it is gone, even if its pid lives on."""

    __slots__ = ("_cpu_ticks", "_descriptor", "_path", "pid", "start")

    def __init__(self, proc_root: Path, pid: int, keep: bool) -> None:
        self.pid = pid
        self._path = proc_root / str(pid) / "stat"
        self._descriptor = open_readonly(self._path) if keep else None
        try:
            self.start, self._cpu_ticks = self._read()
        except _UNREADABLE:
            self.close()
            raise

    @property
    def kept(self) -> bool:
        return self._descriptor is not None

    def count_from_birth(self) -> None:
        """Have `spent_ticks` tell next of all that it ever spent."""
        self._cpu_ticks = 0

    def spent_ticks(self) -> int | None:
        """CPU time since the last call, clock ticks; None for a process that is gone."""
        try:
            start, cpu_ticks = self._read()
        except _UNREADABLE:
            return None
        if start != self.start:
            return None
        spent, self._cpu_ticks = cpu_ticks - self._cpu_ticks, cpu_ticks
        return max(spent, 0)

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _read(self) -> ProcessTicks:
        if self._descriptor is not None:
            return process_ticks(os.pread(self._descriptor, STAT_BYTES, 0))
        return process_ticks(self._path.read_bytes())


class _Mark(NamedTuple):
    """A sample: when, in both clocks, and the machine's CPU time until then."""

    t_ns: int
    start_ticks: int
    machine: MachineTicks


def _since_boot_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class CpuUseSensor:
    """Tells the machine's busy CPU time and that of tracked processes, as of `/proc`.

    Tracked are processes somebody asked for by `track`, and those that declare whose they are
    (discovery.py), looked for every 5 s. A `Process` is told when tracking starts; its CPU time
    counts from then on, or from its birth where that lies within the sample. In `total` alone is
    what others spent, and what a tracked process spent between its last sample and its end:
    /proc forgets it at once.
    Each cpu device gets the same record, and so does each dram device, with resident memory
    against the machine's. Ticks are clock ticks (USER_HZ). Source: proc(5), stat and statm.
    """

    name = "cpu_use"
    beside: tuple[str, ...] = ()

    def __init__(
        self,
        settings: SensorSettings,
        clock: MonotonicClock = time.monotonic_ns,
        since_boot: MonotonicClock = _since_boot_ns,
    ) -> None:
        """Prepare to sample; `since_boot` is the clock of processes' start times."""
        self.period_s = settings.cpu_use_period_s
        self._proc_root = settings.proc_root
        self._clock = clock
        self._since_boot = since_boot
        self._cpus: tuple[str, ...] = ("cpu0",)
        self._drams: tuple[str, ...] = ()
        # Filled by other threads: appending to a deque is atomic.
        self._asked: deque[int] = deque(maxlen=_ASKED_AT_MOST)
        self._tracked: dict[int, _Tracked] = {}
        self._declared = DeclaredProcesses(self._proc_root)
        self._rescan_due_ns = 0
        self._descriptor: int | None = None
        self._last: _Mark | None = None

    def set_devices(self, devices: Iterable[Device]) -> None:
        """Say which metered devices to tell the use of; without it, `cpu0`."""
        known = tuple(devices)
        self._cpus = tuple(d.device for d in known if d.kind is DeviceKind.CPU)
        self._drams = tuple(d.device for d in known if d.kind is DeviceKind.DRAM)

    def track(self, pids: Iterable[int]) -> None:
        """Ask for these processes from the next sample on, until they end; any thread may."""
        self._asked.extend(pids)

    def sample(self) -> list[UseRecord | Process]:
        """Use since the last sample, and processes newly tracked; raises `Absent`, or OSError."""
        descriptor = self._descriptor
        if descriptor is None:
            descriptor = self._descriptor = self._open()
        machine = machine_ticks(os.pread(descriptor, STAT_BYTES, 0))
        now_ns = self._clock()
        start_ticks = self._since_boot() * _TICKS_PER_S // NS_PER_S
        last, self._last = self._last, _Mark(now_ns, start_ticks, machine)
        uses = self._spent(tuple(self._tracked.values()))
        adopted = self._adopt(now_ns)
        named = [self._named(process) for process in adopted]
        if last is None:
            return [*named]
        born = [process for process in adopted if process.start >= last.start_ticks]
        for process in born:
            process.count_from_birth()
        uses += self._spent(born)
        busy_ticks = max(machine.busy - last.machine.busy, 0)
        cpus = [UseRecord(cpu, last.t_ns, now_ns, uses, busy_ticks) for cpu in self._cpus]
        return [*named, *cpus, *self._memory(last.t_ns, now_ns)]

    def close(self) -> None:
        """Close every kept file; the next sample starts anew."""
        for process in self._tracked.values():
            process.close()
        self._tracked = {}
        self._declared = DeclaredProcesses(self._proc_root)
        self._rescan_due_ns = 0
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        self._last = None

    def _open(self) -> int:
        path = self._proc_root / "stat"
        try:
            return open_readonly(path)
        except FileNotFoundError as missing:
            raise Absent(f"no {path} here") from missing

    def _spent(self, processes: Iterable[_Tracked]) -> tuple[ProcessUse, ...]:
        """What tracked processes spent; forgets those that are gone, leaves out the idle."""
        uses: list[ProcessUse] = []
        for process in processes:
            spent_ticks = process.spent_ticks()
            if spent_ticks is None:
                process.close()
                del self._tracked[process.pid]
            elif spent_ticks > 0:
                uses.append(ProcessUse(process.pid, ticks=spent_ticks))
        return tuple(uses)

    def _memory(self, since_ns: int, now_ns: int) -> list[UseRecord]:
        if not self._drams:
            return []
        uses: list[ProcessUse] = []
        for pid in self._tracked:
            try:
                memory_bytes = resident_bytes(self._proc_root, pid)
            except _UNREADABLE:
                # It ended this moment; the next sample forgets it.
                continue
            uses.append(ProcessUse(pid, memory_bytes=memory_bytes))
        total_bytes = memory_total_bytes(self._proc_root)
        return [UseRecord(dram, since_ns, now_ns, tuple(uses), total_bytes) for dram in self._drams]

    def _adopt(self, now_ns: int) -> list[_Tracked]:
        """Start tracking what was asked for, and at a rescan what declares itself."""
        pids = {self._asked.popleft() for _ in range(len(self._asked))}
        if now_ns >= self._rescan_due_ns:
            self._rescan_due_ns = now_ns + _RESCAN_PERIOD_NS
            pids.update(self._declared.scan())
        adopted: list[_Tracked] = []
        kept = sum(process.kept for process in self._tracked.values())
        for pid in sorted(pids - self._tracked.keys()):
            try:
                process = _Tracked(self._proc_root, pid, keep=kept < _KEPT_AT_MOST)
            except _UNREADABLE:
                continue
            kept += process.kept
            self._tracked[pid] = process
            adopted.append(process)
        return adopted

    def _named(self, process: _Tracked) -> Process:
        identity = identify(self._proc_root, process.pid)
        return Process(process.pid, process.start, identity.workload, identity.job)
