"""Booking: a page replaces what its clock and devices said, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fakes.pages import CLOCK, CPU0, GPU0, T0_NS, account, balanced_page, posting, steady_page
from wattledger.errors import InputError, WattledgerError
from wattledger.records import NS_PER_S, Amounts, Clock, Device, Metered, Page, StaticBasis
from wattledger.store.protocol import DeviceBook
from wattledger.store.sqlite import SqliteLedger

WINDOW_NS = 5 * NS_PER_S
END_NS = T0_NS + WINDOW_NS


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[SqliteLedger]:
    with SqliteLedger(tmp_path / "ledger.db", create=True) as opened:
        yield opened
        assert opened.check() == []


def energies_uj(ledger: SqliteLedger) -> dict[tuple[str, str | None], int]:
    found = ledger.slices([T0_NS, T0_NS + 3600 * NS_PER_S]).slices
    return {(s.device.device, s.account.job): s.amounts.energy_uj for s in found}


def one(energy_uj: int, job: str, device: Device = GPU0, clock: Clock = CLOCK) -> Page:
    item = posting(T0_NS, END_NS, Amounts(energy_uj), device=device.device, to=account(job=job))
    return balanced_page(T0_NS, END_NS, [item], devices=(device,), clock=clock)


def book_of(ledger: SqliteLedger, start_ns: int = T0_NS, end_ns: int = END_NS) -> DeviceBook:
    (book,) = ledger.books(start_ns, end_ns).devices
    return book


def test_a_page_booked_twice_changes_nothing(ledger: SqliteLedger) -> None:
    first, second = steady_page(T0_NS), steady_page(END_NS)
    assert ledger.book(first)
    assert ledger.book(second)
    before = ledger.slices([T0_NS, END_NS, END_NS + WINDOW_NS])
    assert not ledger.book(first)
    assert not ledger.book(second)
    assert ledger.slices([T0_NS, END_NS, END_NS + WINDOW_NS]) == before


def test_an_empty_page_is_news_once(ledger: SqliteLedger) -> None:
    page = balanced_page(T0_NS, END_NS, [], devices=())
    assert ledger.book(page)
    assert not ledger.book(page)


def test_a_restated_page_leaves_nothing_of_the_old_one(ledger: SqliteLedger) -> None:
    ledger.book(one(100, "a"))
    assert ledger.book(one(60, "b"))
    assert energies_uj(ledger) == {("gpu0", "b"): 60}
    assert book_of(ledger).metered_uj == 60


def test_other_devices_and_windows_stay_as_they_were(ledger: SqliteLedger) -> None:
    ledger.book(one(100, "a"))
    ledger.book(one(7, "a", CPU0))
    ledger.book(balanced_page(END_NS, END_NS + WINDOW_NS, [], devices=(GPU0,)))
    assert energies_uj(ledger) == {("gpu0", "a"): 100, ("cpu0", "a"): 7}


def test_windows_of_two_clocks_neither_overwrite_nor_merge(ledger: SqliteLedger) -> None:
    stepped = replace(CLOCK, epoch_ns=CLOCK.epoch_ns - 3)
    ledger.book(one(100, "a"))
    ledger.book(one(11, "a", clock=stepped))
    assert energies_uj(ledger) == {("gpu0", "a"): 111}
    ledger.book(one(0, "a", clock=stepped))
    assert energies_uj(ledger) == {("gpu0", "a"): 100}


def test_a_swapped_device_replaces_the_one_of_its_name(ledger: SqliteLedger) -> None:
    swapped = replace(GPU0, model="NVIDIA B200")
    ledger.book(one(100, "a"))
    ledger.book(one(90, "a", swapped))
    found = ledger.slices([T0_NS, END_NS]).slices
    assert [(s.device.model, s.amounts.energy_uj) for s in found] == [("NVIDIA B200", 90)]


def test_idle_power_is_the_latest_known_whatever_is_restated(ledger: SqliteLedger) -> None:
    learned = replace(GPU0, static_w=71.5, static_basis=StaticBasis.LEARNED)
    earlier = one(100, "a")
    ledger.book(earlier)
    later = balanced_page(END_NS, END_NS + WINDOW_NS, [], devices=(learned,))
    assert ledger.book(later)
    assert not ledger.book(earlier)
    assert not ledger.book(later)
    assert ledger.devices() == [("h1", learned)]
    ledger.book(balanced_page(END_NS + WINDOW_NS, END_NS + 2 * WINDOW_NS, []))
    assert ledger.devices() == [("h1", GPU0)]


def test_entries_of_one_key_add_up(ledger: SqliteLedger) -> None:
    item = posting(T0_NS, END_NS, Amounts(3, 4))
    page = balanced_page(T0_NS, END_NS, [item, item])
    ledger.book(page)
    assert not ledger.book(page)
    assert book_of(ledger).posted_uj == book_of(ledger).metered_uj == 14


def test_none_and_empty_names_are_two_accounts(ledger: SqliteLedger) -> None:
    items = [
        posting(T0_NS, END_NS, Amounts(1), to=account(job=None)),
        posting(T0_NS, END_NS, Amounts(2), to=account(job="")),
    ]
    page = balanced_page(T0_NS, END_NS, items)
    ledger.book(page)
    assert not ledger.book(page)
    assert energies_uj(ledger) == {("gpu0", None): 1, ("gpu0", ""): 2}


@pytest.mark.parametrize("cut_ns", [0, 1, WINDOW_NS // 3])
def test_a_real_imbalance_shows_in_every_window(ledger: SqliteLedger, cut_ns: int) -> None:
    page = one(10**6, "a")
    meter = replace(page.metered[0], energy_uj=10**6 + 3 * 10**5, device_ns=WINDOW_NS)
    ledger.book(replace(page, metered=(meter,)))
    book = book_of(ledger, T0_NS + cut_ns, END_NS)
    share = (WINDOW_NS - cut_ns) / WINDOW_NS
    assert book.metered_uj - book.posted_uj == pytest.approx(3 * 10**5 * share, abs=1)
    assert book.metered_ns - book.posted_ns == WINDOW_NS - cut_ns
    assert not ledger.books(END_NS, END_NS + WINDOW_NS).devices


def test_what_is_metered_but_not_posted_shows_too(ledger: SqliteLedger) -> None:
    meter = Metered("gpu0", T0_NS, END_NS, 500, WINDOW_NS, gaps=1, resets=2, wraps=3)
    page = replace(balanced_page(T0_NS, END_NS, []), metered=(meter,))
    ledger.book(replace(page, late=4, duplicates=5, dropped=6))
    for edges in ((T0_NS, END_NS), (T0_NS, T0_NS + 3600 * NS_PER_S)):
        books = ledger.books(*edges)
        assert books.devices == (DeviceBook("h1", GPU0, 500, 0, WINDOW_NS, 0, 1, 2, 3),)
        assert (books.late, books.duplicates, books.dropped) == (4, 5, 6)
    ledger.book(page)
    assert ledger.books(T0_NS, END_NS).late == 0


def test_counts_of_a_cut_window_add_up(ledger: SqliteLedger) -> None:
    meter = Metered("gpu0", T0_NS, END_NS, 501, WINDOW_NS, gaps=1, resets=2, wraps=3)
    page = replace(balanced_page(T0_NS, END_NS, []), metered=(meter,), late=7)
    ledger.book(page)
    middle_ns = T0_NS + WINDOW_NS // 3
    left, right = ledger.books(T0_NS, middle_ns), ledger.books(middle_ns, END_NS)
    assert left.late + right.late == 7
    for name in ("metered_uj", "metered_ns", "gaps", "resets", "wraps"):
        whole = getattr(book_of(ledger), name)
        assert sum(getattr(part.devices[0], name) for part in (left, right)) == whole


def test_a_page_that_contradicts_itself_is_refused_whole(ledger: SqliteLedger) -> None:
    page = steady_page(T0_NS)
    outside = posting(END_NS, END_NS + 1, Amounts(1))
    unknown = posting(T0_NS, END_NS, Amounts(1), device="gpu9")
    for wrong in (outside, unknown):
        with pytest.raises(WattledgerError, match=f"page of {T0_NS}: "):
            ledger.book(replace(page, postings=(*page.postings, wrong)))
    with pytest.raises(WattledgerError, match="names no request"):
        ledger.book(replace(page, request_postings=page.postings))
    with pytest.raises(InputError, match="64 bits"):
        ledger.book(one(2**63, "a"))
    assert ledger.devices() == []
    assert ledger.extent() is None
    assert ledger.book(page)


def test_the_last_page_is_the_latest_clocks(ledger: SqliteLedger) -> None:
    assert ledger.last_page("h1") is None
    stepped_back = replace(CLOCK, epoch_ns=CLOCK.epoch_ns - 9 * WINDOW_NS)
    ledger.book(steady_page(END_NS))
    ledger.book(steady_page(T0_NS))
    assert ledger.last_page("h1") == (CLOCK, END_NS + WINDOW_NS)
    ledger.book(steady_page(T0_NS - WINDOW_NS, clock=stepped_back))
    assert ledger.last_page("h1") == (stepped_back, T0_NS)
    assert ledger.last_page("h2") is None


def test_settings_are_kept(ledger: SqliteLedger) -> None:
    assert ledger.get_meta("idle.gpu0") is None
    ledger.set_meta("idle.gpu0", "70.5")
    ledger.set_meta("idle.gpu0", "71")
    assert ledger.get_meta("idle.gpu0") == "71"


def test_extent_is_from_first_to_last_entry(ledger: SqliteLedger) -> None:
    ledger.book(steady_page(T0_NS + 7 * WINDOW_NS))
    ledger.book(steady_page(T0_NS))
    assert ledger.extent() == (T0_NS, T0_NS + 8 * WINDOW_NS)
