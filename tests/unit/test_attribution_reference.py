"""The heart against an independent reference, over engines as they really run and worse."""

from __future__ import annotations

from collections import defaultdict
from fractions import Fraction
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.evidence import EPOCH_NS, gpu, ns, pages_of
from fakes.reference_split import Split, cells_of, split, tokens_of
from wattledger.records import (
    DEFAULT_COST_MODEL,
    CostModel,
    CounterReading,
    Engine,
    Evidence,
    Page,
    PinnedCost,
    Process,
    ProcessUse,
    RequestTokens,
    Step,
    UseRecord,
)

LAST_NS = ns(12)
SHARES = {"e": (Fraction(1, 4), Fraction(3, 4)), "f": (Fraction(3, 4), Fraction(1, 4))}
COSTS = [
    DEFAULT_COST_MODEL,
    CostModel(40.0, 0.05, 2.0, 0.0),
    CostModel(40.0, 0.05, 2.0, 0.001),
    CostModel(0.0, 0.0, 1.0, 0.5),
    CostModel(0.0, 0.0, 0.0, 0.0),
    CostModel(3.0, 0.0, 0.0, 0.0),
]


def continuous_batching(random: Random, engine: str, first_seq: int) -> list[Step]:
    """A running batch: requests come and go, decode a token a step, and are at times odd."""
    steps: list[Step] = []
    running: dict[str, int] = {}
    t_ns, born = random.randrange(ns(3)), 0
    for seq in range(first_seq, first_seq + random.randrange(25)):
        parts = []
        for name, context in list(running.items()):
            if random.random() < 0.15:
                del running[name]
                continue
            grown = random.choice([1, 1, 1, 1, 1, 1, 1, 0, 3])
            running[name] = context + grown
            parts.append(RequestTokens(name, 0, grown, context))
        while len(parts) < 4 and random.random() < 0.5:
            name, born = f"{engine}{born}", born + 1
            prefill = random.choice([0, 1, 7, 900])
            running[name] = prefill
            parts.append(RequestTokens(name, prefill, random.choice([0, 0, 1]), 0))
        if random.random() < 0.3:
            parts.append(RequestTokens("", random.randrange(50), random.randrange(3), 9))
        if random.random() < 0.2:
            random.shuffle(parts)
        length_ns = random.choice([0, 1, ns(0.1), ns(0.25), ns(0.9), random.randrange(ns(4))])
        steps.append(Step(engine, seq, t_ns, t_ns + length_ns, tuple(parts)))
        t_ns += random.choice([length_ns, length_ns, length_ns, length_ns // 2, ns(0.3)])
    return steps


@st.composite
def worlds(draw: st.DrawFn) -> tuple[float | None, list[CounterReading], list[Step]]:
    random = draw(st.randoms(use_true_random=False))
    readings, t_ns, energy_uj = [], 0, 0
    while t_ns < LAST_NS:
        readings.append(CounterReading("gpu0", t_ns, energy_uj))
        t_ns += random.choice([ns(0.1), ns(0.1), ns(1), random.randrange(1, ns(3))])
        energy_uj += random.randrange(1, 10**9)
    readings.append(CounterReading("gpu0", LAST_NS, energy_uj))
    steps = continuous_batching(random, "e", 0) + continuous_batching(random, "f", 500)
    steps += continuous_batching(random, "e", 1000) if random.random() < 0.4 else []
    if random.random() < 0.5:
        random.shuffle(steps)
    return draw(st.sampled_from([None, 0.0, 40.0, 400.0])), readings, steps


def book(
    static_w: float | None, readings: list[CounterReading], steps: list[Step], cost: CostModel
) -> list[Page]:
    uses = (ProcessUse(1, 60, 10), ProcessUse(2, 20, 30))
    evidence: list[Evidence] = [
        gpu(static_w),
        Process(1, 1, "w1", "j1"),
        Process(2, 1, "w2", None),
        Engine("e", "vllm", "m", (1,)),
        Engine("f", "vllm", "m", (2,)),
        UseRecord("gpu0", 0, ns(100), uses),
        *readings,
        *steps,
    ]
    if cost is not DEFAULT_COST_MODEL:
        evidence += [PinnedCost("e", cost), PinnedCost("f", cost)]
    return pages_of(evidence)


def posted(
    page: Page, engine: str
) -> tuple[dict[tuple[str, str], int], dict[tuple[str, str], int]]:
    """(energy, tokens) by (request, activity): what no request is named for stands under ""."""
    energy: dict[tuple[str, str], int] = defaultdict(int)
    tokens: dict[tuple[str, str], int] = defaultdict(int)
    for sign, postings in ((1, page.postings), (-1, page.request_postings)):
        for posting in postings:
            if posting.account.engine != engine:
                continue
            amounts, activity = posting.amounts, str(posting.account.activity)
            for request, more in (("", sign), (posting.request or "", int(sign < 0))):
                energy[request, activity] += more * amounts.energy_uj
                count = amounts.prefill_tokens + amounts.decode_tokens
                tokens[request, activity] += more * count
    return energy, tokens


@settings(max_examples=120, deadline=None)
@given(worlds(), st.sampled_from(COSTS))
def test_the_heart_splits_as_the_reference_does(
    world: tuple[float | None, list[CounterReading], list[Step]], cost: CostModel
) -> None:
    static_w, readings, steps = world
    points = [(reading.t_ns, reading.energy_uj) for reading in readings]
    for page in book(static_w, readings, steps, cost):
        window = page.start_ns - EPOCH_NS, page.end_ns - EPOCH_NS
        for engine in ("e", "f"):
            own = [step for step in steps if step.engine == engine]
            expected: Split = split(cells_of(points, *window), static_w, SHARES[engine], own, cost)
            energy, tokens = posted(page, engine)
            for key in energy.keys() | expected.keys():
                # Each device's static and dynamic energy is rounded, at the window's edges too.
                assert abs(energy.get(key, 0) - float(expected.get(key, 0))) <= 4, key
            assert {k: v for k, v in tokens.items() if v} == tokens_of(own, *window)
