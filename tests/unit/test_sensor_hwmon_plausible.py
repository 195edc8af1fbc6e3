from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from wattledger_collectors.sensors.plausible import MAX_POWER_UW, PlausibleCounter

S = 1_000_000_000
J = 1_000_000


def taken(counter: PlausibleCounter, *readings: tuple[float, int]) -> list[int | None]:
    return [counter.take(round(t_s * S), energy_uj) for t_s, energy_uj in readings]


def test_a_counter_that_moves_seldom_and_far_is_believed() -> None:
    readings = [(t / 10, (t // 10) * 1500 * J) for t in range(40)]
    assert taken(PlausibleCounter(), *readings) == [energy for _, energy in readings]


def test_a_reset_is_passed_on() -> None:
    assert taken(PlausibleCounter(), (0, 900 * J), (1, 950 * J), (2, 30 * J), (3, 60 * J)) == [
        900 * J,
        950 * J,
        30 * J,
        60 * J,
    ]


def test_a_fall_to_what_cannot_have_been_drawn_since_is_refused() -> None:
    far, low = 22_000_000 * J, 9_000_000 * J
    assert taken(PlausibleCounter(), (0, far), (1, low), (2, far + 400 * J)) == [
        far,
        None,
        far + 400 * J,
    ]


def test_a_counter_that_stays_where_it_jumped_to_is_followed_from_there() -> None:
    counter = PlausibleCounter()
    taken(counter, (0, 100 * J))
    jumped = 10**12 * J
    readings = [(t / 10, jumped + t * 30 * J) for t in range(1, 16)]
    told = taken(counter, *readings)
    assert told[:10] == [None] * 10
    assert told[10:] == [100 * J, 130 * J, 160 * J, 190 * J, 220 * J]


def test_a_counter_that_jumps_about_is_never_followed() -> None:
    counter = PlausibleCounter()
    taken(counter, (0, 100 * J))
    readings = [(t / 10, (t % 2 + 1) * 10**12 * J) for t in range(1, 100)]
    assert set(taken(counter, *readings)) == {None}


@given(st.lists(st.integers(0, 2**64), min_size=1, max_size=80))
def test_what_is_told_never_rises_by_more_than_2_kw(readings: list[int]) -> None:
    counter = PlausibleCounter()
    told: list[tuple[int, int]] = []
    for index, energy_uj in enumerate(readings):
        t_ns = index * S // 10
        figure = counter.take(t_ns, energy_uj)
        if figure is not None:
            told.append((t_ns, figure))
    changes = [told[0]]
    for point in told[1:]:
        if point[1] != changes[-1][1]:
            changes.append(point)
    for (before_ns, before_uj), (t_ns, energy_uj) in pairwise(changes):
        rise_uj = energy_uj - before_uj
        assert rise_uj * S <= MAX_POWER_UW * (t_ns - before_ns)


@given(st.lists(st.integers(0, 200 * J), min_size=1, max_size=50))
def test_a_counter_that_behaves_is_passed_on_as_it_is(rises_uj: list[int]) -> None:
    counter, energy_uj = PlausibleCounter(), 0
    for index, rise_uj in enumerate(rises_uj):
        energy_uj += rise_uj
        assert counter.take(index * S // 10, energy_uj) == energy_uj
