"""Counters that fall: a restart counts from 0, another process's history is never booked."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattledger_collectors.scrape.counting import Counting
from wattledger_collectors.scrape.falls import SMALL
from wattledger_collectors.scrape.protocol import Kind, Reading, ScrapeError, Series

S = 1_000_000_000
PREFILL, DECODE = Series(Kind.PREFILL), Series(Kind.DECODE)
LARGE = 1_000_000.0


def decoded(counting: Counting, second: float, value: float, began: int | None = None) -> int:
    """What a look at a counter of decode tokens tells."""
    told = counting.take(round(second * S), Reading({DECODE: value}), lambda: began)
    return sum(work.decode_tokens for work in told.work)


def test_a_counter_that_falls_and_is_large_is_where_counting_goes_on() -> None:
    counting = Counting()
    decoded(counting, 1, LARGE)
    assert decoded(counting, 2, LARGE - 1) == 0
    assert (counting.falls, counting.restarts) == (1, 0)
    assert decoded(counting, 3, LARGE + 4) == 5
    assert (counting.falls, counting.told.decode_tokens) == (1, 5)


def test_a_process_that_began_after_the_last_look_counts_from_0() -> None:
    counting = Counting()
    decoded(counting, 1, 2 * LARGE)
    assert decoded(counting, 60, LARGE, began=5 * S) == LARGE
    assert (counting.falls, counting.restarts) == (0, 1)
    # The same fall of one that ran at that look already.
    assert decoded(counting, 61, LARGE / 2, began=5 * S) == 0
    assert counting.falls == 1


@pytest.mark.parametrize(("value", "told"), [(SMALL, 1000), (SMALL + 1, 0)])
def test_a_small_value_is_a_restart(value: float, told: int) -> None:
    counting = Counting()
    decoded(counting, 1, LARGE)
    assert decoded(counting, 2, value) == told


def test_what_its_own_pace_allows_is_small() -> None:
    counting = Counting()
    for look in range(1, 5):
        decoded(counting, look, LARGE + 3_000 * look)
    assert decoded(counting, 6, 6_900.0) == 6_900
    assert decoded(counting, 7, 4_100.0) == 0


def test_one_jump_is_no_pace() -> None:
    counting = Counting()
    decoded(counting, 1, LARGE)
    decoded(counting, 2, 3 * LARGE)
    assert decoded(counting, 3, LARGE) == 0


@pytest.mark.parametrize("with_start", [False, True])
@pytest.mark.parametrize("sticky", [25, 31, 200])
def test_processes_that_answer_in_turn_book_no_history(sticky: int, with_start: bool) -> None:
    counting = Counting()
    tokens = {False: 2 * LARGE, True: LARGE}
    for look in range(1000):
        other = look // sticky % 2 == 1
        tokens[other] += 3
        started_s = (1e9 + 500 * other) if with_start else 0.0
        reading = Reading({DECODE: tokens[other]}, 0, 0, "", started_s)
        counting.take(look * S, reading, lambda: -50 * S)
    assert counting.falls > 1
    assert 2500 < counting.told.decode_tokens <= 3000
    assert counting.restarts == 0


def test_another_process_of_the_page_that_is_older_than_the_last_look() -> None:
    counting = Counting()
    counting.take(S, Reading({DECODE: 500_000.0}, started_s=1e9))
    told = counting.take(2 * S, Reading({DECODE: LARGE}, started_s=1e9 + 9), lambda: 0 - 90 * S)
    assert (told.work, counting.falls) == ((), 1)


def test_a_model_that_fell_leaves_the_others_alone() -> None:
    a, b = (Series(Kind.DECODE, epoch=name) for name in "ab")
    counting = Counting()
    counting.take(S, Reading({a: LARGE, b: LARGE}))
    told = counting.take(2 * S, Reading({a: LARGE / 2, b: LARGE + 7}))
    assert sum(work.decode_tokens for work in told.work) == 7
    assert counting.falls == 1


def test_a_scraper_that_saw_a_fall_is_believed() -> None:
    counting = Counting()
    decoded(counting, 1, 10.0)
    told = counting.take(2 * S, Reading({DECODE: 30.0}, fell=True))
    assert [work.decode_tokens for work in told.work] == [30]
    told = counting.take(3 * S, Reading({DECODE: LARGE}, fell=True))
    assert (told.work, counting.falls) == ((), 1)


@given(st.lists(st.integers(0, 10**9), min_size=2, max_size=60), st.integers(15, 200))
def test_a_fall_never_books_more_than_the_rises_and_a_small_start(
    values: list[int], period_s: int
) -> None:
    """Any page at all: what is told is what rose, and at a fall at most what was likely."""
    counting, bound, rises = Counting(), 0.0, [0.0, 0.0]
    for at, (before, value) in enumerate(pairwise([values[0], *values])):
        likely = SMALL + rises[0] * min(period_s, 60)
        bound += value - before if value >= before else likely
        try:
            decoded(counting, at * period_s, float(value))
        except ScrapeError:
            return
        if value > before:
            rises = sorted([*rises, (value - before) / period_s])[-2:]
        elif value < before:
            rises = sorted([*rises, min(value, likely) / period_s])[-2:]
    assert counting.told.decode_tokens <= bound + 1
