from __future__ import annotations

import csv
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.entries import DATA, vector
from wattledger.carbon.annual import annual_intensity, resolve_zone, zones
from wattledger.carbon.fallback import HOUR_NS, HourOfDayMean, Interpolated, with_fallback
from wattledger.carbon.intensity import (
    Basis,
    ConstantIntensity,
    IntensityPoint,
    Ladder,
    Signal,
    StepSeries,
    Tier,
    covering,
    holes,
)
from wattledger.errors import DataMissingError, InputError
from wattledger.timespan import parse_instant


def at(text: str) -> int:
    return parse_instant(text, 0)


DAY_NS = at("2019-01-01")


def ciso(*, without: tuple[int, ...] = ()) -> StepSeries:
    with (DATA / "ciso_2019-01-01_lifecycle.csv").open(newline="") as file:
        points = [
            IntensityPoint(at(row["start_utc"]), at(row["end_utc"]), float(row["g_co2e_per_kwh"]))
            for row in csv.DictReader(file)
        ]
    kept = [point for hour, point in enumerate(points) if hour not in without]
    return StepSeries(kept, source="ciso.csv", basis=Basis.LIFECYCLE)


def hours(*values: float | None, start_ns: int = DAY_NS) -> StepSeries:
    points = [
        IntensityPoint(start_ns + hour * HOUR_NS, start_ns + (hour + 1) * HOUR_NS, value)
        for hour, value in enumerate(values)
        if value is not None
    ]
    return StepSeries(points, source="test")


def grams(points: object, power_kw: float = 1.0) -> float:
    assert isinstance(points, tuple | list)
    return math.fsum(
        (p.end_ns - p.start_ns) / HOUR_NS * power_kw * p.intensity_gco2e_per_kwh for p in points
    )


def test_tv18_missing_hours_fall_to_the_annual_mean() -> None:
    v = vector("TV18")
    start_ns, end_ns = map(at, v["inputs"]["window"])
    annual = ConstantIntensity(v["inputs"]["fallback_ci"], "annual")
    points = covering(with_fallback(ciso(without=(5, 6)), annual), start_ns, end_ns)
    measured = [point for point in points if point.tier is Tier.MEASURED]
    rest = [point for point in points if point.tier is not Tier.MEASURED]
    assert grams(measured) == pytest.approx(v["expected"]["measured_g"], rel=1e-6)
    assert grams(rest) == pytest.approx(v["expected"]["fallback_g"], rel=1e-6)
    assert grams(points) == pytest.approx(v["expected"]["total_g"], rel=1e-6)
    assert holes(points, start_ns, end_ns) == []


def test_a_hole_that_nobody_knows_is_an_error() -> None:
    with pytest.raises(DataMissingError, match=r"from 2019-01-01T05:00:00Z to 2019-01-01T07"):
        covering(with_fallback(ciso(without=(5, 6))), DAY_NS, DAY_NS + 24 * HOUR_NS)
    with pytest.raises(DataMissingError, match="--intensity"):
        covering(ciso(), DAY_NS - 1, DAY_NS + HOUR_NS)


def test_short_gaps_are_interpolated_where_asked() -> None:
    series = hours(100.0, None, None, 400.0, None, None, None, 10.0)
    points = Interpolated(series).segments(DAY_NS, DAY_NS + 8 * HOUR_NS)
    assert [point.intensity_gco2e_per_kwh for point in points] == pytest.approx([200.0, 300.0])
    assert {point.tier for point in points} == {Tier.INTERPOLATED}
    ladder = with_fallback(series, interpolate=True)
    tiers = [point.tier for point in ladder.segments(DAY_NS, DAY_NS + 4 * HOUR_NS)]
    assert tiers == [Tier.MEASURED, Tier.INTERPOLATED, Tier.INTERPOLATED, Tier.MEASURED]
    # Any window inside the gap sees the same line.
    part = Interpolated(series).segments(DAY_NS + HOUR_NS + 60, DAY_NS + HOUR_NS + 90)
    assert [p.end_ns - p.start_ns for p in part] == [30]
    assert part[0].intensity_gco2e_per_kwh == pytest.approx(200.0)


def test_hour_of_day_means_take_measured_points_of_the_month() -> None:
    day_2_ns = DAY_NS + 24 * HOUR_NS
    february_ns = at("2019-02-01")
    points = [
        IntensityPoint(DAY_NS + 5 * HOUR_NS, DAY_NS + 6 * HOUR_NS, 100.0),
        IntensityPoint(day_2_ns + 5 * HOUR_NS, day_2_ns + 5 * HOUR_NS + HOUR_NS // 2, 400.0),
        IntensityPoint(
            day_2_ns + 6 * HOUR_NS, day_2_ns + 7 * HOUR_NS, 900.0, Tier.PROVIDER_ESTIMATED
        ),
        IntensityPoint(february_ns, february_ns + HOUR_NS, 1.0),
    ]
    mean = HourOfDayMean(StepSeries(points, source="test"))
    day_3_ns = DAY_NS + 48 * HOUR_NS
    found = mean.segments(day_3_ns, day_3_ns + 24 * HOUR_NS)
    assert [(p.start_ns, p.tier) for p in found] == [(day_3_ns + 5 * HOUR_NS, Tier.HOUR_OF_DAY)]
    assert found[0].intensity_gco2e_per_kwh == pytest.approx(200.0)
    assert mean.segments(february_ns + 5 * HOUR_NS, february_ns + 6 * HOUR_NS) == ()


def test_a_series_keeps_its_own_tiers_and_source() -> None:
    point = IntensityPoint(0, 10, 5.0, Tier.PROVIDER_ESTIMATED, "", 4.0, 7.0)
    (found,) = StepSeries([point], source="a.csv").segments(2, 4)
    assert (found.start_ns, found.end_ns, found.tier) == (2, 4, Tier.PROVIDER_ESTIMATED)
    assert (found.source, found.range_gco2e_per_kwh) == ("a.csv", (4.0, 5.0, 7.0))


def test_bad_points_are_refused() -> None:
    for value in (-1.0, math.nan, math.inf):
        with pytest.raises(InputError, match="zero or more"):
            IntensityPoint(0, 1, value)
        with pytest.raises(InputError, match="--intensity"):
            ConstantIntensity(value)
    with pytest.raises(InputError, match="bounds"):
        IntensityPoint(0, 1, 5.0, low_gco2e_per_kwh=6.0)
    with pytest.raises(InputError, match="later"):
        IntensityPoint(1, 1, 5.0)
    with pytest.raises(InputError, match="overlap"):
        StepSeries([IntensityPoint(0, 2, 1.0), IntensityPoint(1, 3, 1.0)], source="a.csv")


def test_signals_and_bases_are_never_mixed() -> None:
    average = ConstantIntensity(1.0)
    with pytest.raises(InputError, match="average, marginal"):
        Ladder([average, ConstantIntensity(1.0, signal=Signal.MARGINAL)])
    direct = ConstantIntensity(1.0, basis=Basis.DIRECT)
    with pytest.raises(InputError, match="direct, lifecycle"):
        Ladder([direct, annual_intensity("FRA")])
    assert Ladder([average, annual_intensity("FRA")]).basis is Basis.LIFECYCLE


def test_annual_means_follow_the_year() -> None:
    france = annual_intensity("FR")
    assert (france.signal, france.basis) == (Signal.AVERAGE, Basis.LIFECYCLE)
    points = covering(france, at("2023-12-31"), at("2026-01-02"))
    assert [p.tier for p in points] == [Tier.ANNUAL] * 2 + [Tier.LATEST_ANNUAL] * 2
    values = [p.intensity_gco2e_per_kwh for p in points]
    assert values == pytest.approx([55.3, 44.2, 44.2, 44.2], rel=0.01)
    assert "France (FRA) 2024" in points[-1].source
    assert "Ember" in points[-1].source


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("FRA", "FRA"),
        ("fr", "FRA"),
        ("france", "FRA"),
        ("United States", "USA"),
        ("WORLD", "OWID_WRL"),
        ("OWID_WRL", "OWID_WRL"),
        ("XK", "OWID_KOS"),
        ("TW", "TWN"),
        ("GB", "GBR"),
    ],
)
def test_zones_by_every_name(text: str, code: str) -> None:
    assert resolve_zone(text).code == code


def test_an_unknown_zone_names_the_nearest() -> None:
    with pytest.raises(InputError, match=r"nearest known is USA.*--zone USA.*--intensity G"):
        resolve_zone("US-CAL-CISO")
    with pytest.raises(InputError, match="nearest known is DEU"):
        resolve_zone("Germny")
    with pytest.raises(InputError, match=r"--zone 'qqqq'.*--intensity G"):
        resolve_zone("qqqq")


def test_the_annual_table_is_whole() -> None:
    assert len(zones()) == 214
    assert sum(len(annual_intensity(zone.code).by_year) for zone in zones()) == 1332
    world = annual_intensity("WORLD").by_year[2024]
    assert world == pytest.approx(473.0, abs=0.1)
    assert annual_intensity("USA").by_year[2024] == pytest.approx(383.5, abs=0.1)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.one_of(st.none(), st.floats(0, 1000)), min_size=1, max_size=30),
    st.integers(0, 30 * 3600),
    st.integers(1, 30 * 3600),
    st.integers(0, 30 * 3600),
)
def test_ladders_add_up_however_a_window_is_cut(
    values: list[float | None], start_s: int, length_s: int, split_s: int
) -> None:
    ladder = with_fallback(hours(*values), ConstantIntensity(250.0), interpolate=True)
    start_ns = DAY_NS + start_s * 1_000_000_000
    end_ns = start_ns + length_s * 1_000_000_000
    middle_ns = start_ns + split_s % length_s * 1_000_000_000
    whole = covering(ladder, start_ns, end_ns)
    halves = [
        *(covering(ladder, start_ns, middle_ns) if middle_ns > start_ns else ()),
        *covering(ladder, middle_ns, end_ns),
    ]
    assert grams(halves) == pytest.approx(grams(whole), rel=1e-9, abs=1e-9)
