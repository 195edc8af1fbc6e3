"""Laws of what is believed of a wrapping counter, with the meter that it is fed to."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.powercap_layouts import NARROW_UJ, WIDE_UJ
from wattledger.records import NS_PER_S, CounterReading, Quality
from wattledger_collectors.sensors.rapl_trend import MOST_OWED_UJ, SLACK_NS, Trend
from wattledger_daemon.heart.metering import MAX_POWER_W as METER_MAX_POWER_W
from wattledger_daemon.heart.metering import Meter

TICK_NS = 2 * NS_PER_S


def metered_uj(range_uj: int, said: list[int]) -> tuple[int, list[int]]:
    """Energy that the meter books of what is believed, and the readings that were."""
    trend, meter = Trend(range_uj), Meter(wrap_uj=range_uj)
    believed: list[int] = []
    for at, energy_uj in enumerate(said):
        t_ns = at * TICK_NS
        try:
            told_uj = trend.checked(energy_uj, t_ns)
        except ValueError:
            continue
        believed.append(at)
        meter.read_counter(CounterReading("cpu0", t_ns, told_uj))
    found = meter.intervals(0, len(said) * TICK_NS)
    assert {part.quality for part in found} <= {Quality.MEASURED, Quality.SPREAD}
    return sum(part.energy_uj for part in found), believed


def test_the_limit_is_the_meters_own() -> None:
    from wattledger_collectors.sensors.rapl_trend import MAX_POWER_W

    assert MAX_POWER_W == METER_MAX_POWER_W


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from([WIDE_UJ, NARROW_UJ]),
    st.integers(0, NARROW_UJ - 1),
    st.lists(st.integers(1, 900 * 2_000_000), min_size=1, max_size=200),
)
def test_an_honest_counter_is_believed_whole_through_its_wraps(
    range_uj: int, start_uj: int, rises_uj: list[int]
) -> None:
    said = [start_uj]
    for rise_uj in rises_uj:
        said.append((said[-1] + rise_uj) % range_uj)
    total_uj, believed = metered_uj(range_uj, said)
    assert len(believed) == len(said)
    assert total_uj == sum(rises_uj)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([WIDE_UJ, NARROW_UJ]),
    st.lists(
        st.one_of(st.integers(0, 400 * 2_000_000), st.sampled_from(["reset", "wild", "lost"])),
        min_size=1,
        max_size=200,
    ),
    st.data(),
)
def test_nothing_that_a_counter_says_makes_more_than_the_highest_power(
    range_uj: int, events: list[int | str], data: st.DataObject
) -> None:
    said, count_uj = [range_uj // 2], range_uj // 2
    for event in events:
        if event == "reset":
            count_uj = 0
        elif isinstance(event, int):
            count_uj = (count_uj + event) % range_uj
        wild = event == "wild"
        said.append(data.draw(st.integers(0, range_uj - 1)) if wild else count_uj)
    total_uj, _ = metered_uj(range_uj, said)
    span_s = (len(said) - 1) * TICK_NS // NS_PER_S
    # Each break may cost the slack of a second, no more.
    breaks = 1 + 2 * sum(isinstance(event, str) for event in events)
    assert 0 <= total_uj <= METER_MAX_POWER_W * 1e6 * (span_s + breaks)


def test_a_wide_counter_is_never_held() -> None:
    trend = Trend(None)
    assert trend.checked(10**15, 0) == 10**15
    assert trend.checked(5, NS_PER_S) == 5
    with pytest.raises(ValueError, match="more than 1000 W"):
        trend.checked(10**15, 2 * NS_PER_S)


def near(at_uj: int) -> st.SearchStrategy[int]:
    return st.integers(at_uj - 4_000_000_000, at_uj + 4_000_000_000)


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from([WIDE_UJ, NARROW_UJ]),
    st.integers(0, 20_000_000_000),
    st.tuples(st.integers(1, 400), st.sampled_from([NS_PER_S // 10, NS_PER_S, 2 * NS_PER_S])),
    st.integers(2, 20),
    st.data(),
)
def test_one_bad_reading_costs_no_more_than_the_slack_and_blinds_nobody(
    range_uj: int, to_wrap_uj: int, pace: tuple[int, int], bad_at: int, data: st.DataObject
) -> None:
    watts, tick_ns = pace
    rise_uj = watts * tick_ns // 1000
    true_uj = [range_uj - to_wrap_uj + at * rise_uj for at in range(60)]
    said: list[int | None] = [at_uj % range_uj for at_uj in true_uj]
    bad = st.one_of(st.none(), near(true_uj[bad_at]), st.integers(0, range_uj - 1))
    drawn = data.draw(bad)
    said[bad_at] = None if drawn is None else drawn % range_uj
    trend, meter, heard = Trend(range_uj), Meter(wrap_uj=range_uj), []
    for at, energy_uj in enumerate(said):
        if energy_uj is None:
            trend.doubted()
            continue
        try:
            told_uj = trend.checked(energy_uj, at * tick_ns)
        except ValueError:
            continue
        heard.append(at)
        meter.read_counter(CounterReading("cpu0", at * tick_ns, told_uj))
    # The bad one, and the one that shows it.
    assert set(range(60)) - set(heard) <= {bad_at, bad_at + 1}
    found = meter.intervals(0, 60 * tick_ns)
    assert sum(part.length_ns for part in found) == 59 * tick_ns
    over_uj = sum(part.energy_uj for part in found) - 59 * rise_uj
    assert 0 <= over_uj <= min(MOST_OWED_UJ, (tick_ns + SLACK_NS) * METER_MAX_POWER_W // 1000)
    if over_uj:
        # It is owed: nothing more is booked until the counter has caught up.
        assert [part.energy_uj for part in found][-1] == 0


def test_a_count_that_began_anew_behind_a_bad_reading_is_no_wrap() -> None:
    trend = Trend(NARROW_UJ)
    for at in range(10):
        trend.checked(60_000_000_000 + at, at * TICK_NS)
    trend.doubted()
    for at in range(11, 40):
        with pytest.raises(ValueError, match="anew"):
            trend.checked(at * 100_000_000, at * TICK_NS)
    assert trend.checked(7_000_000_000, 60 * TICK_NS) == 7_000_000_000


def test_a_fall_long_after_a_bad_reading_or_after_a_loss_is_no_wrap() -> None:
    for lost, pause_s in ((False, 20), (True, 1)):
        trend = Trend(NARROW_UJ)
        trend.checked(NARROW_UJ - 10, 0)
        if lost:
            trend.broken()
        else:
            trend.doubted()
        with pytest.raises(ValueError, match="began anew"):
            trend.checked(5, pause_s * NS_PER_S)


def test_only_a_reading_that_came_late_may_have_risen_further() -> None:
    for late_ns, before_ns in ((4 * NS_PER_S, 0), (0, 4 * NS_PER_S)):
        trend = Trend(WIDE_UJ)
        trend.checked(10**9, NS_PER_S, before_ns)
        # Late itself, or behind one that was: either way five seconds lay between.
        now_ns = 2 * NS_PER_S + late_ns
        assert trend.checked(6 * 10**9, now_ns, late_ns) == 6 * 10**9
    trend = Trend(WIDE_UJ)
    trend.checked(10**9, NS_PER_S)
    with pytest.raises(ValueError, match="more than 1000 W"):
        trend.checked(6 * 10**9, 2 * NS_PER_S)
