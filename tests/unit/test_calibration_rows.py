"""What becomes a row: passes under overlap, and which stretches are too bad to learn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes.evidence import CLOCK, PID, gpu, ns, step
from wattledger.records import (
    CounterReading,
    Device,
    DeviceKind,
    Engine,
    Evidence,
    PowerReading,
    ProcessUse,
    RequestTokens,
    Step,
    UseRecord,
)
from wattledger_daemon.heart.calibration.gram import LAGS_NS, NO_LAG
from wattledger_daemon.heart.calibration.rows import SURE_NS, Lesson
from wattledger_daemon.heart.calibration.sums import step_sums
from wattledger_daemon.heart.calibration.teaching import lessons_of
from wattledger_daemon.heart.columns import columns_of
from wattledger_daemon.heart.evidence import EvidenceBook
from wattledger_daemon.heart.step_sums import StepSum

SPAN = (ns(10), ns(15))
ENGINE = Engine("e", "vllm", "m", (PID,))
MINE = (ProcessUse(PID, 60.0, 1 << 30),)


def steady(device: str = "gpu0", power_w: float = 300.0) -> list[Evidence]:
    return [CounterReading(device, ns(t / 10), round(power_w * t * 1e5)) for t in range(300)]


def used(device: str = "gpu0", processes: tuple[ProcessUse, ...] = MINE) -> Evidence:
    return UseRecord(device, 0, ns(30), processes)


def working(engine: str = "e") -> list[Evidence]:
    """A pass of 100 prefill and 4 decode tokens every 20 ms."""
    return [
        step(n, n / 50, (n + 1) / 50, [("p", 100, 0), ("d", 0, 4)], engine) for n in range(1500)
    ]


def lessons(
    *parts: Sequence[Evidence] | Evidence,
    engine: Engine = ENGINE,
    span: tuple[int, int] = SPAN,
    lost_ns: tuple[int, ...] = (),
) -> list[Lesson]:
    book = EvidenceBook()
    flat: list[Evidence] = [engine]
    for part in parts:
        flat += part if isinstance(part, Sequence) else [part]
    for item in sorted(flat, key=lambda item: not isinstance(item, Device)):
        if isinstance(item, Step):
            book.observe_steps(columns_of(item))
        else:
            book.observe(item)
    seen = [book.device_window(device, *span) for device in book.devices]
    return lessons_of(book, CLOCK.epoch_ns, span, seen, lost_ns)


def test_a_good_stretch_is_a_row_with_its_energy_at_every_lag() -> None:
    (lesson,) = lessons(gpu(70.0), steady(), used(), working())
    assert (lesson.key.kind, lesson.key.model, lesson.key.devices) == ("vllm", "m", "NVIDIA H200")
    assert lesson.did == pytest.approx((250.0, 25_000.0, 1000.0, 0.0))
    assert lesson.energies_j == pytest.approx([1500.0] * len(LAGS_NS))
    assert (lesson.seconds, lesson.static_w, lesson.still_s) == (5.0, 70.0, 0.0)


def test_a_lag_looks_at_the_energy_that_much_later() -> None:
    ramp: list[Evidence] = [CounterReading("gpu0", ns(t / 10), 500 * t * t) for t in range(300)]
    (lesson,) = lessons(gpu(), ramp, used(), working())
    for lag_ns, energy_j in zip(LAGS_NS, lesson.energies_j, strict=True):
        start_s, end_s = 10 + lag_ns / 1e9, 15 + lag_ns / 1e9
        assert energy_j == pytest.approx((end_s**2 - start_s**2) * 0.05, rel=1e-3)
    assert lesson.static_w is None


OTHER = (*MINE, ProcessUse(99, 0.0, 1 << 20))
GAP: list[Evidence] = [
    r for r in steady() if isinstance(r, CounterReading) and not 10 < r.t_ns / 1e9 < 17
]
RESET: list[Evidence] = [
    replace(r, energy_uj=r.energy_uj - 3_600_000_000 if r.t_ns > ns(12) else r.energy_uj)
    for r in steady()
    if isinstance(r, CounterReading)
]
SHORT: list[Evidence] = [r for r in steady() if isinstance(r, CounterReading) and r.t_ns < ns(15.1)]


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param((steady(), used(processes=OTHER), working()), id="another tenant"),
        pytest.param((steady(), working()), id="nobody is known to hold it"),
        pytest.param((GAP, used(), working()), id="a gap"),
        pytest.param((RESET, used(), working()), id="a reset"),
        pytest.param((SHORT, used(), working()), id="not metered as far as lags reach"),
        pytest.param(
            (steady(), used(), working(), step(9000, 11, 11.01)), id="a step without breakdown"
        ),
        pytest.param(
            (steady(), UseRecord("gpu0", 0, ns(30), MINE, basis="mig"), working()), id="a slice"
        ),
    ],
)
def test_a_stretch_that_is_not_good_is_no_row(parts: tuple[list[Evidence], ...]) -> None:
    assert lessons(gpu(70.0), *parts) == []


def test_estimated_power_and_coarse_engines_teach_nothing() -> None:
    device = Device("gpu0", DeviceKind.GPU, "NVIDIA H200", 70.0, estimated=True)
    power: list[Evidence] = [PowerReading("gpu0", ns(t / 10), 300_000_000) for t in range(300)]
    assert lessons(device, power, used(), working()) == []
    measured = replace(device, estimated=False)
    assert len(lessons(measured, power, used(), working())) == 1
    coarse = replace(ENGINE, coarse=True)
    assert lessons(gpu(70.0), steady(), used(), working(), engine=coarse) == []


def test_an_engine_on_two_gpus_has_the_energy_of_both() -> None:
    other = gpu(70.0, "gpu1")
    (lesson,) = lessons(
        gpu(70.0), other, steady(), steady("gpu1", 100.0), used(), used("gpu1"), working()
    )
    assert lesson.energies_j[NO_LAG] == pytest.approx(2000.0)
    assert (lesson.static_w, lesson.key.devices) == (140.0, "2 x NVIDIA H200")


def test_on_a_cpu_it_is_the_dynamic_part_by_cpu_time() -> None:
    cpu = Device("cpu0", DeviceKind.CPU, "EPYC", 100.0)
    use = UseRecord("cpu0", 0, ns(30), (ProcessUse(PID, ticks=30),), total=60)
    (lesson,) = lessons(cpu, steady("cpu0"), use, working())
    assert lesson.energies_j[NO_LAG] == pytest.approx(0.5 * (300 - 100) * 5)
    assert lesson.static_w == 0.0


LATER = (SPAN[0] + SURE_NS, SPAN[1] + SURE_NS)


def worked_until(end_s: float) -> list[Evidence]:
    return [item for item in working() if isinstance(item, Step) and item.end_ns < ns(end_s)]


def test_time_without_steps_tells_idle_power_when_it_is_sure_and_makes_no_row() -> None:
    quiet = (gpu(70.0), steady(), used(), worked_until(9.6))
    assert lessons(*quiet) == []
    (lesson,) = lessons(*quiet, span=LATER)
    assert lesson.did == (0.0, 0.0, 0.0, 0.0)
    assert (lesson.start_ns, lesson.end_ns) == LATER
    assert (lesson.still_s, lesson.still_w) == pytest.approx((4.9, 300.0), rel=0.05)
    busy = (gpu(70.0), steady(), used(), worked_until(12))
    (lesson,) = lessons(*busy)
    assert lesson.did.steps == pytest.approx(99.0, abs=1.5)
    assert lesson.still_s == 0.0
    (lesson,) = lessons(*busy, span=LATER)
    assert (lesson.still_s, lesson.still_w) == pytest.approx((2.5, 300.0), rel=0.05)


def test_time_that_a_late_step_covers_or_in_which_events_were_lost_was_not_idle() -> None:
    quiet = (gpu(70.0), steady(), used(), worked_until(9.6))
    assert lessons(*quiet, [step(9000, 9.6, 40, [("p", 9000, 0)])], span=LATER) == []
    assert lessons(*quiet, span=LATER, lost_ns=(LATER[1] - 1,)) == []
    assert lessons(*quiet, span=LATER, lost_ns=(SPAN[0],)) == []
    assert len(lessons(*quiet, span=LATER, lost_ns=(SPAN[0] - 1, LATER[1]))) == 1


def test_a_row_goes_with_what_was_idle_before_and_lost_events_take_both() -> None:
    engine = [gpu(70.0), used()]
    energy: list[Evidence] = [
        CounterReading("gpu0", ns(t), round(100e6 * min(t, 120) + 300e6 * max(t - 120, 0)))
        for t in range(150)
    ]
    use = UseRecord("gpu0", ns(30), ns(200), MINE)
    late = [step(n, 129 + n / 50, 129 + (n + 1) / 50, [("d", 0, 4)]) for n in range(400)]
    (lesson,) = lessons(engine, energy, use, late, span=LATER)
    assert lesson.did.steps == pytest.approx(250.0)
    assert lesson.energies_j[NO_LAG] == pytest.approx(1500.0)
    assert (lesson.still_s, lesson.still_w) == pytest.approx((5.0, 100.0))
    assert lesson.longest_s == pytest.approx(0.02)
    (spoiled,) = lessons(engine, energy, use, late, span=LATER, lost_ns=(SPAN[1],))
    assert (spoiled.did, spoiled.still_s) == (lesson.did, 0.0)
    assert lessons(engine, energy, use, late, span=LATER, lost_ns=(LATER[0],)) == []


# ------------------------------------------------------------------------ passes


def totals(*steps: tuple[float, float, int, int]) -> list[StepSum]:
    return sorted(StepSum(ns(start), ns(end), p, d, 0) for start, end, p, d in steps)


def test_a_cut_step_counts_in_part() -> None:
    found = step_sums(totals((0, 2, 100, 0), (2, 3, 0, 8)), ns(1), ns(2.5))
    assert found == pytest.approx((1.0, 50.0, 4.0, 0.0))


def test_a_prefill_in_chunks_beside_other_steps_makes_no_passes_of_its_own() -> None:
    decodes = [(t / 10, (t + 1) / 10, 0, 4) for t in range(10)]
    found = step_sums(totals(*decodes, (0, 1, 4000, 0)), 0, ns(1))
    assert found == pytest.approx((10.0, 4000.0, 40.0, 0.0))


def test_a_prefill_counts_by_the_part_that_nothing_else_covers() -> None:
    decodes = [(t / 10, (t + 1) / 10, 0, 4) for t in range(5)]
    found = step_sums(totals(*decodes, (0, 1, 4000, 0)), 0, ns(1))
    assert found.steps == pytest.approx(5.5)
    late = step_sums(totals(*decodes, (0, 1, 4000, 0)), ns(0.25), ns(1))
    assert late.steps == pytest.approx(2.5 + 0.5)


def test_steps_of_two_pipeline_stages_are_passes_each() -> None:
    found = step_sums(totals((0, 1, 0, 4), (0.5, 1.5, 0, 4), (1, 2, 0, 4)), 0, ns(2))
    assert found.steps == pytest.approx(3.0)
    one_boundary = step_sums(totals((0, 1, 0, 4), (0.5, 1.5, 300, 0)), 0, ns(2))
    assert one_boundary.steps == pytest.approx(2.0)


@pytest.mark.parametrize("seed", range(3))
def test_a_pass_told_by_several_front_ends_is_one(seed: int) -> None:
    """Some or all of three tell of each, within a millisecond; one may have prefilled only."""
    random, book = Random(seed), EvidenceBook()
    for n in range(300):
        for source in random.sample("abc", random.randint(1, 3)):
            low_ns, high_ns = (ns(at / 50) + random.randint(0, 900_000) for at in (n, n + 1))
            tokens = random.choice([(300, 0), (0, 4), (20, 2)])
            parts = (RequestTokens(source, *tokens, 0),)
            book.observe_steps(columns_of(Step("e", n, low_ns, high_ns, parts, source)))
    found = step_sums(book.step_totals("e", 0, ns(7)), 0, ns(7))
    assert found.steps == pytest.approx(300.0)


@given(
    st.lists(
        st.tuples(st.integers(0, 90), st.integers(0, 30), st.integers(0, 500), st.integers(0, 20)),
        max_size=12,
    ),
    st.integers(1, 99),
)
def test_tokens_of_two_halves_add_up_and_passes_are_never_more_than_steps(
    table: list[tuple[int, int, int, int]], cut: int
) -> None:
    steps = sorted(StepSum(start, start + length, p, d, 0) for start, length, p, d in table)
    whole = step_sums(steps, 0, 200)
    low = step_sums([s for s in steps if s.start_ns < cut], 0, cut)
    high = step_sums([s for s in steps if s.end_ns >= cut], cut, 200)
    for at in (1, 2, 3):
        assert low[at] + high[at] == pytest.approx(whole[at])
    assert 0.0 <= whole.steps <= len(steps) + 1e-9


def test_the_requests_of_a_step_are_summed() -> None:
    book = EvidenceBook()
    parts = (RequestTokens("a", 5, 0, 0), RequestTokens("b", 0, 1, 7))
    book.observe_steps(columns_of(Step("e", 1, 0, 10, parts)))
    assert book.step_totals("e", 0, 10) == [StepSum(0, 10, 5, 1, 7)]
    assert book.step_totals("x", 0, 10) == []
