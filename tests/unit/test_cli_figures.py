from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattledger_cli.figures import (
    CARBON_G,
    DURATION_S,
    ENERGY_J,
    decimals,
    figure,
    fixed,
    quantity,
    share,
    shares,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0.0, "0"), (1.0, "1"), (12.3456, "12.35"), (999.96, "1,000"), (0.5, "0.5")],
)
def test_a_figure_has_four_significant_digits(value: float | None, text: str) -> None:
    assert figure(value) == text


@pytest.mark.parametrize(
    ("joules", "text"),
    [
        (None, "-"),
        (0.0, "0 J"),
        (2e-7, "0.2 uJ"),
        (0.0254, "25.4 mJ"),
        (99_999.0, "99,999 J"),
        (360_000.0, "100 Wh"),
        (3.6e9, "1,000 kWh"),
        (7.2e10, "20 MWh"),
    ],
)
def test_energy_gets_the_unit_that_suits_it(joules: float | None, text: str) -> None:
    assert quantity(joules, ENERGY_J) == text


def test_other_quantities() -> None:
    assert quantity(0.0000452, CARBON_G) == "45.2 ug"
    assert quantity(2e7, CARBON_G) == "20 t"
    assert quantity(86_400.0, DURATION_S) == "24 h"


def test_a_column_shares_decimals_and_hides_nothing() -> None:
    places = decimals([412.34, 0.01, None])
    assert places == 1
    assert [fixed(value, places) for value in (412.34, 0.01, 0.0, None)] == [
        "412.3",
        "<0.1",
        "0",
        "-",
    ]


@pytest.mark.parametrize(
    ("ratio", "text"),
    [(1.0, "100 %"), (0.99999, ">99.9 %"), (0.00001, "<0.1 %"), (0.256, "25.6 %"), (0.0, "0 %")],
)
def test_shares_never_round_to_all_or_nothing(ratio: float, text: str) -> None:
    assert share(ratio) == text


def test_shares_by_name() -> None:
    assert shares({"a_b": 0.25, "c": 0.75}) == "75 % c, 25 % a b"


@given(st.floats(1e-9, 1e15))
def test_a_quantity_reads_back_within_a_thousandth(joules: float) -> None:
    number, unit = quantity(joules, ENERGY_J).split()
    scale = next(scale for scale in ENERGY_J.scales if scale.unit == unit)
    assert float(number.replace(",", "")) / scale.per_base == pytest.approx(joules, rel=1e-3)
