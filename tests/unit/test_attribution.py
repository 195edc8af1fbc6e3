"""The worked cases of accounting.md through the daemon's own pipeline, and the laws."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict

import pytest

from fakes.evidence import (
    PID,
    counter,
    gpu,
    joules,
    ns,
    owned_engine,
    pages_of,
    request_uj,
    step,
)
from wattledger.records import (
    Activity,
    CostModel,
    Device,
    DeviceKind,
    Evidence,
    Page,
    PinnedCost,
    Process,
    ProcessUse,
    RequestTokens,
    StaticBasis,
    Step,
    UseRecord,
)

V3_COUNTER = [(0.0, 0.0), (1.0, 100.0), (2.0, 400.0), (3.0, 450.0)]
V3_STEPS = [step(1, 1, 2, [("R1", 1000, 0)]), step(2, 2.2, 2.4, [("R1", 0, 1)])]
P, D = Activity.PREFILL, Activity.DECODE


def book(static_w: float | None, points: list[tuple[float, float]], *steps: Step) -> list[Page]:
    return pages_of([gpu(static_w), *counter(points), *owned_engine(), *steps])


def test_v2_one_step_of_three_requests() -> None:
    requests = [("R1", 1000, 0), ("R2", 0, 1), ("R3", 0, 1)]
    pages = book(None, [(0, 0), (1, 120)], step(1, 0, 1, requests))
    assert request_uj(pages) == {("R1", P): 80851064, ("R2", D): 19574468, ("R3", D): 19574468}


def test_v3_without_idle_power() -> None:
    pages = book(None, V3_COUNTER, *V3_STEPS)
    assert joules(pages) == {"engine_idle": 140, "prefill": 300, "decode": 10}


def test_v3_with_idle_power() -> None:
    pages = book(40.0, V3_COUNTER, *V3_STEPS)
    assert joules(pages) == {"engine_idle": 132, "prefill": 300, "decode": 18}
    decode = next(p for p in pages[0].postings if p.account.activity is D)
    assert (decode.amounts.static_uj, decode.amounts.dynamic_uj) == (8_000_000, 10_000_000)


def test_v4_a_step_across_cells() -> None:
    pages = book(None, V3_COUNTER[:3], step(1, 0.5, 1.5, [("R1", 0, 1)]))
    assert joules(pages) == {"engine_idle": 200, "decode": 200}


def test_v5_overlapping_steps() -> None:
    steps = (step(1, 1, 2, [("A", 0, 1)]), step(2, 1.5, 2, [("B", 0, 1)]))
    pages = book(None, V3_COUNTER[1:3], *steps)
    assert request_uj(pages) == {("A", D): 200_000_000, ("B", D): 100_000_000}


def test_v6_a_step_without_breakdown() -> None:
    pages = book(None, V3_COUNTER[1:3], step(1, 1.25, 1.75))
    assert joules(pages) == {"engine_idle": 150, "unattributed": 150}


def test_v7_before_and_after_a_late_event() -> None:
    early = step(1, 0.2, 0.6, [("R1", 100, 0)])
    late = step(2, 0.4, 0.9, [("R2", 0, 4)])
    before = book(None, [(0, 0), (1, 100)], early)
    assert joules(before) == {"engine_idle": 60, "prefill": 40}
    after = book(None, [(0, 0), (1, 100)], early, late)
    assert request_uj(after) == {("R1", P): 30791367, ("R2", D): 39208633}
    assert joules(after)["engine_idle"] == 30


def test_v9_closed_form_equals_brute_force_shapley() -> None:
    tokens = (("R1", 1000, 0), ("R2", 0, 1), ("R3", 200, 0))
    own = {name: 0.05 * prefill + 2.0 * decode for name, prefill, decode in tokens}

    def cost(group: tuple[str, ...]) -> float:
        return (40.0 if group else 0.0) + sum(own[name] for name in group)

    brute = dict.fromkeys(own, 0.0)
    for order in itertools.permutations(own):
        for place, name in enumerate(order):
            marginal = cost(order[: place + 1]) - cost(order[:place])
            brute[name] += marginal / math.factorial(len(own))
    # The step's whole cost is 102 J: so many were metered, and nobody is scaled.
    pages = book(None, [(0, 0), (1, 102)], step(1, 0, 1, tokens))
    booked = {name: uj / 1e6 for (name, _), uj in request_uj(pages).items()}
    assert booked == pytest.approx(brute, abs=1e-6)
    assert booked == pytest.approx({"R1": 63.3333, "R2": 15.3333, "R3": 23.3333}, abs=1e-4)


def by_owner(pages: list[Page]) -> dict[tuple[str | None, str], tuple[int, int]]:
    sums: dict[tuple[str | None, str], tuple[int, int]] = defaultdict(lambda: (0, 0))
    for posting in (p for page in pages for p in page.postings):
        key = (posting.account.workload, posting.account.activity.value)
        static_uj, dynamic_uj = sums[key]
        amounts = posting.amounts
        sums[key] = (static_uj + amounts.static_uj, dynamic_uj + amounts.dynamic_uj)
    return dict(sums)


def test_v12_two_processes_share_a_gpu() -> None:
    gib = 1 << 30
    pages = pages_of(
        [
            gpu(70.0),
            *counter([(0, 0), (1, 300)]),
            Process(1, 1, "A", None),
            Process(2, 1, "B", None),
            UseRecord("gpu0", 0, ns(1), (ProcessUse(1, 60, 10 * gib), ProcessUse(2, 20, 30 * gib))),
        ]
    )
    assert by_owner(pages) == {
        ("A", "process"): (17_500_000, 172_500_000),
        ("B", "process"): (52_500_000, 57_500_000),
    }
    times = {p.account.workload: p.amounts.device_ns for p in pages[0].postings}
    assert times == {"A": ns(0.25), "B": ns(0.75)}


def test_v13_cpu_by_ticks() -> None:
    cpu = Device("cpu0", DeviceKind.CPU, "EPYC", 10.0, StaticBasis.GIVEN)
    pages = pages_of(
        [
            cpu,
            *counter([(0, 0), (1, 40)], "cpu0"),
            Process(1, 1, "A", None),
            Process(2, 1, "B", None),
            UseRecord(
                "cpu0", 0, ns(1), (ProcessUse(1, ticks=30), ProcessUse(2, ticks=15)), total=60
            ),
        ]
    )
    assert by_owner(pages) == {
        (None, "idle"): (10_000_000, 0),
        ("A", "process"): (0, 15_000_000),
        ("B", "process"): (0, 7_500_000),
        ("system", "process"): (0, 7_500_000),
    }


def one_gpu(*processes: ProcessUse, static_w: float | None = 70.0) -> list[Page]:
    use = [UseRecord("gpu0", 0, ns(1), processes)]
    return pages_of([gpu(static_w), *counter([(0, 0), (1, 300)]), Process(1, 1, "A", None), *use])


def test_nobody_holds_the_gpu() -> None:
    assert by_owner(one_gpu()) == {
        (None, "idle"): (70_000_000, 0),
        (None, "unattributed"): (0, 230_000_000),
    }


def test_no_use_record_is_nobody() -> None:
    pages = pages_of([gpu(70.0), *counter([(0, 0), (1, 300)])])
    assert joules(pages) == {"idle": 70, "unattributed": 230}


def test_memory_decides_without_utilization() -> None:
    pages = one_gpu(ProcessUse(1, None, 100), ProcessUse(2, 0, 300))
    assert by_owner(pages)["A", "process"] == (17_500_000, 57_500_000)
    assert {p.account.method for p in pages[0].postings} == {"memory-share"}


def test_partly_absent_utilization_counts_zero() -> None:
    pages = one_gpu(ProcessUse(1, 50, 100), ProcessUse(2, None, 300))
    assert by_owner(pages)["A", "process"] == (17_500_000, 230_000_000)


def test_sole_owner_takes_all() -> None:
    assert by_owner(one_gpu(ProcessUse(1)))["A", "process"] == (70_000_000, 230_000_000)


def test_unknown_idle_power_is_said() -> None:
    pages = one_gpu(ProcessUse(1), static_w=None)
    assert by_owner(pages)["A", "process"] == (0, 300_000_000)
    assert {p.account.static_basis for p in pages[0].postings} == {StaticBasis.UNKNOWN}


def test_dram_goes_by_resident_memory() -> None:
    dram = Device("dram0", DeviceKind.DRAM, None, 4.0, StaticBasis.GIVEN)
    use = UseRecord("dram0", 0, ns(1), (ProcessUse(1, memory_bytes=100),), total=400)
    pages = pages_of([dram, *counter([(0, 0), (1, 8)], "dram0"), Process(1, 1, "A", None), use])
    assert by_owner(pages) == {
        ("A", "process"): (1_000_000, 1_000_000),
        (None, "idle"): (3_000_000, 3_000_000),
    }


def test_ticks_above_total() -> None:
    cpu = Device("cpu0", DeviceKind.CPU, None, 10.0, StaticBasis.GIVEN)
    use = UseRecord("cpu0", 0, ns(1), (ProcessUse(1, ticks=30),), total=20)
    pages = pages_of([cpu, *counter([(0, 0), (1, 40)], "cpu0"), Process(1, 1, "A", None), use])
    assert by_owner(pages)["A", "process"] == (0, 30_000_000)


def test_sensor_noise_of_an_idle_gpu_does_not_leak() -> None:
    """Cells of 60 and 80 J at 70 W idle: nothing is dynamic in the window."""
    pages = pages_of([gpu(70.0), *counter([(0, 0), (1, 60), (2, 140)])])
    assert joules(pages) == {"idle": 140}


def test_an_engine_owns_cpu_energy_too_and_tokens_stand_on_its_gpu() -> None:
    cpu = Device("cpu0", DeviceKind.CPU, None, 10.0, StaticBasis.GIVEN)
    pages = pages_of(
        [
            gpu(),
            cpu,
            *counter([(0, 0), (1, 100)]),
            *counter([(0, 0), (1, 40)], "cpu0"),
            *owned_engine(),
            UseRecord("cpu0", 0, ns(1), (ProcessUse(PID, ticks=30),), total=60),
            step(1, 0, 0.5, [("R1", 100, 0)]),
        ]
    )
    by_device = {
        (p.device, p.account.activity.value): p.amounts
        for p in pages[0].postings
        if p.account.engine
    }
    assert by_device["gpu0", "prefill"].energy_uj == 50_000_000
    assert by_device["cpu0", "prefill"].dynamic_uj == 15_000_000
    assert by_device["gpu0", "prefill"].prefill_tokens == 100
    assert by_device["cpu0", "prefill"].prefill_tokens == 0


def test_context_cost_belongs_to_decode() -> None:
    cost = CostModel(0.0, 1.0, 1.0, 0.5, "pinned")
    tokens = (RequestTokens("r", 10, 2, 8), RequestTokens("q", 10, 0, 8))
    mixed: list[Evidence] = [PinnedCost("e", cost), Step("e", 1, 0, ns(1), tokens)]
    pages = pages_of([gpu(), *counter([(0, 0), (1, 30)]), *owned_engine(cost=None), *mixed])
    booked = {key: uj / 1e6 for key, uj in request_uj(pages).items()}
    assert booked == {("r", P): 10.0, ("r", D): 6.0, ("q", P): 14.0}


def test_all_zero_weights_share_equally() -> None:
    free = PinnedCost("e", CostModel(0.0, 0.0, 0.0, 0.0))
    requests = [("R1", 10, 0), ("R2", 0, 1)]
    steps = [step(1, 0, 1, requests)]
    pages = pages_of([gpu(), *counter([(0, 0), (1, 100)]), *owned_engine(cost=None), free, *steps])
    assert request_uj(pages) == {("R1", P): 50_000_000, ("R2", D): 50_000_000}


def test_a_step_of_no_length_gets_tokens_and_no_energy() -> None:
    pages = book(None, [(0, 0), (1, 100)], step(1, 0.5, 0.5, [("R1", 7, 0)]))
    assert joules(pages) == {"engine_idle": 100}
    assert sum(p.amounts.prefill_tokens for p in pages[0].postings) == 7


def test_tokens_of_a_step_across_windows_add_up() -> None:
    pages = book(None, [(0, 0), (20, 100)], step(1, 3, 13, [("R1", 1001, 0)]))
    tokens = [sum(p.amounts.prefill_tokens for p in page.postings) for page in pages]
    assert (sum(tokens), tokens[:3]) == (1001, [200, 501, 300])


def test_lines_that_conflict_are_settled_by_what_they_say() -> None:
    """Order in the file never matters, not even between lines that cannot both be true."""
    world = [
        gpu(5.0),
        gpu(8.0),
        *counter([(0, 0), (5, 500), (5, 400)]),
        Process(1, 9, "new", None),
        Process(1, 2, "old", None),
        UseRecord("gpu0", 0, ns(5), (ProcessUse(1),)),
        UseRecord("gpu0", 0, ns(5), (ProcessUse(2),)),
    ]
    assert pages_of(world) == pages_of(list(reversed(world)))
