"""When the steps of a vLLM ran: from one end to the next, and never while nothing ran."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from fakes.vllm import PREEMPTED, SCHEDULED, Event, first
from fakes.vllm_rig import STOP, Rig, Told, finishes, one, steps, sums
from wattledger_collectors.engines.vllm_place import Place


def rig(in_flight: int = 2, stats: bool = True, recomputes_all: bool = False) -> Rig:
    made = Rig(stats=stats)
    made.hook.place = Place(7, in_flight=in_flight, recomputes_all=recomputes_all)
    return made


def test_a_step_lasts_from_the_end_of_the_one_before_and_the_first_from_its_scheduling() -> None:
    world = rig()
    world.add("a", 10)
    world.step(1.1, first("a", 10, at_s=1.0))
    world.step(1.2, one("a"))
    world.step(1.3, one("a", finish_reason=STOP))
    assert steps(world.take()) == [
        Told(1.0, 1.1, {"a": (10, 0, 0)}),
        Told(1.1, 1.2, {"a": (0, 1, 11)}),
        Told(1.2, 1.3, {"a": (0, 1, 12)}),
        # The first token came out of the prefill: it is told at the end, in no time.
        Told(1.3, 1.3, {"a": (0, 1, 0)}),
    ]


def test_idle_time_between_requests_stays_idle() -> None:
    world = rig()
    world.add("a")
    world.step(1.1, first("a", 10, at_s=1.0, finish_reason=STOP))
    world.add("b")
    world.step(9.0, first("b", 10, at_s=8.9))
    last = steps(world.take())[-1]
    assert (last.start_s, last.end_s) == (8.9, 9.0)


def test_a_request_that_joins_shares_the_step_of_those_that_go_on() -> None:
    world = rig()
    world.add("a")
    world.step(1.1, first("a", 10, at_s=1.0))
    world.add("b")
    world.step(1.2, one("a"), first("b", 20, 5, at_s=1.05))
    told = steps(world.take())[-1]
    assert told == Told(1.1, 1.2, {"a": (0, 1, 11), "b": (20, 0, 0)})


def chunked(world: Rig) -> list[Told]:
    """The prompt of b takes the steps that end at 1.2, 1.3 and 1.4, beside a's tokens."""
    world.add("a")
    world.add("b", 300)
    world.step(1.1, first("a", 10, at_s=1.0))
    world.step(1.2, one("a"))
    world.step(1.3, one("a"))
    world.step(1.4, one("a"), first("b", 300, at_s=1.11))
    world.step(1.5, one("a"), one("b"))
    return steps(world.take())[3:]


def test_a_prompt_of_several_steps_is_a_step_of_its_own_beside_the_others() -> None:
    assert chunked(rig()) == [
        Told(1.11, 1.4, {"b": (300, 0, 0)}),
        Told(1.3, 1.4, {"a": (0, 1, 13)}),
        Told(1.4, 1.5, {"a": (0, 1, 14), "b": (0, 1, 301)}),
    ]


@pytest.mark.parametrize(("in_flight", "alone"), [(1, True), (2, False)])
def test_scheduled_one_step_early_is_no_chunk_where_the_engine_schedules_ahead(
    in_flight: int, alone: bool
) -> None:
    world = rig(in_flight)
    world.add("a")
    world.add("b", 300)
    world.step(1.1, first("a", 10, at_s=1.0))
    world.step(1.2, one("a"))
    world.step(1.3, one("a"), first("b", 300, at_s=1.15))
    assert (Told(1.15, 1.3, {"b": (300, 0, 0)}) in steps(world.take())) is alone


def test_chunks_that_put_nothing_out_are_seen_by_their_statistics() -> None:
    world = rig()
    world.add("a", 300)
    scheduler_stats = SimpleNamespace(num_running_reqs=1)
    for end_s in (1.1, 1.2):
        world.now_s = end_s
        world.hook.record(0, scheduler_stats, None)
    world.step(1.3, first("a", 300, at_s=1.0))
    world.step(1.4, one("a"))
    assert steps(world.take()) == [
        Told(1.0, 1.3, {"a": (300, 0, 0)}),
        Told(1.3, 1.4, {"a": (0, 1, 301)}),
    ]


def test_offline_nobody_tells_when_a_request_was_scheduled() -> None:
    world = rig(stats=False)
    world.now_s = 5.0
    world.add("a", 300)
    world.step(5.1)
    world.step(5.2)
    world.step(5.3, first("a", 300, at_s=None))
    world.step(5.4, one("a", finish_reason=STOP))
    world.now_s = 60.0
    world.add("b")
    world.step(60.1, first("b", 10, at_s=None))
    told = steps(world.take())
    assert told[0] == Told(5.0, 5.3, {"a": (300, 0, 0)})
    assert told[-1] == Told(60.0, 60.1, {"b": (10, 0, 0)})


def test_a_large_step_in_slices_is_one_step() -> None:
    world = rig()
    for name in "ab":
        world.add(name)
    world.now_s = 1.1
    world.processor.process_outputs([first("a", 10, at_s=1.0)], 1.1, stats := Stats())
    world.processor.process_outputs([first("b", 20, at_s=1.0)], 1.1, stats)
    world.hook.record(0, None, stats)
    assert steps(world.take()) == [Told(1.0, 1.1, {"a": (10, 0, 0), "b": (20, 0, 0)})]


class Stats(SimpleNamespace):
    """IterationStats of which the fake processor counts nothing but what it asks for."""

    num_generation_tokens = 0

    def __init__(self) -> None:
        super().__init__(
            time_to_first_tokens_iter=[],
            inter_token_latencies_iter=[],
            finished_requests=[],
            prompt_token_stats=SimpleNamespace(computed=0, cached_tokens=0),
        )


@pytest.mark.parametrize(("in_flight", "start_s"), [(1, 1.15), (2, 1.1)])
def test_the_engines_own_length_of_a_step_counts_where_it_schedules_no_step_ahead(
    in_flight: int, start_s: float
) -> None:
    world = rig(in_flight)
    world.add("a")
    world.step(1.1, first("a", 10, at_s=1.0))
    details = SimpleNamespace(iteration_details=SimpleNamespace(elapsed_ms=50.0))
    world.step(1.2, one("a"), scheduler_stats=details)
    assert steps(world.take())[-1].start_s == start_s


@pytest.mark.parametrize(
    ("recomputes_all", "queries", "hits", "expected"),
    [(True, 0, 0, 11), (False, 12, 8, 3), (False, 0, 0, 0)],
)
def test_a_preempted_request_computes_again_what_the_scheduler_says(
    recomputes_all: bool, queries: int, hits: int, expected: int
) -> None:
    world = rig(recomputes_all=recomputes_all)
    world.add("a")
    world.step(1.1, first("a", 10, at_s=1.0))
    world.step(1.2, one("a"))
    cache = SimpleNamespace(preempted_queries=queries, preempted_hits=hits)
    again = [Event(PREEMPTED, 1.2), Event(SCHEDULED, 5.0)]
    stats = SimpleNamespace(prefix_cache_stats=cache, num_running_reqs=1)
    world.step(5.1, one("a", events=again), scheduler_stats=stats)
    assert steps(world.take())[-1] == Told(5.0, 5.1, {"a": (expected, 1, 12)})


def test_an_embedding_has_a_prefill_alone() -> None:
    world = rig()
    world.add("a", 30)
    pooled = first("a", 30, at_s=1.0, finish_reason=STOP)
    pooled.new_token_ids = []
    world.step(1.1, pooled)
    events = world.take()
    assert sums(events) == (30, 0)
    assert finishes(events)[0][4:] == (30, 0, 0, False)


def test_times_that_run_backwards_make_no_step_of_negative_length() -> None:
    world = rig()
    world.add("a")
    world.step(1.1, first("a", 10, at_s=1.5))
    world.step(0.5, one("a"))
    world.step(2.0, one("a"))
    assert all(told.start_s <= told.end_s for told in steps(world.take()))
