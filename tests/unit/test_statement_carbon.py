from __future__ import annotations

import json
from dataclasses import replace

import pytest

import wattledger
from fakes.entries import CPU, DATA, H100, Entry, steady, vector, window
from fakes.memory_store import MemoryStore
from fakes.statements import HOUR, at, ciso, only_line, two_jobs_and_idle
from wattledger.carbon.annual import annual_intensity
from wattledger.carbon.fallback import with_fallback
from wattledger.carbon.intensity import IntensityPoint, StepSeries, Tier
from wattledger.carbon.pue import ConstantPue, PuePoint, PueSeries
from wattledger.errors import DataMissingError, InputError
from wattledger.records import Activity, Device, DeviceKind, Quality, StaticBasis
from wattledger.statement.carbon import carbon_statement
from wattledger.statement.query import CarbonQuery, View, parse_groups, parse_view
from wattledger.store.protocol import Filters
from wattledger.timespan import Window

CARBON_KEYS = [
    "energy_j",
    "static_j",
    "dynamic_j",
    "facility_kwh",
    "operational_gco2e",
    "embodied_gco2e",
    "carbon_gco2e",
    "carbon_gco2e_low",
    "carbon_gco2e_high",
    "intensity_gco2e_per_kwh",
    "device_s",
    "requests",
    "prefill_tokens",
    "cached_tokens",
    "decode_tokens",
    "j_per_decode_token",
    "j_per_token",
    "gco2e_per_token",
]


def test_tv13_a_window_that_cuts_hours() -> None:
    v = vector("TV13")
    given, expected = v["inputs"], v["expected"]
    start_ns, end_ns = map(at, given["window"])
    start_s, end_s = start_ns // 10**9, end_ns // 10**9
    store = MemoryStore(imports=steady(start_s - 1800, end_s + 900, given["power_w"]))
    query = CarbonQuery(
        window=Window(start_ns, end_ns), intensity=ciso(), pue=ConstantPue(given["pue"])
    )
    total = carbon_statement(store, query).total
    told = total.carbon_json()
    assert total.amounts.energy_uj / 3.6e12 == pytest.approx(expected["it_energy_kwh"], rel=1e-12)
    assert told["facility_kwh"] == pytest.approx(expected["facility_energy_kwh"], rel=1e-9)
    assert told["operational_gco2e"] == pytest.approx(expected["operational_g"], rel=1e-6)
    assert told["intensity_gco2e_per_kwh"] == pytest.approx(
        expected["energy_weighted_ci"], rel=1e-6
    )
    # TV15: the same, in two half-open parts.
    v15 = vector("TV15")
    middle_ns = at(v15["inputs"]["split_at"])
    parts = [
        carbon_statement(store, replace(query, window=part)).total.grams.operational
        for part in (Window(start_ns, middle_ns), Window(middle_ns, end_ns))
    ]
    assert parts == pytest.approx(
        [v15["expected"]["part1_g"], v15["expected"]["part2_g"]], rel=1e-6
    )
    assert sum(parts) == pytest.approx(total.grams.operational, rel=1e-9)


def test_tv18_tiers_are_counted_by_energy() -> None:
    v = vector("TV18")
    given, expected = v["inputs"], v["expected"]
    start_ns, end_ns = map(at, given["window"])
    series = ciso(without=("2019-01-01T05:00:00Z", "2019-01-01T06:00:00Z"))
    annual = StepSeries(
        [IntensityPoint(start_ns, end_ns, given["fallback_ci"], Tier.ANNUAL)], source="annual"
    )
    query = CarbonQuery(
        window=Window(start_ns, end_ns), intensity=with_fallback(series, annual), zone="X"
    )
    store = MemoryStore(imports=steady(start_ns // 10**9, end_ns // 10**9, given["power_w"]))
    statement = carbon_statement(store, query)
    assert statement.total.grams.operational == pytest.approx(expected["total_g"], rel=1e-6)
    assert statement.coverage.intensity == {
        "measured": pytest.approx(expected["coverage_energy"], rel=1e-6),
        "annual": pytest.approx(1 - expected["coverage_energy"], rel=1e-5),
    }
    factors = {f.tier: f for f in statement.factors.intensity}
    assert factors["annual"].intensity_gco2e_per_kwh == pytest.approx(250.0)
    assert factors["measured"].source == "ciso.csv"
    with pytest.raises(DataMissingError, match=r"0\.8333 .*--min-coverage 0\.95"):
        carbon_statement(store, replace(query, min_coverage=0.95))
    assert carbon_statement(store, replace(query, min_coverage=0.8333)).total == statement.total


def test_pue_and_intensity_meet_on_their_common_refinement() -> None:
    steps = StepSeries(
        [IntensityPoint(0, 1000 * 10**9, 100.0), IntensityPoint(1000 * 10**9, 3600 * 10**9, 400.0)],
        source="s",
    )
    pue = PueSeries(
        [PuePoint(0, 500 * 10**9, 1.5), PuePoint(500 * 10**9, 3600 * 10**9, 1.1)], source="p"
    )
    query = replace(HOUR, intensity=steps, pue=pue)
    told = only_line(Entry(0, 3600, 3_600_000.0).on(), query=query).total.carbon_json()
    grams = (500 * 1.5 * 100 + 500 * 1.1 * 100 + 2600 * 1.1 * 400) / 3600
    kwh = (500 * 1.5 + 3100 * 1.1) / 3600
    assert told["operational_gco2e"] == pytest.approx(grams, rel=1e-12)
    assert told["intensity_gco2e_per_kwh"] == pytest.approx(grams / kwh, rel=1e-12)


def test_bounds_add_up_linearly() -> None:
    bounded = StepSeries(
        [IntensityPoint(0, 3600 * 10**9, 100.0, low_gco2e_per_kwh=80.0, high_gco2e_per_kwh=150.0)],
        source="s",
    )
    query = replace(HOUR, intensity=bounded, pue=ConstantPue(1.0))
    told = only_line(Entry(0, 3600, 3_600_000.0).on(), query=query).total.carbon_json()
    embodied = 1000 * 164 * 3600 / (5 * 365 * 86_400)
    assert told["carbon_gco2e"] == pytest.approx(100 + embodied)
    assert told["carbon_gco2e_low"] == pytest.approx(80 + embodied)
    assert told["carbon_gco2e_high"] == pytest.approx(150 + embodied * 273 / 164)


def test_a_lifetime_that_ends_in_the_window() -> None:
    lifetime_s = 1000.0
    query = replace(HOUR, lifetime_s=lifetime_s, in_service_ns={("h1", "gpu0"): 100 * 10**9}, by=())
    statement = only_line(Entry(0, 3600, 3600.0).on(), query=query)
    assert statement.total.grams.embodied == pytest.approx(164_000.0, rel=1e-12)
    assert statement.total.amounts.device_ns == 3600 * 10**9
    assert any("h1/gpu0 is outside its lifetime" in text for text in statement.warnings)


def test_no_embodied_and_overrides() -> None:
    entry = Entry(0, 3600, 3600.0).on()
    without = only_line(entry, query=replace(HOUR, include_embodied=False))
    assert without.total.grams.embodied == 0.0
    assert without.coverage.embodied == 0.0
    assert without.factors.embodied == ()
    assert any("--no-embodied" in text for text in without.warnings)
    own = only_line(entry, query=replace(HOUR, embodied_kg={H100.model or "": 328.0}))
    assert own.total.grams.embodied == pytest.approx(2 * 3.744292, rel=1e-6)
    assert own.total.grams.embodied_low == own.total.grams.embodied_high


def test_an_override_that_names_no_device_is_told() -> None:
    own = only_line(Entry(0, 3600, 3600.0).on(), query=replace(HOUR, embodied_kg={"X9": 3.0}))
    assert [text for text in own.warnings if "X9" in text] == [
        "--embodied 'X9' names no device of this window and changes nothing: "
        "they are NVIDIA H100 80GB HBM3"
    ]


def test_embodied_coverage_without_energy_goes_by_device_time() -> None:
    assert only_line(Entry(0, 3600).on()).coverage.embodied == 1.0


def test_unknown_embodied_factors_are_left_out_and_named() -> None:
    unknown = Device("gpu1", DeviceKind.GPU, "NVIDIA X")
    poor = Device("gpu2", DeviceKind.GPU, "Tesla T4")
    dram = Device("dram0", DeviceKind.DRAM)
    statement = only_line(
        Entry(0, 3600, 100.0).on(),
        Entry(0, 3600, 100.0).on(unknown),
        Entry(0, 3600, 100.0).on(poor),
        Entry(0, 3600, 50.0).on(CPU),
        Entry(0, 3600, 50.0).on(dram),
    )
    assert statement.boundary == ("cpu", "dram", "gpu")
    assert statement.coverage.embodied == 0.5
    text = "\n".join(statement.warnings)
    assert "--embodied 'NVIDIA X=KG'" in text
    assert "'Tesla T4', 10.3 kg (10.3 to 61.8; ACT)" in text
    assert "left out AMD EPYC 9654, h1/dram0 (model unknown)" in text
    assert all("\n" not in line for line in statement.warnings)


def test_what_a_reader_must_know_is_said() -> None:
    entries = [
        Entry(-60, 60, 120.0, job="A").on(),
        Entry(60, 1800, 60.0, quality=Quality.ESTIMATED, job="A").on(),
        Entry(0, 3600, 60.0, static_basis=StaticBasis.UNKNOWN, job="A").on(CPU),
        Entry(0, 3600, 60.0, job="B").on(CPU),
    ]
    query = replace(HOUR, intensity=annual_intensity("FRA"), window=window(0, 3600))
    text = "\n".join(only_line(*entries, query=query).warnings)
    assert "they are prorated linearly" in text
    assert "25.0 % of the energy is unknown" in text
    assert "25.0 % of the energy is estimated" in text
    assert "h1/cpu0 is booked for 2 times the window's length" in text
    assert "only what is booked is charged: h1/gpu0 50.0 %" in text
    assert "100.0 % of the energy is priced with the latest annual mean" in text
    clean = only_line(Entry(0, 3600, 60.0, job="A").on())
    assert clean.warnings == ()
    assert clean.coverage.time == 1.0


def test_coverage_of_time_is_clamped_per_device() -> None:
    twice = [Entry(0, 3600, 60.0, job=job).on(CPU) for job in "AB"]
    statement = only_line(*twice, Entry(0, 900, 60.0).on())
    assert statement.coverage.time == pytest.approx((1.0 + 0.25) / 2)


def test_nothing_booked_is_said_so() -> None:
    with pytest.raises(DataMissingError, match=r"^nothing is booked from 1970-01-01T00:00:00Z"):
        carbon_statement(MemoryStore(), HOUR)
    for view in View:
        query = replace(HOUR, view=view, filters=Filters(job=("none",)))
        with pytest.raises(DataMissingError, match="matches the filters"):
            carbon_statement(two_jobs_and_idle(), query)


def test_json_has_the_contracts_keys_in_order() -> None:
    told = carbon_statement(two_jobs_and_idle(), HOUR).to_json()
    assert list(told) == [
        "schema", "software", "window", "view", "boundary", "total", "groups", "coverage",
        "factors", "warnings",
    ]  # fmt: skip
    assert told["schema"] == "wattledger.carbon/1"
    total, groups = told["total"], told["groups"]
    assert isinstance(total, dict)
    assert list(total) == CARBON_KEYS
    assert isinstance(groups, list)
    assert [list(group) for group in groups] == [["by", *CARBON_KEYS]] * 3
    assert groups[-1]["by"] == {"job": None}


def test_ratios_without_a_divisor_are_null() -> None:
    idle = Entry(0, 10, 0.0, activity=Activity.IDLE).on()
    statement = only_line(idle)
    told = statement.total.carbon_json()
    for key in ("intensity_gco2e_per_kwh", "j_per_decode_token", "j_per_token", "gco2e_per_token"):
        assert told[key] is None
    assert statement.coverage.energy == {}
    assert statement.factors.intensity[0].share is None


def test_tokens_and_requests() -> None:
    statement = only_line(
        Entry(0, 10, 100.0, activity=Activity.PREFILL, prefill=30, cached=5).on(),
        Entry(0, 10, 300.0, activity=Activity.DECODE, decode=70).on(),
        Entry(9, 9.000000001, device_s=0.0, activity=Activity.DECODE, requests=1).on(),
        query=replace(HOUR, include_embodied=False),
    )
    told = statement.total.carbon_json()
    assert (told["prefill_tokens"], told["cached_tokens"], told["decode_tokens"]) == (30, 5, 70)
    assert told["requests"] == 1
    assert told["j_per_token"] == 4.0
    assert told["j_per_decode_token"] == pytest.approx(300 / 70)
    assert told["gco2e_per_token"] == pytest.approx(400 / 3.6e6 * 1.2 * 262 / 100)


def test_a_query_is_checked() -> None:
    assert parse_groups("job,day,job") == ("job", "day")
    assert parse_view("loaded") is View.LOADED
    with pytest.raises(InputError, match="did you mean workload"):
        parse_groups("worklod")
    with pytest.raises(InputError, match="use one of direct"):
        parse_view("zzz")
    with pytest.raises(InputError, match="--by"):
        replace(HOUR, by=("nothing",))
    with pytest.raises(InputError, match="--min-coverage"):
        replace(HOUR, min_coverage=1.1)
    with pytest.raises(InputError, match="--lifetime"):
        replace(HOUR, lifetime_s=0.0)


def test_the_golden_statement() -> None:
    query = replace(HOUR, view=View.LOADED, intensity=annual_intensity("US"), zone="USA")
    told = carbon_statement(two_jobs_and_idle(), query).to_json()
    golden = json.loads((DATA / "golden_statement.json").read_text())
    golden["software"] = wattledger.__version__
    assert json.loads(json.dumps(told)) == golden
