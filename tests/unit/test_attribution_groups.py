"""Control groups, and utilization that was not found in the plain way."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf, nan

import pytest

from fakes.evidence import counter, gpu, ns, owned_engine, pages_of, step
from wattledger.records import (
    Activity,
    Device,
    DeviceKind,
    Evidence,
    GroupUse,
    Page,
    Process,
    ProcessUse,
    StaticBasis,
    UseRecord,
)
from wattledger_daemon.heart.attribution.shares import Holder, Nobody, Owner, shares_of

CPU = Device("cpu0", DeviceKind.CPU, "EPYC", 10.0, StaticBasis.GIVEN)
A, B = Process(1, 1, "A", "1"), Process(2, 1, "B", None)


def cpu_share(
    *groups: GroupUse, total: int | None = 100, ticks: tuple[int, ...] = (30, 10)
) -> Mapping[Holder, float]:
    used = tuple(ProcessUse(pid, ticks=spent) for pid, spent in enumerate(ticks, 1))
    record = UseRecord("cpu0", 0, 1, used, total, groups)
    shares = shares_of(DeviceKind.CPU, record)
    assert shares.static == {Nobody.IDLE: 1.0}
    assert shares.time == shares.dynamic
    return shares.dynamic


def test_a_group_takes_what_its_dead_children_used() -> None:
    group = GroupUse("slurm", "4711", (1, 2), ticks=70)
    assert cpu_share(group) == pytest.approx(
        {1: 0.3, 2: 0.1, Owner("slurm", "4711"): 0.3, Nobody.SYSTEM: 0.3}
    )


def test_a_group_counts_at_least_what_its_processes_used() -> None:
    assert cpu_share(GroupUse("w", None, (1, 2), ticks=15)) == pytest.approx(
        {1: 0.3, 2: 0.1, Nobody.SYSTEM: 0.6}
    )
    assert cpu_share(GroupUse("w", None, (1, 2))) == cpu_share()


def test_groups_beside_processes_and_groups_without_any() -> None:
    groups = (GroupUse("w", "j", (1, 77), ticks=50), GroupUse("gone", None, (), ticks=20))
    assert cpu_share(*groups) == pytest.approx(
        {1: 0.3, Owner("w", "j"): 0.2, 2: 0.1, Owner("gone", None): 0.2, Nobody.SYSTEM: 0.2}
    )


def test_two_groups_of_one_owner_are_one_holder_and_a_nameless_one_is_the_system() -> None:
    groups = (GroupUse("w", None, (), 10), GroupUse("w", None, (), 20), GroupUse(None, None, (), 5))
    assert cpu_share(*groups, total=None, ticks=()) == pytest.approx(
        {Owner("w", None): 30 / 35, Nobody.SYSTEM: 5 / 35}
    )


def test_groups_above_the_total_make_the_total() -> None:
    assert cpu_share(GroupUse("w", None, (1,), ticks=90), total=50, ticks=(30,)) == pytest.approx(
        {1: 1 / 3, Owner("w", None): 2 / 3}
    )


def memory_share(*groups: GroupUse, held: tuple[int, ...] = (30, 10)) -> Mapping[Holder, float]:
    used = tuple(ProcessUse(pid, memory_bytes=held_bytes) for pid, held_bytes in enumerate(held, 1))
    shares = shares_of(DeviceKind.DRAM, UseRecord("dram0", 0, 1, used, 100, groups))
    assert shares.static == shares.time == shares.dynamic
    return shares.static


def test_memory_of_a_group_beyond_its_processes_is_the_groups() -> None:
    assert memory_share(GroupUse("w", "j", (1,), memory_bytes=50)) == pytest.approx(
        {1: 0.3, Owner("w", "j"): 0.2, 2: 0.1, Nobody.IDLE: 0.4}
    )


def test_what_processes_of_a_group_share_counts_once() -> None:
    group = GroupUse("w", None, (1, 2), memory_bytes=20)
    assert memory_share(group) == pytest.approx({1: 0.15, 2: 0.05, Nobody.IDLE: 0.8})
    assert memory_share(GroupUse("w", None, (1, 2))) == memory_share()


def test_a_group_that_holds_nothing_leaves_all_idle() -> None:
    group = GroupUse("w", None, (1, 2), memory_bytes=0)
    assert memory_share(group) == {Nobody.IDLE: 1.0}


def two_jobs(kind: str, basis: str, *uses: ProcessUse) -> list[Page]:
    device = gpu(70.0) if kind == "gpu" else CPU
    record = UseRecord(device.device, 0, ns(1), uses, 60 if kind == "cpu" else None, basis=basis)
    return pages_of([device, *counter([(0, 0), (1, 300)], device.device), A, B, record])


def methods(pages: list[Page]) -> set[str]:
    return {p.account.method for page in pages for p in page.postings}


def test_the_method_says_how_utilization_was_found() -> None:
    busy = (ProcessUse(1, 60, 10), ProcessUse(2, 20, 30))
    assert methods(two_jobs("gpu", "", *busy)) == {"sm-share"}
    assert methods(two_jobs("gpu", "mig-slice", *busy)) == {"mig-slice"}
    assert methods(two_jobs("cpu", "", ProcessUse(1, ticks=5))) == {"cpu-time"}
    assert methods(two_jobs("cpu", "odd", ProcessUse(1, ticks=5))) == {"odd"}


def test_a_split_without_utilization_names_its_rule_and_what_had_to_be_assumed() -> None:
    assert methods(two_jobs("gpu", "mps", ProcessUse(1, 60, 10))) == {"sole-owner/mps"}
    silent = (ProcessUse(1, None, 10), ProcessUse(2, None, 30))
    assert methods(two_jobs("gpu", "mps", *silent)) == {"memory-share/mps"}
    assert methods(two_jobs("gpu", "mps")) == {"no-owner"}


def test_an_engine_says_by_what_it_was_told_apart_from_others() -> None:
    other = (ProcessUse(41, 60, 1 << 30), ProcessUse(2, 20, 1 << 30))
    late = UseRecord("gpu0", ns(1), ns(2), other, basis="mig-activity")
    world = [gpu(), *counter([(0, 0), (1, 100), (2, 200)]), *owned_engine(1.0), B, late]
    pages = pages_of([*world, step(1, 0, 1.5, [("r", 0, 5)])])
    energy_j = {
        (p.account.activity, p.account.method): p.amounts.energy_uj / 1e6 for p in pages[0].postings
    }
    assert energy_j == {
        (Activity.DECODE, "pinned"): 100,
        (Activity.DECODE, "pinned/mig-activity"): 37.5,
        (Activity.ENGINE_IDLE, "steps/mig-activity"): 37.5,
        (Activity.PROCESS, "mig-activity"): 25,
    }
    assert sum(p.amounts.decode_tokens for p in pages[0].postings) == 5


def test_an_engine_keeps_its_steps_inside_a_group() -> None:
    use = UseRecord(
        "cpu0",
        0,
        ns(1),
        (ProcessUse(41, ticks=30),),
        100,
        (GroupUse("vllm.service", "4711", (41,), ticks=80),),
    )
    cpu: list[Evidence] = [CPU, *counter([(0, 0), (1, 110)], "cpu0"), *owned_engine(), use]
    pages = pages_of([gpu(), *cpu, step(1, 0, 0.5, [("r", 100, 0)])])
    whose = {
        (p.account.activity, p.account.workload, p.account.job): p.amounts.energy_uj / 1e6
        for p in pages[0].postings
        if p.device == "cpu0" and p.amounts.energy_uj
    }
    assert whose == {
        (Activity.IDLE, None, None): 10,
        (Activity.PREFILL, "vllm.service", "4711"): 30,
        (Activity.PROCESS, "vllm.service", "4711"): 50,
        (Activity.PROCESS, "system", None): 20,
    }


def test_a_pid_in_two_slices_is_added_up_and_no_amount_at_all_counts_nothing() -> None:
    twice = (ProcessUse(1, 30, 10), ProcessUse(1, 30, 10), ProcessUse(2, 20, 30))
    shares = shares_of(DeviceKind.GPU, UseRecord("gpu0", 0, 1, twice))
    assert (shares.dynamic, shares.static) == ({1: 0.75, 2: 0.25}, {1: 0.4, 2: 0.6})
    alone = shares_of(DeviceKind.GPU, UseRecord("gpu0", 0, 1, twice[:2]))
    assert (alone.dynamic, alone.method) == ({1: 1.0}, "sole-owner")
    absurd = (ProcessUse(1, nan, -5), ProcessUse(2, inf, 10), ProcessUse(3, 50, 30))
    shares = shares_of(DeviceKind.GPU, UseRecord("gpu0", 0, 1, absurd))
    assert (shares.dynamic, shares.static) == ({3: 1.0}, {2: 0.25, 3: 0.75})
