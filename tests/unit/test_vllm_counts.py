"""What the vLLM hook counts: what vLLM's own counters say, request by request, by whatever way."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes import vllm
from fakes.vllm import first
from fakes.vllm_rig import STOP, Rig, columns, finishes, one, steps, sums


class Traffic:
    """Clients that come, go, share prompts and want several answers; one seed, one story."""

    def __init__(self, rig: Rig, seed: int) -> None:
        self.rig = rig
        self.chance = random.Random(seed)
        self.number = 0
        self.waiting: list[str] = []
        self.running: list[str] = []
        self.time_s = 1.0

    def arrive(self) -> None:
        self.number += 1
        name = f"cmpl-{self.chance.randint(0, 5)}-0"
        if self.chance.random() < 0.2:
            children = [f"{at}_{name}-{self.number:08d}" for at in range(2)]
            parent = vllm.Parent(f"{name}-{self.number:08d}", set(children))
            for at, child in enumerate(children):
                self.rig.add(child, 10, external=name, parent=parent, index=at)
            self.waiting += children
        else:
            self.rig.add(f"{name}-{self.number:08d}", 10, external=name)
            self.waiting.append(f"{name}-{self.number:08d}")

    def step(self) -> None:
        self.time_s += 0.01
        outputs = [self.later(name) for name in self.running if self.chance.random() < 0.95]
        fresh, self.waiting = self.waiting[:2], self.waiting[2:]
        for name in fresh:
            cached = self.chance.randint(0, 9)
            outputs.append(first(name, 10 - cached, cached, self.time_s - 0.01))
        self.running += fresh
        if not self.rig.stats:
            for output in outputs:
                output.events = None
        self.rig.step(self.time_s, *outputs)

    def later(self, name: str) -> vllm.Output:
        end = self.chance.random()
        output = one(name, self.chance.randint(1, 3))
        if end < 0.1:
            output.finish_reason = STOP
            self.running = [other for other in self.running if other != name]
        elif end < 0.2:
            output.stop_string = True
        elif end < 0.25:
            output.finish_reason = vllm.FinishReason.ABORT
        return output

    def hang_up(self) -> None:
        """The engine goes on with it for a while: those outputs count for nobody."""
        known = self.waiting + self.running
        if known:
            self.rig.processor.abort_requests([self.chance.choice(known)], True)

    def play(self, moves: list[str]) -> None:
        for move in moves:
            {"arrive": self.arrive, "step": self.step, "hang up": self.hang_up}[move]()
        self.rig.processor.abort_requests(list(self.rig.processor.request_states), True)
        self.rig.hook.flush()


MOVES = st.lists(st.sampled_from(["arrive", "step", "step", "step", "hang up"]), max_size=60)


@settings(deadline=None)
@given(MOVES, st.integers(0, 2**20), st.booleans())
def test_our_sums_are_vllms_own_counters(moves: list[str], seed: int, stats: bool) -> None:
    rig = Rig(stats=stats)
    Traffic(rig, seed).play(moves)
    events = rig.take()
    counted = rig.processor.counters
    ended = finishes(events)
    assert sums(events) == (counted.prompt_token_stats.computed, counted.num_generation_tokens)
    assert sum(event[5] for event in ended) == counted.prompt_token_stats.cached_tokens
    assert sum(event[6] for event in ended) == counted.num_generation_tokens
    assert all(told.start_s <= told.end_s for told in steps(events))
    assert rig.lines == []


@settings(deadline=None)
@given(MOVES, st.integers(0, 2**20))
def test_each_request_ends_once_with_the_tokens_of_its_steps(moves: list[str], seed: int) -> None:
    rig = Rig()
    Traffic(rig, seed).play(moves)
    events = rig.take()
    made: dict[str, int] = {}
    for told in steps(events):
        for name, (_, decode, _) in told.parts.items():
            made[name] = made.get(name, 0) + decode
    ended = {event[3]: event[6] for event in finishes(events)}
    assert len(ended) == len(finishes(events))
    assert {name: count for name, count in ended.items() if count} == {
        name: count for name, count in made.items() if count
    }


def test_a_token_that_a_stop_string_cuts_off_was_computed() -> None:
    rig = Rig()
    rig.add("a")
    rig.step(1.1, first("a", 10))
    rig.step(1.2, one("a", 3, stop_string=True))
    events = rig.take()
    assert sums(events) == (10, 4)
    assert finishes(events)[0][3:] == ("a", 10, 0, 4, False)


def test_an_output_of_a_request_that_was_aborted_counts_for_nobody() -> None:
    rig = Rig()
    for name in "ab":
        rig.add(name)
    rig.step(1.1, first("a", 10), first("b", 10))
    rig.processor.abort_requests(["a"], True)
    rig.step(1.2, one("a"), one("b"))
    events = rig.take()
    assert sums(events) == (20, 2)
    assert finishes(events) == [("finish", "", 1_100_000_000, "a", 10, 0, 1, True)]


def test_one_that_is_aborted_before_its_first_token_computed_nothing_that_vllm_counts() -> None:
    rig = Rig()
    rig.add("a", 50)
    rig.processor.abort_requests(["a"], True)
    events = rig.take()
    assert sums(events) == (0, 0)
    assert finishes(events)[0][3:] == ("a", 50, 0, 0, True)


def test_an_abort_while_its_step_waits_for_the_stat_logger_comes_after_the_step() -> None:
    rig = Rig()
    rig.add("a")
    stats = vllm.IterationStats()
    rig.processor.process_outputs([first("a", 10)], 1.1, stats)
    rig.processor.abort_requests(["a"], True)
    rig.hook.record(0, None, stats)
    events = rig.take()
    assert [event[0] for event in events] == ["columns", "columns", "finish"]
    assert sums(events) == (10, 1)


def test_samples_of_one_request_and_repeated_ids_are_told_apart() -> None:
    rig = Rig()
    parent = vllm.Parent("cmpl-x", {"0_cmpl-x", "1_cmpl-x"})
    for at in range(2):
        rig.add(f"{at}_cmpl-x", 10, external="cmpl-x", parent=parent, index=at)
    rig.add("y-1", external="y")
    rig.add("y-2", external="y")
    rig.step(1.1, *(first(name, 10) for name in ("0_cmpl-x", "1_cmpl-x", "y-1", "y-2")))
    (told,) = steps(rig.take())
    assert list(told.parts) == ["cmpl-x#0", "cmpl-x#1", "y", "y#r1"]


def test_an_abort_of_the_parent_ends_each_sample_once() -> None:
    rig = Rig()
    parent = vllm.Parent("x", {"0_x", "1_x"})
    for at in range(2):
        rig.add(f"{at}_x", 10, external="x", parent=parent, index=at)
    rig.processor.abort_requests(["x"], True)
    assert [event[3] for event in finishes(rig.take())] == ["x#0", "x#1"]


def test_a_name_from_a_client_is_cut_and_made_text() -> None:
    rig = Rig()
    rig.add("a", external="x" * 9_000 + "\udcff")
    rig.add("b", external="x" * 9_000)
    rig.add("c", external="\udcff")
    rig.step(1.1, first("a", 10), first("b", 10), first("c", 10))
    (told,) = steps(rig.take())
    assert [name[-4:] for name in told.parts] == ["xxxx", "x#r1", "?"]
    assert all(len(name) < 512 for name in told.parts)


def test_older_versions_tell_no_prefill_stats_and_no_external_id() -> None:
    rig = Rig()
    rig.add("0_cmpl-x")
    state = rig.processor.request_states["0_cmpl-x"]
    rig.processor.request_states["0_cmpl-x"] = SimpleNamespace(
        request_id="0_cmpl-x",
        prompt_len=state.prompt_len,
        is_prefilling=True,
        parent_req=vllm.Parent("cmpl-x", set()),
        request_index=0,
        external_req_id=None,
        generated=0,
    )
    output = SimpleNamespace(
        request_id="0_cmpl-x",
        new_token_ids=[7],
        num_cached_tokens=4,
        finish_reason=None,
        stop_string=False,
        events=[vllm.Event(vllm.SCHEDULED, 1.0)],
    )
    before = rig.hook._before(rig.processor, ([output], 1.1, None), {})
    assert before is not None
    rig.hook._after(rig.processor, before)
    assert steps(rig.take())[0].parts == {"cmpl-x#0": (6, 0, 0)}


def test_each_rank_has_its_engine_and_its_own_time() -> None:
    rig = Rig(ranks=(0, 1))
    config = SimpleNamespace(parallel_config=SimpleNamespace(data_parallel_size=2))
    rig.hook.add_logger(config, 0)
    for name in "ab":
        rig.add(name)
    rig.step(1.1, first("a", 10, at_s=1.0), rank=0)
    rig.step(1.12, first("b", 20, at_s=1.05), rank=1)
    rig.step(1.2, one("a", finish_reason=STOP), rank=0)
    rig.processor.abort_requests(["b"], True)
    assert [sums(rig.take(0)), sums(rig.take(1))] == [(10, 2), (20, 1)]
    root = rig.hook.place.root_pid
    assert rig.engines == {0: f"vllm-{root}.0", 1: f"vllm-{root}.1"}


def test_the_abort_of_a_request_is_told_to_the_engine_that_ran_it() -> None:
    rig = Rig(ranks=(0, 1))
    rig.add("b")
    rig.step(1.1, first("b", 20), rank=1)
    rig.processor.abort_requests(["b"], True)
    assert [len(finishes(rig.take(rank))) for rank in (0, 1)] == [0, 1]


def test_what_vllm_dropped_out_of_our_sight_is_not_kept_for_ever() -> None:
    rig = Rig()
    for number in range(1_000):
        rig.add(f"r{number}")
        rig.step(1.0 + number, first(f"r{number}", 10, at_s=0.5 + number))
        del rig.processor.request_states[f"r{number}"]
    rig.add("last")
    rig.step(2_000.0, first("last", 10, finish_reason=STOP))
    assert 700 < len(finishes(rig.take())) <= 1_001
    (mine,) = rig.hook._processors
    assert len(mine.requests.live) < 300


def test_a_running_set_that_stays_is_told_as_the_same_list() -> None:
    rig = Rig()
    for name in "abc":
        rig.add(name)
    rig.step(1.1, *(first(name, 10) for name in "abc"))
    for number in range(3):
        rig.step(1.2 + number, *map(one, "abc"))
    names = [event[4] for event in columns(rig.take())[1:]]
    assert names[0] is names[1] is names[2]


@pytest.mark.parametrize("stats", [False, True])
def test_nothing_waits_at_the_end(stats: bool) -> None:
    rig = Rig(stats=stats)
    rig.add("a")
    rig.processor.process_outputs([first("a", 10)], 1.1, vllm.IterationStats() if stats else None)
    rig.hook.flush()
    assert sums(rig.take()) == (10, 0)
