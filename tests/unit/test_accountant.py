"""Windows, late events, restarts and clock steps, without a clock."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.evidence import CLOCK, EPOCH_NS, MODEL, counter, gpu, joules, ns, owned_engine, step
from wattledger.records import (
    NS_PER_S,
    Clock,
    CounterReading,
    Device,
    DeviceKind,
    Engine,
    Evidence,
    Finish,
    Page,
    PinnedCost,
    Process,
    ProcessUse,
    UseRecord,
)
from wattledger_daemon.heart.accountant import Accountant, AccountantSettings

SETTINGS = AccountantSettings()


def watt_hours(seconds: float, watts: float = 100.0, from_s: float = 0.0) -> list[Evidence]:
    """A counter that changes every 0.1 s."""
    count = round(seconds * 10)
    return counter((from_s + i / 10, (from_s + i / 10) * watts) for i in range(count + 1))


def an_accountant(*evidence: Evidence, settings: AccountantSettings = SETTINGS) -> Accountant:
    accountant = Accountant(CLOCK, settings)
    for record in (gpu(), *owned_engine(), *evidence):
        accountant.observe(record)
    return accountant


def book(accountant: Accountant, pages: list[Page]) -> list[Page]:
    for page in pages:
        accountant.booked(page)
    return pages


def spans(pages: list[Page]) -> list[tuple[float, float]]:
    return [((p.start_ns - EPOCH_NS) / 1e9, (p.end_ns - EPOCH_NS) / 1e9) for p in pages]


def energy_uj(pages: list[Page]) -> int:
    return sum(p.amounts.energy_uj for page in pages for p in page.postings)


def test_windows_close_at_the_watermark() -> None:
    accountant = an_accountant(*watt_hours(21))
    assert spans(accountant.due(ns(14.9))) == []
    assert spans(book(accountant, accountant.due(ns(20)))) == [(0, 5), (5, 10)]
    assert spans(accountant.due(ns(20))) == []
    assert accountant.booked_until_ns == ns(10)


def test_due_repeats_until_booked() -> None:
    accountant = an_accountant(*watt_hours(21))
    assert accountant.due(ns(20)) == accountant.due(ns(20)) != []


def test_flush_cuts_the_last_window_and_the_next_goes_on_there() -> None:
    accountant = an_accountant(*watt_hours(7.3))
    assert spans(book(accountant, accountant.flush(ns(7.3)))) == [(0, 5), (5, 7.3)]
    for record in watt_hours(4, from_s=7.4):
        accountant.observe(record)
    rest = book(accountant, accountant.flush(ns(11.4)))
    assert spans(rest) == [(7.3, 10), (10, 11.4)]
    assert energy_uj(rest) == 410_000_000


def test_a_late_step_restates_its_window_and_only_it() -> None:
    accountant = an_accountant(*watt_hours(31), step(1, 1, 2, [("R1", 100, 0)]))
    first = book(accountant, accountant.due(ns(25)))
    accountant.observe(step(2, 3, 4, [("R2", 100, 0)]))
    again = book(accountant, accountant.due(ns(25)))
    assert spans(again) == [(0, 5)]
    assert energy_uj(again) == energy_uj(first[:1])
    assert joules(again) == {"engine_idle": 300, "prefill": 200}
    final = book(accountant, accountant.due(ns(45)))
    assert sum(page.late for page in (*again, *final)) == 1


def test_an_event_beyond_reach_keeps_its_tokens_and_gets_no_energy() -> None:
    short = AccountantSettings(horizon_ns=20 * NS_PER_S)
    accountant = an_accountant(*watt_hours(100), settings=short)
    book(accountant, accountant.due(ns(100)))
    accountant.observe(step(9, 10, 11, [("R1", 500, 0)]))
    accountant.observe(Finish("e", "R1", ns(11), 500, 0, 0))
    pages = book(accountant, accountant.flush(ns(100)))
    assert spans(pages) == [(90, 95), (95, 100)]
    assert sum(p.amounts.prefill_tokens for p in pages[0].postings) == 500
    assert joules(pages) == {"engine_idle": 1000}
    assert pages[0].finished[0].request == "R1"
    assert sum(page.late for page in pages) == 2


def test_duplicates_are_counted_and_change_nothing() -> None:
    accountant = an_accountant(*watt_hours(5), step(1, 1, 2, [("R1", 100, 0)]))
    accountant.observe(step(1, 1, 2, [("R1", 100, 0)]))
    accountant.count(ns(1), dropped=3)
    page = accountant.flush(ns(5.1))[0]
    assert (page.duplicates, page.dropped) == (1, 3)
    assert joules([page])["prefill"] == 100


def test_drops_before_the_first_reading_are_counted_once() -> None:
    accountant = an_accountant(*watt_hours(20, from_s=2))
    accountant.count(ns(1), dropped=3)
    pages = book(accountant, accountant.due(ns(22)))
    assert [page.dropped for page in pages] == [3, 0]
    accountant.observe(step(1, 3, 4, [("late", 1, 0)]))
    assert [page.dropped for page in accountant.due(ns(22))] == [3]


def test_finishes_stand_at_their_instant() -> None:
    finish = Finish("e", "R1", ns(2), 120, 20, 30)
    accountant = an_accountant(*watt_hours(5), step(1, 1, 2, [("R1", 100, 0)]), finish)
    page = accountant.flush(ns(5))[0]
    done = [p for p in page.postings if p.amounts.requests]
    assert [(p.start_ns - EPOCH_NS, p.end_ns - EPOCH_NS) for p in done] == [(ns(2), ns(2) + 1)]
    assert done[0].amounts.cached_tokens == 20
    assert (page.finished[0].job, page.finished[0].finished_ns) == ("4711", EPOCH_NS + ns(2))


def test_a_clock_step_opens_new_windows_on_the_new_grid() -> None:
    accountant = an_accountant(*watt_hours(8))
    before = book(accountant, accountant.flush(ns(8)))
    stepped = replace(CLOCK, epoch_ns=EPOCH_NS - 3601 * NS_PER_S)
    accountant.re_anchor(stepped, ns(8))
    for record in watt_hours(5, from_s=8.1):
        accountant.observe(record)
    after = book(accountant, accountant.flush(ns(13)))
    assert {page.clock for page in before} == {CLOCK}
    assert {page.clock for page in after} == {stepped}
    assert spans(after) == [(8 - 3601, -3590), (-3590, 13 - 3601)]
    assert energy_uj(before + after) == 1_300_000_000


def test_a_dead_stretch_is_spread_and_void_hours_are_one_window() -> None:
    accountant = an_accountant(*watt_hours(10))
    book(accountant, accountant.due(ns(20)))
    accountant.observe(CounterReading("gpu0", ns(20_000), ns(2_000)))
    accountant.observe(CounterReading("gpu0", ns(20_000.1), ns(2_000.01)))
    pages = accountant.due(ns(20_015))
    assert {round((p.end_ns - p.start_ns) / 1e9) for p in pages} <= {5, 3600}
    assert 3600 in {round((p.end_ns - p.start_ns) / 1e9) for p in pages}
    assert sum(m.gaps for p in pages for m in p.metered) == 1
    assert energy_uj(pages) == 2_000_010_000_000 - 1_000_000_000


EVENTS = st.lists(st.tuples(st.integers(0, 300), st.integers(0, 40)), max_size=15)


@settings(max_examples=60, deadline=None)
@given(EVENTS, st.integers(1, 299))
def test_a_restart_folds_to_the_same_books(events: list[tuple[int, int]], crash_at: int) -> None:
    """Evidence and booked lines, journalled and folded again, give the same pages."""
    journal: list[Evidence | str] = [gpu(), *owned_engine()]
    live, pages = an_accountant(), {}
    fates = {
        at: step(seq, at / 10 - length / 10, at / 10, [(f"r{seq}", 10, 1)])
        for seq, (at, length) in enumerate(events)
    }
    for tick in range(301):
        if tick == crash_at:
            live = Accountant(CLOCK, SETTINGS)
            for entry in journal:
                live.restore(entry) if isinstance(entry, str) else live.observe(entry)
        news: list[Evidence] = [CounterReading("gpu0", ns(tick / 10), tick * 10_000_000)]
        news += [fates[tick]] if tick in fates and fates[tick].start_ns >= 0 else []
        for record in news:
            journal.append(record)
            live.observe(record)
        for page in live.due(ns(tick / 10)):
            pages[page.start_ns] = page
            journal.append(live.booked(page))
    for page in live.flush(ns(30) + 1):
        pages[page.start_ns] = page
    assert energy_uj(list(pages.values())) == 3_000_000_000
    kept = [s for s in fates.values() if s.start_ns >= 0]
    booked = sum(p.amounts.prefill_tokens for page in pages.values() for p in page.postings)
    assert booked == 10 * len(kept)


def test_roster_names_what_is_known() -> None:
    kinds = {type(record).__name__ for record in an_accountant().roster()}
    assert kinds == {"Device", "Process", "Engine", "PinnedCost"}
    assert PinnedCost("e", MODEL) in an_accountant().roster()


def test_a_reused_pid_leaves_its_engine() -> None:
    accountant = an_accountant(*watt_hours(5), Process(41, 99, "other", None))
    page = accountant.flush(ns(5))[0]
    assert {p.account.workload for p in page.postings} == {"other"}
    assert Clock("h1", "boot", EPOCH_NS) == page.clock


def test_memory_is_bounded_by_a_nearer_horizon() -> None:
    accountant = an_accountant(*watt_hours(0), settings=AccountantSettings(max_rows=42))
    for second in range(60):
        accountant.observe(step(second, second, second + 1, [(f"r{n}", 0, 1) for n in range(4)]))
        accountant.observe(CounterReading("gpu0", ns(second + 1), ns(second + 1)))
        book(accountant, accountant.due(ns(second)))
    accountant.observe(step(99, 20, 21, [("late", 500, 0)]))
    assert spans(accountant.due(ns(60))) == [(45, 50)]
    accountant.observe(step(98, 44, 45, [("in reach", 500, 0)]))
    assert spans(accountant.due(ns(60))) == [(40, 45), (45, 50)]


def test_use_records_count_as_memory_too() -> None:
    accountant = Accountant(CLOCK, AccountantSettings(max_rows=110))
    for record in (gpu(), *watt_hours(0)):
        accountant.observe(record)
    crowd = tuple(ProcessUse(pid, memory_bytes=1) for pid in range(4))
    for second in range(60):
        accountant.observe(UseRecord("gpu0", ns(second), ns(second + 1), crowd))
        accountant.observe(CounterReading("gpu0", ns(second + 1), ns(second + 1)))
        book(accountant, accountant.due(ns(second)))
    accountant.observe(UseRecord("gpu0", ns(20), ns(21), ()))
    assert spans(accountant.due(ns(60))) == [(45, 50)]
    accountant.observe(UseRecord("gpu0", ns(44), ns(45), ()))
    assert spans(accountant.due(ns(60))) == [(40, 45), (45, 50)]


def test_incidents_at_a_pages_end_are_counted() -> None:
    reset = an_accountant(*counter([(0, 12), (5, 0.5)])).flush(ns(5))
    assert [m.resets for page in reset for m in page.metered] == [1]
    gap = an_accountant(*counter([(0, 0), (10, 0.5)])).flush(ns(10))
    assert sum(m.gaps for page in gap for m in page.metered) == 1


def test_a_gap_without_any_energy_is_still_told() -> None:
    accountant = an_accountant(
        Device("cpu0", DeviceKind.CPU, None, wrap_uj=65_532_610_987),
        *counter([(0, 0), (100, 5)], "cpu0"),
    )
    metered = [m for page in accountant.flush(ns(100)) for m in page.metered]
    assert [(m.device, m.energy_uj, m.device_ns, m.gaps) for m in metered] == [("cpu0", 0, 0, 1)]


def test_a_step_of_no_length_at_the_very_end_keeps_its_tokens() -> None:
    accountant = an_accountant(*watt_hours(1), step(1, 1, 1, [("r", 7, 3)]))
    accountant.observe(Process(1, 1, None, None))
    latest_ns = ns(1) + 1
    tokens = [
        (p.amounts.prefill_tokens, p.amounts.decode_tokens)
        for page in accountant.flush(latest_ns)
        for p in page.request_postings
    ]
    assert sorted(tokens) == [(0, 3), (7, 0)]


def test_an_engine_that_counts_from_one_again_is_heard() -> None:
    first, again = step(1, 0, 1, [("r", 10, 0)]), step(1, 2, 3, [("r", 0, 20)])
    page = an_accountant(*watt_hours(5), first, again, first).flush(ns(5))[0]
    posted = [p.amounts for p in page.postings]
    assert sum(a.prefill_tokens for a in posted) == 10
    assert sum(a.decode_tokens for a in posted) == 20
    assert page.duplicates == 1


def test_a_node_meter_carries_no_tokens() -> None:
    node = Device("node0", DeviceKind.NODE)
    use = UseRecord("node0", 0, ns(5), (ProcessUse(41),))
    accountant = Accountant(CLOCK, SETTINGS)
    for record in (node, gpu(), Engine("e", "x", None, (41,)), use, *watt_hours(5)):
        accountant.observe(record)
    accountant.observe(step(1, 0, 1, [("r", 10, 0)]))
    page = accountant.flush(ns(5))[0]
    assert {p.device for p in page.postings if p.amounts.prefill_tokens} == {"gpu0"}


def test_pages_begin_with_the_evidence_whatever_the_window() -> None:
    for window_s in (5, 60):
        settings = AccountantSettings(window_ns=window_s * NS_PER_S)
        accountant = an_accountant(*watt_hours(20, from_s=12), settings=settings)
        assert spans(accountant.flush(ns(32)))[0][0] == 12
