"""CPU time and memory of control groups, on fake trees."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.group_host import US_PER_TICK, Host
from wattledger.records import Device, DeviceKind, GroupUse, Process, UseRecord
from wattledger_collectors.sensors.protocol import ReadFault
from wattledger_collectors.workloads.rules import Rule

HEX = "0123456789abcdef" * 4
SCOPE = "/system.slice/slurmstepd.scope"
POD = "/kubepods/burstable/pod6a2b9c1e"
UNIT = "/system.slice/vllm.service"


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def job(number: int) -> tuple[str, str]:
    return "slurm", str(number)


def test_a_job_is_counted_with_what_died_in_it(host: Host) -> None:
    host.groups.make(f"{SCOPE}/job_7/step_0")
    host.groups.spend(f"{SCOPE}/job_7/step_0", 5_000_000)
    host.after()
    host.groups.spend(f"{SCOPE}/job_7/step_0", 300_000)
    record = host.record(busy_us=4_000_000)
    assert record.groups == (GroupUse("slurm", "7", ticks=300_000),)
    assert (record.total, record.capacity) == (4_000_000, 8_000_000)
    host.groups.spend(f"{SCOPE}/job_7/step_0", 20_000)
    host.groups.remove(f"{SCOPE}/job_7/step_0")
    assert host.spent() == {job(7): 20_000}
    assert host.spent() == {}


@pytest.mark.parametrize("version", [1, 2])
def test_a_job_of_either_version_counts_from_its_birth(tmp_path: Path, version: int) -> None:
    host = Host(tmp_path, version=version)
    folder = SCOPE if version == 2 else "/slurm/uid_5"
    host.groups.make(f"{folder}/job_1")
    host.after()
    host.groups.make(f"{folder}/job_7/step_0/task_0")
    host.groups.spend(f"{folder}/job_7/step_0/task_0", 700_000)
    assert host.spent() == {job(7): 700_000}


def test_the_first_job_of_a_host_counts_from_its_birth(host: Host) -> None:
    host.after()
    host.groups.make(f"{SCOPE}/job_7")
    host.groups.spend(f"{SCOPE}/job_7", 700_000)
    assert host.spent() == {job(7): 700_000}


def test_what_a_job_spent_after_its_last_sample_is_left_over_in_its_folder(host: Host) -> None:
    host.groups.make(f"{SCOPE}/job_7")
    host.groups.make(f"{SCOPE}/job_8")
    host.after()
    host.groups.spend(f"{SCOPE}/job_7", 90_000)
    host.groups.spend(f"{SCOPE}/job_8", 10_000)
    host.groups.remove(f"{SCOPE}/job_7")
    assert host.spent() == {job(7): 90_000, job(8): 10_000}


def test_of_two_that_died_nobody_can_say_who_spent_it(host: Host) -> None:
    for number in (7, 8, 9):
        host.groups.make(f"{SCOPE}/job_{number}")
    host.after()
    for number in (7, 8, 9):
        host.groups.spend(f"{SCOPE}/job_{number}", 10_000)
    host.groups.remove(f"{SCOPE}/job_7")
    host.groups.remove(f"{SCOPE}/job_8")
    assert host.spent() == {job(9): 10_000}


def test_a_stranger_in_the_folder_keeps_its_own(host: Host) -> None:
    host.groups.make(f"{SCOPE}/job_7")
    host.groups.make(f"{SCOPE}/system")
    host.after()
    host.groups.spend(f"{SCOPE}/system", 40_000)
    host.groups.spend(f"{SCOPE}/job_7", 2_000)
    host.groups.remove(f"{SCOPE}/job_7")
    assert host.spent() == {job(7): 2_000}


def test_the_last_job_of_a_user_takes_the_users_folder_with_it(tmp_path: Path) -> None:
    host = Host(tmp_path, version=1)
    host.groups.make("/slurm/uid_5/job_7")
    host.after()
    host.groups.spend("/slurm/uid_5/job_7", 30_000)
    host.groups.remove("/slurm/uid_5/job_7")
    host.groups.remove("/slurm/uid_5")
    assert host.spent() == {job(7): 30_000}


def test_what_died_in_a_mixed_folder_is_not_guessed(host: Host) -> None:
    group = f"/system.slice/docker-{HEX}.scope"
    host.groups.make(group)
    host.groups.make("/system.slice/cron.service")
    host.after()
    host.groups.spend(group, 30_000)
    host.groups.spend("/system.slice/cron.service", 30_000)
    host.groups.remove(group)
    assert host.spent() == {}


def test_a_job_made_again_by_its_name_starts_anew(host: Host) -> None:
    host.groups.make(f"{SCOPE}/job_7")
    host.groups.spend(f"{SCOPE}/job_7", 500_000)
    host.after()
    host.groups.remove(f"{SCOPE}/job_7")
    host.groups.make(f"{SCOPE}/job_7")
    host.groups.spend(f"{SCOPE}/job_7", 600_000)
    assert host.spent() == {job(7): 600_000}


def test_a_pod_counts_its_containers_as_they_come_and_go(host: Host) -> None:
    host.groups.make(f"{POD}/{HEX}")
    host.after()
    host.groups.spend(f"{POD}/{HEX}", 10_000)
    host.groups.remove(f"{POD}/{HEX}")
    host.groups.make(f"{POD}/{HEX[::-1]}")
    host.groups.spend(f"{POD}/{HEX[::-1]}", 5_000)
    assert host.spent() == {("pod/6a2b9c1e", None): 15_000}


def test_a_unit_is_told_once_it_holds_somebody(host: Host) -> None:
    host.groups.make(UNIT, pids=(41, 42))
    host.process(41, UNIT)
    host.after()
    host.groups.spend(UNIT, 100_000)
    assert host.spent() == {}
    host.sensor.track([41])
    assert [r.pid for r in host.after() if isinstance(r, Process)] == [41]
    host.groups.spend(UNIT, 100_000)
    host.proc.spend(41, 3, start=41)
    record = host.record()
    assert record.groups == (GroupUse("vllm.service", None, (41,), ticks=100_000),)
    assert [use.ticks for use in record.processes] == [3 * US_PER_TICK]


def test_a_process_stands_in_the_innermost_group_and_is_counted_once(host: Host) -> None:
    inner = f"/docker/{HEX}/kubelet.slice{POD}"
    host.groups.make(inner, pids=(41,))
    host.process(41, inner, WATTLEDGER_WORKLOAD="mine", HOSTNAME="n")
    host.process(40, inner, HOSTNAME="n")
    host.groups.make(inner, pids=(40, 41))
    host.after()
    host.groups.spend(inner, 100_000)
    host.groups.spend(f"/docker/{HEX}", 7_000)
    host.proc.spend(41, 1, start=41)
    assert set(host.record().groups) == {
        GroupUse("container/0123456789ab", None, ticks=7_000),
        GroupUse("pod/n", None, (41,), ticks=100_000),
    }


def test_processes_that_their_group_speaks_for_are_not_followed(host: Host) -> None:
    group = f"{SCOPE}/job_7/step_0"
    named = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "train"}
    for pid in range(100, 400):
        host.process(pid, group, **named)
    host.process(500, group, **named, WATTLEDGER_WORKLOAD="other")
    host.groups.make(group, pids=tuple(range(100, 400)))
    told = [item for item in host.after() if isinstance(item, Process)]
    assert told == [Process(500, 500, "other", "7")]
    # Somebody who asks is told all the same.
    host.sensor.track([100])
    assert [p.pid for p in host.after() if isinstance(p, Process)] == [100]


@pytest.mark.parametrize("metered", ["cpu", "dram"])
def test_a_group_that_cannot_be_read_speaks_for_nobody(host: Host, metered: str) -> None:
    host.sensor.set_devices([Device(f"{metered}0", DeviceKind(metered))])
    group = f"{SCOPE}/job_7"
    host.groups.make(group)
    host.process(41, group, SLURM_JOB_ID="7")
    if metered == "cpu":
        host.groups.garble(group, "?")
    else:
        host.groups.forget_memory(group)
    assert [p.pid for p in host.after() if isinstance(p, Process)] == [41]


def test_a_young_job_is_named_when_its_processes_come(host: Host) -> None:
    host.after()
    host.groups.make(f"{SCOPE}/job_7")
    host.groups.spend(f"{SCOPE}/job_7", 1_000)
    assert host.spent() == {job(7): 1_000}
    host.process(41, f"{SCOPE}/job_7", SLURM_JOB_ID="7", SLURM_JOB_NAME="train")
    host.groups.make(f"{SCOPE}/job_7", pids=(41,))
    host.groups.spend(f"{SCOPE}/job_7", 2_000)
    assert host.spent() == {("train", "7"): 2_000}


def test_a_process_moved_to_another_group_is_found_there(host: Host) -> None:
    host.groups.make(f"{SCOPE}/job_7")
    host.groups.make(f"{SCOPE}/job_8", pids=(41,))
    host.process(41, f"{SCOPE}/job_8")
    host.sensor.track([41])
    host.after()
    (host.proc.root / "41" / "cgroup").write_bytes(host.groups.line(f"{SCOPE}/job_7"))
    host.groups.remove(f"{SCOPE}/job_8")
    host.groups.spend(f"{SCOPE}/job_7", 50_000)
    host.proc.spend(41, 1, start=41)
    assert host.record().groups == (GroupUse("slurm", "7", (41,), ticks=50_000),)


def test_rootless_containers_are_found_by_their_processes(host: Host) -> None:
    folder = "/user.slice/user-5.slice/user@5.service/user.slice"
    host.groups.make(f"{folder}/libpod-{HEX}.scope")
    host.process(41, f"{folder}/libpod-{HEX}.scope/container")
    host.after()
    host.groups.spend(f"{folder}/libpod-{HEX}.scope", 5_000)
    assert host.spent() == {("container/0123456789ab", None): 5_000}
    second = f"{folder}/libpod-{HEX[::-1]}.scope"
    host.groups.make(second)
    host.groups.spend(second, 6_000)
    assert host.spent() == {(f"container/{HEX[::-1][:12]}", None): 6_000}


def test_a_rule_makes_a_group_somebodys_from_its_birth(tmp_path: Path) -> None:
    host = Host(tmp_path, Rule(cgroup="/system.slice/night-*", workload="{unit}", job="night"))
    host.after()
    host.groups.make("/system.slice/night-1.service")
    host.groups.spend("/system.slice/night-1.service", 5_000)
    host.groups.make("/system.slice/day.service")
    host.groups.spend("/system.slice/day.service", 5_000)
    assert host.spent() == {("night-1.service", "night"): 5_000}


def test_processes_under_a_rule_are_followed(tmp_path: Path) -> None:
    host = Host(tmp_path, Rule(command="py*", user=str(os.getuid()), workload="python"))
    host.process(41, "/")
    host.proc.process(42, comm=b"bash")
    assert [p for p in host.after() if isinstance(p, Process)] == [Process(41, 41, "python", None)]


@pytest.mark.parametrize("text", ["", "garbage\n", "usage_usec -5\n", "usage_usec 9" + "9" * 30])
def test_what_cannot_be_is_left_out_and_told(host: Host, text: str) -> None:
    host.groups.make(f"{SCOPE}/job_7")
    host.groups.make(f"{SCOPE}/job_8")
    host.after()
    host.groups.spend(f"{SCOPE}/job_8", 6_000)
    host.groups.garble(f"{SCOPE}/job_7", text)
    items = host.after()
    (record,) = (item for item in items if isinstance(item, UseRecord))
    (fault,) = (item for item in items if isinstance(item, ReadFault))
    assert record.groups == (GroupUse("slurm", "8", ticks=6_000),)
    assert "job_7" in fault.reason
    host.groups.spend(f"{SCOPE}/job_7", 5_000)
    assert host.spent() == {}
    host.groups.spend(f"{SCOPE}/job_7", 4_000)
    assert host.spent() == {job(7): 4_000}


def test_a_counter_that_falls_is_never_negative(host: Host) -> None:
    host.groups.make(f"{SCOPE}/job_7")
    host.groups.spend(f"{SCOPE}/job_7", 5_000_000)
    host.after()
    host.groups.garble(f"{SCOPE}/job_7", "usage_usec 7\n")
    assert host.spent() == {}


def test_total_is_never_below_what_groups_and_processes_spent(host: Host) -> None:
    host.groups.make(f"{SCOPE}/job_7")
    host.process(41, "/", WATTLEDGER_WORKLOAD="mine")
    host.after()
    host.groups.spend(f"{SCOPE}/job_7", 20_001)
    host.proc.spend(41, 2, start=41)
    record = host.record(busy_us=2 * US_PER_TICK)
    assert record.total == 20_001 + 2 * US_PER_TICK
    assert record.capacity is not None
    assert record.capacity >= record.total


def test_memory_of_groups_is_all_that_is_charged(host: Host) -> None:
    host.sensor.set_devices([Device("dram0", DeviceKind.DRAM)])
    host.groups.make(f"/docker/{HEX}", memory_bytes=900)
    host.groups.make(f"/docker/{HEX}{POD}", memory_bytes=600)
    host.process(41, f"/docker/{HEX}{POD}", WATTLEDGER_WORKLOAD="mine")
    host.after()
    (record,) = (item for item in host.after() if isinstance(item, UseRecord))
    assert {(g.workload, g.memory_bytes, g.pids) for g in record.groups} == {
        ("container/0123456789ab", 300, ()),
        ("pod/6a2b9c1e", 600, (41,)),
    }
    host.groups.make(f"{SCOPE}/job_7", memory_bytes=50)
    assert ("slurm", 50) in {(g.workload, g.memory_bytes) for g in host.record().groups}


def test_files_of_control_groups_are_closed(host: Host) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for number in range(300):
        host.groups.make(f"{SCOPE}/job_{number}")
    host.after()
    assert len(list(Path("/proc/self/fd").iterdir())) - before < 260
    for number in range(300):
        host.groups.spend(f"{SCOPE}/job_{number}", 10)
    assert host.spent() == {job(number): 10 for number in range(300)}
    host.sensor.close()
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


STEPS = st.lists(
    st.tuples(st.sampled_from(["make", "remove", "spend"]), st.integers(1, 4)), max_size=6
)


@settings(max_examples=40, deadline=None)
@given(st.lists(STEPS, min_size=1, max_size=6))
def test_whatever_comes_and_goes_nothing_is_told_twice(
    tmp_path_factory: pytest.TempPathFactory, rounds: list[list[tuple[str, int]]]
) -> None:
    host = Host(tmp_path_factory.mktemp("host"))
    host.groups.make(f"{SCOPE}/system")
    host.after()
    alive: set[int] = set()
    for steps in rounds:
        spent_us = 0
        for what, number in steps:
            path = f"{SCOPE}/job_{number}"
            if what == "make" and number not in alive:
                host.groups.make(path)
                alive.add(number)
            elif what == "remove" and number in alive:
                host.groups.remove(path)
                alive.discard(number)
            elif what == "spend" and number in alive:
                host.groups.spend(path, 1_000 + number)
                spent_us += 1_000 + number
        told = [group.ticks or 0 for group in host.record().groups]
        assert all(ticks > 0 for ticks in told)
        assert sum(told) <= spent_us
    host.sensor.close()
