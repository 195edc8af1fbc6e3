from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes.evidence import ns
from wattledger.records import CounterReading, PowerReading, Quality
from wattledger_daemon.heart.metering import Incident, Meter

FOREVER_NS = 10**18


def metered(meter: Meter, start_s: float = 0, end_s: float = 1e6) -> list[tuple[int, Quality]]:
    return [(i.energy_uj, i.quality) for i in meter.intervals(ns(start_s), ns(end_s))]


def read(meter: Meter, *points: tuple[float, int]) -> Meter:
    for t_s, energy_uj in points:
        meter.read_counter(CounterReading("d", ns(t_s), energy_uj))
    return meter


def gauge(meter: Meter, *points: tuple[float, float]) -> Meter:
    for t_s, power_w in points:
        meter.read_power(PowerReading("d", ns(t_s), round(power_w * 1e6)))
    return meter


def test_v8_rapl_wrap() -> None:
    meter = read(Meter(wrap_uj=262143328850), (0, 262143000000), (1, 1000000))
    assert metered(meter) == [(1328850, Quality.MEASURED)]
    assert meter.incidents(0, FOREVER_NS, Incident.WRAP) == 1


def test_v8_nvml_decrease_is_a_reset() -> None:
    meter = read(Meter(), (0, 12_000_000), (1, 500_000))
    assert metered(meter) == [(500_000, Quality.RESET)]
    assert meter.incidents(0, FOREVER_NS, Incident.RESET) == 1


def test_reset_uses_the_last_power_reading_when_it_says_more() -> None:
    meter = read(Meter(), (0, 0), (1, 100_000_000))
    gauge(meter, (1.5, 300.0))
    read(meter, (3, 1_000_000))
    assert metered(meter)[-1] == (600_000_000, Quality.RESET)


def test_reset_without_power_uses_the_mean_of_the_last_cell() -> None:
    meter = read(Meter(), (0, 0), (1, 100_000_000), (1.5, 100_000_000), (3, 1_000_000))
    assert metered(meter)[-1] == (200_000_000, Quality.RESET)


def test_a_fall_to_more_than_any_device_draws_is_another_counter_and_not_energy() -> None:
    meter = read(Meter(), (0, 80_000_000_000_000), (1, 80_000_100_000_000), (3, 50_000_000_000_000))
    assert metered(meter)[-1] == (200_000_000, Quality.RESET)
    meter = read(Meter(), (0, 80_000_000_000_000), (3, 29_000_000_000))
    assert metered(meter)[-1] == (29_000_000_000, Quality.RESET)


def test_unchanged_polls_carry_no_news() -> None:
    meter = read(Meter(), (0, 0), (0.4, 0), (0.8, 0), (1, 100))
    assert [(i.start_ns, i.end_ns) for i in meter.intervals(0, FOREVER_NS)] == [(0, ns(1))]


def test_tail_after_the_last_change_is_metered_with_no_energy() -> None:
    meter = read(Meter(), (0, 0), (1, 100), (1.5, 100))
    assert metered(meter) == [(100, Quality.MEASURED), (0, Quality.MEASURED)]


def test_counter_across_a_gap_keeps_its_energy() -> None:
    meter = read(Meter(), (0, 0), (1, 100), (61, 6100))
    assert metered(meter) == [(100, Quality.MEASURED), (6000, Quality.SPREAD)]
    assert metered(meter, 1, 31) == [(3000, Quality.SPREAD)]
    assert meter.incidents(0, FOREVER_NS, Incident.GAP) == 1


def test_unknowable_wraps_are_a_gap() -> None:
    range_uj = 65_532_610_987  # 65.5 s at 1 kW
    meter = read(Meter(wrap_uj=range_uj), (0, 0), (1, 100), (70, 50), (71, 60))
    assert metered(meter) == [(100, Quality.MEASURED), (10, Quality.MEASURED)]
    assert meter.incidents(0, FOREVER_NS, Incident.GAP) == 1


def test_gauge_is_integrated_exactly_between_readings() -> None:
    meter = gauge(Meter(), (0, 100.0), (1, 200.0), (2, 200.0))
    cuts = meter.intervals(0, FOREVER_NS, [ns(0.5)])
    assert [i.energy_uj for i in cuts] == [62_500_000, 87_500_000, 200_000_000]
    assert {i.quality for i in cuts} == {Quality.INTEGRATED}


def test_gauge_leaves_a_gap() -> None:
    meter = gauge(Meter(), (0, 100.0), (6, 100.0), (7, 100.0))
    assert metered(meter) == [(100_000_000, Quality.INTEGRATED)]
    assert meter.incidents(0, FOREVER_NS, Incident.GAP) == 1


def test_estimated_gauge_says_so() -> None:
    assert metered(gauge(Meter(estimated=True), (0, 10.0), (1, 10.0))) == [
        (10_000_000, Quality.ESTIMATED)
    ]


def test_a_counter_takes_over_from_a_gauge() -> None:
    meter = gauge(Meter(), (0, 100.0), (1, 100.0))
    read(meter, (1, 0), (2, 50))
    assert metered(meter) == [(50, Quality.MEASURED)]


def test_readings_out_of_order_are_ignored() -> None:
    meter = read(Meter(), (0, 0), (2, 200), (1, 500), (3, 300))
    assert sum(e for e, _ in metered(meter)) == 300


@pytest.mark.parametrize("pin_s", [2.5, 3.0, 3.5])
def test_a_pin_keeps_what_is_booked(pin_s: float) -> None:
    meter = read(Meter(), (0, 0), (1, 100), (3, 100))
    booked = sum(e for e, _ in metered(meter, 0, pin_s))
    meter.pin(ns(pin_s))
    read(meter, (4, 500))
    assert sum(e for e, _ in metered(meter, 0, pin_s)) == booked == 100
    assert sum(e for e, _ in metered(meter, pin_s)) == 400


def test_a_pin_cuts_a_gauge_where_the_window_ended() -> None:
    meter = gauge(Meter(), (0, 100.0), (1, 100.0))
    meter.pin(ns(1.5))
    gauge(meter, (2, 200.0))
    assert metered(meter) == [
        (100_000_000, Quality.INTEGRATED),
        (87_500_000, Quality.INTEGRATED),
    ]


POINTS = st.lists(
    st.tuples(st.integers(1, 20_000), st.integers(0, 10**12)), min_size=2, max_size=30
)
WRAPS = st.none() | st.integers(10**12, 2 * 10**12)


@given(POINTS, WRAPS, st.booleans(), st.lists(st.integers(0, 600_000), max_size=8))
def test_windows_telescope_and_are_never_negative(
    points: list[tuple[int, int]], wrap_uj: int | None, counted: bool, edges_ms: list[int]
) -> None:
    meter, t_ms = Meter(wrap_uj=wrap_uj), 0
    for step_ms, value in points:
        t_ms += step_ms
        if counted:
            meter.read_counter(CounterReading("d", t_ms * 10**6, value))
        else:
            meter.read_power(PowerReading("d", t_ms * 10**6, value // 10**3))
    whole = meter.intervals(0, FOREVER_NS)
    edges = [0, *sorted(edge * 10**6 for edge in edges_ms), FOREVER_NS]
    parts = [
        i for a, b in pairwise(edges) for i in meter.intervals(a, b, [edges[len(edges) // 2] + 7])
    ]
    assert sum(i.energy_uj for i in parts) == sum(i.energy_uj for i in whole)
    assert sum(i.length_ns for i in parts) == sum(i.length_ns for i in whole)
    assert all(i.energy_uj >= 0 and i.length_ns > 0 for i in parts)


@given(POINTS, st.integers(0, 29), st.integers(0, 100_000))
def test_pins_never_lose_or_double_counter_energy(
    points: list[tuple[int, int]], pin_after: int, pin_ms: int
) -> None:
    plain, pinned, t_ms, total = Meter(), Meter(), 0, 0
    pins = [0]
    for index, (step_ms, rise) in enumerate(points):
        t_ms, total = t_ms + step_ms, total + rise
        for meter in (plain, pinned):
            meter.read_counter(CounterReading("d", t_ms * 10**6, total))
        if index == pin_after:
            pins.append((t_ms + pin_ms) * 10**6)
            pinned.pin(pins[-1])
    for meter in (plain, pinned):
        meter.read_counter(CounterReading("d", 10**15, total + 1))
    spans = [*pins, FOREVER_NS]
    parts = [i.energy_uj for a, b in pairwise(spans) for i in pinned.intervals(a, b)]
    assert sum(parts) == sum(i.energy_uj for i in plain.intervals(0, FOREVER_NS))


def test_forgetting_leaves_the_rest_unchanged() -> None:
    meter = read(Meter(), (0, 0), (1, 100), (2, 300), (3, 600))
    meter.forget_before(ns(2))
    assert metered(meter) == [(300, Quality.MEASURED)]


def test_a_pin_does_not_shorten_what_a_reset_lost() -> None:
    """600 s away at 400 W, and the counter began anew: all of it is known to be lost."""
    meter = Meter()
    for t_s in range(60):
        read(meter, (t_s, 500_000_000_000 + t_s * 400_000_000))
    gauge(meter, (59, 400.0))
    meter.pin(ns(600))
    read(meter, (659, 240_000_000_000))
    assert metered(meter)[-1] == (240_000_000_000, Quality.RESET)


def test_another_sensor_in_a_devices_place_leaves_what_was_metered() -> None:
    meter = Meter(estimated=True)
    gauge(meter, *((t_s, 50.0) for t_s in range(4)))
    meter.change_source(262143328850, estimated=False)
    read(meter, (4, 262143328000), (5, 100))
    assert metered(meter) == [
        *[(50_000_000, Quality.ESTIMATED)] * 3,
        (950, Quality.MEASURED),
    ]
    assert meter.incidents(0, FOREVER_NS, Incident.WRAP) == 1
    meter.change_source(None, estimated=True)
    gauge(meter, (12, 50.0), (13, 50.0))
    assert metered(meter)[-1] == (50_000_000, Quality.ESTIMATED)
    assert meter.incidents(0, FOREVER_NS, Incident.GAP) == 1
    assert [i.start_ns for i in meter.intervals(0, FOREVER_NS)][-2:] == [ns(4), ns(12)]
