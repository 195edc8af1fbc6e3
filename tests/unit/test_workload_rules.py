from __future__ import annotations

import os
import pwd
import re
from pathlib import Path

import pytest

from fakes.sysfs import FakeProc
from wattledger.errors import InputError
from wattledger_collectors.workloads.discovery import Discovery
from wattledger_collectors.workloads.identity import Identity, identify, identify_group
from wattledger_collectors.workloads.names import user_name
from wattledger_collectors.workloads.rules import Rule
from wattledger_daemon import settings
from wattledger_daemon.config import DaemonConfig

ME = os.getuid()
NOBODY_UID = 3_999_999_999
HEX = "0123456789abcdef" * 4
UNIT = b"0::/system.slice/night-1.service\n"


@pytest.fixture
def proc(tmp_path: Path) -> FakeProc:
    return FakeProc(tmp_path / "proc")


def rules(text: str) -> tuple[Rule, ...]:
    return tuple(settings.parse(DaemonConfig, text, "w.toml").rules.values())


def test_rules_are_read_in_the_order_of_the_file() -> None:
    first, second = rules(
        "[rules.z]\ncommand = 'py*'\nworkload = '{user}'\n[rules.a]\nuser = 'eve'\njob = '7'\n"
    )
    assert first == Rule(command="py*", workload="{user}")
    assert second == Rule(user="eve", job="7")


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("3", "rules: a must be a table of conditions and names"),
        ("{ cgruop = '*', workload = 'x' }", "a must have no key 'cgruop' (did you mean cgroup?)"),
        ("{ zzz = '*', workload = 'x' }", "a must have no key 'zzz' (known here: cgroup, command"),
        ("{ workload = 'x' }", "a must have at least one of cgroup, command, user"),
        ("{ cgroup = '*' }", "a must have at least one of workload, job"),
        ("{ cgroup = 7, job = 'x' }", "a must have a non-empty line of text as cgroup"),
        ("{ cgroup = ' ', job = 'x' }", "a must have a non-empty line of text as cgroup"),
        ("{ user = 'e', job = '{pid}' }", "a must have no braces in job but {unit}, {user}"),
        ("{ user = 'e', workload = '{}' }", "a must have no braces in workload but"),
        ("{ user = 'e', workload = '{unit' }", "a must have no braces in workload but"),
        ("{ user = 'e', workload = '{unit!r}' }", "a must have no braces in workload but"),
        ("{ user = 'e', workload = '{unit:>999999999}' }", "a must have no braces in workload"),
        ("{ user = 'e', workload = '{unit.x}' }", "a must have no braces in workload but"),
    ],
)
def test_a_wrong_rule_is_refused_by_name(table: str, said: str) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        rules(f"[rules]\na = {table}\n")


def test_all_conditions_must_hold_and_the_first_rule_counts(proc: FakeProc) -> None:
    proc.process(41, cgroup=UNIT)
    other = Rule(cgroup="/system.slice/night-*", command="ruby", workload="no")
    first = Rule(cgroup="/system.slice/night-*", command="py*", workload="yes")
    second = Rule(command="python3", workload="late")
    assert identify(proc.root, 41, (other, first, second)) == Identity("yes", None)
    assert identify(proc.root, 41, (other, second, first)) == Identity("late", None)
    assert identify(proc.root, 41, (other,)) == Identity("night-1.service", None)


@pytest.mark.parametrize("user", [str(ME), pwd.getpwuid(ME).pw_name])
def test_a_user_by_name_or_number(proc: FakeProc, user: str) -> None:
    proc.process(41)
    assert identify(proc.root, 41, (Rule(user=user, workload="w"),)) == Identity("w", None)
    assert identify(proc.root, 41, (Rule(user=f"{user}x", workload="w"),)).workload == "python3"


def test_what_a_process_declares_goes_before_a_rule_and_a_rule_before_slurm(
    proc: FakeProc,
) -> None:
    rule = Rule(cgroup="*job_7*", workload="rule", job="r")
    cgroup = b"0::/system.slice/slurmstepd.scope/job_7/step_0\n"
    proc.process(41, environ={"WATTLEDGER_WORKLOAD": "mine"}, cgroup=cgroup)
    proc.process(42, environ={"WATTLEDGER_JOB": "mine"}, cgroup=cgroup)
    proc.process(43, environ={"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "train"}, cgroup=cgroup)
    assert identify(proc.root, 41, (rule,)) == Identity("mine", "r")
    assert identify(proc.root, 42, (rule,)) == Identity("rule", "mine")
    assert identify(proc.root, 43, (rule,)) == Identity("rule", "r")
    assert identify(proc.root, 43, (Rule(cgroup="*", job="r"),)) == Identity("train", "r")


def test_placeholders_are_filled_and_a_lacking_one_gives_no_name(proc: FakeProc) -> None:
    proc.process(41, cgroup=UNIT)
    proc.process(42, cgroup=f"0::/kubepods/podab-1/{HEX}\n".encode())
    names = Rule(cgroup="*", workload="{unit}/{user}", job="{pod}:{container}")
    assert identify(proc.root, 41, (names,)) == Identity(f"night-1.service/{user_name(ME)}", None)
    assert identify(proc.root, 42, (names,)) == Identity("pod/ab-1", "ab-1:0123456789ab")


def test_a_hostile_unit_in_a_name_is_tamed(proc: FakeProc) -> None:
    proc.process(41, cgroup=b"0::/system.slice/{user}\x1b" + b"u" * 900 + b".service\n")
    name = identify(proc.root, 41, (Rule(cgroup="*", workload="a {unit}"),)).workload
    assert name is not None
    assert name.startswith("a {user}?uuu")
    assert len(name) == 200


def test_a_user_without_a_name_is_a_number() -> None:
    assert user_name(NOBODY_UID) == str(NOBODY_UID)
    assert user_name(10**20) == str(10**20)


def test_groups_are_named_by_rules_about_groups_alone(proc: FakeProc) -> None:
    known = (
        Rule(cgroup="/system.slice/*", command="x", workload="no"),
        Rule(cgroup="/system.slice/*", workload="{unit}", job="nightly"),
    )
    group = "/system.slice/night-1.service"
    assert identify_group(proc.root, group, (), known) == Identity("night-1.service", "nightly")


def test_a_scan_finds_what_a_rule_is_about_once(proc: FakeProc) -> None:
    known = (Rule(cgroup="/system.slice/*", workload="g"), Rule(command="py*", workload="p"))
    discovery = Discovery(proc.root, known)
    proc.process(41, cgroup=UNIT)
    proc.process(42)
    proc.process(43, comm=b"bash")
    found = discovery.scan()
    # The group counts 41 already.
    assert found.pids == (42,)
    assert found.cgroups == {UNIT, b"0::/\n"}
    assert discovery.scan().pids == ()
    assert discovery.scan().cgroups == frozenset()
