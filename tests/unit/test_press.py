"""What a batch says: steps in columns, requests without names, tenants, and whose processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from hypothesis import given
from hypothesis import strategies as st

from wattledger_collectors.engines.events import Counts, Event
from wattledger_collectors.engines.facts import EngineFacts
from wattledger_collectors.wire import Identity, Press
from wattledger_proto.v1 import collect_pb2


def press(
    engine: str = "",
    part: str = "",
    pids: Callable[[], Iterable[int]] | None = None,
    tenant_of: Callable[[str], str] | None = None,
    coarse: bool = False,
) -> Press:
    facts = EngineFacts(engine, part, pids, coarse, tenant_of)
    return Press(Identity("vllm", 41, 77, "boot", facts=facts))


def batch(press: Press, *events: Event) -> collect_pb2.Batch:
    return collect_pb2.Batch.FromString(press.batch("m", events, Counts()))


def names(batch: collect_pb2.Batch, step: collect_pb2.Step) -> list[str]:
    return [batch.request_ids[index] for index in step.requests]


counts = st.lists(st.tuples(st.sampled_from("abcd"), *[st.integers(0, 9)] * 3), max_size=4)
parts = counts.map(lambda rows: list({row[0]: row for row in rows}.values()))


@given(st.lists(parts, max_size=6))
def test_columns_say_what_parts_say(told: list[list[tuple[str, int, int, int]]]) -> None:
    as_parts: list[Event] = [("step", "m", 1, 2, tuple(rows)) for rows in told]
    as_columns: list[Event] = [
        ("columns", "m", 1, 2, *([row[at] for row in rows] for at in range(4)))  # type: ignore[misc]
        for rows in told
    ]
    one, other = batch(press(), *as_parts), batch(press(), *as_columns)
    assert one.steps == other.steps
    assert one.totals == other.totals
    assert one.request_ids == other.request_ids


def test_the_same_list_of_requests_keeps_its_numbers() -> None:
    running = ["a", "b"]
    events: list[Event] = [("columns", "m", 1, 2, running, [0, 0], [1, 1], [5, 6])] * 2
    sent = batch(press(), ("finish", "m", 1, "b", 1, 0, 0, False), *events)
    assert list(sent.request_ids) == ["b", "a"]
    assert [names(sent, step) for step in sent.steps] == [["a", "b"]] * 2


def test_requests_that_nobody_can_name_are_counted() -> None:
    sent = batch(press(), ("tally", "m", 5, 3, 30, 4, 9))
    assert list(sent.request_ids) == [""]
    (finish,) = sent.finishes
    assert (finish.count, finish.prompt_tokens, finish.cached_tokens) == (3, 30, 4)
    assert (finish.t_ns, finish.decode_tokens, finish.aborted) == (5, 9, False)
    assert sent.totals.finishes == 3


def test_without_tenants_none_are_sent() -> None:
    step: Event = ("step", "m", 1, 2, (("a", 1, 0, 0),))
    assert not batch(press(tenant_of=lambda name: ""), step).request_tenants
    assert not batch(press(), step).request_tenants


def test_a_request_keeps_its_tenant_and_is_asked_for_once() -> None:
    asked: list[str] = []

    def tenant_of(name: str) -> str:
        asked.append(name)
        if name == "bad":
            raise KeyError(name)
        return {"a": "acme" * 1_000}.get(name, "")

    ours = press(tenant_of=tenant_of)
    step: Event = ("columns", "m", 1, 2, ["a", "bad"], [1, 1], [0, 0], [0, 0])
    for _ in range(2):
        sent = batch(ours, step)
        assert list(sent.request_tenants) == [("acme" * 1_000)[:256], ""]
    assert asked.count("a") == 1


def test_the_engine_is_named_and_its_processes_are_looked_up() -> None:
    looks = iter([[43, 41, 42], [], None, [44]])

    def pids() -> list[int]:
        found = next(looks)
        if found is None:
            raise OSError("gone")
        return found

    ours = press("vllm-40.1", "1", pids, coarse=True)
    seen = []
    for _ in range(4):
        ours.look_up_pids()
        seen.append(list(batch(ours).engine.pids))
    assert seen == [[41, 42, 43]] * 3 + [[44]]
    sent = batch(ours)
    assert (sent.engine.engine, sent.source) == ("vllm-40.1", "vllm/41/77/1")
    assert sent.engine.coarse


def test_a_lone_process_is_its_engine() -> None:
    sent = batch(press())
    assert (sent.engine.engine, list(sent.engine.pids)) == ("vllm-41", [41])
    assert not sent.engine.coarse


def test_a_step_that_names_a_request_twice_is_told_with_its_tokens_added() -> None:
    columns: Event = ("columns", "m", 1, 2, ["z", "a", "z"], [5, 0, 0], [0, 1, 2], [0, 9, 7])
    rows = (("z", 5, 0, 0), ("a", 0, 1, 9), ("z", 0, 2, 7))
    for event in (columns, ("step", "m", 1, 2, rows)):
        told = batch(press(), event)
        (step,) = told.steps
        assert names(told, step) == ["z", "a"]
        assert [*step.prefill_tokens, *step.decode_tokens, *step.context_tokens] == [
            *(5, 0),
            *(2, 1),
            *(7, 9),
        ]
        assert (told.totals.prefill_tokens, told.totals.decode_tokens) == (5, 3)


def test_a_text_that_is_longer_than_the_daemon_takes_is_cut() -> None:
    pressed = Press(Identity("vllm", 41, 77, "boot", workload="w" * 600, job="j" * 600))
    event: Event = ("columns", "/data/" + "m" * 600, 1, 2, ["a"], [1], [0], [0])
    engine = collect_pb2.Batch.FromString(pressed.batch(event[1], [event], Counts())).engine
    assert [len(engine.model), len(engine.workload), len(engine.job)] == [512, 512, 512]
