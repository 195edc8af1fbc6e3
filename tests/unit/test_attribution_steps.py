"""Where a cell's energy goes within it: by time, or by a calibrated cost (decisions/0008)."""

from __future__ import annotations

import pytest

from wattledger_daemon.heart.attribution.steps import BusyTime, Quantities, Weighed

S = 1_000_000_000
HEAVY = Weighed(0, S, 30.0, 1)
LIGHT = Weighed(S, 3 * S, 20.0, 1)


def split(*steps: Weighed, by_cost: bool, cell: tuple[int, int] = (0, 4 * S)) -> list[float]:
    """The dynamic energy of each step, and that of nobody."""
    busy = BusyTime(steps, 0, 4 * S, by_cost=by_cost)
    parts = busy.parts()
    idle = busy.split(cell, Quantities(40.0, 80.0, 4.0 * S), parts, static_known=True)
    # Static energy and time never go by cost.
    assert parts.static_uj == pytest.approx([10.0, 20.0])
    assert parts.device_ns == pytest.approx([S, 2 * S])
    assert (idle.static_uj, idle.device_ns) == pytest.approx((10.0, S))
    return [*parts.dynamic_uj, idle.dynamic_uj]


def test_without_a_calibrated_cost_time_decides() -> None:
    assert split(HEAVY, LIGHT, by_cost=False) == pytest.approx([80 / 3, 160 / 3, 0.0])


def test_a_calibrated_cost_decides_within_a_cell() -> None:
    # 30 J in a second beside 20 J in two: three parts to two.
    assert split(HEAVY, LIGHT, by_cost=True) == pytest.approx([48.0, 32.0, 0.0])


def test_costs_of_nothing_leave_it_to_time() -> None:
    free = HEAVY._replace(weight_j=0.0), LIGHT._replace(weight_j=0.0)
    assert split(*free, by_cost=True) == pytest.approx([80 / 3, 160 / 3, 0.0])


def test_overlapping_steps_add_up() -> None:
    # V5 with a calibrated cost: 40 J/s alone, then 40 + 80 J/s: 1 to 3.
    a, b = Weighed(0, 2 * S, 80.0, 1), Weighed(S, 2 * S, 80.0, 1)
    busy = BusyTime((a, b), 0, 2 * S, by_cost=True)
    parts = busy.parts()
    busy.split((0, 2 * S), Quantities(0.0, 400.0, 2.0 * S), parts, static_known=True)
    assert parts.dynamic_uj == pytest.approx([100 + 100, 200])


def test_a_cell_keeps_its_own_energy() -> None:
    busy = BusyTime((HEAVY, LIGHT), 0, 4 * S, by_cost=True)
    parts = busy.parts()
    busy.split((0, S), Quantities(0.0, 5.0, float(S)), parts, static_known=True)
    busy.split((S, 2 * S), Quantities(0.0, 7.0, float(S)), parts, static_known=True)
    assert parts.dynamic_uj == pytest.approx([5.0, 7.0])
