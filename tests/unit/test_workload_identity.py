from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes.sysfs import FakeProc
from wattledger_collectors.sensors.procfs import process_ticks
from wattledger_collectors.workloads.identity import Identity, declared, identify, printable

USER_SCOPE = b"0::/user.slice/user-1000.slice/user@1000.service/app.slice/app-train-1.scope/inner\n"


@pytest.fixture
def proc(tmp_path: Path) -> FakeProc:
    return FakeProc(tmp_path / "proc")


@pytest.mark.parametrize(
    ("environ", "identity"),
    [
        ({}, Identity(None, None)),
        ({"WATTLEDGER_WORKLOAD": "chat"}, Identity("chat", None)),
        ({"WATTLEDGER_JOB": "7"}, Identity(None, "7")),
        ({"SLURM_JOB_ID": "4711"}, Identity(None, "4711")),
        ({"SLURM_JOB_ID": "4711", "WATTLEDGER_JOB": "mine"}, Identity(None, "mine")),
        ({"WATTLEDGER_WORKLOAD": "", "WATTLEDGER_JOB": " "}, Identity(None, None)),
        ({"WATTLEDGER_WORKLOAD": "a=b"}, Identity("a=b", None)),
        ({"XWATTLEDGER_WORKLOAD": "no", "SLURM_JOB_ID_X": "no"}, Identity(None, None)),
    ],
)
def test_what_the_environment_declares(
    proc: FakeProc, environ: dict[str, str], identity: Identity
) -> None:
    proc.process(41, environ=environ)
    assert declared(proc.root, 41) == identity


def test_a_declared_workload_goes_before_the_unit(proc: FakeProc) -> None:
    proc.process(
        41,
        environ={"WATTLEDGER_WORKLOAD": "chat", "SLURM_JOB_ID": "1"},
        cgroup=b"0::/system.slice/vllm.service\n",
    )
    assert identify(proc.root, 41) == Identity("chat", "1")


def test_a_job_alone_leaves_the_workload_to_the_unit(proc: FakeProc) -> None:
    proc.process(41, environ={"SLURM_JOB_ID": "1"}, cgroup=b"0::/a/slurmstepd.scope/job_1\n")
    assert identify(proc.root, 41) == Identity("slurmstepd.scope", "1")


def test_the_first_of_two_entries_counts_as_in_getenv(proc: FakeProc) -> None:
    proc.process(41)
    (proc.root / "41" / "environ").write_bytes(b"WATTLEDGER_JOB=1\0WATTLEDGER_JOB=2\0")
    assert declared(proc.root, 41).job == "1"


@pytest.mark.parametrize(
    ("cgroup", "workload"),
    [
        (b"0::/system.slice/vllm.service\n", "vllm.service"),
        (USER_SCOPE, "app-train-1.scope"),
        (b"3:cpu:/x.service\n1:name=systemd:/system.slice/db.service\n0::/\n", "db.service"),
        (b"2:cpu,cpuacct:/system.slice/not-this.service\n", "python3"),
        (b"0::/\n", "python3"),
        (b"0::/docker/0123456789abcdef\n", "python3"),
        (b"", "python3"),
        (b"nonsense\n::\n:\n", "python3"),
    ],
)
def test_the_unit_else_the_command(proc: FakeProc, cgroup: bytes, workload: str) -> None:
    proc.process(41, cgroup=cgroup)
    assert identify(proc.root, 41) == Identity(workload, None)


def test_a_process_that_is_gone_is_nobody(proc: FakeProc) -> None:
    assert identify(proc.root, 41) == Identity(None, None)


def test_an_environment_that_may_not_be_read_says_nothing(proc: FakeProc) -> None:
    proc.process(41, cgroup=b"0::/system.slice/vllm.service\n")
    (proc.root / "41" / "environ").unlink()
    (proc.root / "41" / "environ").mkdir()
    assert identify(proc.root, 41) == Identity("vllm.service", None)


def test_a_hostile_environment_is_tamed(proc: FakeProc) -> None:
    proc.process(41)
    raw = b"WATTLEDGER_WORKLOAD=a\nb\x1b[31m\xff\xe2\x80\xae" + b"x" * 4096 + b"\0"
    (proc.root / "41" / "environ").write_bytes(raw)
    workload = declared(proc.root, 41).workload
    assert workload == "a?b?[31m??" + "x" * 190


@given(st.binary(max_size=2000))
def test_whatever_a_name_holds_it_ends_up_printable_and_short(raw: bytes) -> None:
    name = printable(raw)
    assert name is None or (name.isprintable() and 0 < len(name) <= 200)


@given(st.binary(max_size=64), st.integers(0, 2**63), st.integers(0, 2**40))
def test_a_stat_line_is_read_whatever_the_command(comm: bytes, start: int, ticks: int) -> None:
    fields = ["S", *"0" * 10, str(ticks), "5", "0", "0", "20", "0", "1", "0", str(start), "9"]
    line = b"41 (" + comm + b") " + " ".join(fields).encode() + b"\n"
    assert process_ticks(line) == (start, ticks + 5)
