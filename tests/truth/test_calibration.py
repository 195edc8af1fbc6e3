"""Engines whose every joule is known, calibrated and booked by the real Accountant."""

from __future__ import annotations

from statistics import median

import pytest

from fakes.sim_cases import CASES, Case, results
from fakes.sim_engine import Truth
from fakes.sim_meter import run

SECONDS = 300.0
SEEDS = 3
HELD = [case for case in CASES if case.held]


@pytest.mark.parametrize("case", HELD, ids=lambda case: case.name)
def test_tokens_and_requests_cost_what_they_cost(case: Case) -> None:
    (result,) = results([case], SEEDS, SECONDS)
    assert result.identified == 1.0
    # A few minutes of rows: an hour is far nearer.
    assert median(map(abs, result.errors("a"))) <= 0.03
    assert median(map(abs, result.errors("f"))) <= 0.03
    assert median(map(abs, result.requests)) <= 0.05
    assert len(result.requests) > 100
    assert result.imbalance_uj == 0


def test_intervals_hold_the_truth_nine_times_in_ten() -> None:
    truth = Truth()
    inside = []
    for seed in range(100, 108):
        fit = run(truth, seed, 400.0).fit
        for of, truth_j in ((fit.f, truth.f_j), (fit.a, truth.a_j), (fit.b, truth.b_j)):
            assert of is not None
            inside.append(of.low_j <= truth_j <= of.high_j)
    assert sum(inside) >= 0.9 * len(inside)


def test_one_mix_is_refused_and_still_balances() -> None:
    outcome = run(CASES[-1].truth, 1, SECONDS)
    assert not outcome.fit.identified
    assert (outcome.fit.a, outcome.fit.b) == (None, None)
    assert set(outcome.methods) == {"default-weights"}
    assert outcome.imbalance_uj == 0


def test_the_lag_of_a_late_counter_is_found() -> None:
    late = run(Truth(refresh_s=0.05, lag_s=0.15), 1, SECONDS).fit.lag_s
    prompt = run(Truth(refresh_s=0.05), 1, SECONDS).fit.lag_s
    assert late - prompt == pytest.approx(0.15, abs=0.04)


def test_multi_step_prefills_that_overlap_are_counted_as_the_passes_they_were() -> None:
    outcome = run(Truth(), 2, SECONDS, overlapping=True)
    plain = run(Truth(), 2, SECONDS)
    for one, other in ((outcome.fit.f, plain.fit.f), (outcome.fit.a, plain.fit.a)):
        assert one is not None
        assert other is not None
        assert one.value_j == pytest.approx(other.value_j, rel=0.05)
    assert outcome.imbalance_uj == 0
