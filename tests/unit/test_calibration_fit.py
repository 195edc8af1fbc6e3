"""The estimate from rows: vectors V10 and V11, what is refused, lag, context and intervals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import inf
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattledger_daemon.heart.calibration.algebra import inflation, least_squares, solve
from wattledger_daemon.heart.calibration.fit import Estimate, Idle, estimate
from wattledger_daemon.heart.calibration.gram import (
    CONTEXT,
    DECODE,
    LAGS_NS,
    NO_LAG,
    PREFILL,
    STEPS,
    TIME,
    Gram,
    Groups,
    Row,
    lag_s,
    total,
    without,
)

NO_IDLE = Idle(0.0, 0.0, "step-free")


def row(x: Sequence[float], energy_j: float) -> Row:
    return Row(tuple(map(float, x)), (energy_j,) * len(LAGS_NS))


def fitted(rows: Iterable[Row], idle: Idle | None = NO_IDLE) -> Estimate:
    groups = Groups()
    for one in rows:
        groups = groups.plus(one)
    return estimate(groups.grams, idle)


def worked(seed: int, count: int = 96, noise: float = 0.005, **fixed: float) -> list[Row]:
    """Rows of an engine of f=2, a=0.01, b=0.03 and what `fixed` says, at 50 W of idle power."""
    random = Random(seed)
    c_j = fixed.get("c", 0.0)
    rows = []
    for _ in range(count):
        steps = random.uniform(50, 400)
        decode = steps * fixed.get("batch", random.uniform(1, 200))
        prefill = fixed.get("mix", random.uniform(0.0, 2.0)) * decode
        context = fixed.get("context", random.uniform(10, 2000)) * decode
        model_j = 250.0 + 2.0 * steps + 0.01 * prefill + 0.03 * decode + c_j * context
        energy_j = model_j * random.gauss(1.0, noise)
        rows.append(row((5.0, steps, prefill, decode, context), energy_j))
    return rows


def test_v10_seven_rows_without_noise_are_solved_exactly() -> None:
    table = (
        (1, 0, 20, 20), (1, 1000, 10, 12), (1, 4000, 0, 8), (1, 200, 64, 16), (1, 0, 0, 0),
        (1, 512, 256, 40), (1, 3000, 32, 20),
    )  # fmt: skip
    rows = [row((t, n, p, d, 0), 50 * t + 0.05 * p + 2 * d + 30 * n) for t, p, d, n in table]
    whole = Gram()
    for one in rows:
        whole = whole.plus(one)
    columns = (TIME, STEPS, PREFILL, DECODE)
    found = least_squares(whole.matrix(columns), whole.vector(columns, NO_LAG))
    assert found == pytest.approx([50.0, 30.0, 0.05, 2.0], rel=1e-9)


def test_v11_a_constant_mix_is_refused_and_tells_no_coefficient() -> None:
    rows = [row((5, 1, 100 * k, 10 * k, 0), 50 + 25 * k) for k in range(1, 30)]
    found = fitted(rows)
    assert not found.identified
    assert found.reason == "prefill and decode keep one ratio: no telling them apart"
    assert found.told == ()
    assert found.energy_j(rows[3].x, 0.0) == pytest.approx(rows[3].energy_j[NO_LAG], rel=1e-6)


@pytest.mark.parametrize("spread", [0.0, 0.01, 0.05])
def test_a_nearly_constant_mix_is_refused_too(spread: float) -> None:
    random = Random(7)
    rows = []
    for one in worked(3, mix=0.5):
        moved = one.x[PREFILL] * random.gauss(1.0, spread)
        more_j = 0.01 * (moved - one.x[PREFILL])
        rows.append(row((*one.x[:PREFILL], moved, *one.x[DECODE:]), one.energy_j[0] + more_j))
    assert not fitted(rows, Idle(50.0, 0.0, "static")).identified


@pytest.mark.parametrize("seed", range(5))
def test_a_varied_load_is_told_apart_and_lies_in_its_intervals(seed: int) -> None:
    found = fitted(worked(seed), Idle(50.0, 0.0, "step-free"))
    assert (found.identified, found.reason) == (True, "")
    assert found.columns == (STEPS, PREFILL, DECODE)
    for at, truth_j in ((STEPS, 2.0), (PREFILL, 0.01), (DECODE, 0.03)):
        assert abs(found.values[at] - truth_j) <= found.halves[at] < 0.2 * truth_j
    assert found.residual_ratio == pytest.approx(0.005, rel=0.5)


def test_idle_power_is_fitted_where_none_is_known() -> None:
    found = fitted(worked(1), None)
    assert TIME in found.columns
    assert found.identified
    assert found.values[TIME] == pytest.approx(50.0, abs=found.halves[TIME])


def test_wrong_idle_power_is_in_the_intervals_as_far_as_it_may_be_wrong() -> None:
    sure = fitted(worked(1), Idle(30.0, 0.0, "static"))
    unsure = fitted(worked(1), Idle(30.0, 25.0, "static"))
    assert abs(sure.values[STEPS] - 2.0) > sure.halves[STEPS]
    assert abs(unsure.values[STEPS] - 2.0) <= unsure.halves[STEPS]


def test_decode_alone_tells_b_and_says_that_a_is_not_known() -> None:
    found = fitted(worked(1, mix=0.0), Idle(50.0, 0.0, "step-free"))
    assert not found.identified
    assert "what a prefill token costs is not known" in found.reason
    assert found.told == (STEPS, DECODE)
    assert found.values[DECODE] == pytest.approx(0.03, abs=found.halves[DECODE])


def test_pure_steps_tell_a_and_b_though_the_mix_is_else_constant() -> None:
    mixed = worked(1, 40, mix=0.5)
    decoding = worked(2, 10, mix=0.0)
    prefilling = [row((5, n, 900.0 * n, 0, 0), 250.0 + (2.0 + 9.0) * n) for n in range(100, 110)]
    assert not fitted(mixed, Idle(50.0, 0.0, "step-free")).identified
    found = fitted([*mixed, *decoding, *prefilling], Idle(50.0, 0.0, "step-free"))
    assert found.identified
    assert found.values[PREFILL] == pytest.approx(0.01, abs=found.halves[PREFILL])
    assert found.values[DECODE] == pytest.approx(0.03, abs=found.halves[DECODE])


def test_a_constant_batch_folds_f_into_b_and_says_so() -> None:
    found = fitted(worked(1, batch=32.0), Idle(50.0, 0.0, "step-free"))
    assert found.identified
    assert found.columns == (PREFILL, DECODE)
    assert found.reason == "f not told apart: in the others"
    assert found.values[DECODE] == pytest.approx(0.03 + 2.0 / 32, abs=found.halves[DECODE])


def test_context_is_fitted_where_it_varies_and_costs_something() -> None:
    idle = Idle(50.0, 0.0, "step-free")
    found = fitted(worked(1, c=2e-5), idle)
    assert CONTEXT in found.columns
    assert found.values[CONTEXT] == pytest.approx(2e-5, abs=found.halves[CONTEXT])
    free = fitted(worked(1), idle)
    assert CONTEXT not in free.columns
    bound = fitted(worked(1, c=2e-5, context=500.0), idle)
    assert CONTEXT not in bound.columns
    assert bound.values[DECODE] == pytest.approx(0.03 + 2e-5 * 500, abs=bound.halves[DECODE])


def test_the_lag_is_found_between_its_places() -> None:
    random = Random(5)
    rows = []
    for one in worked(4):
        # What a later place adds and takes at the edges, least wrong at 3.4 places.
        slope_j = random.gauss(0.0, 30.0)
        y = tuple(one.energy_j[0] + slope_j * (at - 3.4) for at in range(len(LAGS_NS)))
        rows.append(Row(one.x, y))
    found = fitted(rows, Idle(50.0, 0.0, "step-free"))
    assert lag_s(found.lag) == pytest.approx(-0.2 + 3.4 * 0.05, abs=0.02)
    assert found.residual_ratio < 0.02


def test_energy_that_strays_too_far_from_the_model_is_refused() -> None:
    found = fitted(worked(1, 200, noise=0.2), Idle(50.0, 0.0, "step-free"))
    assert not found.identified
    assert "strays" in found.reason


def test_few_groups_have_no_interval() -> None:
    found = fitted(worked(1, 12), Idle(50.0, 0.0, "step-free"))
    assert set(found.halves) == {inf}
    assert not found.identified
    assert found.reason == "too early: 2 of 4 half minutes of work"


def slightly_prefilled(seed: int, a_j: float = 0.01) -> list[Row]:
    """A prompt is a token or two: what it costs drowns in the noise of the rest."""
    random = Random(seed)
    rows = []
    for one in worked(seed, mix=0.0, noise=0.02):
        prefill = one.x[STEPS] * random.uniform(0.0, 0.1)
        rows.append(row((*one.x[:PREFILL], prefill, *one.x[DECODE:]), one.energy_j[0]))
    return [row(one.x, one.energy_j[0] + a_j * one.x[PREFILL]) for one in rows]


@pytest.mark.parametrize("seed", range(8))
def test_a_phase_that_hardly_costs_anything_is_not_told(seed: int) -> None:
    found = fitted(slightly_prefilled(seed), Idle(50.0, 0.0, "step-free"))
    assert found.identified
    assert found.reason == "a costs too little to be told"
    assert found.told == (STEPS, DECODE)
    assert found.halves[PREFILL] > 0.2 * found.values[PREFILL]


def test_a_coefficient_at_its_bound_is_as_wide_as_its_column_tells() -> None:
    halves = []
    for seed in range(8):
        found = fitted(slightly_prefilled(seed, a_j=0.0), Idle(50.0, 0.0, "step-free"))
        if found.values[PREFILL] == 0.0:
            halves.append(found.halves[PREFILL])
    assert len(halves) >= 2
    assert min(halves) > 0.05


def test_rows_are_forgotten_slowly_and_groups_add_up() -> None:
    groups = Groups()
    for one in worked(1, 3000):
        groups = groups.plus(one)
    whole = total(groups.grams)
    assert 650 < whole.rows < 790
    rest = without(whole, groups.grams[0])
    assert rest.rows == pytest.approx(sum(gram.rows for gram in groups.grams[1:]))


def test_of_many_engines_side_by_side_an_hour_is_remembered_too() -> None:
    one, many = Groups(), Groups()
    for made in worked(1, 240):
        one = one.plus(made)
        for _ in range(8):
            many = many.plus(made, 8)
    assert (many.blocks, many.held) == (one.blocks, 8 * one.held)
    assert total(many.grams).rows == pytest.approx(8 * total(one.grams).rows)


entries = st.floats(0.0, 100.0)


@given(st.lists(st.tuples(entries, entries, entries, entries), min_size=1, max_size=12))
def test_least_squares_is_never_negative_and_no_single_column_beats_it(
    table: list[tuple[float, float, float, float]],
) -> None:
    size = 3
    matrix = [[sum(r[i] * r[j] for r in table) for j in range(size)] for i in range(size)]
    vector = [sum(r[i] * r[size] for r in table) for i in range(size)]
    found = least_squares(matrix, vector)
    assert min(found) >= 0.0

    def left(x: Sequence[float]) -> float:
        return sum((r[size] - sum(a * b for a, b in zip(x, r, strict=False))) ** 2 for r in table)

    for at in range(size):
        if matrix[at][at] > 1e-6:
            alone = [vector[at] / matrix[at][at] if i == at else 0.0 for i in range(size)]
            assert left(found) <= left(alone) + 1e-6 * (1.0 + left(alone))


def test_a_singular_system_has_no_solution_and_infinite_inflation() -> None:
    assert solve([[1.0, 1.0], [1.0, 1.0]], [[1.0, 1.0]]) is None
    assert solve([[0.0]], [[1.0]]) is None
    assert inflation([[1.0, 1.0], [1.0, 1.0]], 0) == inf
    assert inflation([[1.0, 0.0], [0.0, 9.0]], 0) == 1.0
