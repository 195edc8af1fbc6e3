"""Devices that come and go, and use that is told late or not at all."""

from __future__ import annotations

from collections.abc import Iterable

from fakes.evidence import CLOCK, counter, gpu, joules, ns
from wattledger.records import (
    NS_PER_S,
    CounterReading,
    Evidence,
    Page,
    Process,
    ProcessUse,
    UseRecord,
)
from wattledger_daemon.heart.accountant import Accountant, AccountantSettings

A = Process(1, 1, "A", None)
SETTINGS = AccountantSettings()


def heard(*evidence: Evidence, settings: AccountantSettings = SETTINGS) -> Accountant:
    accountant = Accountant(CLOCK, settings)
    for item in evidence:
        accountant.observe(item)
    return accountant


def steady(from_s: float, until_s: float, device: str = "gpu0") -> list[Evidence]:
    """100 W, read ten times a second."""
    ticks = range(round(from_s * 10), round(until_s * 10) + 1)
    return counter([(t / 10, t * 10) for t in ticks], device)


def book(accountant: Accountant, pages: Iterable[Page]) -> list[Page]:
    booked = list(pages)
    for page in booked:
        accountant.booked(page)
    return booked


def metered(pages: Iterable[Page], device: str) -> list[tuple[float, int]]:
    """(joules, gaps) of a device, page by page."""
    return [
        (m.energy_uj / 1e6, m.gaps) for page in pages for m in page.metered if m.device == device
    ]


def test_use_that_is_told_late_restates_its_windows_and_only_them() -> None:
    accountant = heard(gpu(), A, *steady(0, 40))
    first = book(accountant, accountant.due(ns(30)))
    assert joules(first) == {"unattributed": 2000}
    accountant.observe(UseRecord("gpu0", ns(4), ns(11), (ProcessUse(1, 50, 1),)))
    again = accountant.due(ns(30))
    assert [page.start_ns - CLOCK.epoch_ns for page in again] == [0, ns(5), ns(10)]
    assert joules(again) == {"unattributed": 800, "process": 700}


def test_a_stretch_between_use_records_is_nobodys() -> None:
    owner = (ProcessUse(1, 50, 1),)
    uses = [UseRecord("gpu0", ns(0), ns(2), owner), UseRecord("gpu0", ns(3), ns(5), owner)]
    pages = heard(gpu(20.0), A, *steady(0, 5), *uses).flush(ns(5))
    assert joules(pages) == {"process": 400, "idle": 20, "unattributed": 80}


def test_of_overlapping_use_records_the_one_that_began_last_holds() -> None:
    uses = [
        UseRecord("gpu0", ns(0), ns(4), (ProcessUse(1, 50, 1),)),
        UseRecord("gpu0", ns(2), ns(3), ()),
    ]
    pages = heard(gpu(), A, *steady(0, 4), *uses).flush(ns(4))
    assert joules(pages) == {"process": 300, "unattributed": 100}


def test_a_device_that_comes_later_is_metered_from_its_first_reading() -> None:
    accountant = heard(gpu(), *steady(0, 22))
    book(accountant, accountant.due(ns(20)))
    for item in (gpu(name="gpu1"), *steady(22, 45, "gpu1"), *steady(22, 45)):
        accountant.observe(item)
    pages = book(accountant, accountant.due(ns(55)))
    assert metered(pages, "gpu0") == [(500, 0)] * 7
    assert metered(pages, "gpu1") == [(300, 0), (500, 0), (500, 0), (500, 0), (500, 0)]


def test_a_device_that_was_away_comes_back_with_a_gap_and_its_energy() -> None:
    accountant = heard(gpu(), gpu(name="gpu1"), *steady(0, 60), *steady(0, 12, "gpu1"))
    away = book(accountant, accountant.due(ns(60)))
    assert metered(away, "gpu1") == [(500, 0), (500, 0), (200, 0), (0, 1)]
    for item in (gpu(name="gpu1"), *steady(62, 75, "gpu1"), *steady(60, 75)):
        accountant.observe(item)
    back = book(accountant, accountant.flush(ns(75)))
    told = {page.start_ns: page for page in (*away, *back)}
    assert metered(told.values(), "gpu1") == [(500, int(n == 3)) for n in range(15)]


def test_a_silent_device_is_a_gap_before_it_comes_back_and_the_same_one_after() -> None:
    accountant = heard(gpu(), gpu(name="gpu1"), *steady(0, 40), *steady(0, 12, "gpu1"))
    away = book(accountant, accountant.due(ns(40)))
    assert [gaps for _, gaps in metered(away, "gpu1")] == [0, 0, 0, 1]
    for item in (*steady(32, 45, "gpu1"), *steady(40, 45)):
        accountant.observe(item)
    told = {page.start_ns: page for page in (*away, *accountant.flush(ns(45)))}
    assert sum(gaps for _, gaps in metered(told.values(), "gpu1")) == 1


def test_a_device_silent_for_longer_than_is_kept_has_its_energy_where_it_can_be_restated() -> None:
    settings = AccountantSettings(horizon_ns=ns(60))
    accountant = heard(gpu(), gpu(name="gpu1"), *steady(0, 12, "gpu1"), settings=settings)
    told: dict[int, Page] = {}
    for t_s in range(0, 300, 5):
        for item in steady(t_s, t_s + 5):
            accountant.observe(item)
        told |= {p.start_ns: p for p in book(accountant, accountant.due(ns(t_s)))}
    for item in steady(300, 320, "gpu1"):
        accountant.observe(item)
    told |= {p.start_ns: p for p in book(accountant, accountant.flush(ns(320)))}
    assert sum(energy_j for energy_j, _ in metered(told.values(), "gpu1")) == 32000
    assert sum(gaps for _, gaps in metered(told.values(), "gpu1")) == 1


def test_a_device_that_came_back_reset_keeps_what_its_new_counter_says() -> None:
    accountant = heard(gpu(), *steady(0, 12))
    first = book(accountant, accountant.due(ns(30)))
    for t_s in range(40, 46):
        accountant.observe(CounterReading("gpu0", ns(t_s), t_s * 10**6))
    pages = book(accountant, accountant.flush(ns(45)))
    resets = sum(m.resets for page in pages for m in page.metered)
    assert resets == 1
    energy_uj = [p.amounts.energy_uj for page in (*first, *pages) for p in page.postings]
    assert min(energy_uj) >= 0
    assert sum(energy_uj) == sum(m.energy_uj for p in (*first, *pages) for m in p.metered)


def test_a_counter_that_jumps_by_2_to_the_63_keeps_the_books_balanced() -> None:
    accountant = heard(gpu(70.0), A, UseRecord("gpu0", 0, ns(9), (ProcessUse(1, 5, 5),)))
    for t_s, energy_uj in ((0, 0), (1, 2**63 - 1), (2, 5), (3, 2**63 - 1), (4, 7), (5, 7)):
        accountant.observe(CounterReading("gpu0", t_s * NS_PER_S, energy_uj))
    (page,) = accountant.flush(ns(5))
    posted = [p.amounts for p in page.postings]
    assert sum(a.energy_uj for a in posted) == sum(m.energy_uj for m in page.metered)
    assert all(min(a.static_uj, a.dynamic_uj, a.device_ns) >= 0 for a in posted)
