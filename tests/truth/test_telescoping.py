"""Whatever the power and whenever it was read, the windows sum to the counter's own difference."""

from __future__ import annotations

from itertools import accumulate, pairwise

from hypothesis import given
from hypothesis import strategies as st

from fakes.waveform import EnergyRegister, RaplRegister, Steps
from fakes.waveform_rig import EPOCH_NS
from wattledger.records import NS_PER_S, Clock, CounterReading, Device, DeviceKind, Page
from wattledger_daemon.heart.accountant import Accountant, AccountantSettings

SPANS_US = st.lists(st.integers(1, 8_000_000), min_size=1, max_size=40)
POWER_MW = st.integers(0, 1_000_000)
STEPS = st.lists(st.tuples(st.integers(1, 3_000_000), POWER_MW), min_size=1, max_size=40)
WINDOWS_S = st.sampled_from([1, 5, 10, 60])


def steps_of(parts: list[tuple[int, int]]) -> Steps:
    ends_us = accumulate((length_us for length_us, _ in parts), initial=0)
    return Steps([(t_us, power_mw) for t_us, (_, power_mw) in zip(ends_us, parts, strict=False)])


def booked_uj(device: Device, readings: list[CounterReading], window_s: int) -> int:
    """Booked as the daemon does, each window as soon as it is due."""
    accountant = Accountant(
        Clock("h1", "boot", EPOCH_NS), AccountantSettings(window_ns=window_s * NS_PER_S)
    )
    accountant.observe(device)
    pages: list[Page] = []
    for reading in readings:
        accountant.observe(reading)
        due = accountant.due(reading.t_ns)
        for page in due:
            accountant.booked(page)
        pages += due
    pages += accountant.flush(readings[-1].t_ns)
    energies = [metered.energy_uj for page in pages for metered in page.metered]
    postings = [posting.amounts for page in pages for posting in page.postings]
    assert all(energy_uj >= 0 for energy_uj in energies)
    assert sum(amounts.energy_uj for amounts in postings) == sum(energies)
    return sum(energies)


def readings_of(
    register: EnergyRegister | RaplRegister, unit_uj: int, spans_us: list[int]
) -> list[CounterReading]:
    polls_us = accumulate(spans_us, initial=0)
    return [CounterReading("d", t * 1000, register.show(t) * unit_uj) for t in polls_us]


@given(STEPS, SPANS_US, st.integers(1, 3_000_000), WINDOWS_S)
def test_a_64_bit_counter(
    parts: list[tuple[int, int]], spans_us: list[int], refresh_us: int, window_s: int
) -> None:
    register = EnergyRegister(steps_of(parts), refresh_us)
    readings = readings_of(register, 1000, spans_us)
    rise_uj = readings[-1].energy_uj - readings[0].energy_uj
    assert booked_uj(Device("d", DeviceKind.GPU), readings, window_s) == rise_uj


@given(STEPS, SPANS_US, st.integers(1, 1 << 32), WINDOWS_S)
def test_a_counter_that_wraps(
    parts: list[tuple[int, int]], spans_us: list[int], before_wrap: int, window_s: int
) -> None:
    register = RaplRegister(steps_of(parts), 15_258, start_counts=(1 << 32) - before_wrap)
    readings = readings_of(register, 1, spans_us)
    values = [reading.energy_uj for reading in readings]
    wraps = sum(after < before for before, after in pairwise(values))
    rise_uj = values[-1] - values[0] + wraps * register.range_uj
    device = Device("d", DeviceKind.CPU, wrap_uj=register.range_uj)
    assert booked_uj(device, readings, window_s) == rise_uj
