"""Users who make control groups without end: they crowd out nobody, and it is told once."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.group_host import Host
from wattledger.records import UseRecord
from wattledger_collectors.sensors.cgroup_files import Hierarchy
from wattledger_collectors.sensors.cgroup_room import DEEPEST, LISTED_AT_MOST, Room, tenant_of
from wattledger_collectors.sensors.cgroup_use import GroupTree
from wattledger_collectors.sensors.protocol import ReadFault

HEX = "0123456789abcdef" * 4
SCOPE = "/system.slice/slurmstepd.scope"
POD = "/kubepods/burstable/pod6a2b9c1e"
APPS = "/user.slice/user-1000.slice/user@1000.service/app.slice"
OTHERS = "/user.slice/user-2000.slice/user@2000.service/app.slice"
JOB_77 = ("slurm", "77")


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """A user has a folder that looks like SLURM's; job 77 is a real one."""
    host = Host(tmp_path)
    host.groups.make(f"{SCOPE}/job_77")
    host.groups.make(f"{APPS}/slurm/job_9")
    host.process(41, f"{APPS}/slurm/job_9")
    host.after()
    return host


def told_of_77(items: list[object]) -> tuple[int, list[str]]:
    """Microseconds of job 77, and reasons of faults."""
    (record,) = (item for item in items if isinstance(item, UseRecord))
    spent = sum(g.ticks or 0 for g in record.groups if (g.workload, g.job) == JOB_77)
    return spent, [item.reason for item in items if isinstance(item, ReadFault)]


def test_a_nest_of_hundreds_of_folders_hides_no_job_and_is_told_once(host: Host) -> None:
    reasons: list[str] = []
    for number in range(3):
        # Deeper no path may be that is made in one go: 4,096 characters.
        host.groups.make(f"{APPS}/slurm/slurm_{number}" + "/slurm" * 500)
        host.groups.spend(f"{SCOPE}/job_77", 500_000)
        spent, told = told_of_77([*host.after()])
        assert spent == 500_000
        reasons += told
    assert len(reasons) == 1
    assert f"deeper than {DEEPEST} levels" in reasons[0]
    assert len(reasons[0]) < 300


def test_a_process_deep_in_a_nest_is_no_end_of_the_sensor(host: Host) -> None:
    deep = f"{APPS}/slurm" + "/slurm" * 500 + "/job_5"
    host.groups.make(deep)
    host.process(42, deep)
    host.sensor.track([42])
    host.groups.spend(f"{SCOPE}/job_77", 500_000)
    assert told_of_77([*host.after()])[0] == 500_000
    host.proc.spend(42, 3, start=42)
    (record,) = (item for item in host.after() if isinstance(item, UseRecord))
    assert [use.pid for use in record.processes] == [42]


def test_a_nest_that_goes_takes_all_its_groups_along(host: Host) -> None:
    nest = f"{APPS}/slurm/slurm_1" + "/slurm" * 20
    host.groups.make(f"{nest}/job_5")
    host.groups.spend(f"{nest}/job_5", 700)
    assert host.spent() == {("slurm", "5"): 700}
    host.groups.remove(f"{APPS}/slurm/slurm_1")
    assert host.spent() == {}
    host.groups.spend(f"{APPS}/slurm/job_9", 80)
    assert host.spent() == {("slurm", "9"): 80}


def test_a_user_with_groups_without_end_starves_nobody(host: Host) -> None:
    for number in range(100, 900):
        host.groups.make(f"{APPS}/slurm/job_{number}")
    _, reasons = told_of_77([*host.after()])
    assert [reason.partition(": more")[2] for reason in reasons] == [
        " than 512 groups of one tenant'"
    ]
    # Whoever comes later has room all the same.
    host.groups.make(f"{SCOPE}/job_78")
    host.groups.make(POD)
    host.groups.make(f"{OTHERS}/libpod-{HEX}.scope")
    host.process(43, f"{OTHERS}/libpod-{HEX}.scope")
    for _ in range(5):
        assert told_of_77([*host.after()])[1] == []
    for group in (f"{SCOPE}/job_78", POD, f"{OTHERS}/libpod-{HEX}.scope"):
        host.groups.spend(group, 90_000)
    assert host.spent() == {
        ("slurm", "78"): 90_000,
        ("pod/6a2b9c1e", None): 90_000,
        ("container/0123456789ab", None): 90_000,
    }


def test_a_folder_too_wide_to_be_listed_again_and_again_is_left_out(host: Host) -> None:
    for number in range(LISTED_AT_MOST + 1):
        host.groups.make(f"{APPS}/slurm/job_{number + 100}")
    host.groups.spend(f"{SCOPE}/job_77", 500_000)
    spent, reasons = told_of_77([*host.after()])
    assert spent == 500_000
    assert "more than 1024 groups in it" in reasons[0]
    host.groups.spend(f"{APPS}/slurm/job_200", 500_000)
    assert host.spent() == {}


def test_a_crowd_elsewhere_leaves_the_last_of_a_job_its_own(host: Host) -> None:
    host.groups.make(f"{SCOPE}/job_78")
    for number in range(100, 900):
        host.groups.make(f"{APPS}/slurm/job_{number}")
    host.after()
    host.groups.spend(f"{SCOPE}/job_77", 90_000)
    host.groups.remove(f"{SCOPE}/job_77")
    assert host.spent() == {JOB_77: 90_000}


def test_in_a_crowd_the_last_of_one_that_died_is_nobodys(host: Host) -> None:
    for number in range(100, 900):
        host.groups.make(f"{APPS}/slurm/job_{number}")
    host.after()
    for number in range(100, 900):
        host.groups.spend(f"{APPS}/slurm/job_{number}", 10)
    host.groups.remove(f"{APPS}/slurm/job_9")
    assert ("slurm", "9") not in host.spent()


def test_room_that_was_given_back_is_there_again(host: Host) -> None:
    for turn in range(4):
        for number in range(400):
            host.groups.make(f"{APPS}/slurm/job_{1000 * turn + number + 100}")
        assert told_of_77([*host.after()])[1] == []
        for number in range(400):
            host.groups.remove(f"{APPS}/slurm/job_{1000 * turn + number + 100}")
        host.after()


@pytest.mark.parametrize(
    ("path", "tenant"),
    [
        (f"{SCOPE}/job_77", ""),
        ("/slurm/uid_5/job_7", ""),
        (POD, ""),
        ("/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice", ""),
        ("/nodes/kubepods/pod1", ""),
        (f"/docker/{HEX}", ""),
        (f"/system.slice/docker-{HEX}.scope", ""),
        ("/system.slice/vllm.service", ""),
        ("/system.slice/vllm.service/slurm/job_1", "/system.slice/vllm.service"),
        (f"/docker/{HEX}/kubelet.slice{POD}", f"/docker/{HEX}"),
        (f"{POD}/{HEX}/slurm/job_1", POD),
        (f"{SCOPE}/job_77/slurm/job_1", f"{SCOPE}/job_77"),
        (f"{APPS}/slurm/job_1", "/user.slice/user-1000.slice"),
        ("/user.slice/user-1000.slice/session-3.scope", "/user.slice/user-1000.slice"),
        ("/user.slice/slurm/job_1", "/user.slice"),
        ("", ""),
    ],
)
def test_who_may_have_made_a_group(path: str, tenant: str) -> None:
    assert tenant_of(path) == tenant


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([f"{APPS}/slurm", f"{OTHERS}/slurm", f"{POD}/{HEX}/slurm", SCOPE]),
            st.integers(1, 2000),
        ),
        max_size=8,
    )
)
def test_half_of_the_room_is_the_hosts_own_whoever_comes_first(
    wishes: list[tuple[str, int]],
) -> None:
    room = Room()
    taken: list[str] = []
    for folder, wanted in wishes:
        for number in range(wanted):
            path = f"{folder}/job_{number}"
            if not room.refusal(path):
                room.take(path)
                taken.append(path)
    own = sum(not tenant_of(path) for path in taken)
    assert len(taken) <= 4096
    assert len(taken) - own <= 2048
    assert own >= 2048 or not room.refusal(f"{SCOPE}/job_1")
    for path in taken:
        room.take(path, by=-1)
    assert not any(room.refusal(f"{folder}/job_1") for folder, _ in wishes)


def test_a_tree_that_is_closed_starts_with_all_its_room(tmp_path: Path) -> None:
    host = Host(tmp_path)
    for number in range(600):
        host.groups.make(f"/system.slice/vllm.service/slurm/job_{number}")
    base = str(tmp_path / "sys/fs/cgroup")
    hierarchy = Hierarchy(base, ("",), "cpu.stat", base, "memory.current")
    tree = GroupTree(hierarchy, host.proc.root, ())
    for _ in range(2):
        tree.hold("/system.slice/vllm.service/slurm/job_1", always=False)
        tree.sample(1_000_000)
        assert len(tree.faults) == 1
        tree.close()
