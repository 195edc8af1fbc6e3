from __future__ import annotations

import math

import pytest

from fakes.entries import vector
from wattledger.carbon.embodied import (
    DEFAULT_LIFETIME_S,
    YEAR_S,
    check_lifetime,
    embodied_gco2e,
    end_of_life_ns,
    parse_lifetime,
)
from wattledger.carbon.operational import facility_kwh, operational_gco2e, refine
from wattledger.carbon.pue import ConstantPue, PuePoint, PueSeries
from wattledger.errors import DataMissingError, InputError

S = 1_000_000_000
UJ = 1_000_000


def close(value: float) -> object:
    return pytest.approx(value, rel=1e-6)


def test_tv01_an_hour_of_a_t4() -> None:
    v = vector("TV01")
    given = v["inputs"]
    grams = embodied_gco2e(
        given["embodied_kg"], given["duration_s"] * S, given["lifetime_years"] * YEAR_S
    )
    # The printed expectation has five digits.
    assert grams == pytest.approx(v["expected"]["embodied_g"], rel=2e-5)
    assert grams / given["duration_s"] == close(v["expected"]["rate_g_per_s"])


@pytest.mark.parametrize("grid", ["QC", "CISO", "PACE"])
def test_tv03_embodied_shares_of_three_grids(grid: str) -> None:
    v = vector("TV03")
    given, expected = v["inputs"], v["expected"][grid]
    energy_uj = round(given["avg_power_w"] * given["duration_s"] * UJ)
    operational = operational_gco2e(energy_uj, given["pue"], given["ci_g_per_kwh"][grid])
    embodied = embodied_gco2e(
        given["embodied_kg"], given["duration_s"] * S, given["lifetime_years"] * YEAR_S
    )
    assert operational == close(expected["operational_g"])
    assert operational + embodied == pytest.approx(expected["total_g"], rel=1e-5)
    share_pct = 100 * embodied / (operational + embodied)
    assert share_pct == pytest.approx(expected["published_max_share_pct"], abs=0.05)


def test_tv06_one_prompt() -> None:
    v = vector("TV06")
    given, expected = v["inputs"], v["expected"]
    energy_uj = given["avg_power_w"] * given["t_prompt_s"] * UJ
    operational = operational_gco2e(energy_uj, 1.0, given["ci_g_per_kwh"])
    embodied = embodied_gco2e(
        given["embodied_kg"], given["t_prompt_s"] * S, given["lifetime_years"] * YEAR_S
    )
    assert energy_uj / UJ == expected["energy_j"]
    assert operational == close(expected["operational_g"])
    assert embodied == close(expected["embodied_g"])
    assert (operational + embodied) / given["tokens"] == close(expected["g_per_token"])


def test_tv07_units() -> None:
    v = vector("TV07")
    given, expected = v["inputs"], v["expected"]
    energy_uj = given["energy_j"] * UJ
    grams = operational_gco2e(energy_uj, 1.0, given["ci_g_per_kwh"])
    assert facility_kwh(energy_uj, 1.0) * 1000 == close(expected["energy_wh"])
    assert grams == close(expected["operational_g"])
    assert grams / given["tokens"] == close(expected["g_per_token"])
    assert grams / given["energy_j"] == close(expected["g_per_j"])


def test_tv09_sci_time_share() -> None:
    v = vector("TV09")
    given = v["inputs"]
    device_ns = round(given["reserved_s"] * given["resource_share"] * S)
    grams = embodied_gco2e(given["embodied_kg"], device_ns, given["lifetime_years"] * YEAR_S)
    assert grams == close(v["expected"]["embodied_g"])


def test_lifetimes() -> None:
    assert YEAR_S == 31_536_000
    assert parse_lifetime("5y") == DEFAULT_LIFETIME_S
    assert parse_lifetime("60mo") == parse_lifetime("43800h") == parse_lifetime("1825d")
    assert parse_lifetime("2.5y") == 2.5 * YEAR_S
    for text in ("", "5", "0y", "-1y", "5 years", "infy", "1e3h"):
        with pytest.raises(InputError, match="--lifetime"):
            parse_lifetime(text)
    for bad in (math.nan, math.inf, 0.0):
        with pytest.raises(InputError):
            check_lifetime(bad)
    assert end_of_life_ns(7, 1.5) == 7 + 1_500_000_000


def test_refinement_keeps_inner_edges_once() -> None:
    assert refine(10, 20, [5, 12, 15], [15, 20, 25], [10]) == (10, 12, 15, 20)


@pytest.mark.parametrize("pue", [0.999, 0.0, -1.2, math.nan, math.inf])
def test_a_pue_below_one_is_refused(pue: float) -> None:
    with pytest.raises(InputError, match="1 or more"):
        ConstantPue(pue)
    with pytest.raises(InputError, match="1 or more"):
        PuePoint(0, 1, pue)


def test_a_pue_series_is_a_step_function() -> None:
    series = PueSeries([PuePoint(10, 20, 1.3), PuePoint(0, 10, 1.1)], source="site.csv")
    found = series.segments(5, 15)
    assert [(p.start_ns, p.end_ns, p.pue, p.source) for p in found] == [
        (5, 10, 1.1, "site.csv"),
        (10, 15, 1.3, "site.csv"),
    ]
    assert [(p.start_ns, p.end_ns) for p in series.segments(0, 20)] == [(0, 10), (10, 20)]
    assert [(p.start_ns, p.end_ns) for p in series.segments(0, 10)] == [(0, 10)]
    for span in ((15, 25), (20, 30)):
        with pytest.raises(DataMissingError, match=r"site\.csv has no PUE at"):
            series.segments(*span)
    with pytest.raises(InputError, match="overlap"):
        PueSeries([PuePoint(0, 10, 1.1), PuePoint(9, 20, 1.3)], source="site.csv")
    with pytest.raises(InputError, match="later"):
        PuePoint(3, 3, 1.1)
