"""The usage, requests, jobs, models and audit statements."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fakes.entries import CPU, H100, Entry, window
from fakes.memory_store import MemoryStore
from wattledger.carbon.intensity import ConstantIntensity, IntensityPoint, StepSeries
from wattledger.carbon.pue import ConstantPue
from wattledger.errors import DataMissingError
from wattledger.records import (
    NS_PER_S,
    Account,
    Activity,
    Amounts,
    Clock,
    Device,
    DeviceKind,
    FinishedRequest,
    Metered,
    Page,
    Posting,
    Quality,
    StaticBasis,
)
from wattledger.statement.audit import audit_statement
from wattledger.statement.carbon import carbon_statement
from wattledger.statement.jobs import jobs_statement, models_statement
from wattledger.statement.query import CarbonQuery, UsageQuery, View
from wattledger.statement.requests import requests_statement
from wattledger.statement.usage import usage_statement
from wattledger.store.protocol import Filters

S = NS_PER_S
NODE = Device("node0", DeviceKind.NODE)
USAGE_KEYS = [
    "energy_j",
    "static_j",
    "dynamic_j",
    "device_s",
    "requests",
    "prefill_tokens",
    "cached_tokens",
    "decode_tokens",
    "j_per_decode_token",
    "j_per_token",
]


def account(activity: Activity) -> Account:
    return Account(
        activity, Quality.MEASURED, "shapley", StaticBasis.CONFIG, "w", "4711", "vllm-a", "llama"
    )


def posting(
    activity: Activity, energy_j: float, device_s: float, request: str | None = None
) -> Posting:
    amounts = Amounts(0, round(energy_j * 1e6), round(device_s * S))
    return Posting("gpu0", account(activity), 0, 10 * S, amounts, request)


def finish(request: str, at_s: float, prompt: int, decode: int) -> FinishedRequest:
    return FinishedRequest(
        request, "vllm-a", "llama", "w", "4711", round(at_s * S), prompt, 8, decode
    )


# Ten seconds of a GPU: two requests, engine idle, and three seconds of nobody.
PAGE = Page(
    clock=Clock("h1", "boot", 0),
    start_ns=0,
    end_ns=10 * S,
    devices=(H100, NODE),
    metered=(
        Metered("gpu0", 0, 10 * S, 1000_000_000, 10 * S, gaps=1, resets=2, wraps=3),
        Metered("node0", 0, 10 * S, 5000_000_000, 10 * S, gaps=4),
    ),
    postings=(
        posting(Activity.PREFILL, 300.0, 2.0),
        posting(Activity.DECODE, 400.0, 4.0),
        posting(Activity.ENGINE_IDLE, 100.0, 1.0),
        posting(Activity.IDLE, 200.0, 3.0),
    ),
    request_postings=(
        posting(Activity.PREFILL, 100.0, 1.0, "r1"),
        posting(Activity.PREFILL, 200.0, 1.0, "r2"),
        posting(Activity.DECODE, 150.0, 1.0, "r1"),
        posting(Activity.DECODE, 250.0, 3.0, "r2"),
    ),
    finished=(finish("r1", 6.5, 100, 10), finish("r2", 9.25, 200, 30)),
    late=5,
    duplicates=6,
    dropped=7,
)
TEN = window(0, 10)


def test_usage_tells_energy_and_tokens_only() -> None:
    store = MemoryStore(imports=[Entry(0, 10, 600.0, static_j=100.0, job="a", decode=6).on()])
    told = usage_statement(store, UsageQuery(window=TEN, by=("job",))).to_json()
    assert list(told) == [
        "schema",
        "software",
        "window",
        "view",
        "boundary",
        "total",
        "groups",
        "coverage",
        "warnings",
    ]
    assert told["schema"] == "wattledger.usage/1"
    assert told["total"] == dict(
        zip(USAGE_KEYS, [600.0, 100.0, 500.0, 10.0, 0, 0, 0, 6, 0.0, 100.0], strict=True)
    )
    groups = told["groups"]
    assert isinstance(groups, list)
    assert [list(group) for group in groups] == [["by", *USAGE_KEYS]]
    assert told["coverage"] == {"energy": {"measured": 1.0}, "time": 1.0}
    assert told["warnings"] == []


def test_usage_of_nothing_is_zeros() -> None:
    statement = usage_statement(MemoryStore(), UsageQuery(window=TEN, by=("job",)))
    assert statement.total.usage_json() == dict(
        zip(USAGE_KEYS, [0.0, 0.0, 0.0, 0.0, 0, 0, 0, 0, None, None], strict=True)
    )
    assert (statement.groups, statement.boundary, statement.warnings) == ((), (), ())
    assert statement.coverage.time == 0.0


def test_usage_and_carbon_tell_the_same_energy() -> None:
    store = MemoryStore([PAGE])
    for view in View:
        query = CarbonQuery(
            window=TEN, intensity=ConstantIntensity(300.0), view=view, by=("activity",)
        )
        usage, carbon = usage_statement(store, query), carbon_statement(store, query)
        assert [g.total.amounts for g in usage.groups] == [g.total.amounts for g in carbon.groups]
        assert usage.coverage.energy == carbon.coverage.energy


def test_node_meters_are_never_part_of_totals() -> None:
    statement = usage_statement(MemoryStore([PAGE]), UsageQuery(window=TEN))
    assert statement.boundary == ("gpu",)
    assert statement.total.amounts.energy_uj == 1000_000_000
    assert statement.coverage.time == 1.0


def test_hosts_are_filtered_before_coverage_is_told() -> None:
    store = MemoryStore([PAGE], [Entry(0, 5, 50.0).on(CPU, "h2")])
    everywhere = usage_statement(store, UsageQuery(window=TEN))
    assert everywhere.coverage.time == 0.75
    one = usage_statement(store, UsageQuery(window=TEN, filters=Filters(host=("h1",))))
    assert (one.coverage.time, one.warnings) == (1.0, ())


def test_requests_costliest_first() -> None:
    told = requests_statement(MemoryStore([PAGE]), TEN).to_json()
    assert told["schema"] == "wattledger.requests/1"
    assert told["found"] == 2
    lines = told["requests"]
    assert isinstance(lines, list)
    assert lines[1] == {
        "request": "r1",
        "engine": "vllm-a",
        "model": "llama",
        "workload": "w",
        "job": "4711",
        "finished": "1970-01-01T00:00:06.5Z",
        "prompt_tokens": 100,
        "cached_tokens": 8,
        "decode_tokens": 10,
        "energy_j": 250.0,
        "prefill_j": 100.0,
        "decode_j": 150.0,
        "method": "shapley",
        "quality": "measured",
        "host": "h1",
        "provisional": False,
    }
    assert [line["request"] for line in lines] == ["r2", "r1"]


def test_requests_are_limited_filtered_and_may_be_none() -> None:
    store = MemoryStore([PAGE])
    one = requests_statement(store, TEN, limit=1)
    assert [line.request.finish.request for line in one.requests] == ["r2"]
    only = requests_statement(store, TEN, Filters(request=("r1",)))
    assert [line.request.finish.request for line in only.requests] == ["r1"]
    assert requests_statement(store, window(6.5, 9.25)).found == 1
    assert requests_statement(MemoryStore(), TEN).to_json()["requests"] == []


def test_requests_are_priced_when_they_finished() -> None:
    steps = StepSeries(
        [IntensityPoint(0, 9 * S, 100.0), IntensityPoint(9 * S, 10 * S, 500.0)], source="s"
    )
    statement = requests_statement(MemoryStore([PAGE]), TEN, intensity=steps, pue=ConstantPue(1.2))
    assert [line.gco2e for line in statement.requests] == pytest.approx(
        [450 / 3.6e6 * 1.2 * 500, 250 / 3.6e6 * 1.2 * 100]
    )
    told = statement.to_json()
    assert "operational carbon only" in str(told["warnings"])
    lines = told["requests"]
    assert isinstance(lines, list)
    assert list(lines[0])[-5:] == ["gco2e", "method", "quality", "host", "provisional"]
    with pytest.raises(DataMissingError):
        requests_statement(MemoryStore([PAGE]), window(0, 11), intensity=steps)


def test_one_request_under_every_view() -> None:
    store = MemoryStore([PAGE])
    energy_uj = {}
    for view in View:
        query = UsageQuery(window=TEN, view=view, filters=Filters(request=("r2",)))
        energy_uj[view] = usage_statement(store, query).total.amounts.energy_uj
    # Seven device-seconds were used, four of them by r2; idle cost 200 J.
    loaded_uj = 450_000_000 + round(200_000_000 * 4 / 7)
    assert energy_uj == {View.DIRECT: 450_000_000, View.LOADED: loaded_uj, View.ACTIVE: 450_000_000}


def test_requests_and_the_rest_share_idle_without_a_remainder() -> None:
    store = MemoryStore([PAGE])
    query = UsageQuery(window=TEN, view=View.LOADED, filters=Filters(request=("*",)))
    requests = usage_statement(store, query).total.amounts
    rest = usage_statement(
        store, UsageQuery(window=TEN, view=View.LOADED, filters=Filters(activity=("engine_idle",)))
    ).total.amounts
    assert abs(requests.energy_uj + rest.energy_uj - 1000_000_000) <= 4


def test_a_request_on_no_device_time_takes_no_idle() -> None:
    idle = posting(Activity.IDLE, 200.0, 10.0)
    copy = posting(Activity.PREFILL, 0.0, 0.0, "r3")
    page = replace(PAGE, postings=(idle,), request_postings=(copy,), finished=())
    query = UsageQuery(window=TEN, view=View.LOADED, filters=Filters(request=("r3",)))
    statement = usage_statement(MemoryStore([page]), query)
    assert statement.total.amounts == Amounts()
    assert statement.boundary == ("gpu",)


def test_jobs_and_models_with_times() -> None:
    store = MemoryStore(
        imports=[
            Entry(60, 120, 10.0, job="a", model="m", activity=Activity.PREFILL, prefill=5).on(),
            Entry(300, 360, 30.0, job="a", model="m", activity=Activity.DECODE, decode=3).on(CPU),
            Entry(0, 600, 50.0, job="b").on(),
            Entry(0, 600, 99.0, activity=Activity.IDLE).on(),
        ]
    )
    told = jobs_statement(store, window(0, 3600)).to_json()
    assert (told["schema"], told["found"]) == ("wattledger.jobs/1", 2)
    assert told["time_resolution_s"] == 60.0
    lines = told["jobs"]
    assert isinstance(lines, list)
    assert [line["job"] for line in lines] == ["b", "a"]
    assert lines[1] == {
        "job": "a",
        "energy_j": 40.0,
        "static_j": 0.0,
        "dynamic_j": 40.0,
        "device_s": 120.0,
        "requests": 0,
        "prefill_tokens": 5,
        "cached_tokens": 0,
        "decode_tokens": 3,
        "j_per_decode_token": 10.0,
        "j_per_token": 5.0,
        "prefill_j": 10.0,
        "decode_j": 30.0,
        "first": "1970-01-01T00:01:00Z",
        "last": "1970-01-01T00:06:00Z",
        "hosts": ["h1"],
    }
    assert [user.name for user in jobs_statement(store, window(0, 3600), limit=1).users] == ["b"]
    models = models_statement(store, window(30, 3600), Filters(job=("a",)))
    assert [(user.name, user.first_ns) for user in models.users] == [("m", 60 * S)]
    assert jobs_statement(store, window(0, 30 * 86_400)).grid_ns == 3600 * S
    assert jobs_statement(MemoryStore(), TEN).to_json()["jobs"] == []


def test_an_audit_of_balanced_books() -> None:
    statement = audit_statement(MemoryStore([PAGE], [Entry(0, 5, 50.0).on(CPU, "h2")]), TEN)
    told = statement.to_json()
    assert (told["schema"], told["balanced"]) == ("wattledger.audit/1", True)
    assert (told["imbalance_uj"], told["imbalance_device_ns"]) == (0, 0)
    devices = told["devices"]
    assert isinstance(devices, list)
    assert [device["device"] for device in devices] == ["gpu0", "cpu0"]
    assert devices[0] == {
        "device": "gpu0",
        "metered_uj": 1000_000_000,
        "posted_uj": 1000_000_000,
        "device_s": 10.0,
        "metered_s": 10.0,
        "host": "h1",
        "kind": "gpu",
        "gaps": 1,
        "resets": 2,
        "wraps": 3,
    }
    counts = {
        key: told[key] for key in ("gaps", "resets", "wraps", "late", "duplicates", "dropped")
    }
    assert counts == {
        "gaps": 5,
        "resets": 2,
        "wraps": 3,
        "late": 5,
        "duplicates": 6,
        "dropped": 7,
    }


@pytest.mark.parametrize(("energy_uj", "device_ns"), [(1, 0), (-1, 0), (0, 1), (0, -1)], ids=str)
def test_a_microjoule_or_a_nanosecond_unbalances(energy_uj: int, device_ns: int) -> None:
    met = PAGE.metered[0]
    wrong = replace(met, energy_uj=met.energy_uj + energy_uj, device_ns=met.device_ns + device_ns)
    statement = audit_statement(MemoryStore([replace(PAGE, metered=(wrong,))]), TEN)
    assert not statement.balanced
    assert statement.imbalance_uj == abs(energy_uj)
    assert statement.imbalance_device_ns == abs(device_ns)


def test_two_faults_never_cancel() -> None:
    met = PAGE.metered[0]
    pages = [
        replace(
            PAGE,
            clock=Clock(host, "boot", 0),
            metered=(replace(met, energy_uj=met.energy_uj + fault_uj),),
        )
        for host, fault_uj in (("h1", 3), ("h2", -3))
    ]
    assert audit_statement(MemoryStore(pages), TEN).imbalance_uj == 6


def test_an_empty_ledger_balances() -> None:
    statement = audit_statement(MemoryStore(), TEN)
    assert statement.balanced
    assert statement.to_json()["devices"] == []
