"""Laws of statements: windows add up, order does not matter, views move carbon and make none."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.entries import CPU, H100, Entry, renamed, window
from fakes.memory_store import MemoryStore
from wattledger.carbon.intensity import IntensityPoint, StepSeries
from wattledger.carbon.pue import PuePoint, PueSeries
from wattledger.records import NS_PER_S, Activity, Quality
from wattledger.statement.carbon import CarbonStatement, carbon_statement
from wattledger.statement.query import CarbonQuery, GroupKey, View
from wattledger.statement.totals import Totals
from wattledger.store.protocol import Filters, ImportedEntry

SPAN_S = 600
INTENSITY = StepSeries(
    [
        IntensityPoint(at * NS_PER_S, (at + 60) * NS_PER_S, 50.0 + 37.7 * (at % 420))
        for at in range(0, SPAN_S, 60)
    ],
    source="series",
)
PUE = PueSeries(
    [
        PuePoint(0, 250 * NS_PER_S, 1.1),
        PuePoint(250 * NS_PER_S, SPAN_S * NS_PER_S, 1.37),
    ],
    source="pue",
)
WHOLE = CarbonQuery(
    window=window(0, SPAN_S),
    intensity=INTENSITY,
    pue=PUE,
    in_service_ns={("h1", "gpu0"): -100 * NS_PER_S},
    lifetime_s=430.0,
    embodied_kg={CPU.model or "": 20.0},
)


@st.composite
def entries(draw: st.DrawFn) -> ImportedEntry:
    start_s = draw(st.integers(0, SPAN_S - 1))
    end_s = draw(st.integers(start_s + 1, SPAN_S))
    energy_j = draw(st.integers(0, 10**9)) / 1e6 * 1000
    entry = Entry(
        start_s,
        end_s,
        energy_j,
        static_j=energy_j / 3,
        device_s=draw(st.integers(0, 10**6)) / 1e6 * (end_s - start_s),
        job=draw(st.sampled_from([None, "a", "b", "c"])),
        activity=draw(st.sampled_from(list(Activity))),
        quality=draw(st.sampled_from([Quality.MEASURED, Quality.ESTIMATED])),
        prefill=draw(st.integers(0, 1000)),
        decode=draw(st.integers(0, 1000)),
    )
    placed = entry.on(draw(st.sampled_from([H100, CPU])), draw(st.sampled_from(["h1", "h2"])))
    return renamed(placed, "gpu1") if draw(st.booleans()) else placed


LEDGERS = st.lists(entries(), min_size=1, max_size=6)


def state(ledger: list[ImportedEntry], query: CarbonQuery) -> CarbonStatement:
    # A window of the whole is never empty, a part may be: this entry keeps it answerable.
    background = Entry(0, SPAN_S, 60.0, device_s=0.0, job="background").on()
    return carbon_statement(MemoryStore(imports=[*ledger, background]), query)


def grams(total: Totals) -> list[float]:
    g = total.grams
    return [
        g.facility_kwh,
        g.operational_low,
        g.operational,
        g.operational_high,
        g.embodied_low,
        g.embodied,
        g.embodied_high,
    ]


def energies(total: Totals) -> list[int]:
    a = total.amounts
    return [
        a.static_uj,
        a.dynamic_uj,
        a.device_ns,
        a.prefill_tokens,
        a.cached_tokens,
        a.decode_tokens,
        a.requests,
    ]


@settings(max_examples=60, deadline=None)
@given(LEDGERS, st.integers(1, SPAN_S * 1000 - 1), st.sampled_from([View.DIRECT, View.ACTIVE]))
def test_windows_add_up(ledger: list[ImportedEntry], split_ms: int, view: View) -> None:
    query = replace(WHOLE, view=view)
    split_s = split_ms / 1000
    whole = state(ledger, query).total
    parts = [
        state(ledger, replace(query, window=part)).total
        for part in (window(0, split_s), window(split_s, SPAN_S))
    ]
    sums = [sum(column) for column in zip(*map(energies, parts), strict=True)]
    assert sums == energies(whole)
    added = [math.fsum(column) for column in zip(*map(grams, parts), strict=True)]
    assert added == pytest.approx(grams(whole), rel=1e-9, abs=1e-12)


def thing_of(entry: ImportedEntry) -> tuple[object, ...]:
    """What an import is about, see `Store.post`."""
    posting, account = entry.posting, entry.posting.account
    owner = (account.workload, account.job, account.engine, account.model, account.activity)
    return entry.host, posting.device, posting.start_ns, posting.end_ns, owner


@settings(max_examples=60, deadline=None)
@given(LEDGERS, st.randoms(use_true_random=False), st.sampled_from(list(View)))
def test_order_does_not_matter(ledger: list[ImportedEntry], random: object, view: View) -> None:
    query = replace(WHOLE, view=view, by=("job", "quality", "device"))
    shuffled = list(ledger)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    # The later of two entries of the same thing revises it, whatever they say of its kind.
    if len(set(map(thing_of, ledger))) == len(ledger):
        assert state(shuffled, query).to_json() == state(ledger, query).to_json()


@settings(max_examples=60, deadline=None)
@given(LEDGERS, st.sets(st.sampled_from(["host", "device", "kind", "job", "activity", "quality"])))
def test_loading_makes_nothing(ledger: list[ImportedEntry], by: set[str]) -> None:
    query = replace(WHOLE, by=tuple(sorted(by)))
    direct = state(ledger, query).total
    loaded = state(ledger, replace(query, view=View.LOADED))
    assert energies(loaded.total) == energies(direct)
    assert grams(loaded.total) == grams(direct)
    if by:
        parts = [group.total for group in loaded.groups]
        assert [sum(c) for c in zip(*map(energies, parts), strict=True)] == energies(direct)
        added = [math.fsum(column) for column in zip(*map(grams, parts), strict=True)]
        assert added == pytest.approx(grams(direct), rel=1e-12, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(LEDGERS)
def test_a_filter_takes_what_its_group_shows(ledger: list[ImportedEntry]) -> None:
    for view in View:
        query = replace(WHOLE, view=view)
        groups = state(ledger, replace(query, by=("job",))).groups
        for group in groups:
            job = group.by["job"]
            if job is not None:
                alone = state(ledger, replace(query, filters=Filters(job=(job,)))).total
                assert energies(alone) == energies(group.total)
                assert grams(alone) == pytest.approx(grams(group.total), rel=1e-12)


@settings(max_examples=60, deadline=None)
@given(LEDGERS, st.lists(st.sampled_from(list(GroupKey)), max_size=3, unique=True))
def test_groups_sum_to_the_total(ledger: list[ImportedEntry], by: list[GroupKey]) -> None:
    statement = state(ledger, replace(WHOLE, by=tuple(by)))
    if by:
        parts = [group.total for group in statement.groups]
        whole = energies(statement.total)
        assert [sum(c) for c in zip(*map(energies, parts), strict=True)] == whole
        added = [math.fsum(column) for column in zip(*map(grams, parts), strict=True)]
        assert added == pytest.approx(grams(statement.total), rel=1e-12, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(LEDGERS)
def test_shares_are_shares(ledger: list[ImportedEntry]) -> None:
    coverage = state(ledger, WHOLE).coverage
    for shares in (coverage.energy, coverage.intensity):
        assert math.fsum(shares.values()) == pytest.approx(1.0)
    assert 0.0 <= coverage.time <= 1.0
    assert 0.0 <= coverage.embodied <= 1.0


@settings(max_examples=60, deadline=None)
@given(LEDGERS)
def test_bounds_hold_the_central_value(ledger: list[ImportedEntry]) -> None:
    g = state(ledger, WHOLE).total.grams
    assert g.operational_low <= g.operational <= g.operational_high
    assert g.embodied_low <= g.embodied <= g.embodied_high
