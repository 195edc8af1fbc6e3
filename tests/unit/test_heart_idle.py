"""Idle power is learned from minutes in which nobody worked, and from nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.evidence import CLOCK, counter, gpu, ns, owned_engine, pages_of, step
from wattledger.records import (
    NS_PER_S,
    CounterReading,
    Device,
    DeviceKind,
    Evidence,
    Page,
    PowerReading,
    ProcessUse,
    StaticBasis,
    UseRecord,
)
from wattledger_daemon.heart.accountant import Accountant, AccountantSettings

SETTINGS = AccountantSettings(learn_idle=True)
GPU, OTHER = gpu(), replace(gpu(), model="NVIDIA A40")
CPU = Device("cpu0", DeviceKind.CPU, "EPYC", wrap_uj=65_532_610_987)
DRAM = Device("dram0", DeviceKind.DRAM)
NOBODY: tuple[ProcessUse, ...] = ()


def watts(
    *stretches: tuple[float, float], device: str = "gpu0", from_s: float = 0.0
) -> list[Evidence]:
    """A counter, twice a second, through stretches of (seconds, watts)."""
    t_s, e_j, points = from_s, 0.0, [(from_s, 0.0)]
    for seconds, power_w in stretches:
        for _ in range(round(seconds * 2)):
            t_s, e_j = t_s + 0.5, e_j + power_w / 2
            points.append((t_s, e_j))
    return counter(points, device)


def uses(
    start_s: float,
    end_s: float,
    owners: tuple[ProcessUse, ...] = NOBODY,
    *,
    device: str = "gpu0",
    total: int | None = None,
    capacity: int | None = None,
) -> list[Evidence]:
    """A use record a second, seamless."""
    seconds = range(round(end_s - start_s))
    return [
        UseRecord(device, ns(start_s + s), ns(start_s + s + 1), owners, total, capacity=capacity)
        for s in seconds
    ]


def learned(*evidence: Evidence, until_s: float, at: AccountantSettings = SETTINGS) -> list[float]:
    """Each figure that was learned, in order."""
    accountant = Accountant(CLOCK, at)
    for item in evidence:
        accountant.observe(item)
    found = []
    for page in accountant.flush(ns(until_s)):
        accountant.booked(page)
        found += [device.static_w or 0.0 for device in accountant.take_learned()]
    return found


def test_a_quiet_minute_is_learned_and_holds_from_the_next_window_on() -> None:
    accountant = Accountant(CLOCK, SETTINGS)
    for item in (GPU, *watts((70, 70), (10, 100)), *uses(0, 80)):
        accountant.observe(item)
    pages = accountant.flush(ns(80))
    bases = [{p.account.static_basis for p in page.postings} for page in pages]
    assert bases == [{StaticBasis.UNKNOWN}] * 12 + [{StaticBasis.LEARNED}] * 4
    assert pages[12].devices == (replace(GPU, static_w=70.0, static_basis=StaticBasis.LEARNED),)
    assert [sum(p.amounts.static_uj for p in page.postings) for page in pages[12:]] == [
        350 * 10**6
    ] * 4
    assert pages == accountant.flush(ns(80))
    assert GPU in accountant.roster()
    for page in pages:
        accountant.booked(page)
    assert pages[12].devices[0] in accountant.roster()


def test_a_lower_minute_replaces_and_a_higher_one_never_does() -> None:
    power = watts((60, 70), (60, 90), (60, 60), (60, 65))
    told = learned(GPU, *power, *uses(0, 240), until_s=240)
    assert told == [70.0, 67.5, 65.0, 62.5, 60.0]


def test_any_length_of_window_learns_the_same_minute() -> None:
    evidence = [GPU, *watts((180, 70)), *uses(0, 180)]
    for window_s in (1, 3, 5, 10, 60):
        at = replace(SETTINGS, window_ns=window_s * NS_PER_S)
        assert learned(*evidence, until_s=180, at=at) == [70.0]


OWNER = (ProcessUse(9, None, None),)
QUIET = watts((90, 70))
BUSY_GPUS: dict[str, list[Evidence]] = {
    "an owner": [*QUIET, *uses(0, 50), *uses(50, 51, OWNER), *uses(51, 90)],
    "no use record": QUIET,
    "a hole among the records": [*QUIET, *uses(0, 50), *uses(50.5, 90.5)],
    "a step": [*QUIET, *uses(0, 90), step(1, 44, 44)],
    "a gap": [*watts((44, 70)), *watts((40, 70), from_s=50), *uses(0, 90)],
    "a reset": [*watts((45, 70)), *watts((44.5, 70), from_s=45.5), *uses(0, 90)],
    "no power at all": [*watts((90, 0)), *uses(0, 90)],
    "less than any GPU draws": [*watts((90, 0.4)), *uses(0, 90)],
    "less than a minute": [*watts((59, 70)), *uses(0, 59)],
}


@pytest.mark.parametrize("why", BUSY_GPUS)
def test_nothing_is_learned_where_it_is_not_known_that_nobody_worked(why: str) -> None:
    assert learned(GPU, *BUSY_GPUS[why], until_s=90) == []


def test_a_counter_that_stands_still_teaches_nothing() -> None:
    """70 W all along, but the counter stops telling for a while: no minute is below 70 W."""
    accountant = Accountant(CLOCK, SETTINGS)
    accountant.observe(GPU)
    found = []
    for second in range(240):
        seen_s = 70 if 70 < second < 100 else second
        accountant.observe(CounterReading("gpu0", ns(second), seen_s * 70 * 10**6))
        accountant.observe(uses(second, second + 1)[0])
        for page in accountant.due(ns(second)):
            accountant.booked(page)
        found += [device.static_w for device in accountant.take_learned()]
    assert found == [70.0]


def test_a_cpu_is_idle_while_at_most_a_twentieth_of_it_is_busy() -> None:
    power = watts((90, 40), device="cpu0")

    def cpu(total: int | None, capacity: int | None) -> list[float]:
        records = uses(0, 90, device="cpu0", total=total, capacity=capacity)
        return learned(CPU, *power, *records, until_s=90)

    assert cpu(160, 3200) == [40.0]
    assert cpu(161, 3200) == []
    assert cpu(0, None) == []
    assert cpu(None, 3200) == []
    assert cpu(0, 0) == []


def test_memory_estimates_and_given_figures_are_never_learned() -> None:
    power, records = watts((90, 4), device="dram0"), uses(0, 90, device="dram0", total=5)
    assert learned(DRAM, *power, *records, until_s=90) == []
    guessed: list[Evidence] = [PowerReading("cpu0", ns(s), 10**7) for s in range(91)]
    records = uses(0, 90, device="cpu0", total=0, capacity=100)
    assert learned(replace(CPU, estimated=True), *guessed, *records, until_s=90) == []
    assert learned(CPU, *guessed, *records, until_s=90) == [10.0]
    configured = replace(GPU, static_w=80.0, static_basis=StaticBasis.CONFIG)
    assert learned(configured, *watts((90, 70)), *uses(0, 90), until_s=90) == []


def test_another_model_in_its_place_forgets_and_learns_anew() -> None:
    accountant = Accountant(CLOCK, SETTINGS)
    told: list[tuple[str | None, float | None]] = []
    worlds = ((GPU, 0.0, 60.0), (OTHER, 90.0, 80.0), (GPU, 180.0, 90.0))
    energy_j = 0.0
    for device, start_s, power_w in worlds:
        accountant.observe(device)
        for half in range(180):
            t_s = start_s + half / 2
            accountant.observe(CounterReading("gpu0", ns(t_s), ns(energy_j) // 1000))
            energy_j += power_w / 2
        for record in uses(start_s, start_s + 90):
            accountant.observe(record)
        for page in accountant.flush(ns(start_s + 89)):
            if start_s and page.start_ns == CLOCK.epoch_ns + ns(start_s):
                assert page.devices[0].static_w is None
            accountant.booked(page)
        told += [(d.model, d.static_w) for d in accountant.take_learned()]
    assert told == [(GPU.model, 60.0), (OTHER.model, 80.0), (GPU.model, 90.0)]


def test_what_was_learned_in_another_boot_holds_from_the_first_window() -> None:
    known = replace(GPU, static_w=50.0, static_basis=StaticBasis.LEARNED)
    accountant = Accountant(CLOCK, SETTINGS)
    accountant.remember_idle([known, replace(known, device="gpu7")])
    for item in (GPU, *owned_engine(), *watts((90, 400)), step(1, 0, 80)):
        accountant.observe(item)
    pages = accountant.flush(ns(90))
    assert all(page.devices == (known,) for page in pages)
    swapped = Accountant(CLOCK, SETTINGS)
    swapped.remember_idle([known])
    for item in (OTHER, *watts((10, 400))):
        swapped.observe(item)
    assert swapped.flush(ns(5))[0].devices == (OTHER,)


def test_a_replay_takes_its_trace_at_its_word() -> None:
    world = [GPU, *watts((90, 70)), *uses(0, 90)]
    assert {device.static_w for page in pages_of(world) for device in page.devices} == {None}
    known = replace(GPU, static_w=50.0, static_basis=StaticBasis.LEARNED)
    pages = pages_of([known, *world[1:]])
    assert {device for page in pages for device in page.devices} == {known}


# ------------------------------------------------------------------------------- laws

STRETCH_S = 30
HOLDERS = st.sampled_from(["nobody"] * 6 + ["held", "unknown"])
# At 0 W a counter stands still, and what it says later restates what a turn that was not
# stalled has learned from already.
LIVES = st.lists(st.tuples(st.integers(1, 400), HOLDERS), min_size=1, max_size=12)


def life(stretches: list[tuple[int, str]]) -> list[list[Evidence]]:
    """What comes each second."""
    seconds: list[list[Evidence]] = []
    energy_uj = 0
    for power_w, holder in (s for stretch in stretches for s in [stretch] * STRETCH_S):
        at = len(seconds)
        news: list[Evidence] = [
            CounterReading("gpu0", ns(at), energy_uj),
            CounterReading("gpu0", ns(at + 0.5), energy_uj + power_w * 500_000),
        ]
        energy_uj += power_w * 10**6
        if holder != "unknown" and at:
            owners = OWNER if holder == "held" else NOBODY
            news.append(UseRecord("gpu0", ns(at), ns(at + 1), owners))
        seconds.append(news)
    return seconds


def lived(
    seconds: list[list[Evidence]], crashes: Iterable[int] = (), stalls: Iterable[int] = ()
) -> tuple[list[Page], list[Device]]:
    """The pages of a daemon: a turn a second but for `stalls`; it dies and folds at `crashes`."""
    journal: list[Evidence | str] = [GPU]
    live, pages = Accountant(CLOCK, SETTINGS), {}
    live.observe(GPU)
    kept: list[Device] = []
    down, stalled = set(crashes), set(stalls)
    for second, news in enumerate(seconds):
        for record in news:
            journal.append(record)
            live.observe(record)
        if second in down:
            live = Accountant(CLOCK, SETTINGS)
            live.remember_idle(kept)
            for entry in journal:
                live.restore(entry) if isinstance(entry, str) else live.observe(entry)
            live.take_learned()
        for page in live.due(ns(second + 1)) if second not in stalled else ():
            pages[page.start_ns] = page
            journal.append(live.booked(page))
            taken = live.take_learned()
            journal += taken
            kept = taken or kept
    for page in live.flush(ns(len(seconds) - 0.5)):
        pages[page.start_ns] = page
        live.booked(page)
        kept = live.take_learned() or kept
    return list(pages.values()), kept


@settings(max_examples=60, deadline=None)
@given(LIVES, st.sets(st.integers(0, 360), max_size=4), st.integers(0, 300), st.integers(0, 90))
def test_a_restart_or_a_stall_equals_none(
    stretches: list[tuple[int, str]], crashes: set[int], stall_s: int, length_s: int
) -> None:
    seconds = life(stretches)
    stalls = range(stall_s, stall_s + length_s)
    assert lived(seconds, crashes, stalls) == lived(seconds)


@settings(max_examples=60, deadline=None)
@given(LIVES)
def test_the_books_balance_under_a_learned_figure(stretches: list[tuple[int, str]]) -> None:
    for page in lived(life(stretches))[0]:
        posted = [p.amounts for p in page.postings]
        assert sum(a.energy_uj for a in posted) == sum(m.energy_uj for m in page.metered)
        assert sum(a.device_ns for a in posted) == sum(m.device_ns for m in page.metered)
        assert all(min(a.static_uj, a.dynamic_uj, a.device_ns) >= 0 for a in posted)


@settings(max_examples=80, deadline=None)
@given(LIVES)
def test_idle_is_never_above_an_ownerless_minute(stretches: list[tuple[int, str]]) -> None:
    pages, kept = lived(life(stretches))
    quiet = [
        page
        for page in pages
        if all(p.account.method == "no-owner" for p in page.postings)
        and sum(m.device_ns for m in page.metered) == page.end_ns - page.start_ns == 5 * NS_PER_S
    ]
    covered = [page for page in quiet if _told(stretches, page)]
    for first in range(len(covered) - 11):
        run = covered[first : first + 12]
        if run[-1].end_ns - run[0].start_ns != 60 * NS_PER_S:
            continue
        minute_w = sum(m.energy_uj for page in run for m in page.metered) / 60e6
        if minute_w >= 0.5:
            assert kept
            assert (kept[0].static_w or 0.0) <= minute_w


def _told(stretches: list[tuple[int, str]], page: Page) -> bool:
    """Whether use records say of the whole page that nobody worked."""
    start_s = (page.start_ns - CLOCK.epoch_ns) // NS_PER_S
    return start_s > 0 and stretches[start_s // STRETCH_S][1] == "nobody"
