"""The process tree, on a fake /proc and on this very machine."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from wattledger_collectors.workloads.tree import children, descendants


def process(proc: Path, pid: int, *below: int) -> None:
    task = proc / str(pid) / "task" / str(pid)
    task.mkdir(parents=True)
    (task / "children").write_text("".join(f"{child} " for child in below))


def test_all_that_stand_below_are_found(tmp_path: Path) -> None:
    process(tmp_path, 10, 30, 20)
    process(tmp_path, 20, 40)
    process(tmp_path, 30)
    process(tmp_path, 40)
    process(tmp_path, 50)
    assert descendants(10, tmp_path) == (10, 20, 30, 40)
    assert descendants(40, tmp_path) == (40,)


def test_a_child_of_another_thread_is_a_child(tmp_path: Path) -> None:
    process(tmp_path, 10)
    other = tmp_path / "10" / "task" / "11"
    other.mkdir()
    (other / "children").write_text("20 ")
    assert children(10, tmp_path) == (20,)


def test_a_process_that_is_gone_has_none(tmp_path: Path) -> None:
    process(tmp_path, 10, 20)
    assert descendants(99, tmp_path) == ()
    assert descendants(10, tmp_path) == (10, 20)


def test_a_real_child_is_found() -> None:
    child = subprocess.Popen(["sleep", "60"])
    try:
        assert child.pid in descendants(os.getpid())
    finally:
        child.kill()
        child.wait()
