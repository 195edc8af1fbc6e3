from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes.sysfs import FakeProc
from wattledger_collectors.sensors.procfs import process_ticks
from wattledger_collectors.workloads.identity import (
    Environment,
    Identity,
    environment,
    identify,
    identify_group,
)
from wattledger_collectors.workloads.names import printable

HEX = "0123456789abcdef" * 4
POD = "6a2b9c1e-0d3f-4c55-9d0e-aaaabbbbcccc"
USER_SCOPE = b"0::/user.slice/user-1000.slice/user@1000.service/app.slice/app-train-1.scope/inner\n"
SLURM = b"0::/system.slice/slurmstepd.scope/job_7/step_0/user/task_0\n"
KUBE = f"0::/kubepods/burstable/pod{POD}/{HEX}\n".encode()
DOCKER = f"0::/system.slice/docker-{HEX}.scope\n".encode()
UNIT = b"0::/system.slice/vllm.service\n"


@pytest.fixture
def proc(tmp_path: Path) -> FakeProc:
    return FakeProc(tmp_path / "proc")


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({}, Environment()),
        ({"WATTLEDGER_WORKLOAD": "chat"}, Environment("chat")),
        ({"WATTLEDGER_JOB": "7"}, Environment(job="7")),
        ({"SLURM_JOB_ID": "4711"}, Environment(slurm_job="4711")),
        (
            {"SLURM_JOB_ID": "4711", "WATTLEDGER_JOB": "mine", "HOSTNAME": "n1"},
            Environment(job="mine", slurm_job="4711", hostname="n1"),
        ),
        ({"WATTLEDGER_WORKLOAD": "", "WATTLEDGER_JOB": " "}, Environment()),
        ({"WATTLEDGER_WORKLOAD": "a=b"}, Environment("a=b")),
        ({"XWATTLEDGER_WORKLOAD": "no", "SLURM_JOB_ID_X": "no"}, Environment()),
    ],
)
def test_what_the_environment_declares(
    proc: FakeProc, environ: dict[str, str], told: Environment
) -> None:
    proc.process(41, environ=environ)
    assert environment(proc.root, 41) == told
    assert told.declares == bool(told.workload or told.job or told.slurm_job)


NAMED = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "train"}


@pytest.mark.parametrize(
    ("environ", "cgroup", "identity"),
    [
        ({"WATTLEDGER_WORKLOAD": "chat", "SLURM_JOB_ID": "1"}, UNIT, Identity("chat", "1")),
        ({"WATTLEDGER_WORKLOAD": "chat", "WATTLEDGER_JOB": "x"}, SLURM, Identity("chat", "x")),
        ({"WATTLEDGER_JOB": "x"}, DOCKER, Identity("container/0123456789ab", "x")),
        ({}, SLURM, Identity("slurm", "7")),
        (NAMED, SLURM, Identity("train", "7")),
        (NAMED, b"0::/\n", Identity("train", "7")),
        # Started from within job 8, which the path does not say.
        ({"SLURM_JOB_ID": "8", "SLURM_JOB_NAME": "other"}, SLURM, Identity("slurm", "7")),
        ({"HOSTNAME": "chat-0"}, KUBE, Identity("pod/chat-0", None)),
        ({"HOSTNAME": os.uname().nodename}, KUBE, Identity(f"pod/{POD}", None)),
        ({}, KUBE, Identity(f"pod/{POD}", None)),
        ({"HOSTNAME": "0123"}, DOCKER, Identity("container/0123456789ab", None)),
        ({}, UNIT, Identity("vllm.service", None)),
        ({}, USER_SCOPE, Identity("app-train-1.scope", None)),
        ({}, b"0::/user.slice/user-0.slice/session-3.scope\n", Identity("user/root", None)),
        (
            {},
            b"0::/user.slice/user-4000111222.slice/session-c3.scope\n",
            Identity("user/4000111222", None),
        ),
        ({}, b"2:cpu,cpuacct:/system.slice/not-this.service\n", Identity("python3", None)),
        ({}, b"0::/\n", Identity("python3", None)),
        ({}, b"0::/docker/0123456789abcdef\n", Identity("python3", None)),
        ({}, b"", Identity("python3", None)),
        ({}, b"nonsense\n::\n:\n", Identity("python3", None)),
    ],
)
def test_who_a_process_is(
    proc: FakeProc, environ: dict[str, str], cgroup: bytes, identity: Identity
) -> None:
    proc.process(41, environ=environ, cgroup=cgroup)
    assert identify(proc.root, 41) == identity


def test_the_first_of_two_entries_counts_as_in_getenv(proc: FakeProc) -> None:
    proc.process(41)
    (proc.root / "41" / "environ").write_bytes(b"WATTLEDGER_JOB=1\0WATTLEDGER_JOB=2\0")
    assert environment(proc.root, 41).job == "1"


def test_a_process_that_is_gone_is_nobody(proc: FakeProc) -> None:
    assert identify(proc.root, 41) == Identity(None, None)


def test_an_environment_that_may_not_be_read_says_nothing(proc: FakeProc) -> None:
    proc.process(41, cgroup=UNIT)
    (proc.root / "41" / "environ").unlink()
    (proc.root / "41" / "environ").mkdir()
    assert identify(proc.root, 41) == Identity("vllm.service", None)


def test_a_hostile_environment_is_tamed(proc: FakeProc) -> None:
    proc.process(41)
    raw = b"WATTLEDGER_WORKLOAD=a\nb\x1b[31m\xff\xe2\x80\xae" + b"x" * 4096 + b"\0"
    (proc.root / "41" / "environ").write_bytes(raw)
    assert environment(proc.root, 41).workload == "a?b?[31m??" + "x" * 190


def test_a_hostile_host_and_job_name_are_tamed(proc: FakeProc) -> None:
    proc.process(41, cgroup=KUBE)
    (proc.root / "41" / "environ").write_bytes(b'HOSTNAME=a\n"' + b"h" * 999 + b"\0")
    workload = identify(proc.root, 41).workload
    assert workload is not None
    assert workload.startswith('pod/a?"hh')
    assert len(workload) <= 210


def test_a_group_is_named_by_its_path_and_by_what_its_processes_tell(proc: FakeProc) -> None:
    job = "/system.slice/slurmstepd.scope/job_7"
    pod = f"/kubepods/pod{POD}"
    proc.process(41)
    proc.process(42, environ={"SLURM_JOB_ID": "8", "SLURM_JOB_NAME": "not-this"})
    proc.process(43, environ=NAMED)
    proc.process(44, environ={"HOSTNAME": "chat-0"})
    proc.process(45, environ={"WATTLEDGER_WORKLOAD": "chat"})
    root = proc.root
    assert identify_group(root, job, []) == Identity("slurm", "7")
    assert identify_group(root, job, [43, 42, 41]) == Identity("train", "7")
    assert identify_group(root, pod, [41, 44]) == Identity("pod/chat-0", None)
    assert identify_group(root, pod, [99]) == Identity(f"pod/{POD}", None)
    # What the oldest declares holds for all, what another declares for itself alone.
    assert identify_group(root, pod, [45, 46]) == Identity("chat", None)
    assert identify_group(root, pod, [41, 45]) == Identity(f"pod/{POD}", None)
    assert identify_group(root, "/somewhere", []) == Identity(None, None)


@given(st.binary(max_size=2000))
def test_whatever_a_name_holds_it_ends_up_printable_and_short(raw: bytes) -> None:
    name = printable(raw)
    assert name is None or (name.isprintable() and 0 < len(name) <= 200)


@given(st.binary(max_size=64), st.integers(0, 2**63), st.integers(0, 2**40))
def test_a_stat_line_is_read_whatever_the_command(comm: bytes, start: int, ticks: int) -> None:
    fields = ["S", *"0" * 10, str(ticks), "5", "0", "0", "20", "0", "1", "0", str(start), "9"]
    line = b"41 (" + comm + b") " + " ".join(fields).encode() + b"\n"
    assert process_ticks(line) == (start, ticks + 5)
