"""Views and groups: the same joules and grams, told by whom they are charged to."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fakes.entries import CPU, Entry, steady, vector, window
from fakes.memory_store import MemoryStore
from fakes.statements import CISO_262, HOUR, HOUR_S, at, by_job, only_line, two_jobs_and_idle
from wattledger.records import Activity, Quality
from wattledger.statement.carbon import carbon_statement
from wattledger.statement.query import CarbonQuery, View
from wattledger.store.protocol import Filters
from wattledger.timespan import timezone_named


def test_tv20_direct_and_loaded() -> None:
    v = vector("TV20")["expected"]
    store = two_jobs_and_idle()
    direct = carbon_statement(store, HOUR)
    loaded = carbon_statement(store, replace(HOUR, view=View.LOADED))
    assert by_job(direct) == {
        "A": pytest.approx((v["operational_direct_g"]["A"], v["direct"]["A"]), rel=1e-6),
        "B": pytest.approx((v["operational_direct_g"]["B"], v["direct"]["B"]), rel=1e-6),
        None: pytest.approx(
            (v["operational_direct_g"]["idle"], v["direct"]["unallocated_idle"]), rel=1e-6
        ),
    }
    assert by_job(loaded) == {
        job: pytest.approx((v["operational_fully_loaded_g"][job], v["fully_loaded"][job]), rel=1e-6)
        for job in ("A", "B")
    }
    assert direct.total.grams.embodied == pytest.approx(v["device_embodied_g"], rel=1e-6)
    assert direct.total.grams.operational == pytest.approx(v["operational_total_g"], rel=1e-6)
    assert loaded.total.grams == direct.total.grams
    assert loaded.total.amounts == direct.total.amounts
    assert [group.total.amounts.device_ns for group in loaded.groups] == [
        2400 * 10**9,
        1200 * 10**9,
    ]


def test_loaded_filters_after_loading() -> None:
    store = two_jobs_and_idle()
    query = replace(HOUR, view=View.LOADED)
    whole = by_job(carbon_statement(store, query))
    alone = carbon_statement(store, replace(query, filters=Filters(job=("A",))))
    assert by_job(alone) == {"A": whole["A"]}
    assert alone.total.amounts.device_ns == 2400 * 10**9
    assert alone.total.carbon_json()["j_per_decode_token"] is not None


def test_loaded_decode_rate_holds_its_share_of_idle() -> None:
    store = MemoryStore(
        imports=[
            Entry(0, 900, 900.0, activity=Activity.DECODE, decode=100).on(),
            Entry(900, 1800, 300.0, activity=Activity.IDLE).on(),
        ]
    )
    query = replace(HOUR, view=View.LOADED, by=())
    assert carbon_statement(store, query).total.carbon_json()["j_per_decode_token"] == 12.0
    direct = replace(query, view=View.DIRECT)
    assert carbon_statement(store, direct).total.carbon_json()["j_per_decode_token"] == 9.0


def test_idle_without_users_and_unattributed_stay_lines() -> None:
    entries = [
        Entry(0, 100, 100.0, activity=Activity.IDLE).on(),
        Entry(0, 100, 100.0, activity=Activity.IDLE).on(CPU),
        Entry(0, 100, 50.0, device_s=0.0, activity=Activity.UNATTRIBUTED).on(CPU),
    ]
    query = replace(HOUR, view=View.LOADED, by=("device", "activity"))
    told = {
        (group.by["device"], group.by["activity"]): group.total.amounts.energy_uj
        for group in only_line(*entries, query=query).groups
    }
    assert told == {
        ("gpu0", "idle"): 100_000_000,
        ("cpu0", "idle"): 100_000_000,
        ("cpu0", "unattributed"): 50_000_000,
    }


def test_what_an_engine_left_unattributed_takes_its_share_of_idle() -> None:
    entries = [
        Entry(0, 40, 400.0, job="A", activity=Activity.UNATTRIBUTED).on(),
        Entry(40, 60, 200.0, job="B").on(),
        Entry(60, 90, 300.0, activity=Activity.IDLE).on(),
    ]
    query = replace(HOUR, view=View.LOADED)
    told = {g.by["job"]: g.total.amounts.energy_uj for g in only_line(*entries, query=query).groups}
    assert told == {"A": 600_000_000, "B": 300_000_000}


def test_engine_idle_takes_its_share_and_is_not_spread() -> None:
    entries = [
        Entry(0, 30, 60.0, activity=Activity.DECODE).on(),
        Entry(30, 60, 30.0, activity=Activity.ENGINE_IDLE).on(),
        Entry(60, 90, 10.0, activity=Activity.IDLE).on(),
    ]
    query = replace(HOUR, view=View.LOADED, by=("activity",))
    told = {
        g.by["activity"]: g.total.amounts.energy_uj for g in only_line(*entries, query=query).groups
    }
    assert told == {"decode": 65_000_000, "engine_idle": 35_000_000}


def test_spread_idle_keeps_its_own_quality() -> None:
    entries = [
        Entry(0, 60, 60.0, job="A").on(),
        Entry(60, 90, 10.0, activity=Activity.IDLE, quality=Quality.ESTIMATED).on(),
    ]
    query = replace(HOUR, view=View.LOADED, by=("quality",))
    statement = only_line(*entries, query=query)
    assert statement.coverage.energy == {"measured": 60 / 70, "estimated": 10 / 70}
    assert [group.by["quality"] for group in statement.groups] == ["estimated", "measured"]


def test_active_counts_dynamic_energy_and_all_device_time() -> None:
    store = two_jobs_and_idle()
    direct = carbon_statement(store, HOUR)
    active = carbon_statement(store, replace(HOUR, view=View.ACTIVE))
    told = active.total.carbon_json()
    assert (told["energy_j"], told["static_j"], told["dynamic_j"]) == (558_000.0, 0.0, 558_000.0)
    assert told["operational_gco2e"] == pytest.approx(558_000 / 3.6e6 * 1.2 * 262)
    assert told["embodied_gco2e"] == direct.total.grams.embodied


def test_groups_by_local_periods_add_up() -> None:
    paris = timezone_named("Europe/Paris")
    start_s = at("2026-10-24T22:00:00Z") // 10**9
    store = MemoryStore(imports=[*steady(start_s, start_s + 49 * HOUR_S, 100.0, HOUR_S)])
    query = CarbonQuery(
        window=window(start_s, start_s + 49 * HOUR_S),
        intensity=CISO_262,
        by=("day",),
        tz=paris,
    )
    days = carbon_statement(store, query)
    assert [(g.by["day"], g.total.amounts.device_ns // 10**9) for g in days.groups] == [
        ("2026-10-25", 25 * HOUR_S),
        ("2026-10-26", 24 * HOUR_S),
    ]
    hours = carbon_statement(store, replace(query, by=("hour",)))
    assert len(hours.groups) == 49
    labels = [group.by["hour"] for group in hours.groups]
    assert "2026-10-25T02:00:00+02:00" in labels
    assert "2026-10-25T02:00:00+01:00" in labels
    assert hours.total.amounts == days.total.amounts
    months = carbon_statement(store, replace(query, by=("month", "host")))
    assert [group.by for group in months.groups] == [{"month": "2026-10", "host": "h1"}]


def test_groups_are_sorted_with_the_nameless_last() -> None:
    entries = [
        Entry(0, 10, 1.0, job=job, model=model).on()
        for job, model in (("b", None), ("a", "m"), (None, "m"), ("a", None))
    ]
    told = only_line(*entries, query=replace(HOUR, by=("job", "model"))).groups
    assert [(g.by["job"], g.by["model"]) for g in told] == [
        ("a", "m"),
        ("a", None),
        ("b", None),
        (None, "m"),
    ]
