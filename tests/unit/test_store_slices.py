"""Slices: the tiers together must answer what a plain list of rows answers."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import astuple
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.pages import (
    CLOCK,
    CPU0,
    GPU0,
    NODE0,
    T0_NS,
    account,
    balanced_page,
    posting,
    steady_page,
)
from fakes.store_reference import Reference, sums_of
from wattledger.records import NS_PER_S, Activity, Amounts, Clock, Page, Posting
from wattledger.store.protocol import Filters, ImportedEntry, Slice, SliceSet
from wattledger.store.sqlite import SqliteLedger
from wattledger.store.tiers import span_of

MINUTE_NS = 60 * NS_PER_S
HOUR_NS = 60 * MINUTE_NS
UNITS_NS = (1, NS_PER_S, 5 * NS_PER_S, MINUTE_NS, HOUR_NS)
ACCOUNTS = (account(job="a"), account(job="b"), account(Activity.IDLE, method="static"))
FINISH = account(Activity.DECODE, job="a")
CLOCKS = (CLOCK, Clock("h1", "boot-1", 5), Clock("h2", "boot-2", 5))

times = st.builds(
    lambda unit_ns, at: T0_NS + unit_ns * (at * 3 * HOUR_NS // 1000 // unit_ns),
    st.sampled_from(UNITS_NS),
    st.integers(0, 1000),
)
lengths = st.builds(
    lambda unit_ns, count: unit_ns * count, st.sampled_from(UNITS_NS), st.integers(0, 3)
)
amounts = st.builds(
    Amounts, *([st.integers(0, 9)] * 2), st.integers(0, 10**12), *([st.integers(0, 3)] * 4)
)


@st.composite
def imports(draw: st.DrawFn) -> list[ImportedEntry]:
    def entry() -> ImportedEntry:
        start_ns = draw(times)
        device = draw(st.sampled_from((GPU0, CPU0)))
        item = Posting(
            device.device,
            draw(st.sampled_from(ACCOUNTS)),
            start_ns,
            start_ns + draw(lengths),
            draw(amounts),
        )
        return ImportedEntry(draw(st.sampled_from(("h1", "h2"))), device, item)

    return [entry() for _ in range(draw(st.integers(0, 4)))]


@st.composite
def pages(draw: st.DrawFn) -> Page:
    start_ns = draw(times)
    length_ns = draw(st.sampled_from((5 * NS_PER_S, 7 * NS_PER_S, MINUTE_NS, 2 * HOUR_NS)))
    end_ns = start_ns + length_ns
    # Entries may end before their page does, but a page beyond a minute is booked as one.
    ends = (
        (end_ns, start_ns + 1, start_ns + length_ns // 2)
        if span_of(start_ns, end_ns) == 0
        else (end_ns,)
    )
    items = {}
    for _ in range(draw(st.integers(0, 4))):
        last_ns = draw(st.sampled_from(ends))
        to = draw(st.sampled_from(ACCOUNTS))
        items[last_ns, to] = posting(start_ns, last_ns, draw(amounts), to=to)
    at_ns = start_ns + draw(st.integers(0, length_ns - 1))
    items[at_ns + 1, FINISH] = posting(at_ns, at_ns + 1, Amounts(requests=1), to=FINISH)
    return balanced_page(start_ns, end_ns, items.values(), clock=draw(st.sampled_from(CLOCKS)))


@settings(max_examples=150, deadline=None)
@given(st.lists(pages() | imports(), max_size=8), st.sets(times, min_size=2, max_size=6))
def test_any_history_answers_any_intervals_like_a_list_of_rows(
    history: list[Page | list[ImportedEntry]], cuts: set[int]
) -> None:
    edges = sorted(cuts)
    reference = Reference()
    with (
        tempfile.TemporaryDirectory() as folder,
        SqliteLedger(Path(folder) / "ledger.db", create=True) as ledger,
    ):
        for said in history:
            if isinstance(said, Page):
                reference.book(said)
                ledger.book(said)
                assert not ledger.book(said)
            else:
                reference.post(said)
                ledger.post(said)
                deduplicated = {
                    (e.host, e.device, e.posting.account, e.posting.start_ns, e.posting.end_ns): e
                    for e in said
                }
                assert ledger.post(deduplicated.values()) == 0
        found = ledger.slices(edges)
        assert sums_of(found.slices) == reference.slices(edges)
        assert found.prorated == reference.prorated(edges)
        assert ledger.check() == []
        assert_balanced(ledger, reference, edges)


def assert_balanced(ledger: SqliteLedger, reference: Reference, edges: list[int]) -> None:
    for window in pairwise(edges):
        sums = reference.slices(window)
        for book in ledger.books(*window).devices:
            assert book.posted_uj == sum(
                values[0] + values[1]
                for (_, _, host, device, _), values in sums.items()
                if (host, device) == (book.host, book.device.device)
            )
            assert (book.metered_uj, book.metered_ns) == (book.posted_uj, book.posted_ns)


@pytest.fixture(scope="module")
def two_hours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SqliteLedger]:
    path = tmp_path_factory.mktemp("slices") / "ledger.db"
    with SqliteLedger(path, create=True) as ledger:
        for at in range(0, 7200, 45):
            start_ns = T0_NS + at * NS_PER_S
            ledger.book(steady_page(start_ns, window_ns=45 * NS_PER_S))
        yield ledger


@settings(max_examples=60, deadline=None)
@given(edges=st.sets(st.integers(-(10**10), 7300 * NS_PER_S), min_size=2, max_size=5))
def test_windows_add_up(two_hours: SqliteLedger, edges: set[int]) -> None:
    edges_ns = [T0_NS + edge for edge in sorted(edges)]
    whole = two_hours.slices([edges_ns[0], edges_ns[-1]])
    parts = two_hours.slices(edges_ns)
    assert totals(parts.slices) == totals(whole.slices)


def totals(slices: Iterable[Slice]) -> list[int]:
    return [sum(column) for column in zip(*(astuple(s.amounts) for s in slices), strict=True)]


def test_edges_on_stored_windows_cut_nothing(two_hours: SqliteLedger) -> None:
    found = two_hours.slices([T0_NS + 45 * NS_PER_S, T0_NS + HOUR_NS + 45 * NS_PER_S])
    assert not found.prorated
    assert two_hours.slices([T0_NS + 1, T0_NS + HOUR_NS]).prorated


def test_no_interval_no_slices(two_hours: SqliteLedger) -> None:
    assert two_hours.slices([]).slices == ()
    assert two_hours.slices([T0_NS]).slices == ()
    assert two_hours.slices([T0_NS - HOUR_NS, T0_NS]).slices == ()


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[SqliteLedger]:
    with SqliteLedger(tmp_path / "ledger.db", create=True) as opened:
        yield opened


def energy_uj(ledger: SqliteLedger, filters: Filters) -> int:
    found = ledger.slices([T0_NS, T0_NS + HOUR_NS], filters).slices
    return sum(piece.amounts.energy_uj for piece in found)


def test_filters_select_by_host_and_account(ledger: SqliteLedger) -> None:
    end_ns = T0_NS + 5 * NS_PER_S
    for host, weight in (("h1", 1), ("h2", 100)):
        items = [
            posting(T0_NS, end_ns, Amounts(weight), to=account(job="4711", workload="vllm")),
            posting(T0_NS, end_ns, Amounts(2 * weight), to=account(job="4712", engine="vllm-a")),
            posting(T0_NS, end_ns, Amounts(4 * weight), to=account(Activity.IDLE)),
        ]
        ledger.book(balanced_page(T0_NS, end_ns, items, clock=Clock(host, "boot-1", 0)))
    assert energy_uj(ledger, Filters()) == 707
    assert energy_uj(ledger, Filters(host=("h1",))) == 7
    assert energy_uj(ledger, Filters(host=("h?",), job=("4711",))) == 101
    assert energy_uj(ledger, Filters(job=("47*",))) == 303
    assert energy_uj(ledger, Filters(job=("*",))) == 707
    assert energy_uj(ledger, Filters(job=("47*",), engine=("vllm-[ab]",))) == 202
    assert energy_uj(ledger, Filters(activity=("idle", "decode"))) == 404
    assert energy_uj(ledger, Filters(workload=("none",))) == 0


def test_node_meters_are_never_among_slices(ledger: SqliteLedger) -> None:
    end_ns = T0_NS + 5 * NS_PER_S
    items = [
        posting(T0_NS, end_ns, Amounts(1)),
        posting(T0_NS, end_ns, Amounts(10), device=NODE0.device),
    ]
    ledger.book(balanced_page(T0_NS, end_ns, items, devices=(GPU0, NODE0)))
    found = ledger.slices([T0_NS, end_ns])
    assert [piece.device for piece in found.slices] == [GPU0]
    assert [book.device for book in ledger.books(T0_NS, end_ns).devices] == [GPU0, NODE0]
    assert ledger.slices([T0_NS + 1, end_ns], Filters(job=("x",))) == SliceSet(())


def test_requests_are_told_from_their_own_copies(ledger: SqliteLedger) -> None:
    end_ns = T0_NS + 10 * NS_PER_S
    to = account(Activity.DECODE, engine="vllm-a")
    shares = [
        posting(T0_NS, end_ns, Amounts(30, 30, 10), to=to, request="r1"),
        posting(T0_NS, end_ns, Amounts(5, 35, 10), to=to, request="r2"),
    ]
    items = [posting(T0_NS, end_ns, Amounts(35, 65, 20), to=to)]
    ledger.book(balanced_page(T0_NS, end_ns, items, request_postings=shares))
    edges = [T0_NS, T0_NS + 3 * NS_PER_S, end_ns]
    found = ledger.slices(edges, Filters(request=("r1",)))
    assert [piece.request for piece in found.slices] == ["r1", "r1"]
    assert [piece.amounts for piece in found.slices] == [Amounts(9, 9, 3), Amounts(21, 21, 7)]
    assert found.prorated
    assert energy_uj(ledger, Filters(request=("r?",))) == 100
    assert energy_uj(ledger, Filters(request=("r?",), activity=("prefill",))) == 0
    assert energy_uj(ledger, Filters(request=("r3",))) == 0
    both = ledger.slices([T0_NS + 9 * NS_PER_S, end_ns + HOUR_NS], Filters(request=("*",)))
    assert {piece.request for piece in both.slices} == {"r1", "r2"}
    assert ledger.slices([], Filters(request=("r1",))).slices == ()
