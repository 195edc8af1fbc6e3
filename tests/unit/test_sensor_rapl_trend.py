"""Laws of what is believed of a wrapping counter, with the meter that it is fed to."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.powercap_layouts import NARROW_UJ, WIDE_UJ
from wattledger.records import NS_PER_S, CounterReading, Quality
from wattledger_collectors.sensors.rapl_trend import Trend
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
            trend.checked(energy_uj, t_ns)
        except ValueError:
            trend.broken()
            continue
        believed.append(at)
        meter.read_counter(CounterReading("cpu0", t_ns, energy_uj))
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
    # Each break may cost the slack of ten seconds, no more.
    breaks = 1 + 2 * sum(isinstance(event, str) for event in events)
    assert 0 <= total_uj <= METER_MAX_POWER_W * 1e6 * (span_s + 10 * breaks)


def test_a_wide_counter_is_never_held() -> None:
    trend = Trend(None)
    assert trend.checked(10**15, 0) == 10**15
    assert trend.checked(5, NS_PER_S) == 5
    with pytest.raises(ValueError, match="more than 1000 W"):
        trend.checked(10**15, 2 * NS_PER_S)
