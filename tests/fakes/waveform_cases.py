"""The cases of the truth table, their bars, and why a bar cannot be held where it cannot."""

from __future__ import annotations

from fakes.waveform import (
    US_PER_S,
    EnergyRegister,
    PowerRegister,
    Ramp,
    RaplRegister,
    Sampler,
    Square,
    Wave,
    constant,
    square,
)
from fakes.waveform_host import Gpu
from fakes.waveform_rig import Case, Group

COUNTER_BAR = 0.005
GAUGE_BAR = 0.02
# What the daemon takes for a gap (accounting.md: max_gap is 5 s).
_MAX_GAP_S = 5.0
_UNIT_262_KJ_NJ = 61_035
_UNIT_65_KJ_NJ = 15_258

WAVES: dict[str, Wave] = {
    "constant 300 W": constant(300),
    "square 0.1 s": square(100_000),
    "square 0.0999 s": square(99_900),
    "square 0.2 s": square(200_000),
    "square 0.7 s": square(700_000),
    "square 1.0 s": square(1_000_000),
    "square 3.0 s": square(3_000_000),
    "bursts, 40 ms of 700 W every 1.3 s": Square(90_000, 700_000, 1_300_000, 40_000, 32_001),
    "ramp 60 to 700 W in 7 s": Ramp(60_000, 700_000, 7_000_000),
}
_ALIAS = "the sensor looks at 25 ms of every 100 ms, and this wave keeps step with it"
_ALIASED = frozenset({"square 0.1 s", "square 0.7 s", "bursts, 40 ms of 700 W every 1.3 s"})
_LOST = "what was spent between the last read and the reset is gone with the counter"


def counter(name: str, wave: Wave, register: EnergyRegister, why: str = "") -> Case:
    """A GPU with an energy counter; its 25 %-duty gauge is there to mend resets."""
    bar = None if why else COUNTER_BAR
    return Case(name, wave, Gpu(register, PowerRegister(wave)), bar, why)


def gauge(name: str, wave: Wave, register: PowerRegister, why: str = "") -> Case:
    """A GPU without an energy counter."""
    bar = None if why else GAUGE_BAR
    return Case(name, wave, Gpu(None, register), bar, why, hole_s=_MAX_GAP_S)


def rapl(name: str, wave: Wave, unit_nj: int) -> Case:
    register = RaplRegister(wave, unit_nj)
    # Longer than the range at 1 kW, and nobody can tell how often it wrapped.
    return Case(name, wave, register, COUNTER_BAR, hole_s=register.range_uj / 1e9)


def _resets(*into_minute_s: float) -> tuple[int, ...]:
    """A reset at each of these moments of successive minutes, for an hour."""
    return tuple(
        round((minute * 60 + into_minute_s[minute % len(into_minute_s)]) * US_PER_S)
        for minute in range(1, 61)
    )


def _counters() -> tuple[Case, ...]:
    wave = WAVES["square 0.7 s"]
    slow = WAVES["square 3.0 s"]
    return (
        *(counter(name, wave, EnergyRegister(wave)) for name, wave in WAVES.items()),
        counter("square 0.7 s, refreshed every 20 ms", wave, EnergyRegister(wave, 20_000)),
        counter("square 0.7 s, 300 ms late", wave, EnergyRegister(wave, lag_us=300_000)),
        # 20 polls of 21 see nothing new.
        counter("square 0.7 s, refreshed every 2.1 s", wave, EnergyRegister(wave, 2_100_000)),
        counter(
            "square 0.7 s, reset just before, on, just after a window's edge, and in its midst",
            wave,
            EnergyRegister(wave, resets_us=_resets(3.95, 4.0, 4.05, 6.5)),
        ),
        counter(
            "square 3.0 s, reset every minute", slow, EnergyRegister(slow, resets_us=_resets(31.7))
        ),
        counter(
            "constant 300 W, reset every minute",
            WAVES["constant 300 W"],
            EnergyRegister(WAVES["constant 300 W"], resets_us=_resets(31.7)),
        ),
    )


def _gauges() -> tuple[Case, ...]:
    quarter = (
        gauge(f"{name}, 25 ms of 100 ms", wave, PowerRegister(wave), _alias_of(name))
        for name, wave in WAVES.items()
    )
    whole = (
        gauge(f"{name}, all of 100 ms", wave, PowerRegister(wave, window_us=100_000))
        for name, wave in WAVES.items()
    )
    return (*quarter, *whole)


def _alias_of(name: str) -> str:
    return _ALIAS if name in _ALIASED else ""


def _stalled(stall_s: float) -> Group:
    sampler = Sampler(stall_us=round(stall_s * US_PER_S))
    wave, level = WAVES["square 0.7 s"], WAVES["constant 300 W"]
    # A stall begins 37 s into every 100 s; this reset falls into each of them.
    resets = tuple(
        round((100 * n + 37) * US_PER_S + stall_s * US_PER_S / 2) for n in range(1, 37, 2)
    )
    cases = (
        counter("counter, square 0.7 s", wave, EnergyRegister(wave)),
        counter("counter, constant 300 W", level, EnergyRegister(level)),
        counter(
            "counter, square 0.7 s, reset in every second stall",
            wave,
            EnergyRegister(wave, resets_us=resets),
            # Half a second of power guessed wrongly is lost in the 200 s between two resets.
            why=_LOST if stall_s > 1 else "",
        ),
        gauge("gauge, constant 300 W", level, PowerRegister(level)),
        gauge("gauge, square 0.7 s, all of 100 ms", wave, PowerRegister(wave, window_us=100_000)),
    )
    return Group(f"10 Hz, stalls of {stall_s:g} s every 100 s", sampler, cases)


def _packages(name: str, sampler: Sampler, least_s: int = 600) -> Group:
    busy, level = square(700_000, 90, 700), constant(350)
    cases = tuple(
        rapl(f"RAPL of {size}, {what}", wave, unit_nj)
        for size, unit_nj in (("262 kJ", _UNIT_262_KJ_NJ), ("65.5 kJ", _UNIT_65_KJ_NJ))
        for what, wave in (("square 0.7 s, 90 to 700 W", busy), ("constant 350 W", level))
    )
    return Group(name, sampler, cases, least_s)


def groups() -> tuple[Group, ...]:
    """Every group of the table."""
    steady = Sampler()
    return (
        Group("NVML counter at 10 Hz", steady, _counters()),
        Group("NVML gauge at 10 Hz", steady, _gauges()),
        *(_stalled(stall_s) for stall_s in (0.5, 3.0, 20.0)),
        _packages("RAPL at 10 Hz", steady),
        _packages("RAPL, stalls of 20 s every 100 s", Sampler(stall_us=20 * US_PER_S)),
        _packages(
            "RAPL, stalls of 100 s every 400 s",
            Sampler(stall_us=100 * US_PER_S, every_us=400 * US_PER_S),
            least_s=1200,
        ),
        _packages(
            "RAPL, stalls of 300 s every 600 s",
            Sampler(stall_us=300 * US_PER_S, every_us=600 * US_PER_S),
            least_s=1200,
        ),
    )
