"""Who uses the CPUs and the memory: per process, and per control group that is somebody's."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from wattledger.records import (
    NS_PER_S,
    Device,
    DeviceKind,
    GroupUse,
    Process,
    ProcessUse,
    UseRecord,
)
from wattledger_collectors.sensors.cgroup_use import GroupMemory, GroupSpent, GroupTree
from wattledger_collectors.sensors.cpu_process import UNREADABLE, TrackedProcess
from wattledger_collectors.sensors.procfs import (
    STAT_BYTES,
    MachineTicks,
    machine_ticks,
    memory_total_bytes,
    open_readonly,
)
from wattledger_collectors.sensors.protocol import (
    Absent,
    MonotonicClock,
    ReadFault,
    SensorSettings,
)
from wattledger_collectors.workloads.discovery import Discovery
from wattledger_collectors.workloads.identity import cgroup, identify

# A little less than a multiple of the usual sample period, lest jitter skip a sample.
_RESCAN_PERIOD_NS = int(3.5 * NS_PER_S)
_MEMORY_PERIOD_NS = int(4.5 * NS_PER_S)
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_US_PER_S = 1_000_000
_ASKED_AT_MOST = 4096
_KEPT_AT_MOST = 256


def _us(ticks: int) -> int:
    return ticks * _US_PER_S // _TICKS_PER_S


class _Mark(NamedTuple):
    """A sample: when, in both clocks, and the machine's CPU time until then."""

    t_ns: int
    start_ticks: int
    machine: MachineTicks


class _Memory(NamedTuple):
    """Who held memory when it was last looked at; processes by pid and start."""

    until_ns: int
    total_bytes: int
    processes: dict[tuple[int, int], ProcessUse]
    groups: Sequence[GroupMemory]
    edition: int


def _since_boot_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class CpuUseSensor:
    """Tells the machine's busy CPU time, and that of tracked processes and of control groups.

    Tracked are processes somebody asked for by `track`, and those that declare whose they are or
    that a rule is about (discovery.py), looked for every 4 s, but for those whose group has the
    same owner and counts them already. A `Process` is told when tracking starts; its CPU time
    counts from then on, or from its birth where that lies within the sample. Groups are told as
    cgroup_use.py finds them, and units and sessions with a process that is somebody's; they count
    what died in them. What nobody is known to have spent is in `total` alone.
    Each cpu device gets the same record, and so does each dram device, with resident memory
    (of groups: all that is charged) against the machine's, looked at every 5 s. Ticks are
    microseconds of CPU time. Source: proc(5), stat and statm; cgroup_files.py.
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
        self._settings = settings
        self._proc_root = settings.proc_root
        self._clock = clock
        self._since_boot = since_boot
        self._cpus: tuple[str, ...] = ("cpu0",)
        self._drams: tuple[str, ...] = ()
        # Filled by other threads: appending to a deque is atomic.
        self._asked: deque[int] = deque(maxlen=_ASKED_AT_MOST)
        self._tracked: dict[int, TrackedProcess] = {}
        self._groups: GroupTree | None = None
        self._discovery = Discovery(self._proc_root, settings.rules)
        self._rescan_due_ns = 0
        self._descriptor: int | None = None
        self._last: _Mark | None = None
        self._memory: _Memory | None = None

    def set_devices(self, devices: Iterable[Device]) -> None:
        """Say which metered devices to tell the use of; without it, `cpu0`."""
        known = tuple(devices)
        self._cpus = tuple(d.device for d in known if d.kind is DeviceKind.CPU)
        self._drams = tuple(d.device for d in known if d.kind is DeviceKind.DRAM)

    def track(self, pids: Iterable[int]) -> None:
        """Ask for these processes from the next sample on, until they end; any thread may."""
        self._asked.extend(pids)

    def sample(self) -> Sequence[UseRecord | Process | ReadFault]:
        """Use since the last sample, and processes newly tracked; raises `Absent`, or OSError."""
        descriptor = self._descriptor
        if descriptor is None:
            descriptor = self._descriptor = self._open()
        machine = machine_ticks(os.pread(descriptor, STAT_BYTES, 0))
        now_ns = self._clock()
        start_ticks = self._since_boot() * _TICKS_PER_S // NS_PER_S
        last, self._last = self._last, _Mark(now_ns, start_ticks, machine)
        capacity_us = _us(max(machine.all - last.machine.all, 0)) if last else 0
        groups, faults = self._group_use(capacity_us, now_ns)
        uses = self._spent(tuple(self._tracked.values()))
        adopted = self._adopt(now_ns)
        named = [self._named(process) for process in adopted]
        if last is None:
            return [*named, *faults]
        born = [process for process in adopted if process.start >= last.start_ticks]
        for process in born:
            process.count_from_birth()
        uses += self._spent(born)
        busy_us = _us(max(machine.busy - last.machine.busy, 0))
        told = self._cpu_groups(groups, uses)
        # The kernel counts groups to the nanosecond and the machine in ticks.
        total_us = max(busy_us, _covered_us(told, uses))
        cpus = [
            UseRecord(
                cpu, last.t_ns, now_ns, uses, total_us, told, capacity=max(capacity_us, total_us)
            )
            for cpu in self._cpus
        ]
        return [*named, *cpus, *self._memory_use(last.t_ns, now_ns), *faults]

    def close(self) -> None:
        """Close every kept file; the next sample starts anew."""
        for process in self._tracked.values():
            process.close()
        self._tracked = {}
        if self._groups is not None:
            self._groups.close()
        self._groups = None
        self._discovery = Discovery(self._proc_root, self._settings.rules)
        self._rescan_due_ns = 0
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        self._last = None
        self._memory = None

    def _open(self) -> int:
        path = self._proc_root / "stat"
        try:
            descriptor = open_readonly(path)
        except FileNotFoundError as missing:
            raise Absent(f"no {path} here") from missing
        self._groups = GroupTree.of_host(self._settings)
        return descriptor

    # ------------------------------------------------------------------ processes

    def _spent(self, processes: Iterable[TrackedProcess]) -> tuple[ProcessUse, ...]:
        """What tracked processes spent; forgets those that are gone, leaves out the idle."""
        uses: list[ProcessUse] = []
        for process in processes:
            spent_ticks = process.spent_ticks()
            if spent_ticks is None:
                process.close()
                del self._tracked[process.pid]
            elif spent_ticks > 0:
                uses.append(ProcessUse(process.pid, ticks=_us(spent_ticks)))
        return tuple(uses)

    def _adopt(self, now_ns: int) -> list[TrackedProcess]:
        """Start tracking what was asked for, and at a rescan what is found to be somebody's."""
        asked = {self._asked.popleft() for _ in range(len(self._asked))}
        found: set[int] = set()
        if now_ns >= self._rescan_due_ns:
            self._rescan_due_ns = now_ns + _RESCAN_PERIOD_NS
            found = self._rescan()
        adopted: list[TrackedProcess] = []
        kept = sum(process.kept for process in self._tracked.values())
        for pid in sorted((asked | found) - self._tracked.keys()):
            try:
                process = TrackedProcess(self._proc_root, pid, keep=kept < _KEPT_AT_MOST)
            except UNREADABLE:
                continue
            self._place(process)
            if pid not in asked and self._is_spoken_for(process):
                process.close()
                continue
            kept += process.kept
            self._tracked[pid] = process
            adopted.append(process)
        return adopted

    def _rescan(self) -> set[int]:
        found = self._discovery.scan()
        if self._groups is not None:
            for path in filter(None, map(self._groups.path_of, found.cgroups)):
                self._groups.hold(path, always=False)
        for process in self._tracked.values():
            if not process.settled:
                process.settled = True
                self._place(process)
        return set(found.pids)

    def _place(self, process: TrackedProcess) -> None:
        if self._groups is not None:
            process.group = self._groups.path_of(cgroup(self._proc_root, process.pid))
            if process.group:
                self._groups.hold(process.group, always=True)

    def _is_spoken_for(self, process: TrackedProcess) -> bool:
        """Whether its group counts it and has the same owner: following it would tell no more."""
        if self._groups is None or not process.group:
            return False
        identity = identify(self._proc_root, process.pid, self._settings.rules)
        return self._groups.speaks_for(process.group, identity, of_memory=bool(self._drams))

    def _named(self, process: TrackedProcess) -> Process:
        identity = identify(self._proc_root, process.pid, self._settings.rules)
        return Process(process.pid, process.start, identity.workload, identity.job)

    # ------------------------------------------------------------------ groups and memory

    def _group_use(
        self, capacity_us: int, now_ns: int
    ) -> tuple[Sequence[GroupSpent], list[ReadFault]]:
        """What groups spent, and one fault for all that could not be read."""
        if self._groups is None:
            return (), []
        # Twice the machine: ticks are coarse, and groups are read a moment after it.
        spent = self._groups.sample(2 * capacity_us + _US_PER_S)
        ended = self._groups.ended
        for process in self._tracked.values() if ended else ():
            group = process.group
            if group and any(group == path or group.startswith(f"{path}/") for path in ended):
                self._place(process)
        faults = self._groups.faults
        if not faults:
            return spent, []
        reason = f"{len(faults)} groups could not be read: {faults[0]!r}"
        return spent, [ReadFault("cgroups", now_ns, reason)]

    def _cpu_groups(
        self, groups: Sequence[GroupSpent], uses: Sequence[ProcessUse]
    ) -> tuple[GroupUse, ...]:
        inside = self._inside(use.pid for use in uses)
        return tuple(
            GroupUse(
                group.owner.workload,
                group.owner.job,
                tuple(inside.get(group.path, ())),
                ticks=group.spent_us,
            )
            for group in groups
        )

    def _inside(self, pids: Iterable[int]) -> dict[str, list[int]]:
        """Those of the processes that live in groups, by the innermost one."""
        inside: dict[str, list[int]] = {}
        if self._groups is None:
            return inside
        for pid in pids:
            process = self._tracked.get(pid)
            home = self._groups.home_of(process.group) if process and process.group else None
            if home is not None:
                inside.setdefault(home, []).append(pid)
        return inside

    def _memory_use(self, since_ns: int, now_ns: int) -> list[UseRecord]:
        """Records of memory, which is looked at less often: it costs most and moves least."""
        if not self._drams:
            return []
        memory = self._memory = self._looked_at_memory(now_ns)
        uses = tuple(
            memory.processes[process.pid, process.start]
            for process in self._tracked.values()
            if (process.pid, process.start) in memory.processes
        )
        inside = self._inside(use.pid for use in uses)
        groups = tuple(
            GroupUse(
                group.owner.workload,
                group.owner.job,
                tuple(inside.get(group.path, ())),
                memory_bytes=group.memory_bytes,
            )
            for group in memory.groups
        )
        return [
            UseRecord(dram, since_ns, now_ns, uses, memory.total_bytes, groups)
            for dram in self._drams
        ]

    def _looked_at_memory(self, now_ns: int) -> _Memory:
        """The last look where it is fresh enough, with who came since; else a new one."""
        edition = self._groups.edition if self._groups is not None else 0
        memory = self._memory
        fresh = memory is not None and now_ns < memory.until_ns
        if memory is None or not fresh:
            total_bytes = memory_total_bytes(self._proc_root)
            memory = _Memory(now_ns + _MEMORY_PERIOD_NS, total_bytes, {}, (), edition)
        for process in self._tracked.values():
            key = process.pid, process.start
            if key not in memory.processes:
                memory_bytes = process.memory_bytes()
                if memory_bytes is not None:
                    memory.processes[key] = ProcessUse(process.pid, memory_bytes=memory_bytes)
        if self._groups is not None and (not fresh or memory.edition != edition):
            memory = memory._replace(groups=self._groups.memory(), edition=edition)
        return memory


def _covered_us(groups: Iterable[GroupUse], uses: Sequence[ProcessUse]) -> int:
    """What groups and processes spent together, a group's own processes counted once."""
    alone = {use.pid: use.ticks or 0 for use in uses}
    covered_us = 0
    for group in groups:
        inside_us = sum(alone.pop(pid, 0) for pid in group.pids)
        covered_us += max(group.ticks or 0, inside_us)
    return covered_us + sum(alone.values())
