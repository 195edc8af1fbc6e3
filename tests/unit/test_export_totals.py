"""Exported totals: never down, equal to the books where nothing was corrected downwards."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes.pages import CLOCK, CPU0, GPU0, NODE0, T0_NS, account, balanced_page, posting
from wattledger.records import NS_PER_S, Activity, Amounts, Metered, Page
from wattledger_daemon.export.totals import OTHER, Quantity, Series, Totals, label

WINDOW_NS = 5 * NS_PER_S
ENERGY = Quantity.ENERGY_UJ


def a_page(window: int, spent: dict[str, tuple[int, int]], late: int = 0) -> Page:
    """Window number `window`: each workload's (energy in uJ, decode tokens) on gpu0."""
    start_ns = T0_NS + window * WINDOW_NS
    postings = [
        posting(
            start_ns,
            start_ns + WINDOW_NS,
            Amounts(dynamic_uj=energy_uj, decode_tokens=tokens),
            to=account(Activity.DECODE, workload=workload),
        )
        for workload, (energy_uj, tokens) in spent.items()
    ]
    return balanced_page(start_ns, start_ns + WINDOW_NS, postings, late=late)


def exported(totals: Totals, quantity: Quantity = ENERGY) -> dict[str, int]:
    return {s.workload: v for s, v in totals.standing().totals if s.quantity is quantity}


def ahead_uj(totals: Totals) -> int:
    return sum(item[2] for item in totals.standing().ahead_uj)


SPENT = st.dictionaries(
    st.sampled_from(["a", "b", "c"]), st.tuples(st.integers(1, 10**12), st.integers(0, 10**6))
)


@given(st.lists(st.tuples(st.integers(0, 5), SPENT), max_size=30))
def test_a_total_is_the_highest_that_the_books_ever_said(said: list[tuple[int, object]]) -> None:
    totals, books = Totals(), {}
    highest: dict[str, int] = defaultdict(int)
    fresh = 0
    for number, spent in said:
        # A window is booked in its turn, and any booked one may be restated.
        window = min(number, fresh)
        fresh = max(fresh, window + 1)
        before = exported(totals)
        totals.add(a_page(window, spent))  # type: ignore[arg-type]
        books[window] = spent
        true: dict[str, int] = defaultdict(int)
        for one in books.values():
            for workload, (energy_uj, _) in one.items():  # type: ignore[attr-defined]
                true[workload] += energy_uj
        for workload in ("a", "b", "c"):
            highest[workload] = max(highest[workload], true[workload])
        now = exported(totals)
        assert now == {w: e for w, e in highest.items() if e}
        assert all(now[w] >= before[w] for w in before)
        assert sum(now.values()) - ahead_uj(totals) == sum(true.values())


@given(st.lists(SPENT, min_size=1, max_size=20))
def test_what_is_never_restated_adds_up_to_the_meter_however_often_it_comes(
    said: list[dict[str, tuple[int, int]]],
) -> None:
    totals = Totals()
    for window, spent in enumerate(said):
        totals.add(a_page(window, spent))
        totals.add(a_page(window, spent))
    metered = [v for s, v in totals.standing().totals if s.quantity is Quantity.METERED_UJ]
    assert sum(exported(totals).values()) == sum(metered)
    assert sum(exported(totals, Quantity.DECODE_TOKENS).values()) == sum(
        tokens for spent in said for _, tokens in spent.values()
    )
    assert ahead_uj(totals) == 0


def test_a_debt_is_made_good_before_a_total_moves_again() -> None:
    totals = Totals()
    totals.add(a_page(0, {"idle": (100, 0)}))
    totals.add(a_page(0, {"idle": (60, 0), "late": (40, 3)}, late=1))
    assert exported(totals) == {"idle": 100, "late": 40}
    assert ahead_uj(totals) == 40
    totals.add(a_page(1, {"idle": (30, 0)}))
    assert exported(totals) == {"idle": 100, "late": 40}
    totals.add(a_page(2, {"idle": (30, 0)}))
    assert exported(totals) == {"idle": 120, "late": 40}
    assert ahead_uj(totals) == 0
    assert exported(totals, Quantity.LATE_EVENTS) == {"": 1}


def test_a_window_that_an_earlier_run_booked_is_counted_and_left_out() -> None:
    booked_until_ns = T0_NS - CLOCK.epoch_ns + 3 * WINDOW_NS
    totals = Totals(booked_until_ns)
    totals.add(a_page(2, {"a": (100, 1)}))
    totals.add(a_page(3, {"a": (7, 1)}))
    assert exported(totals) == {"a": 7}
    assert totals.standing().unseen == 1


def test_windows_are_remembered_as_long_as_they_can_be_restated() -> None:
    totals = Totals(horizon_ns=10 * WINDOW_NS)
    for window in range(1000):
        totals.add(a_page(window, {"a": (1, 1)}))
    totals.add(a_page(990, {"a": (3, 1)}))
    assert (exported(totals), totals.standing().unseen) == ({"a": 1002}, 0)
    totals.add(a_page(989, {"a": (3, 1)}))
    assert (exported(totals), totals.standing().unseen) == ({"a": 1002}, 1)


@pytest.mark.parametrize("before", [None, 0, 3])
def test_an_hour_in_one_page_after_an_outage_is_counted_and_forgotten(before: int | None) -> None:
    hour_ns = 3600 * NS_PER_S
    totals = Totals(None if before is None else T0_NS - CLOCK.epoch_ns)
    for window in range(before or 0):
        totals.add(a_page(window, {"a": (5, 1)}))
    void = balanced_page(T0_NS + hour_ns, T0_NS + 2 * hour_ns, [], late=2)
    totals.add(void)
    totals.add(a_page(1440, {"a": (7, 1)}))
    assert exported(totals) == {"a": 5 * (before or 0) + 7}
    assert exported(totals, Quantity.LATE_EVENTS) == {"": 2}
    # No longer in reach, and so not counted a second time.
    totals.add(void)
    assert exported(totals, Quantity.LATE_EVENTS) == {"": 2}
    assert totals.standing().unseen == 1


def test_a_stepped_wall_clock_restates_nothing() -> None:
    totals = Totals()
    totals.add(a_page(0, {"a": (5, 1)}))
    totals.add(a_page(1, {"a": (5, 1)}))
    page = a_page(1, {"a": (5, 1)})
    # The wall clock went back by a window: the same UTC, later monotonic time.
    totals.add(replace(page, clock=replace(CLOCK, epoch_ns=CLOCK.epoch_ns - WINDOW_NS)))
    assert (exported(totals), totals.standing().unseen) == ({"a": 15}, 0)


def test_five_thousand_workloads_are_told_as_so_many_and_the_others() -> None:
    totals = Totals(max_owners=200)
    for window in range(50):
        spent = {f"w{number}": (number, 1) for number in range(100 * window, 100 * window + 100)}
        totals.add(a_page(window, spent))
    energy = exported(totals)
    assert len(energy) == 200
    assert sum(energy.values()) == sum(range(5000))
    # w0 spent nothing; the 200th place went to it all the same.
    assert energy[OTHER] == sum(range(200, 5000))
    assert len(totals.standing().totals) < 420


def test_the_whole_node_is_metered_and_never_part_of_the_energy() -> None:
    end_ns = T0_NS + WINDOW_NS
    postings = [
        posting(T0_NS, end_ns, Amounts(static_uj=3, dynamic_uj=4)),
        posting(T0_NS, end_ns, Amounts(dynamic_uj=2), device="cpu0"),
        posting(T0_NS, end_ns, Amounts(dynamic_uj=20), device="node0"),
    ]
    totals = Totals()
    totals.add(balanced_page(T0_NS, end_ns, postings, devices=(GPU0, CPU0, NODE0)))
    found = dict(totals.standing().totals)
    assert sum(v for s, v in found.items() if s.quantity is ENERGY) == 9
    assert found[Series(Quantity.METERED_UJ, "node0", "node")] == 20
    assert {s.kind for s in found if s.quantity is ENERGY} == {"gpu", "cpu"}


def test_gaps_and_resets_are_told_from_zero_on() -> None:
    totals = Totals()
    page = a_page(0, {})
    totals.add(page)
    assert dict(totals.standing().totals)[Series(Quantity.GAPS, "gpu0", "gpu")] == 0
    metered = Metered("gpu0", page.start_ns, page.end_ns, 0, 0, gaps=2, resets=1, wraps=3)
    totals.add(replace(page, metered=(metered,)))
    found = dict(totals.standing().totals)
    series = [Series(q, "gpu0", "gpu") for q in (Quantity.GAPS, Quantity.RESETS, Quantity.WRAPS)]
    assert [found[one] for one in series] == [2, 1, 3]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, ""),
        ("", ""),
        ("ok \n\"'é", "ok \n\"'é"),
        ("a\udcffb", "a?b"),
        ("x" * 4096, "x" * 200),
    ],
)
def test_a_label_is_text_of_a_bounded_length(text: str | None, said: str) -> None:
    assert label(text) == said
