"""Every case of docs/accuracy.md, ten minutes of each instead of an hour."""

from __future__ import annotations

import functools
from itertools import pairwise

import pytest

from fakes.waveform import RaplRegister
from fakes.waveform_cases import groups
from fakes.waveform_host import Gpu
from fakes.waveform_rig import Outcome, run
from wattledger.records import Quality

LENGTH_S = 600
MAX_GAP_US = 5_000_000
GROUPS = groups()
EVERY = [
    pytest.param(g, c, id=f"{group.name}: {case.name}")
    for g, group in enumerate(GROUPS)
    for c, case in enumerate(group.cases)
]


@functools.cache
def outcomes(group: int) -> list[Outcome]:
    return run(GROUPS[group], LENGTH_S)


@pytest.mark.parametrize(("group", "case"), EVERY)
def test_the_bar_is_held(group: int, case: int) -> None:
    outcome = outcomes(group)[case]
    bar = outcome.case.bar
    if bar is not None:
        assert abs(outcome.error) <= bar
    else:
        assert bounded(outcome)
        assert flagged(outcome)


def bounded(outcome: Outcome) -> bool:
    """Whether no more and no less was booked than the wave's own extremes allow."""
    instrument = outcome.case.instrument
    assert isinstance(instrument, Gpu)
    low_w, high_w = (70, 600) if "square" in outcome.case.name else (90, 700)
    if instrument.energy is not None:
        # Right but for the stalls that a reset fell into.
        stalled_s = outcome.group.sampler.stall_us or 0
        least_uj = outcome.truth_uj - outcome.booked.resets * stalled_s * high_w
        return least_uj <= outcome.booked.energy_uj <= 2 * outcome.truth_uj - least_uj
    metered_s = outcome.booked.device_ns / 1e9
    return low_w <= outcome.booked.energy_uj / 1e6 / metered_s <= high_w


def flagged(outcome: Outcome) -> bool:
    """Whether the postings say that this was not measured."""
    qualities = set(outcome.booked.by_quality)
    instrument = outcome.case.instrument
    assert isinstance(instrument, Gpu)
    if instrument.energy is None:
        return qualities == {Quality.INTEGRATED}
    return Quality.RESET in qualities and outcome.booked.resets > 0


@pytest.mark.parametrize(("group", "case"), EVERY)
def test_nothing_is_negative_and_the_books_balance(group: int, case: int) -> None:
    booked = outcomes(group)[case].booked
    assert booked.negative == 0
    assert booked.posted_uj == booked.energy_uj
    assert booked.posted_ns == booked.device_ns


@pytest.mark.parametrize(("group", "case"), EVERY)
def test_all_time_is_metered_but_the_holes(group: int, case: int) -> None:
    outcome = outcomes(group)[case]
    span_us = outcome.polls[-1] - outcome.polls[0]
    holes_us = sum(end - start for start, end in outcome.holes)
    assert outcome.booked.device_ns == (span_us - holes_us) * 1000


@pytest.mark.parametrize(("group", "case"), EVERY)
def test_every_gap_reset_and_wrap_is_counted(group: int, case: int) -> None:
    outcome = outcomes(group)[case]
    instrument, polls, booked = outcome.case.instrument, outcome.polls, outcome.booked
    longer = sum(after - before > MAX_GAP_US for before, after in pairwise(polls))
    assert booked.gaps == longer
    shown = [_counter_at(instrument, t_us) for t_us in polls]
    holes = {start for start, _ in outcome.holes}
    falls = sum(
        after < before
        for t_us, (before, after) in zip(polls, pairwise(shown), strict=False)
        if t_us not in holes
    )
    wraps = isinstance(instrument, RaplRegister)
    assert (booked.wraps, booked.resets) == ((falls, 0) if wraps else (0, falls))


def _counter_at(instrument: Gpu | RaplRegister, t_us: int) -> int:
    register = instrument.energy if isinstance(instrument, Gpu) else instrument
    return register.show(t_us) if register else 0


def test_a_whole_minute_of_a_plain_counter_holds_the_bar_too() -> None:
    plain = [o for o in outcomes(0) if "every" not in o.case.name or "bursts" in o.case.name]
    plain = [o for o in plain if "late" not in o.case.name and not o.booked.resets]
    assert len(plain) == 9
    assert all(outcome.worst_minute <= 0.005 for outcome in plain)


def test_a_reset_under_constant_power_costs_next_to_nothing() -> None:
    """The last power reading tells what the counter forgot, to a tenth of the bar."""
    (outcome,) = (o for o in outcomes(0) if o.case.name == "constant 300 W, reset every minute")
    assert outcome.booked.resets == 9
    assert abs(outcome.error) < 0.0005


@pytest.mark.parametrize(("group", "stall_s"), [(2, 0.5), (3, 3.0), (4, 20.0)])
def test_only_what_lies_across_a_gap_is_spread(group: int, stall_s: float) -> None:
    plain, constant, *_ = outcomes(group)
    for outcome in (plain, constant):
        spread = outcome.booked.by_quality[Quality.SPREAD] / outcome.booked.energy_uj
        assert spread == pytest.approx(stall_s / 100 if stall_s > 5 else 0.0, abs=0.005)
        assert set(outcome.booked.by_quality) <= {Quality.MEASURED, Quality.SPREAD}


def test_a_wrap_that_nobody_could_count_is_a_gap_and_books_nothing() -> None:
    (lost,) = {o.unmetered_s for o in outcomes(7) if "65.5 kJ" in o.case.name}
    (kept,) = {o.unmetered_s for o in outcomes(7) if "262 kJ" in o.case.name}
    assert lost > 300 - 1
    assert kept == 0
    for outcome in outcomes(8):
        assert outcome.unmetered_s > 600 - 1
        assert set(outcome.booked.by_quality) == {Quality.MEASURED}
