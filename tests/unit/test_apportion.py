from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from wattledger.apportion import apportion, before, between

WEIGHTS = st.dictionaries(st.text(max_size=3), st.floats(0, 1e9), min_size=1, max_size=9)


def test_v1_equal_weights() -> None:
    assert apportion(100, {"x": 1.0, "y": 1.0, "z": 1.0}) == {"x": 34, "y": 33, "z": 33}


def test_v1_zero_weights_share_equally() -> None:
    assert apportion(7, {"x": 0.0, "y": 0.0}) == {"x": 4, "y": 3}


def test_no_claimants() -> None:
    assert apportion(7, {}) == {}


@given(st.integers(0, 10**15), WEIGHTS)
def test_parts_sum_and_are_never_negative(total: int, weights: dict[str, float]) -> None:
    parts = apportion(total, weights)
    assert sum(parts.values()) == total
    assert min(parts.values()) >= 0


@given(st.integers(0, 10**9), WEIGHTS)
def test_order_of_claimants_does_not_matter(total: int, weights: dict[str, float]) -> None:
    assert apportion(total, weights) == apportion(total, dict(reversed(weights.items())))


@given(
    st.integers(-(10**12), 10**12),
    st.integers(0, 10**12),
    st.lists(st.integers(-(10**12), 2 * 10**12), min_size=2, max_size=9),
)
def test_any_cutting_of_time_adds_up(total: int, length_ns: int, edges: list[int]) -> None:
    edges.sort()
    parts = [between(total, 0, length_ns, a, b) for a, b in pairwise(edges)]
    assert sum(parts) == between(total, 0, length_ns, edges[0], edges[-1])


def test_before_is_linear() -> None:
    assert [before(10, t, 4) for t in (-1, 0, 1, 2, 3, 4, 9)] == [0, 0, 3, 5, 8, 10, 10]
