"""A meter's columns must say what a plain list of cells says."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from wattledger.records import Quality
from wattledger_daemon.heart.cells import UNITS_PER_UJ, Cell, Cells

HUGE = 2**80
numbers = st.integers(0, 10**12) | st.integers(0, HUGE)
parts = st.tuples(
    st.integers(0, UNITS_PER_UJ - 1),
    numbers,
    numbers,
    numbers,
    st.sampled_from([None, *Quality]),
)


@st.composite
def histories(draw: st.DrawFn) -> list[Cell]:
    edges = sorted(draw(st.sets(st.integers(-50, 50), max_size=9)))
    return [Cell(low, high, *draw(parts)) for low, high in pairwise(edges)]


def filled(history: list[Cell]) -> Cells:
    cells = Cells()
    for cell in history:
        cells.append(cell)
    return cells


@given(histories(), st.integers(-60, 60), st.integers(-60, 60))
def test_columns_answer_like_a_list(history: list[Cell], one: int, other: int) -> None:
    cells, start, end = filled(history), min(one, other), max(one, other)
    found = list(cells.touching(start, end))
    assert [c for c in found if c.end_ns > start] == [
        c for c in history if c.start_ns < end and c.end_ns > start
    ]
    assert all(c in history for c in found)
    assert list(cells.newest_first()) == history[::-1]
    assert len(cells) == len(history)


@given(histories(), st.integers(-60, 60))
def test_what_is_over_is_forgotten_and_nothing_else(history: list[Cell], t_ns: int) -> None:
    cells = filled(history)
    kept = [cell for cell in history if cell.end_ns > t_ns]
    assert cells.forget_before(t_ns) is (kept != history)
    assert list(cells.newest_first())[::-1] == kept
    cells.append(Cell(60, 61, 0, 1, 0, 0, Quality.MEASURED))
    assert len(cells) == len(kept) + 1
    cells.clear()
    assert list(cells.touching(-60, 99)) == []


@given(
    st.lists(
        st.tuples(st.integers(1, 10**10), st.integers(0, 10**9), st.integers(0, 10**9)), min_size=1
    ),
    st.data(),
)
def test_rounding_telescopes_from_cell_to_cell(
    gauges: list[tuple[int, int, int]], data: st.DataObject
) -> None:
    """Whole microjoules of all pieces sum to the rounded whole, wherever the cells are cut."""
    start_ns = carried = booked_uj = exact = 0
    for length_ns, first_uw, last_uw in gauges:
        end_ns = start_ns + length_ns
        cell = Cell(start_ns, end_ns, carried, 0, first_uw, last_uw, Quality.INTEGRATED)
        cut_ns = data.draw(st.integers(start_ns, end_ns))
        at = [cell.energy_uj_at(t_ns) for t_ns in (start_ns, cut_ns, end_ns)]
        booked_uj += sum(after - before for before, after in pairwise(at))
        exact += (first_uw + last_uw) * length_ns
        start_ns, carried = end_ns, cell.carries
    assert booked_uj == (2 * exact + UNITS_PER_UJ) // (2 * UNITS_PER_UJ)
