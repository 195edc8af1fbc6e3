"""The laws of attribution hold for any evidence, absurd evidence too."""

from __future__ import annotations

from collections import defaultdict
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.evidence import pages_of
from wattledger.records import (
    Activity,
    CostModel,
    CounterReading,
    Device,
    DeviceKind,
    Engine,
    Evidence,
    GroupUse,
    Page,
    PinnedCost,
    Process,
    ProcessUse,
    RequestTokens,
    Step,
    UseRecord,
)

P, D = Activity.PREFILL, Activity.DECODE

TOKENS = st.tuples(
    st.sampled_from(["a", "b", "c"]), st.integers(0, 3000), st.integers(0, 3), st.integers(0, 9000)
)


AMOUNT = st.none() | st.integers(0, 100) | st.sampled_from([2**63 - 1])
PIDS = st.lists(st.integers(1, 4), max_size=3, unique=True)
GROUP = st.builds(
    GroupUse,
    st.sampled_from([None, "w1", "w9"]),
    st.sampled_from([None, "j1"]),
    PIDS.map(tuple),
    AMOUNT,
    AMOUNT,
)


@st.composite
def uses(draw: st.DrawFn, device: str) -> UseRecord:
    """A use record that need not make sense: any amounts, a pid in several groups or in none."""
    start_ms, length_ms = draw(st.integers(0, 20000)), draw(st.integers(1, 9000))
    used = tuple(ProcessUse(pid, *(draw(AMOUNT) for _ in range(3))) for pid in draw(PIDS))
    return UseRecord(
        device,
        start_ms * 10**6,
        (start_ms + length_ms) * 10**6,
        used,
        draw(AMOUNT),
        tuple(draw(st.lists(GROUP, max_size=3))),
        draw(AMOUNT),
        draw(st.sampled_from(["", "mig-slice"])),
    )


@st.composite
def worlds(draw: st.DrawFn) -> list[Evidence]:
    """Two GPUs and a CPU, two engines, any readings, uses and steps."""
    evidence: list[Evidence] = [
        Process(1, 1, "w1", "j1"),
        Process(2, 1, None, None),
        Engine("e", "vllm", "m", (1,)),
        Engine("f", "llama_cpp", None, (2, 3)),
    ]
    if draw(st.booleans()):
        f_j, a_j, b_j, c_j = (draw(st.sampled_from([0.0, 0.05, 2.0, 40.0])) for _ in range(4))
        model = CostModel(f_j, a_j, b_j, c_j, "pinned")
        evidence.append(PinnedCost("e", model))
    for name, kind in (("gpu0", "gpu"), ("gpu1", "gpu"), ("cpu0", "cpu"), ("dram0", "dram")):
        static_w = draw(st.none() | st.sampled_from([0.0, 40.0, 1e5]))
        evidence.append(Device(name, DeviceKind(kind), None, static_w))
        t_ms = energy_uj = 0
        for _ in range(draw(st.integers(0, 8))):
            evidence.append(CounterReading(name, t_ms * 10**6, energy_uj))
            t_ms += draw(st.integers(1, 7000))
            energy_uj = draw(st.integers(0, 10**10) | st.sampled_from([2**63 - 1, 2**62]))
        evidence += draw(st.lists(uses(name), max_size=3))
    for seq in range(draw(st.integers(0, 8))):
        start_ms, length_ms = draw(st.integers(0, 20000)), draw(st.integers(0, 4000))
        rows = draw(st.lists(TOKENS, max_size=3, unique_by=lambda row: row[0]))
        requests = tuple(RequestTokens(*row) for row in rows)
        engine = draw(st.sampled_from(["e", "f"]))
        end_ns = (start_ms + length_ms) * 10**6
        evidence.append(Step(engine, seq, start_ms * 10**6, end_ns, requests))
    return evidence


def totals(pages: list[Page]) -> dict[str, tuple[int, int]]:
    """(energy, device time) per device as posted."""
    sums: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for posting in (p for page in pages for p in page.postings):
        energy_uj, time_ns = sums[posting.device]
        amounts = posting.amounts
        sums[posting.device] = (energy_uj + amounts.energy_uj, time_ns + amounts.device_ns)
    return {name: pair for name, pair in sums.items() if pair != (0, 0)}


@settings(max_examples=150, deadline=None)
@given(worlds())
def test_the_books_balance(world: list[Evidence]) -> None:
    pages = pages_of(world)
    metered: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for entry in (m for page in pages for m in page.metered):
        energy_uj, time_ns = metered[entry.device]
        metered[entry.device] = (energy_uj + entry.energy_uj, time_ns + entry.device_ns)
    assert totals(pages) == {name: pair for name, pair in metered.items() if pair != (0, 0)}
    amounts = [p.amounts for page in pages for p in (*page.postings, *page.request_postings)]
    assert all(min(a.static_uj, a.dynamic_uj, a.device_ns) >= 0 for a in amounts)
    posted = [p.amounts for page in pages for p in page.postings]
    booked = sum(a.prefill_tokens + a.decode_tokens for a in posted)
    steps = [s for s in world if isinstance(s, Step)]
    computed = sum(t.prefill_tokens + t.decode_tokens for s in steps for t in s.requests)
    assert booked == computed


@settings(max_examples=60, deadline=None)
@given(worlds(), st.sampled_from([1, 2, 10, 60]))
def test_windows_of_any_length_meter_the_same(world: list[Evidence], window_s: int) -> None:
    assert totals(pages_of(world, window_s)) == totals(pages_of(world))


@settings(max_examples=60, deadline=None)
@given(worlds(), st.randoms(use_true_random=False))
def test_order_and_repetition_do_not_matter(world: list[Evidence], random: Random) -> None:
    readings = [r for r in world if isinstance(r, CounterReading)]
    others = [r for r in world if not isinstance(r, CounterReading)]
    repeated = others + [r for r in others if isinstance(r, Step)]
    random.shuffle(repeated)
    shuffled = pages_of([*readings, *repeated])
    assert [(p.postings, p.metered) for p in shuffled] == [
        (p.postings, p.metered) for p in pages_of(world)
    ]


@settings(max_examples=60, deadline=None)
@given(worlds())
def test_requests_sum_to_their_postings(world: list[Evidence]) -> None:
    for page in pages_of(world):
        fine: dict[object, int] = defaultdict(int)
        for posting in page.request_postings:
            fine[posting.device, posting.account] += posting.amounts.energy_uj
        coarse = {
            (p.device, p.account): p.amounts.energy_uj
            for p in page.postings
            if p.account.activity in (P, D)
        }
        assert {k: v for k, v in fine.items() if v} == {k: v for k, v in coarse.items() if v}
