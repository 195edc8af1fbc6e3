"""Which control groups a host has, and what their files say."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from wattledger_collectors.sensors.cgroup_files import Hierarchy, find_hierarchy, is_gone, usage_us


def hierarchy(tmp_path: Path, *files: str) -> Hierarchy | None:
    for name in files:
        path = tmp_path / "fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("0\n")
    return find_hierarchy(tmp_path)


@pytest.mark.parametrize(
    ("files", "root", "usage_file", "memory"),
    [
        (["cgroup.controllers"], "", "cpu.stat", "memory.current"),
        (["cpu,cpuacct/cpuacct.usage"], "/cpu,cpuacct", "cpuacct.usage", "memory.usage_in_bytes"),
        (["cpuacct/cpuacct.usage"], "/cpuacct", "cpuacct.usage", "memory.usage_in_bytes"),
        # A hybrid host counts CPU time where its managers make their groups.
        (
            ["cpuacct/cpuacct.usage", "unified/cgroup.controllers"],
            "/cpuacct",
            "cpuacct.usage",
            "memory.usage_in_bytes",
        ),
        (["unified/cgroup.controllers"], "/unified", "cpu.stat", "memory.usage_in_bytes"),
    ],
)
def test_the_hierarchy_of_a_host(
    tmp_path: Path, files: list[str], root: str, usage_file: str, memory: str
) -> None:
    found = hierarchy(tmp_path, *files)
    assert found is not None
    assert found.root == f"{tmp_path}/fs/cgroup{root}"
    assert (found.usage_file, found.memory_file) == (usage_file, memory)


def test_a_host_without_control_groups(tmp_path: Path) -> None:
    assert hierarchy(tmp_path) is None


def test_where_a_process_stands(tmp_path: Path) -> None:
    second = hierarchy(tmp_path, "cgroup.controllers")
    assert second is not None
    assert second.path_of({"": "/a/b"}) == "/a/b"
    assert second.path_of({"": "/"}) == ""
    assert second.path_of({"": "/../a"}) is None
    assert second.path_of({"cpu": "/a"}) is None
    first = hierarchy(tmp_path / "v1", "cpuacct/cpuacct.usage")
    assert first is not None
    assert first.path_of({"": "/a", "cpuacct,cpu": "/b"}) == "/b"


@pytest.mark.parametrize(
    ("text", "us"),
    [
        (b"usage_usec 1999\nuser_usec 7\n", 1999),
        (b"1999\n", 1),
        (b"", None),
        (b"usage_usec \n", None),
        (b"usage_usec -1\n", None),
        (b"-1\n", None),
        (b"nan\n", None),
    ],
)
def test_cpu_time_in_microseconds(tmp_path: Path, text: bytes, us: int | None) -> None:
    (tmp_path / "usage").write_bytes(text)
    descriptor = os.open(tmp_path / "usage", os.O_RDONLY)
    try:
        if us is None:
            with pytest.raises(ValueError, match="not a number"):
                usage_us(descriptor)
        else:
            assert usage_us(descriptor) == us
    finally:
        os.close(descriptor)


def test_a_removed_group_is_told_from_a_broken_file() -> None:
    assert is_gone(OSError(19, "No such device"))
    assert not is_gone(PermissionError(13, "Permission denied"))


def test_processes_are_looked_for_in_groups_below_and_not_forever(tmp_path: Path) -> None:
    found = hierarchy(tmp_path, "cgroup.controllers", "a/cgroup.procs", "a/b/cgroup.procs")
    assert found is not None
    base = tmp_path / "fs/cgroup/a"
    (base / "cgroup.procs").write_text("0\n12\n")
    (base / "b/cgroup.procs").write_text("7\n")
    # A threaded group refuses to list its processes.
    (base / "c/cgroup.procs").mkdir(parents=True)
    assert sorted(found.pids("/a")) == [7, 12]
    assert found.pids("/a", folders_at_most=1) == [12]
    assert found.pids("/gone") == []
