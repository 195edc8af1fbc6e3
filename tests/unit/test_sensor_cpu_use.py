from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fakes.sysfs import FakeProc
from wattledger.records import Device, DeviceKind, Process, ProcessUse, UseRecord
from wattledger_collectors.sensors.cpu_use import CpuUseSensor
from wattledger_collectors.sensors.protocol import Absent, ReadFault, SensorSettings

SECOND = 1_000_000_000
US_PER_TICK = 1_000_000 // os.sysconf("SC_CLK_TCK")
SPIN = """
import sys, time
while time.process_time() < 0.3: pass
print(flush=True)
sys.stdin.read()
"""
JOB = {"WATTLEDGER_WORKLOAD": "chat", "WATTLEDGER_JOB": "4711"}


class Host:
    """A fake /proc with a sensor on it; `after` moves the clock and samples."""

    def __init__(self, root: Path) -> None:
        self.proc = FakeProc(root)
        self.now_ns = 0
        # It has run for a thousand seconds before CLOCK_MONOTONIC was 0: it was suspended.
        self.sensor = CpuUseSensor(
            SensorSettings(proc_root=root, sysfs_root=root.parent / "sys"),
            lambda: self.now_ns,
            lambda: self.now_ns + 1000 * SECOND,
        )

    def after(self, seconds: int) -> list[UseRecord | Process | ReadFault]:
        self.now_ns += seconds * SECOND
        return list(self.sensor.sample())

    def uses(self, seconds: int = 5) -> dict[int, int]:
        """Clock ticks by pid."""
        (record,) = (r for r in self.after(seconds) if isinstance(r, UseRecord))
        return {use.pid: (use.ticks or 0) // US_PER_TICK for use in record.processes}

    def new(self, seconds: int = 5) -> list[Process]:
        return [r for r in self.after(seconds) if isinstance(r, Process)]


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path / "proc")


def test_the_first_sample_sets_the_mark_and_names_who_declares(host: Host) -> None:
    host.proc.process(41, start=123, environ=JOB)
    host.proc.process(42, start=124, environ={"HOME": "/root"})
    assert host.after(1) == [Process(41, 123, "chat", "4711")]


def test_ticks_since_the_last_sample_against_the_machines(host: Host) -> None:
    host.proc.process(41, environ=JOB)
    host.proc.spend(41, 1000)
    host.proc.cpu_ticks(busy=5000, idle=9000)
    host.after(1)
    host.proc.spend(41, 1030)
    host.proc.cpu_ticks(busy=5060, idle=9999)
    assert host.after(5) == [
        UseRecord(
            "cpu0",
            SECOND,
            6 * SECOND,
            (ProcessUse(41, ticks=30 * US_PER_TICK),),
            total=60 * US_PER_TICK,
            capacity=(60 + 999) * US_PER_TICK,
        )
    ]
    host.proc.spend(41, 1037)
    assert host.uses() == {41: 7}


def test_a_process_without_ticks_is_left_out(host: Host) -> None:
    host.proc.process(41, environ=JOB)
    host.after(1)
    assert host.uses() == {}


def test_asked_for_processes_are_tracked_by_unit_or_command(host: Host) -> None:
    host.proc.process(41, start=7, cgroup=b"0::/system.slice/vllm.service\n")
    host.proc.process(42, start=8, comm=b"llama")
    assert host.after(1) == []
    host.sensor.track([42, 41, 41, 99])
    assert host.new() == [Process(41, 7, "vllm.service", None), Process(42, 8, "llama", None)]
    host.sensor.track([41])
    assert host.new() == []
    host.proc.spend(41, 5, start=7)
    assert host.uses() == {41: 5}


def test_a_process_that_ended_is_dropped(host: Host) -> None:
    host.proc.process(41, environ=JOB)
    host.after(1)
    host.proc.spend(41, 9)
    host.proc.end(41)
    assert host.uses() == {}


def test_a_reused_pid_is_another_process(host: Host) -> None:
    host.proc.process(41, start=100, environ=JOB)
    host.proc.spend(41, 1000, start=100)
    host.after(1)
    host.proc.end(41)
    host.proc.process(41, start=900, environ={"WATTLEDGER_WORKLOAD": "other"})
    host.proc.spend(41, 1200, start=900)
    first = host.after(5)
    assert [r.processes for r in first if isinstance(r, UseRecord)] == [()]
    assert [r for r in first if isinstance(r, Process)] == [Process(41, 900, "other", None)]
    assert isinstance(first[0], Process)
    host.proc.spend(41, 1203, start=900)
    assert host.uses() == {41: 3}


@pytest.mark.parametrize(("born_s", "ticks"), [(0.5, {}), (1.0, {41: 70}), (4.5, {41: 70})])
def test_a_process_born_within_the_sample_spent_all_its_ticks_there(
    host: Host, born_s: float, ticks: dict[int, int]
) -> None:
    host.after(1)
    start = round((1000 + born_s) * os.sysconf("SC_CLK_TCK"))
    host.proc.process(41, start=start)
    host.proc.spend(41, 70, start=start)
    host.sensor.track([41])
    assert host.uses(seconds=4) == ticks
    host.proc.spend(41, 75, start=start)
    assert host.uses(seconds=1) == {41: 5}


def test_a_process_that_took_over_a_pid_is_counted_from_its_birth(host: Host) -> None:
    host.proc.process(41, start=100, environ=JOB)
    host.proc.spend(41, 1000, start=100)
    host.after(1)
    host.proc.end(41)
    start = 1003 * os.sysconf("SC_CLK_TCK")
    host.proc.process(41, start=start, environ=JOB)
    host.proc.spend(41, 9, start=start)
    assert host.uses(seconds=5) == {41: 9}


def test_a_real_process_is_counted_from_its_birth() -> None:
    sensor = CpuUseSensor(SensorSettings())
    sensor.sample()
    child = subprocess.Popen(
        [sys.executable, "-c", SPIN], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout
    child.stdout.readline()
    sensor.track([child.pid])
    (record,) = (r for r in sensor.sample() if isinstance(r, UseRecord))
    child.communicate()
    sensor.close()
    # It has spent 0.3 s before it was first looked at.
    (ticks,) = (use.ticks or 0 for use in record.processes if use.pid == child.pid)
    assert ticks >= 0.28 * 1_000_000


def test_an_undeclared_pid_that_is_reused_is_looked_into_again(host: Host) -> None:
    host.proc.process(41)
    for _ in range(3):
        assert host.new() == []
    host.proc.end(41)
    host.proc.process(41, start=900, environ=JOB)
    assert host.new() == [Process(41, 900, "chat", "4711")]


def test_a_process_met_before_its_exec_is_looked_into_twice(host: Host) -> None:
    host.proc.process(41)
    assert host.new() == []
    (host.proc.root / "41" / "environ").write_text("WATTLEDGER_JOB=late\0")
    assert [p.job for p in host.new()] == ["late"]


def test_a_settled_process_is_not_looked_into_again(host: Host) -> None:
    host.proc.process(41)
    host.new()
    host.new()
    (host.proc.root / "41" / "environ").write_text("WATTLEDGER_JOB=never\0")
    assert host.new() == []


def test_rescans_keep_their_own_pace(host: Host) -> None:
    host.after(1)
    host.proc.process(41, environ=JOB)
    assert [len(host.new(seconds=1)) for _ in range(6)] == [0, 0, 0, 1, 0, 0]


def test_more_processes_than_files_to_keep(host: Host) -> None:
    for pid in range(1000, 1300):
        host.proc.process(pid, start=pid, environ=JOB)
    before = open_files()
    assert len(host.new()) == 300
    assert open_files() - before < 260
    for pid in range(1000, 1300):
        host.proc.spend(pid, 4, start=pid)
    assert host.uses() == dict.fromkeys(range(1000, 1300), 4)
    host.proc.end(1299)
    host.proc.process(1299, start=7000, environ=JOB)
    host.proc.spend(1299, 50, start=7000)
    assert 1299 not in host.uses()
    host.sensor.close()
    assert open_files() <= before


def test_every_cpu_device_gets_the_record(host: Host) -> None:
    host.sensor.set_devices(
        [Device(name, DeviceKind.CPU) for name in ("cpu0", "cpu1")]
        + [Device("gpu0", DeviceKind.GPU)]
    )
    host.after(1)
    assert [r.device for r in host.after(5) if isinstance(r, UseRecord)] == ["cpu0", "cpu1"]


def test_memory_is_told_where_a_dram_device_is(host: Host) -> None:
    host.sensor.set_devices([Device("dram0", DeviceKind.DRAM)])
    host.proc.process(41, environ=JOB, rss_pages=12)
    host.after(1)
    page = os.sysconf("SC_PAGE_SIZE")
    assert host.after(5) == [
        UseRecord(
            "dram0",
            SECOND,
            6 * SECOND,
            (ProcessUse(41, memory_bytes=12 * page),),
            total=1024 * 1024,
        )
    ]


def test_memory_is_looked_at_every_five_seconds_but_for_who_is_new(host: Host) -> None:
    host.sensor.set_devices([Device("dram0", DeviceKind.DRAM)])
    host.proc.process(41, environ=JOB, rss_pages=12)
    host.after(1)

    def pages() -> dict[int, int]:
        (record,) = (r for r in host.after(1) if isinstance(r, UseRecord))
        page = os.sysconf("SC_PAGE_SIZE")
        return {use.pid: (use.memory_bytes or 0) // page for use in record.processes}

    assert pages() == {41: 12}
    (host.proc.root / "41" / "statm").write_text("9999 30 0 0 0 0 0\n")
    host.proc.process(42, rss_pages=3)
    host.sensor.track([42])
    seen = [pages() for _ in range(5)]
    assert seen == [{41: 12, 42: 3}] * 4 + [{41: 30, 42: 3}]
    host.proc.end(42)
    host.proc.process(42, start=900, rss_pages=7)
    host.sensor.track([42])
    assert pages() == {41: 30, 42: 7}


def test_hostile_names_are_tamed(host: Host) -> None:
    hostile = b"a) R 1 (b\n\xff" * 400
    host.proc.process(41, start=5, comm=hostile, cgroup=b"0::/" + b"\x1b" * 4000 + b".service\n")
    host.proc.process(42, start=6, comm=b"\n) (")
    host.sensor.track([41, 42])
    first, second = host.new()
    assert first.workload == "?" * 200
    for process in (first, second):
        assert process.workload
        assert process.workload.isprintable()
        assert len(process.workload) <= 200
    assert (first.start, second.start) == (5, 6)
    host.proc.spend(42, 5, start=6, comm=b"\n) (")
    assert host.uses() == {42: 5}


def test_garbage_in_proc_stat_is_an_error(host: Host) -> None:
    (host.proc.root / "stat").write_text("nonsense\n")
    with pytest.raises(ValueError, match="cpu"):
        host.after(1)


def test_no_proc_is_absent(tmp_path: Path) -> None:
    with pytest.raises(Absent):
        CpuUseSensor(SensorSettings(proc_root=tmp_path)).sample()


def test_close_starts_anew(host: Host) -> None:
    host.proc.process(41, environ=JOB)
    host.after(1)
    host.sensor.close()
    assert host.after(5) == [Process(41, 100, "chat", "4711")]


def test_other_threads_may_ask(host: Host) -> None:
    pids = range(100, 140)
    for pid in pids:
        host.proc.process(pid)
    threads = [threading.Thread(target=host.sensor.track, args=([pid],)) for pid in pids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [p.pid for p in host.new()] == list(pids)


def test_a_real_process_lives_spends_and_dies() -> None:
    now_ns = [0]
    sensor = CpuUseSensor(SensorSettings(), lambda: now_ns[0])
    child = subprocess.Popen(
        [sys.executable, "-c", SPIN],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "WATTLEDGER_WORKLOAD": "spinner"},
    )
    assert child.stdin
    assert child.stdout
    sensor.track([child.pid])
    try:
        named = {r.pid: r for r in sensor.sample() if isinstance(r, Process)}
        child.stdout.readline()
        now_ns[0] += 5 * SECOND
        (record,) = (r for r in sensor.sample() if isinstance(r, UseRecord))
    finally:
        child.communicate()
    now_ns[0] += 5 * SECOND
    (after,) = (r for r in sensor.sample() if isinstance(r, UseRecord))
    sensor.close()
    ticks = {use.pid: use.ticks for use in record.processes}
    assert named[child.pid].workload == "spinner"
    assert (ticks[child.pid] or 0) > 0
    assert record.total
    assert record.total >= (ticks[child.pid] or 0)
    assert child.pid not in {use.pid for use in after.processes}
