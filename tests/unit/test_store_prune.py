"""Retention: what is pruned lives on in its sums, exactly where they can tell."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.pages import GPU0, T0_NS, account, balanced_page, posting, steady_page
from wattledger.errors import InputError
from wattledger.records import NS_PER_S, Activity, Amounts, FinishedRequest, Posting
from wattledger.store.protocol import Filters, ImportedEntry, Retention
from wattledger.store.sqlite import SqliteLedger

MINUTE_NS = 60 * NS_PER_S
HOUR_NS = 60 * MINUTE_NS
HOURS = 8
NOW_NS = T0_NS + HOURS * HOUR_NS
# Of the eight hours: hour sums only for two, minutes for three more, raw for the last three.
RETENTION = Retention(3 / 24, 6 / 24, 1.0, 1.0)
REQUESTS = Filters(request=("*",))


def imports() -> list[ImportedEntry]:
    stretches = (
        (0, 24 * HOUR_NS),
        (0, HOUR_NS),
        (HOUR_NS // 2, HOUR_NS),
        (7 * NS_PER_S, 9 * NS_PER_S),
        (3 * HOUR_NS + 1, 3 * HOUR_NS + 2 * MINUTE_NS),
        (3 * HOUR_NS + 1, 5 * HOUR_NS + 2 * MINUTE_NS),
    )
    return [
        ImportedEntry(
            "h1", GPU0, Posting("gpu0", account(), T0_NS + start, T0_NS + end, Amounts(1001, at))
        )
        for at, (start, end) in enumerate(stretches)
    ]


def request_pages() -> Iterator[tuple[int, Posting]]:
    for hour in range(HOURS):
        start_ns = T0_NS + hour * HOUR_NS
        yield (
            start_ns,
            posting(
                start_ns,
                start_ns + MINUTE_NS,
                Amounts(10, hour),
                to=account(Activity.DECODE, engine="e"),
                request=f"r{hour}",
            ),
        )


@contextmanager
def eight_hours() -> Iterator[SqliteLedger]:
    with (
        tempfile.TemporaryDirectory() as folder,
        SqliteLedger(Path(folder) / "ledger.db", create=True) as ledger,
    ):
        for start_ns, item in request_pages():
            finish = FinishedRequest("r", "e", None, None, None, start_ns + 5, 1, 0, 1)
            page = balanced_page(
                start_ns,
                start_ns + MINUTE_NS,
                [replace(item, request=None)],
                request_postings=[item],
                finished=[replace(finish, request=item.request or "")],
                late=1,
            )
            ledger.book(page)
        for at in range(1, HOURS * 10):
            ledger.book(steady_page(T0_NS + at * 6 * MINUTE_NS + 45 * NS_PER_S, jobs=1))
            long_ns = 2 * MINUTE_NS
            ledger.book(
                steady_page(T0_NS + at * 6 * MINUTE_NS + MINUTE_NS, jobs=1, window_ns=long_ns)
            )
        ledger.post(imports())
        yield ledger


@pytest.fixture(scope="module")
def whole() -> Iterator[SqliteLedger]:
    with eight_hours() as ledger:
        yield ledger


@pytest.fixture(scope="module")
def pruned() -> Iterator[SqliteLedger]:
    with eight_hours() as ledger:
        while ledger.prune(RETENTION, NOW_NS):
            pass
        yield ledger


def sums(ledger: SqliteLedger, *edges_ns: int) -> list[int]:
    found = ledger.slices([T0_NS + edge_ns for edge_ns in edges_ns]).slices
    return [sum(column) for column in zip(*(astuple(s.amounts) for s in found), strict=True)]


def test_bites_are_bounded_and_answers_never_depend_on_how_many_were_taken(
    whole: SqliteLedger,
) -> None:
    edges = (0, HOUR_NS, 3 * HOUR_NS, 4 * HOUR_NS, 6 * HOUR_NS + 5, NOW_NS - T0_NS)
    with eight_hours() as ledger:
        assert ledger.prune(RETENTION, NOW_NS, limit=7) == 7
        after_one = [sums(ledger, *edge) for edge in pairwise((1, *edges[1:]))]
        bites = [7]
        while bites[-1]:
            assert sums(ledger, *edges) == sums(whole, *edges)
            assert ledger.check() == []
            bites.append(ledger.prune(RETENTION, NOW_NS, limit=50))
        assert max(bites) <= 50
        assert len(bites) > 5
        assert [sums(ledger, *edge) for edge in pairwise((1, *edges[1:]))] == after_one


def test_rollups_survive(whole: SqliteLedger, pruned: SqliteLedger) -> None:
    assert pruned.check() == []
    for start_ns in range(0, HOURS * HOUR_NS, HOUR_NS):
        edges = (start_ns, start_ns + HOUR_NS)
        assert sums(pruned, *edges) == sums(whole, *edges)
        if start_ns >= 2 * HOUR_NS:
            cut = (start_ns + 6 * MINUTE_NS, start_ns + 31 * MINUTE_NS)
            assert sums(pruned, *cut) == sums(whole, *cut)
        if start_ns >= 5 * HOUR_NS:
            cut = (start_ns + 4567890123, start_ns + 2345678901234)
            assert sums(pruned, *cut) == sums(whole, *cut)
    assert pruned.slices([T0_NS + MINUTE_NS, T0_NS + HOUR_NS]).prorated
    assert pruned.extent() == (T0_NS, T0_NS + 24 * HOUR_NS)


@settings(max_examples=80, deadline=None)
@given(edges=st.sets(st.integers(-5, 8 * HOUR_NS), min_size=2, max_size=5))
def test_windows_add_up_and_books_balance_over_every_tier(
    pruned: SqliteLedger, edges: set[int]
) -> None:
    inner = sorted(edges)
    ends = (inner[0], inner[-1])
    assert sums(pruned, *inner) == sums(pruned, *ends)
    devices = pruned.books(T0_NS + ends[0], T0_NS + ends[1]).devices
    assert all(book.metered_uj == book.posted_uj for book in devices)
    assert all(book.metered_ns == book.posted_ns for book in devices)
    assert sum(book.posted_uj for book in devices) == sum(sums(pruned, *ends)[:2])


def test_requests_outlive_their_copies(whole: SqliteLedger, pruned: SqliteLedger) -> None:
    window = (T0_NS, NOW_NS)
    assert len(pruned.requests(*window)) == HOURS
    assert pruned.requests(*window) == whole.requests(*window)
    told = {piece.request for piece in pruned.slices(window, REQUESTS).slices}
    assert told == {"r5", "r6", "r7"}


def test_what_is_pruned_cannot_be_restated_but_imports_can(pruned: SqliteLedger) -> None:
    before = sums(pruned, 0, HOURS * HOUR_NS)
    with pytest.raises(InputError, match="lie before what the ledger keeps"):
        pruned.book(steady_page(T0_NS + 5 * HOUR_NS - 5 * NS_PER_S))
    assert pruned.post(imports()) == 0
    doubled = [
        replace(entry, posting=replace(entry.posting, amounts=Amounts(2002))) for entry in imports()
    ]
    assert pruned.post(doubled) == len(doubled)
    assert pruned.check() == []
    assert pruned.post(imports()) == len(doubled)
    assert sums(pruned, 0, HOURS * HOUR_NS) == before


def test_after_its_last_tier_nothing_is_left() -> None:
    with eight_hours() as ledger:
        later_ns = T0_NS + 40 * 24 * HOUR_NS
        while ledger.prune(RETENTION, later_ns):
            pass
        assert ledger.slices([0, later_ns]).slices == ()
        assert ledger.requests(0, later_ns) == []
        assert ledger.extent() is None
        assert ledger.books(0, later_ns).late == 0
        assert ledger.check() == []
        with pytest.raises(InputError, match="lie before what the ledger keeps"):
            ledger.post(imports())
        assert ledger.book(steady_page(later_ns))


def test_a_ledger_with_nothing_to_forget_stays_open_to_its_whole_past() -> None:
    """A clock that is years ahead on a young ledger must not keep the right time out."""
    with (
        tempfile.TemporaryDirectory() as folder,
        SqliteLedger(Path(folder) / "ledger.db", create=True) as ledger,
    ):
        later_ns = T0_NS + 4000 * 24 * HOUR_NS
        assert ledger.prune(RETENTION, later_ns) == 0
        ledger.book(steady_page(later_ns))
        assert ledger.prune(RETENTION, later_ns) == 0
        assert ledger.kept_ns() == 0
        assert ledger.book(steady_page(T0_NS))
        assert ledger.prune(RETENTION, later_ns) > 0
        assert T0_NS < ledger.kept_ns() <= later_ns
        assert ledger.check() == []


def test_a_longer_retention_brings_nothing_back_and_breaks_nothing(pruned: SqliteLedger) -> None:
    before = sums(pruned, 1, 3 * HOUR_NS + 1)
    assert pruned.prune(Retention(), NOW_NS) == 0
    assert sums(pruned, 1, 3 * HOUR_NS + 1) == before
