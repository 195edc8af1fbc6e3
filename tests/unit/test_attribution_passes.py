"""A forward pass costs its f once, however many steps tell of it."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.evidence import counter, gpu, ns, owned_engine, pages_of, request_uj, step
from wattledger.records import CostModel, Evidence, PinnedCost, RequestTokens, Step
from wattledger.trace import TraceHeader, decode, encode
from wattledger_daemon.heart.columns import columns_of
from wattledger_daemon.heart.evidence import EvidenceBook
from wattledger_daemon.heart.passes import AGREE_NS, Told, passes

MS = 1_000_000
NAMES = [f"r{n}" for n in range(8)]
HEAVY_F = CostModel(40.0, 0.05, 2.0, 0.0)


def world(steps: list[Step], cost: CostModel = HEAVY_F) -> list[Evidence]:
    meter = counter([(t / 10, t * 30.0) for t in range(101)])
    return [gpu(), *meter, *owned_engine(cost=None), PinnedCost("e", cost), *steps]


def told_by(source: str, one: Step, later_ns: int = 0) -> Step:
    return replace(one, source=source, end_ns=one.end_ns + later_ns)


def decodes(names: list[str], seq: int = 1, start_s: float = 1.0, end_s: float = 2.0) -> Step:
    return step(seq, start_s, end_s, [(name, 0, 1) for name in names])


def energies(steps: list[Step]) -> dict[str, int]:
    found: dict[str, int] = {}
    for (name, _), energy_uj in request_uj(pages_of(world(steps))).items():
        found[name] = found.get(name, 0) + energy_uj
    return found


# ----------------------------------------------------------------- what is one


@pytest.mark.parametrize(
    ("steps", "found"),
    [
        ([(0, 20, "a"), (0, 20, "b")], [{0, 1}]),
        ([(0, 20, "a"), (5, 20.9, "b"), (0, 20.4, "c")], [{0, 1, 2}]),
        ([(0, 20, "a"), (0, 21.1, "b")], []),
        # A prompt computed in chunks, told when the pass of its last chunk ended.
        ([(0, 20, "a"), (-90, 20, "a"), (0, 20.3, "b")], [{0, 1, 2}]),
        ([(0, 20, "a"), (10, 20.2, "a")], []),
        # Passes of half a millisecond, one after the other.
        ([(0, 0.5, "a"), (0.5, 1, "a"), (0.5, 1.1, "b"), (1, 1.5, "a")], [{1, 2}]),
        ([(0, 0.5, "a"), (0, 0.6, "b"), (0.5, 1, "a"), (0.6, 1.1, "b")], [{0, 1}, {2, 3}]),
        ([(0, 0.5, "a"), (0.5, 1, "b")], []),
        ([(20, 20, "a"), (0, 20, "b"), (20, 20, "a")], []),
    ],
)
def test_what_is_one_pass(steps: list[tuple[float, float, str]], found: list[set[int]]) -> None:
    told = [Told(round(low * MS), round(high * MS), source) for low, high, source in steps]
    assert AGREE_NS == MS
    assert [set(group) for group in passes(told)] == found


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.sampled_from("abc"))))
def test_a_step_is_in_one_pass_at_most_and_their_order_changes_nothing(
    steps: list[tuple[int, int, str]],
) -> None:
    told = [Told(low * MS // 4, (low + length) * MS // 4, source) for low, length, source in steps]
    groups = passes(told)
    members = [at for group in groups for at in group]
    assert len(members) == len(set(members))
    shuffled = list(range(len(told)))
    Random(1).shuffle(shuffled)
    again = passes([told[at] for at in shuffled])
    alike = [sorted(told[shuffled[at]] for at in group) for group in again]
    assert sorted(alike) == sorted(sorted(told[at] for at in group) for group in groups)


# ------------------------------------------------------------------- whose f is it


def test_a_lone_request_on_a_second_front_end_bears_no_f_of_its_own() -> None:
    one = energies([decodes(NAMES)])
    two = [told_by("v/1", decodes(NAMES[:1])), told_by("v/2", decodes(NAMES[1:], seq=2))]
    assert energies(two) == one
    assert max(one.values()) - min(one.values()) <= 1
    # Ends some 0.1 ms apart: the last sliver is that of the later one alone.
    apart = energies([two[0], told_by("v/2", two[1], later_ns=MS // 10)])
    assert all(abs(apart[name] - one[name]) < 1e-3 * one[name] for name in NAMES)


def test_front_ends_of_two_passes_bear_two() -> None:
    first, second = decodes(["a"]), decodes(["b", "c"], seq=2, end_s=1.9)
    found = energies([told_by("v/1", first), told_by("v/2", second)])
    alone = energies([first, second])
    assert found == alone
    # 42 J over 1 s beside 44 J over 0.9 s: each has its f.
    assert found["a"] == pytest.approx(300e6 * (0.9 * 42 / (42 + 44 / 0.9) + 0.1), rel=1e-6)


def test_a_prompt_in_chunks_has_a_part_of_the_last_pass() -> None:
    chunked = [step(1, 1, 2, [("p", 800, 0)]), decodes(["a", "b", "c"], seq=2)]
    found = energies(chunked)
    # f/4 and 40 J beside f/4 and 2 J each.
    assert found["p"] == pytest.approx(300e6 * 50 / 86, abs=2)
    assert found["a"] == pytest.approx(300e6 * 12 / 86, abs=2)


def test_a_step_without_a_breakdown_is_a_pass_of_its_own() -> None:
    unknown = told_by("v/2", step(2, 1, 2))
    # 42 J of the known one beside f + b.
    assert energies([told_by("v/1", decodes(["a"])), unknown])["a"] == 150_000_000


def test_a_recording_keeps_who_told_a_step() -> None:
    steps = [told_by("v/1", decodes(NAMES[:1])), told_by("v/2", decodes(NAMES[1:], seq=2), 300)]
    lines = map(encode, world(steps))
    read = [record for record in map(decode, lines) if not isinstance(record, TraceHeader)]
    assert pages_of(read) == pages_of(world(steps))
    assert [record for record in read if isinstance(record, Step)] == steps
    assert [*columns_of(steps[0]).steps()] == steps[:1]


@settings(max_examples=40, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(2, 4))
def test_however_a_batch_is_spread_over_front_ends_its_requests_bear_the_same(
    random: Random, fronts: int
) -> None:
    whole, parted = [], []
    for seq in range(random.randrange(1, 12)):
        start_ns = ns(0.7) * seq + random.randrange(ns(0.2))
        tokens = [
            RequestTokens(f"r{n}", random.choice([0, 0, 300]), random.choice([0, 1]), 9)
            for n in range(random.randrange(1, 9))
        ]
        one = Step("e", seq, start_ns, start_ns + random.randrange(ns(0.1), ns(0.5)), ())
        whole.append(replace(one, requests=tuple(tokens)))
        for front in range(fronts):
            own = tuple(part for part in tokens if int(part.request[1:]) % fronts == front)
            if own:
                parted.append(replace(one, seq=100 * front + seq, requests=own, source=str(front)))
    random.shuffle(parted)
    left, right = energies(whole), energies(parted)
    assert left.keys() == right.keys()
    assert all(abs(left[name] - right[name]) <= 8 for name in left)


def test_totals_of_steps_count_a_pass_once_and_leave_a_prompt_in_chunks() -> None:
    book = EvidenceBook()
    fronts = [decodes(["a"]), decodes(["b", "c"], seq=2)]
    chunk = replace(step(3, 0.5, 2, [("p", 9, 0)]), source="v/1")
    for item in (*(told_by(f"v/{n}", one) for n, one in enumerate(fronts)), chunk):
        book.observe_steps(columns_of(item))
    totals = book.step_totals("e", 0, ns(5))
    assert [total.passes for total in totals] == [1.0, 0.5, 0.5]
