"""Imports: upserts that balance, whatever their length, and stay apart from the daemon's pages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fakes.pages import GPU0, T0_NS, account, steady_page
from wattledger.errors import InputError, WattledgerError
from wattledger.records import NS_PER_S, Amounts, Posting, Quality, StaticBasis
from wattledger.store.protocol import ImportedEntry
from wattledger.store.sqlite import SqliteLedger

HOUR_NS = 3600 * NS_PER_S


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[SqliteLedger]:
    with SqliteLedger(tmp_path / "ledger.db", create=True) as opened:
        yield opened
        assert opened.check() == []


def entry(
    start_ns: int, end_ns: int, amounts: Amounts, *, job: str = "a", host: str = "h1"
) -> ImportedEntry:
    to = account(job=job, quality=Quality.IMPORTED, method="imported")
    return ImportedEntry(host, GPU0, Posting("gpu0", to, start_ns, end_ns, amounts))


def energy_uj(ledger: SqliteLedger, start_ns: int, end_ns: int) -> int:
    return sum(s.amounts.energy_uj for s in ledger.slices([start_ns, end_ns]).slices)


def test_a_second_import_changes_nothing_and_a_revised_one_replaces(ledger: SqliteLedger) -> None:
    entries = [
        entry(T0_NS + at * HOUR_NS, T0_NS + (at + 1) * HOUR_NS, Amounts(0, 10**9, HOUR_NS))
        for at in range(2500)
    ]
    assert ledger.post(iter(entries)) == 2500
    assert ledger.post(iter(entries)) == 0
    assert ledger.post([entry(T0_NS, T0_NS + HOUR_NS, Amounts(5, 5, HOUR_NS))]) == 1
    assert energy_uj(ledger, T0_NS, T0_NS + HOUR_NS) == 10
    assert energy_uj(ledger, T0_NS, T0_NS + 2500 * HOUR_NS) == 10 + 2499 * 10**9
    (book,) = ledger.books(T0_NS, T0_NS + 2500 * HOUR_NS).devices
    assert book.metered_uj == book.posted_uj == 10 + 2499 * 10**9
    assert book.metered_ns == book.posted_ns == 2500 * HOUR_NS


def test_a_revision_may_change_what_is_said_of_the_same_thing(ledger: SqliteLedger) -> None:
    """Quality, basis of static and device model are revised; another job is another thing."""
    first = entry(T0_NS, T0_NS + HOUR_NS, Amounts(0, 100, HOUR_NS))
    ledger.post([first, entry(T0_NS, T0_NS + HOUR_NS, Amounts(0, 7), job="b")])
    to = replace(first.posting.account, quality=Quality.MEASURED, static_basis=StaticBasis.UNKNOWN)
    posting = replace(first.posting, account=to, amounts=Amounts(40, 60, HOUR_NS))
    ledger.post([ImportedEntry("h1", replace(GPU0, model="NVIDIA H100 PCIe"), posting)])
    assert energy_uj(ledger, T0_NS, T0_NS + HOUR_NS) == 107
    told = ledger.slices([T0_NS, T0_NS + HOUR_NS]).slices
    assert {(s.account.job, s.account.quality, s.device.model) for s in told} == {
        ("a", Quality.MEASURED, "NVIDIA H100 PCIe"),
        ("b", Quality.IMPORTED, GPU0.model),
    }
    books = ledger.books(T0_NS, T0_NS + HOUR_NS).devices
    assert [book.metered_uj for book in books] == [book.posted_uj for book in books]


def test_pages_are_booked_all_or_none(ledger: SqliteLedger) -> None:
    good = steady_page(T0_NS)
    bad = replace(steady_page(good.end_ns), devices=())
    with pytest.raises(WattledgerError, match="is not in its devices"):
        ledger.book_all([good, bad])
    assert ledger.extent() is None
    assert ledger.book_all([good, good]) == 1


def test_imports_balance_in_any_cut(ledger: SqliteLedger) -> None:
    ledger.post(
        [
            entry(T0_NS, T0_NS + 24 * HOUR_NS, Amounts(1000, 77, HOUR_NS)),
            entry(T0_NS, T0_NS + 24 * HOUR_NS, Amounts(1, 1), job="b"),
            entry(T0_NS + 5, T0_NS + HOUR_NS // 2, Amounts(1001, 1)),
            entry(T0_NS + 7, T0_NS + 9, Amounts(3)),
        ]
    )
    for edges in ((1, 8), (3, HOUR_NS // 3), (HOUR_NS // 7, 5 * HOUR_NS + 11), (0, 24 * HOUR_NS)):
        (book,) = ledger.books(T0_NS + edges[0], T0_NS + edges[1]).devices
        assert book.metered_uj == book.posted_uj
        assert book.posted_uj == energy_uj(ledger, T0_NS + edges[0], T0_NS + edges[1])
    assert book.posted_uj == 2084


def test_imports_and_pages_add_up_and_never_replace_each_other(ledger: SqliteLedger) -> None:
    page = steady_page(T0_NS)
    ledger.book(page)
    booked_uj = energy_uj(ledger, T0_NS, T0_NS + HOUR_NS)
    ledger.post([entry(T0_NS, page.end_ns, Amounts(40))])
    ledger.book(steady_page(T0_NS, seed=1))
    assert ledger.book(page)
    assert energy_uj(ledger, T0_NS, T0_NS + HOUR_NS) == booked_uj + 40


def test_an_import_is_no_daemons_page(ledger: SqliteLedger) -> None:
    ledger.post([entry(T0_NS, T0_NS + 24 * HOUR_NS, Amounts(40))])
    assert ledger.last_page("h1") is None
    assert ledger.extent() == (T0_NS, T0_NS + 24 * HOUR_NS)


def test_an_import_that_fails_midway_leaves_nothing(ledger: SqliteLedger) -> None:
    def entries() -> Iterator[ImportedEntry]:
        for at in range(1500):
            yield entry(T0_NS + at, T0_NS + at + 1, Amounts(1))
        raise InputError("energy.csv, line 1502: energy_j: not a number")

    with pytest.raises(InputError, match="line 1502"):
        ledger.post(entries())
    with pytest.raises(InputError, match="64 bits"):
        ledger.post([entry(T0_NS, T0_NS + 1, Amounts(1)), entry(T0_NS, T0_NS + 1, Amounts(2**64))])
    assert ledger.devices() == []
    assert ledger.extent() is None
    assert ledger.post([entry(T0_NS, T0_NS + 1, Amounts(1))]) == 1


def test_an_entry_that_ends_on_the_hour_is_cut_like_any_other(ledger: SqliteLedger) -> None:
    ledger.post([entry(T0_NS + HOUR_NS // 2, T0_NS + HOUR_NS, Amounts(1000))])
    assert energy_uj(ledger, T0_NS, T0_NS + HOUR_NS * 3 // 4) == 500
    assert energy_uj(ledger, T0_NS + HOUR_NS * 3 // 4, T0_NS + 2 * HOUR_NS) == 500


def test_more_accounts_than_are_remembered(ledger: SqliteLedger) -> None:
    entries = [entry(T0_NS, T0_NS + 9, Amounts(1), job=f"job-{at}") for at in range(12_500)]
    assert ledger.post(entries) == 12_500
    assert ledger.post(entries) == 0
    assert energy_uj(ledger, T0_NS, T0_NS + 9) == 12_500


def test_hosts_stay_apart(ledger: SqliteLedger) -> None:
    ledger.post([entry(T0_NS, T0_NS + 9, Amounts(4), host=host) for host in ("h1", "h2")])
    assert [(s.host, s.amounts.energy_uj) for s in ledger.slices([T0_NS, T0_NS + 9]).slices] == [
        ("h1", 4),
        ("h2", 4),
    ]
