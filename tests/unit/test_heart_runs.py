"""Runs say exactly what the steps said, however they came."""

from __future__ import annotations

from collections import Counter
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from wattledger.records import NS_PER_S, RequestTokens, Step
from wattledger_daemon.heart.columns import StepColumns, columns_of
from wattledger_daemon.heart.engine_steps import EngineSteps
from wattledger_daemon.heart.runs import BLOCK_NS, Block

TOKENS = st.tuples(
    st.sampled_from(["", "a", "b", "c", "d"]),
    st.sampled_from([0, 0, 0, 5]),
    st.sampled_from([1, 1, 1, 1, 0, 3]),
    st.integers(0, 4),
)


@st.composite
def engines(draw: st.DrawFn) -> list[Step]:
    """Steps of a running batch, with contexts that grow by 0, 1 or more, or jump."""
    steps = []
    grown: Counter[str] = Counter()
    growth = draw(st.sampled_from([0, 1, 1, 7]))
    for seq in range(draw(st.integers(0, 12))):
        rows = draw(st.lists(TOKENS, max_size=5, unique_by=lambda row: row[0]))
        parts = []
        for name, prefill, decode, jump in rows:
            grown[name] += growth + (100 if jump == 4 else 0)
            parts.append(RequestTokens(name, prefill, decode, grown[name]))
        start_ns = seq * NS_PER_S + draw(st.sampled_from([0, 0, 0, -9 * NS_PER_S]))
        length_ns = draw(st.sampled_from([0, NS_PER_S, 20 * NS_PER_S]))
        steps.append(Step("e", seq, start_ns, start_ns + length_ns, tuple(parts)))
    return steps


def told_of(blocks: list[Block]) -> Counter[tuple[object, ...]]:
    """Every part of every step that blocks hold: (seq, start, end, request, counts)."""
    found: Counter[tuple[object, ...]] = Counter()
    for block in blocks:
        for run in block.runs():
            assert run.first < run.stop <= len(block)
            for index in range(run.first, run.stop):
                step = block.seqs[index], block.starts_ns[index], block.ends_ns[index]
                context = run.context_tokens + run.growth * (index - run.first)
                part = (run.request, run.prefill_tokens, run.decode_tokens, context)
                found[*step, *part] += 1
    return found


def parts_of(steps: list[Step]) -> Counter[tuple[object, ...]]:
    return Counter((s.seq, s.start_ns, s.end_ns, *tokens) for s in steps for tokens in s.requests)


def joined(steps: list[Step], source: str) -> StepColumns:
    """Steps as one batch whose names are in an order of their own."""
    singles = [columns_of(step) for step in steps]
    names = sorted({name for single in singles for name in single.names}, reverse=True)
    return StepColumns(
        "e",
        source,
        names,
        [step.seq for step in steps],
        [step.start_ns for step in steps],
        [step.end_ns for step in steps],
        [[names.index(s.names[i]) for i in s.requests[0]] for s in singles],
        [s.prefill_tokens[0] for s in singles],
        [s.decode_tokens[0] for s in singles],
        [s.context_tokens[0] for s in singles],
        [s.sums[0] for s in singles],
    )


@settings(max_examples=200, deadline=None)
@given(engines(), st.randoms(use_true_random=False))
def test_every_part_is_told_once(steps: list[Step], random: Random) -> None:
    book = EngineSteps()
    left = list(steps)
    while left:
        count = random.randrange(1, len(left) + 1)
        taken, left = left[:count], left[count:]
        if random.random() < 0.3:
            random.shuffle(taken)
        assert book.add(joined(taken, random.choice("xy"))) == []
    assert told_of(book._blocks) == parts_of(steps)
    assert book.add(joined(steps, "z")) == list(range(len(steps)))
    assert told_of(book._blocks) == parts_of(steps)
    assert sum(map(len, book._blocks)) == len(steps)


@settings(max_examples=100, deadline=None)
@given(engines(), st.integers(-10, 30), st.integers(1, 30))
def test_a_block_is_found_by_the_windows_of_its_steps(
    steps: list[Step], start_s: int, length_s: int
) -> None:
    book = EngineSteps()
    for step in steps:
        book.add(columns_of(step))
    start_ns, end_ns = start_s * NS_PER_S, (start_s + length_s) * NS_PER_S
    found = {seq for block in book.touching(start_ns, end_ns) for seq in block.seqs}
    for step in steps:
        if step.start_ns < end_ns and max(step.end_ns, step.start_ns + 1) > start_ns:
            assert step.seq in found


def test_a_steady_batch_is_a_run_for_each_request() -> None:
    book = EngineSteps()
    length_ns = BLOCK_NS // 100
    for seq in range(100):
        parts = tuple(RequestTokens(f"r{n}", 0, 1, 500 + seq) for n in range(256))
        book.add(columns_of(Step("e", seq, seq * length_ns, (seq + 1) * length_ns, parts)))
    assert book.rows == 256 + 100


def test_what_is_forgotten_may_come_again() -> None:
    book = EngineSteps()
    early, late = Step("e", 1, 0, NS_PER_S, ()), Step("e", 2, BLOCK_NS, 2 * BLOCK_NS, ())
    for step in (early, late):
        book.add(columns_of(step))
    book.forget_before(NS_PER_S)
    assert (book.rows, book.first_ns) == (1, BLOCK_NS)
    assert book.add(columns_of(late)) == [0]
    assert book.add(columns_of(early)) == []


def test_a_request_that_stands_twice_in_a_step_is_added_up() -> None:
    parts = (RequestTokens("r", 3, 0, 0), RequestTokens("q", 0, 1, 7), RequestTokens("r", 0, 1, 9))
    columns = columns_of(Step("e", 1, 0, 1, parts))
    (step,) = columns.steps()
    assert step.requests == (RequestTokens("r", 3, 1, 9), RequestTokens("q", 0, 1, 7))
