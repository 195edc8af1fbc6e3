"""A meter that begins where another stands goes on as that one does, to the microjoule."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from wattledger.records import NS_PER_S, CounterReading, PowerReading
from wattledger.trace import decode, encode
from wattledger_daemon.heart.metering import EnergyInterval, Meter

Reading = CounterReading | PowerReading

GAPS_NS = st.integers(1, 4 * NS_PER_S)
RISES_UJ = st.integers(-(10**6), 10**9) | st.just(0)
POWERS_UW = st.integers(0, 10**9)


@st.composite
def counted(draw: st.DrawFn) -> list[Reading]:
    """A counter that stands still at times and falls at others, with a gauge beside it."""
    t_ns, energy_uj = 0, 10**7
    readings: list[Reading] = []
    for gap_ns, rise_uj in draw(st.lists(st.tuples(GAPS_NS, RISES_UJ), min_size=4, max_size=40)):
        t_ns, energy_uj = t_ns + gap_ns, max(0, energy_uj + rise_uj)
        readings.append(PowerReading("gpu0", t_ns, draw(POWERS_UW)))
        readings.append(CounterReading("gpu0", t_ns, energy_uj))
    return readings


@st.composite
def gauged(draw: st.DrawFn) -> list[Reading]:
    t_ns = 0
    readings: list[Reading] = []
    for gap_ns, power_uw in draw(st.lists(st.tuples(GAPS_NS, POWERS_UW), min_size=4, max_size=40)):
        t_ns += gap_ns
        readings.append(PowerReading("cpu0", t_ns, power_uw))
    return readings


def feed(meter: Meter, readings: list[Reading]) -> None:
    for reading in readings:
        if isinstance(reading, CounterReading):
            meter.read_counter(reading)
        else:
            meter.read_power(reading)


def seconds(meter: Meter, start_ns: int, end_ns: int) -> list[list[EnergyInterval]]:
    edges = range(start_ns, end_ns, NS_PER_S)
    return [meter.intervals(edge, edge + NS_PER_S) for edge in edges]


@given(counted() | gauged(), st.data())
def test_a_recording_begun_anywhere_meters_every_later_second_alike(
    readings: list[Reading], data: st.DataObject
) -> None:
    cut = data.draw(st.integers(1, len(readings) - 1))
    if isinstance(readings[0], PowerReading) and isinstance(readings[1], CounterReading):
        cut += cut % 2  # the power and the counter of one poll are handed over together
    daemon, replay = Meter(), Meter()
    feed(daemon, readings[:cut])
    name = readings[0].device
    standing = [decode(encode(reading)) for reading in daemon.standing(name)]
    feed(replay, [r for r in standing if isinstance(r, CounterReading | PowerReading)])
    feed(daemon, readings[cut:])
    feed(replay, readings[cut:])
    start_ns = -(-readings[cut - 1].t_ns // NS_PER_S) * NS_PER_S
    end_ns = readings[-1].t_ns
    assert seconds(daemon, start_ns, end_ns) == seconds(replay, start_ns, end_ns)


def test_a_meter_without_a_reading_stands_nowhere() -> None:
    assert Meter().standing("gpu0") == []


def test_what_a_gauge_carries_is_kept_by_the_trace_format() -> None:
    reading = PowerReading("cpu0", 5, 7, 1_999_999_999)
    assert decode(encode(reading)) == reading
    assert "carried" not in encode(PowerReading("cpu0", 5, 7))
