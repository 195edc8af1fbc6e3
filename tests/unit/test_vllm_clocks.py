"""Steps of a vLLM in odd times: other hosts' clocks, pauses, preemption, sessions of many turns."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from fakes import vllm
from fakes.vllm import PREEMPTED, SCHEDULED, Event, first
from fakes.vllm_rig import STOP, Rig, Told, finishes, one, steps, sums
from wattledger_collectors.engines.vllm_place import Place


@pytest.mark.parametrize("off_s", [30.0, -3_000.0, -20_000.0])
def test_a_rank_on_a_host_with_another_clock_is_told_by_ours(off_s: float) -> None:
    rig = Rig(ranks=(0, 1))
    rig.add("r")
    rig.add("here")
    rig.now_s = 50_000.1
    stats = vllm.IterationStats()
    rig.processor.process_outputs([first("r", 100, at_s=50_000.0 + off_s)], 50_000.1 + off_s, stats)
    rig.hook.record(1, None, stats)
    rig.now_s = 50_000.2
    stats = vllm.IterationStats()
    rig.processor.process_outputs([one("r")], 50_000.2 + off_s, stats)
    rig.hook.record(1, None, stats)
    # A rank of this host's is told by its own word all the same.
    rig.step(50_000.3, first("here", 10, at_s=50_000.25))
    assert [(round(told.start_s, 3), round(told.end_s, 3)) for told in steps(rig.take(1))] == [
        (50_000.0, 50_000.1),
        (50_000.1, 50_000.2),
    ]
    assert steps(rig.take(0))[0].start_s == 50_000.25


def test_the_only_engine_is_on_this_host_and_what_it_tells_may_come_late() -> None:
    rig = Rig()
    rig.add("a")
    rig.now_s = 1_000.0
    stats = vllm.IterationStats()
    rig.processor.process_outputs([first("a", 10, at_s=900.0)], 900.1, stats)
    rig.hook.record(0, None, stats)
    assert steps(rig.take()) == [Told(900.0, 900.1, {"a": (10, 0, 0)})]


def test_one_stamp_from_the_future_leaves_the_later_steps_their_length() -> None:
    rig = Rig()
    rig.add("a")
    rig.step(1.1, first("a", 10, at_s=1.0))
    rig.now_s = 1.2
    stats = vllm.IterationStats()
    rig.processor.process_outputs([one("a")], 3_600.0, stats)
    rig.hook.record(0, None, stats)
    rig.step(1.3, one("a"))
    assert [(told.start_s, told.end_s) for told in steps(rig.take())[1:]] == [
        (1.1, 1.2),
        (1.2, 1.3),
    ]


def test_a_pause_amid_a_decode_is_not_one_tokens() -> None:
    rig = Rig()
    rig.add("a")
    rig.step(10.1, first("a", 10, at_s=10.0))
    rig.step(10.2, one("a"))
    rig.step(610.2, one("a"))
    rig.step(610.3, one("a"))
    assert [(told.start_s, told.end_s) for told in steps(rig.take())[1:]] == [
        (10.1, 10.2),
        (608.2, 610.2),
        (610.2, 610.3),
    ]


def test_a_slow_engine_has_long_steps_and_a_long_prefill_beside_others_is_one() -> None:
    slow = Rig()
    slow.add("a")
    slow.step(110.0, first("a", 10, at_s=100.0))
    for number in range(3):
        slow.step(120.0 + 10 * number, one("a"))
    assert all(told.end_s - told.start_s == 10.0 for told in steps(slow.take()))
    rig = Rig()
    for name in "ab":
        rig.add(name)
    rig.step(10.1, first("a", 10, at_s=10.0))
    rig.step(10.2, one("a"))
    rig.step(15.2, one("a"), first("b", 90_000, at_s=10.15))
    assert steps(rig.take())[-1].start_s == 10.2


def scheduler(queries: int = 0, hits: int = 0) -> SimpleNamespace:
    cache = SimpleNamespace(preempted_queries=queries, preempted_hits=hits)
    return SimpleNamespace(num_running_reqs=3, prefix_cache_stats=cache)


RESUMED = [Event(PREEMPTED, 1.65), Event(SCHEDULED, 1.72)]


@pytest.mark.parametrize("told_of_p", [1.5, 1.75])
def test_what_one_has_to_compute_again_is_not_anothers(told_of_p: float) -> None:
    """`p` was preempted amid its prefill, before or as `r` was amid its decode."""
    rig = Rig()
    for name in "krp":
        rig.add(name, 400)
    rig.step(1.1, first("r", 400), first("k", 10), scheduler_stats=scheduler())
    rig.step(told_of_p, one("r"), one("k"), scheduler_stats=scheduler(400, 0))
    resumed = first("p", 400, at_s=None)
    resumed.events = [Event(SCHEDULED, 1.2), Event(PREEMPTED, 1.3), Event(SCHEDULED, 1.45)]
    rig.step(1.76, one("k"), resumed, scheduler_stats=scheduler())
    rig.take()
    last = scheduler(402, 397)
    rig.step(1.8, one("k"), one("p"), one("r", events=RESUMED), scheduler_stats=last)
    # Of 5 one is its ordinary decode.
    assert sums(rig.take())[0] == 4


def session(rig: Rig) -> SimpleNamespace:
    rig.add("s", 10)
    state = rig.processor.request_states["s"]
    session = SimpleNamespace(
        **{name: getattr(state, name) for name in state.__slots__},
        streaming_input=True,
        input_chunk_queue=[],
    )
    rig.processor.request_states["s"] = session
    return session


def test_a_session_of_several_turns_is_told_whole_and_ends() -> None:
    rig = Rig()
    state = session(rig)
    rig.step(1.1, first("s", 10, at_s=1.0))
    state.input_chunk_queue = None
    rig.step(1.2, one("s"))
    assert sums(rig.take()) == (10, 2), "what its prefill computed is told with its turn"
    state.prompt_len, state.is_prefilling, state.input_chunk_queue = 510, True, []
    rig.step(6.6, one("s", events=[Event(SCHEDULED, 6.5)]))
    state.input_chunk_queue = None
    rig.step(6.7, one("s"))
    events = rig.take()
    assert sums(events) == (500, 2)
    assert steps(events)[0] == Told(6.5, 6.6, {"s": (500, 0, 0)})
    # The client's last word: vLLM lets it go within `add_request`.
    rig.processor.on_add = lambda: rig.processor.request_states.pop("s")
    rig.add("s", 1)
    ended = finishes(rig.take())
    assert [event[3:] for event in ended] == [("s", 510, 0, 4, False)]
    assert rig.processor.counters.num_generation_tokens == 4


def test_a_session_that_a_turn_ends_is_finished_by_it() -> None:
    rig = Rig()
    session(rig)
    rig.step(1.1, first("s", 10, at_s=1.0))
    rig.step(1.2, one("s", finish_reason=STOP))
    events = rig.take()
    assert sums(events) == (10, 2)
    assert len(finishes(events)) == 1


def test_a_lone_rank_of_a_larger_engine_is_several() -> None:
    rig = Rig()
    rig.hook.place = Place(7, ranks=4)
    rig.add("a")
    rig.now_s = 100.0
    stats = vllm.IterationStats()
    rig.processor.process_outputs([first("a", 10, at_s=79.9)], 80.0, stats)
    rig.hook.record(0, None, stats)
    assert [(round(told.start_s, 3), told.end_s) for told in steps(rig.take())] == [(99.9, 100.0)]
