"""Counters, read now and then, as work: no token twice, and none lost that could be known."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattledger_collectors.scrape import counting as module
from wattledger_collectors.scrape.counting import Counting, Finished, Tally, Told, Work
from wattledger_collectors.scrape.protocol import Kind, Reading, ScrapeError, Series

S = 1_000_000_000
PREFILL, DECODE = Series(Kind.PREFILL), Series(Kind.DECODE)
CACHED, FINISHED = Series(Kind.CACHED), Series(Kind.FINISHED)
PROMPT_1, CACHED_1, DECODE_1 = (Series(k, 1) for k in (Kind.PROMPT, Kind.CACHED, Kind.DECODE))


def at(prefill: float, decode: float, running: int | None = None) -> Reading:
    return Reading({PREFILL: prefill, DECODE: decode}, 0, running)


def work(told: Told) -> list[tuple[float, float, int, int]]:
    return [(w.start_ns / S, w.end_ns / S, w.prefill_tokens, w.decode_tokens) for w in told.work]


def test_the_first_look_tells_nothing_and_the_next_what_came_since() -> None:
    counting = Counting()
    assert counting.take(S, at(100, 50)) == Told()
    assert work(counting.take(2 * S, at(110, 53))) == [(1, 2, 10, 3)]
    assert work(counting.take(3 * S, at(110, 53))) == []
    assert work(counting.take(4 * S, at(110, 60))) == [(3, 4, 0, 7)]


def test_a_fall_is_a_restart_and_all_counters_begin_at_0() -> None:
    counting = Counting()
    counting.take(S, at(100, 50))
    # Decode stands higher than before and is another process's all the same.
    assert work(counting.take(2 * S, at(7, 60))) == [(1, 2, 7, 60)]
    assert counting.restarts == 1


def test_a_counter_that_comes_late_after_a_restart_is_no_second_one() -> None:
    counting = Counting()
    counting.take(S, at(100, 50))
    counting.take(2 * S, Reading({PREFILL: 5.0}))
    assert work(counting.take(3 * S, at(6, 2))) == [(2, 3, 1, 2)]
    assert counting.restarts == 1


def test_a_counter_that_is_gone_for_a_while_counts_on_from_where_it_was() -> None:
    counting = Counting()
    counting.take(S, at(100, 50))
    counting.take(2 * S, Reading({PREFILL: 100.0}))
    assert work(counting.take(3 * S, at(100, 51))) == [(2, 3, 0, 1)]


def test_another_process_begins_at_0_however_high_its_counters_are() -> None:
    counting = Counting()
    counting.take(S, Reading({DECODE: 50.0}, started_s=1e9))
    told = counting.take(2 * S, Reading({DECODE: 60.0}, started_s=1e9 + 30))
    assert work(told) == [(1, 2, 0, 60)]
    # A page that leaves it out says nothing of a restart.
    assert work(counting.take(3 * S, Reading({DECODE: 61.0}))) == [(2, 3, 0, 1)]
    told = counting.take(4 * S, Reading({DECODE: 62.0}, started_s=1e9 + 30))
    assert work(told) == [(3, 4, 0, 1)]


def test_processes_that_answer_in_turn_are_not_taken_for_restarts() -> None:
    counting, refused = Counting(), 0
    counting.take(0, at(1000, 1000))
    for look in range(1, 41):
        try:
            counting.take(look * S, at(*((0, 10) if look % 2 else (1000, 1000))))
        except ScrapeError as error:
            refused += 1
            assert "does another process answer each time?" in str(error)
    assert refused > 15
    # A few totals too many at first, not one every other second.
    assert counting.told.decode_tokens <= 4 * 1000
    # An hour later a restart is one again.
    counting.take(3600 * S, at(1000, 1000))
    assert work(counting.take(3601 * S, at(5, 5))) == [(3600, 3601, 5, 5)]


def test_one_model_loaded_anew_leaves_the_others_alone() -> None:
    a, b = (Series(Kind.DECODE, epoch=name) for name in "ab")
    counting = Counting()
    counting.take(S, Reading({a: 100.0, b: 100.0}))
    assert work(counting.take(2 * S, Reading({a: 3.0, b: 101.0}))) == [(1, 2, 0, 4)]


def test_replicas_tell_the_same_again() -> None:
    ranks = [Series(Kind.DECODE, replica=rank, labels=()) for rank in "01"]
    counting = Counting()
    counting.take(S, Reading(dict.fromkeys(ranks, 10.0)))
    assert work(counting.take(2 * S, Reading(dict(zip(ranks, (15.0, 16.0), strict=True))))) == [
        (1, 2, 0, 6)
    ]


def test_falling_back_or_forth_never_tells_a_token_twice() -> None:
    whole = {PROMPT_1: 0.0, CACHED_1: 0.0, DECODE_1: 0.0}
    counting = Counting()
    counting.take(0, Reading(whole, tier=1))
    counting.take(S, Reading({PROMPT_1: 30.0, CACHED_1: 10.0, DECODE_1: 5.0}, tier=1))
    assert counting.told == Tally(20, 10, 5, 0)
    # The live counters, once there, tell of the same tokens, and of more to come.
    told = counting.take(2 * S, Reading({PREFILL: 25.0, CACHED: 12.0, DECODE: 9.0, **whole}))
    assert work(told) == [(1, 2, 5, 4)]
    # From then on the whole ones are not looked at, even where the live ones are gone.
    told = counting.take(3 * S, Reading({PROMPT_1: 90.0, CACHED_1: 0.0, DECODE_1: 9.0}, tier=1))
    assert work(told) == []


def test_cached_tokens_that_are_told_late_are_not_computed_after_all() -> None:
    counting = Counting()
    counting.take(0, Reading({PROMPT_1: 0.0, CACHED_1: 0.0}, tier=1))
    assert work(counting.take(S, Reading({PROMPT_1: 10.0, CACHED_1: 0.0}, tier=1)))[0][2] == 10
    assert work(counting.take(2 * S, Reading({PROMPT_1: 10.0, CACHED_1: 6.0}, tier=1))) == []
    assert work(counting.take(3 * S, Reading({PROMPT_1: 20.0, CACHED_1: 6.0}, tier=1)))[0][2] == 4
    assert counting.told.prefill_tokens == 14


def test_tokens_told_at_the_end_belong_to_all_the_time_that_it_ran() -> None:
    counting = Counting()
    counting.take(0, at(0, 0, running=0))
    assert counting.take(1 * S, at(0, 0, running=0)) == Told()
    for t in (2, 3, 4):
        assert counting.take(t * S, at(0, 0, running=2)) == Told()
    assert work(counting.take(5 * S, at(100, 8, running=0))) == [(1, 5, 100, 8)]


def test_work_that_is_never_told_is_work_all_the_same() -> None:
    counting = Counting()
    counting.take(0, at(0, 0, running=1))
    counting.take(1 * S, at(0, 0, running=1))
    # Aborted: no token, and nothing runs any more.
    assert work(counting.take(2 * S, at(0, 0, running=0))) == [(0, 2, 0, 0)]
    counting = Counting()
    told = [counting.take(t * S, at(0, 0, running=1)) for t in range(0, 121, 10)]
    assert [w for one in told for w in work(one)] == [(0, 60, 0, 0), (60, 120, 0, 0)]


def test_finished_requests_take_the_tokens_told_since_the_last_ones() -> None:
    counting = Counting()
    first = {PREFILL: 0.0, DECODE: 0.0, CACHED: 0.0, FINISHED: 5.0}
    counting.take(0, Reading(first))
    more = first | {PREFILL: 10.0, CACHED: 4.0, DECODE: 2.0}
    assert counting.take(S, Reading(more)).finished is None
    told = counting.take(2 * S, Reading(more | {DECODE: 6.0, FINISHED: 7.0}))
    assert told.finished == Finished(2 * S, 2, 14, 4, 6)
    told = counting.take(3 * S, Reading(more | {DECODE: 6.0, FINISHED: 8.0}))
    assert told.finished == Finished(3 * S, 1, 0, 0, 0)


def test_a_long_outage_is_told_in_pieces_that_add_up() -> None:
    counting = Counting()
    counting.take(0, at(0, 0))
    told = work(counting.take(3601 * S, at(1000, 77)))
    assert len(told) == 61
    assert (sum(w[2] for w in told), sum(w[3] for w in told)) == (1000, 77)
    assert [w[1] for w in told[:-1]] == [w[0] for w in told[1:]]
    counting = Counting()
    counting.take(0, at(0, 0))
    assert len(counting.take(86_400 * S, at(1000, 77)).work) == module.MOST_PIECES


def test_a_clock_that_stands_still_tells_nothing_and_loses_nothing() -> None:
    counting = Counting()
    counting.take(S, at(0, 0))
    assert counting.take(S, at(5, 0)) == Told()
    assert work(counting.take(2 * S, at(6, 0))) == [(1, 2, 6, 0)]


def test_labels_without_bound_are_refused() -> None:
    counting = Counting()
    with pytest.raises(ScrapeError, match="more than 20000 label sets"):
        for look in range(5):
            labels = (((f"{look}", f"{n}"),) for n in range(5000))
            counting.take(look, Reading({Series(Kind.DECODE, labels=x): 1.0 for x in labels}))


MINUTE = 60 * S
COUNTS = st.lists(
    st.tuples(st.integers(0, 500), st.integers(0, 500), st.integers(0, 4), st.booleans()),
    min_size=1,
    max_size=30,
)


@given(COUNTS, st.sets(st.integers(0, 30)), st.lists(st.integers(0, 3), max_size=31))
def test_any_cut_of_a_run_tells_the_same_tokens(
    run: list[tuple[int, int, int, bool]], looks: set[int], running: list[int]
) -> None:
    """A run of counters with restarts; looked at where it restarts, and anywhere else."""
    counting = Counting()
    total = Tally()
    prefill = decode = finished = 0
    counting.take(0, Reading({PREFILL: 0.0, DECODE: 0.0, FINISHED: 0.0}, 0, 0))
    told: list[Told] = []
    for place, (p, d, f, ends) in enumerate(run, 1):
        prefill, decode, finished = prefill + p, decode + d, finished + f
        total = Tally(
            total.prefill_tokens + p, 0, total.decode_tokens + d, total.finished_requests + f
        )
        at_work = running[place] if place < len(running) else 0
        counts = {PREFILL: float(prefill), DECODE: float(decode), FINISHED: float(finished)}
        if place in looks or ends or place == len(run):
            told.append(counting.take(place * MINUTE, Reading(counts, 0, at_work)))
        if ends:
            # The look that sees the fall: a restarted engine that has done nothing yet.
            prefill = decode = finished = 0
            told.append(
                counting.take(
                    place * MINUTE + MINUTE // 2,
                    Reading({PREFILL: 0.0, DECODE: 0.0, FINISHED: 0.0}, 0, 0),
                )
            )
    assert counting.told == total
    works = [w for one in told for w in one.work]
    assert sum(w.prefill_tokens for w in works) == total.prefill_tokens
    assert sum(w.decode_tokens for w in works) == total.decode_tokens
    ends_told = [one.finished for one in told if one.finished]
    assert sum(e.requests for e in ends_told) == total.finished_requests
    # One stretch after another, none over another.
    assert all(w.start_ns < w.end_ns for w in works)
    assert all(a.end_ns <= b.start_ns for a, b in pairwise(works))


@given(st.lists(st.floats(0, 1e6), min_size=2, max_size=20))
def test_fractions_are_told_once_too(steps: list[float]) -> None:
    counting, value = Counting(), 0.0
    counting.take(0, Reading({DECODE: 0.0}))
    works: list[Work] = []
    for place, step in enumerate(steps, 1):
        value += step
        works += counting.take(place * S, Reading({DECODE: value})).work
    assert abs(sum(w.decode_tokens for w in works) - value) <= 0.51
