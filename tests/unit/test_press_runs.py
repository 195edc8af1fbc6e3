"""Runs on the wire: a batch told by runs says what the same batch says without, and is checked."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.collecting import NOW_NS, Change, S, batch_of
from fakes.daemon_parts import BOOT_ID
from wattledger.records import Step
from wattledger_collectors.engines.events import Counts, Event
from wattledger_collectors.wire import Identity, Press
from wattledger_daemon.batches import BadBatchError, Events, check_batch, events_of
from wattledger_daemon.heart.columns import StepColumns
from wattledger_daemon.heart.engine_steps import EngineSteps
from wattledger_daemon.heart.runs import BLOCK_NS
from wattledger_proto.v1 import collect_pb2


def running(random: Random, steps: int, first: int = 0) -> list[Event]:
    """A batch's steps in columns: requests come, decode, jump, pause, prefill and go."""
    events: list[Event] = []
    live = {f"r{n}": random.randrange(50) for n in range(random.randrange(5))}
    for at in range(first, first + steps):
        names, prefill, decode, context = [], [], [], []
        for name in list(live):
            fate = random.random()
            if fate < 0.05:
                events.append(("finish", "m", NOW_NS - S, name, 9, 0, 9, False))
                del live[name]
                continue
            if fate < 0.1:
                continue
            names.append(name)
            prefill.append(7 if fate < 0.15 else 0)
            decode.append(1 if fate > 0.2 else random.randrange(3))
            live[name] += 1 if fate > 0.25 else random.randrange(4)
            context.append(live[name])
        if random.random() < 0.3:
            live[f"n{at}"] = 0
        start_ns = NOW_NS - 60 * S + at * S // random.choice([10, 10, 1])
        columns = (names, prefill, decode, context)
        events.append(("columns", "m", start_ns, start_ns + S // 10, *columns))
    return events


def pressed(press: Press, events: list[Event], sequence: int) -> collect_pb2.Batch:
    body = press.batch("m", events, Counts())
    return collect_pb2.Batch.FromString(body + press.stamp(sequence, NOW_NS, 0))


def a_press(*, runs: bool) -> Press:
    press = Press(Identity("vllm", 41, 77, BOOT_ID), least_requests=0)
    press.tells_runs = runs
    return press


def steps_of(events: Events) -> list[tuple[object, ...]]:
    found = [item for item in events if isinstance(item, Step)]
    return [(s.seq, s.start_ns, s.end_ns, sorted(s.requests)) for s in found]


def parts_of(book: EngineSteps) -> list[tuple[object, ...]]:
    found = []
    for block in book._blocks:
        for run in block.runs():
            for index in range(run.first, run.stop):
                context = run.context_tokens + run.growth * (index - run.first)
                tokens = run.prefill_tokens, run.decode_tokens, context
                found.append((block.seqs[index], run.request, *tokens))
    return sorted(found)


@settings(max_examples=200, deadline=None)
@given(st.randoms(use_true_random=False), st.lists(st.integers(0, 9), max_size=5))
def test_a_batch_told_by_runs_says_the_same(random: Random, lengths: list[int]) -> None:
    plain, dense = a_press(runs=False), a_press(runs=True)
    one, other = EngineSteps(), EngineSteps()
    for sequence, length in enumerate(lengths, 1):
        events = running(random, length, first=10 * sequence)
        whole = check_batch(pressed(plain, events, sequence), boot_id=BOOT_ID, now_ns=NOW_NS)
        batch = pressed(dense, events, sequence)
        short = check_batch(batch, boot_id=BOOT_ID, now_ns=NOW_NS)
        assert steps_of(short) == steps_of(whole)
        assert short.finishes == whole.finishes
        assert short.steps.sums == whole.steps.sums
        assert steps_of(events_of(batch)) == steps_of(whole)
        for book, told in ((one, whole), (other, short), (other, short)):
            book.add(told.steps)
    assert parts_of(one) == parts_of(other)


def test_a_steady_batch_is_one_run_for_each_request() -> None:
    names = [f"r{n}" for n in range(256)]
    press = a_press(runs=True)
    book = EngineSteps()
    for sequence in range(1, 6):
        events: list[Event] = [
            ("columns", "m", at, at + 1, names, [0] * 256, [1] * 256, [sequence * 10 + at] * 256)
            for at in range(10)
        ]
        batch = pressed(press, events, sequence)
        assert len(batch.runs.requests) == 256
        assert batch.ByteSize() < 8_000
        steps = events_of(batch).steps
        at_ns = NOW_NS + sequence * BLOCK_NS // 10
        times = [at_ns + at for at in range(10)]
        book.add(moved(steps, times))
    assert book.rows == 256 + 50


def moved(steps: StepColumns, times_ns: list[int]) -> StepColumns:
    return StepColumns(
        steps.engine,
        steps.source,
        steps.names,
        steps.seqs,
        times_ns,
        [t_ns + 1 for t_ns in times_ns],
        steps.requests,
        steps.prefill_tokens,
        steps.decode_tokens,
        steps.context_tokens,
        steps.sums,
        steps.stretches,
    )


def test_few_steps_or_steps_told_otherwise_are_told_in_full() -> None:
    press = a_press(runs=True)
    columns: Event = ("columns", "m", 1, 2, ["a"], [0], [1], [5])
    assert not pressed(press, [columns] * 2, 1).HasField("runs")
    mixed: list[Event] = [columns, columns, ("token", "m", 1, 2, "b", 3), columns]
    assert not pressed(press, mixed, 2).HasField("runs")


def test_a_request_told_twice_in_a_step_is_not_lost() -> None:
    twice: Event = ("columns", "m", 1, 2, ["a", "a"], [0, 0], [1, 1], [5, 5])
    once: Event = ("columns", "m", 1, 2, ["a"], [0], [1], [6])
    batch = pressed(a_press(runs=True), [twice, once, once, twice], 1)
    told = sum(sum(step.decode_tokens) for step in batch.steps) + sum(batch.runs.lengths)
    assert told == 6


def with_runs(change: Change) -> collect_pb2.Batch:
    """Two steps that r2 runs through, the first beside a prefill of r1."""
    batch = batch_of()
    step = batch.steps[0]
    for column in (step.requests, step.prefill_tokens, step.decode_tokens, step.context_tokens):
        del column[1:]
    batch.steps.add(start_ns=NOW_NS - S, end_ns=NOW_NS)
    batch.runs.requests.append(1)
    batch.runs.first_steps.append(0)
    batch.runs.lengths.append(2)
    batch.runs.context_tokens.append(512)
    change(batch)
    return batch


def again(batch: collect_pb2.Batch) -> None:
    batch.runs.requests.append(1)
    batch.runs.first_steps.append(1)
    batch.runs.lengths.append(1)
    batch.runs.context_tokens.append(9)


REFUSED: list[tuple[str, Change]] = [
    ("runs.first_steps has 0 entries for 1", lambda b: b.runs.ClearField("first_steps")),
    ("runs.lengths has 2 entries for 1", lambda b: b.runs.lengths.append(1)),
    ("runs.context_tokens has 0 entries", lambda b: b.runs.ClearField("context_tokens")),
    ("runs.requests point to 2", lambda b: b.runs.requests.__setitem__(0, 2)),
    ("runs.lengths hold 0", lambda b: b.runs.lengths.__setitem__(0, 0)),
    ("runs.lengths lead to step 3 of 2", lambda b: b.runs.lengths.__setitem__(0, 3)),
    ("runs.lengths lead to step 3 of 2", lambda b: b.runs.first_steps.__setitem__(0, 1)),
    ("runs.context_tokens counts above", lambda b: b.runs.context_tokens.__setitem__(0, 2**31)),
    ("steps[0].requests name a request twice", lambda b: b.runs.requests.__setitem__(0, 0)),
    ("steps[1].requests name a request twice", again),
    ("steps hold ", lambda b: b.runs.lengths.__setitem__(0, 2**31)),
]


@pytest.mark.parametrize(("said", "change"), REFUSED, ids=[said for said, _ in REFUSED])
def test_runs_that_cannot_be_are_refused(said: str, change: Change) -> None:
    with pytest.raises(BadBatchError) as refused:
        check_batch(with_runs(change), boot_id=BOOT_ID, now_ns=NOW_NS)
    assert str(refused.value).startswith(said)


def test_a_step_that_runs_go_through_is_known() -> None:
    events = check_batch(with_runs(lambda _: None), boot_id=BOOT_ID, now_ns=NOW_NS)
    first, second, _ = events
    assert isinstance(first, Step)
    assert isinstance(second, Step)
    assert [tokens.request for tokens in first.requests] == ["r1", "r2"]
    assert [tuple(tokens) for tokens in second.requests] == [("r2", 0, 1, 513)]
    assert list(events.steps.sums) == [(2, 100, 1, 512), (1, 0, 1, 513)]
