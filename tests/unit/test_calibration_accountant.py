"""Calibration woven into the fold: who is calibrated, from when on, and after a restart."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from fakes.evidence import CLOCK, MODEL, PID, ns
from fakes.sim_engine import SimEngine, Truth
from fakes.sim_meter import GPU, SETTINGS, evidence_of, run
from wattledger.records import (
    NS_PER_S,
    CostModel,
    CounterReading,
    Engine,
    Evidence,
    Page,
    PinnedCost,
    Process,
    ProcessUse,
    RequestTokens,
    Step,
    UseRecord,
)
from wattledger.trace import Trace, TraceHeader, decode, encode
from wattledger_daemon.heart.accountant import Accountant, AccountantSettings
from wattledger_daemon.heart.calibration.state import load
from wattledger_daemon.replay import replay

TRUTH = Truth(users=(0, 2, 8, 24), stay_s=(3.0, 12.0))
SECONDS = 240
Told = list[tuple[float, list[Evidence]]]


@pytest.fixture(scope="module")
def told() -> Told:
    return list(evidence_of(SimEngine(TRUTH, 3, 1e9), 3, SECONDS))


def methods(pages: list[Page]) -> list[str]:
    """Methods that phases were booked under, by page."""
    return [
        " ".join(sorted({p.account.method for p in page.postings if p.account.method != "steps"}))
        for page in pages
    ]


def booked(accountant: Accountant, told: Told, every_s: int = 1) -> tuple[list[Page], list[str]]:
    pages, lines = [], []
    for now_s, found in told:
        for item in found:
            accountant.observe(item)
        if now_s % every_s == 0:
            for page in accountant.due(round(now_s * NS_PER_S)):
                pages.append(page)
                lines.append(accountant.booked(page))
    return pages, lines


def states(accountant: Accountant) -> list[str]:
    return [item.state for item in accountant.costs.take(0, every=True)]


def test_windows_stand_under_what_those_before_them_taught(told: Told) -> None:
    pages, _ = booked(Accountant(CLOCK, SETTINGS), told)
    named = [method for method in methods(pages) if method]
    assert set(named) == {"default-weights", "calibrated"}
    first = named.index("calibrated")
    assert set(named[:first]) == {"default-weights"}
    assert set(named[first:]) == {"calibrated"}


def test_it_does_not_matter_how_many_windows_are_closed_at_once(told: Told) -> None:
    one, _ = booked(Accountant(CLOCK, SETTINGS), told)
    other, _ = booked(Accountant(CLOCK, SETTINGS), told, every_s=40)
    assert other == one[: len(other)]


def test_a_pinned_model_is_never_calibrated_away(told: Told) -> None:
    accountant = Accountant(CLOCK, SETTINGS)
    accountant.observe(PinnedCost("e", MODEL))
    pages, _ = booked(accountant, told)
    assert set(methods(pages)) <= {"pinned", ""}


def test_a_replay_and_an_accountant_that_is_not_told_to_do_not_calibrate(told: Told) -> None:
    accountant = Accountant(CLOCK, AccountantSettings())
    pages, _ = booked(accountant, told)
    assert set(methods(pages)) <= {"default-weights", ""}
    assert states(accountant) == []
    evidence = tuple(item for _, found in told for item in found)
    replayed = replay(Trace(TraceHeader("h1", CLOCK.epoch_ns), evidence, 0))
    assert set(methods(replayed)) <= {"default-weights", ""}


@pytest.mark.parametrize("kept_after", [0, 21, 40])
def test_a_restart_stands_where_the_journal_and_what_was_kept_say(
    told: Told, kept_after: int
) -> None:
    whole = Accountant(CLOCK, SETTINGS)
    kept: list[str] = []
    line_at: list[tuple[float, str]] = []
    for now_s, found in told:
        for item in found:
            whole.observe(item)
        for page in whole.due(round(now_s * NS_PER_S)):
            line_at.append((now_s, whole.booked(page)))
            if len(line_at) == kept_after:
                kept = states(whole)
    again = Accountant(CLOCK, SETTINGS)
    again.costs.remember(kept)
    for now_s, found in told:
        for item in found:
            again.observe(item)
        for at_s, line in line_at:
            if at_s == now_s:
                again.restore(line)
    assert again.roster() == whole.roster()
    assert again.flush(SECONDS * NS_PER_S) == whole.flush(SECONDS * NS_PER_S)


def test_what_is_in_force_is_in_the_roster_and_a_recording_can_say_it(told: Told) -> None:
    accountant = Accountant(CLOCK, SETTINGS)
    booked(accountant, told)
    (pinned,) = [item for item in accountant.roster() if isinstance(item, PinnedCost)]
    assert pinned.cost.method == "calibrated"
    assert decode(encode(pinned)) == pinned
    assert decode(encode(PinnedCost("e", MODEL))) == PinnedCost("e", MODEL)
    assert '"method"' not in encode(PinnedCost("e", MODEL))


def test_lost_events_make_no_row(told: Told) -> None:
    accountant = Accountant(CLOCK, SETTINGS)
    for second in range(0, SECONDS, 5):
        accountant.count(second * NS_PER_S + 1, dropped=1)
    pages, _ = booked(accountant, told)
    assert set(methods(pages)) <= {"default-weights", ""}


def test_a_late_step_restates_its_window_under_the_model_in_force(told: Told) -> None:
    accountant = Accountant(CLOCK, SETTINGS)
    pages, _ = booked(accountant, told)
    early = next(page for page, named in zip(pages, methods(pages), strict=True) if named)
    start_ns = early.start_ns - CLOCK.epoch_ns
    step = next(
        item
        for _, found in told
        for item in found
        if isinstance(item, Step) and item.start_ns >= start_ns
    )
    assert accountant.due(0) == []
    accountant.observe(replace(step, seq=10**6))
    (again,) = accountant.due(0)
    assert again.start_ns == early.start_ns
    assert methods([again]) == ["calibrated"]


def test_other_lengths_of_window_calibrate_alike() -> None:
    told = list(evidence_of(SimEngine(TRUTH, 3, 1e9), 3, SECONDS))
    costs: list[CostModel] = []
    for window_s in (1, 5, 15):
        settings = replace(SETTINGS, window_ns=window_s * NS_PER_S)
        accountant = Accountant(CLOCK, settings)
        booked(accountant, told)
        costs += [x.cost for x in accountant.roster() if isinstance(x, PinnedCost)]
    assert len(costs) == 3
    for cost in costs:
        assert (cost.a_j, cost.b_j) == pytest.approx((costs[1].a_j, costs[1].b_j), rel=0.1)


def test_a_prefill_that_is_told_when_it_is_done_was_no_idling() -> None:
    """Prompts of 25 to 60 s at 300 W, a second or so of 60 W between; nobody tells before."""
    random, now_s = Random(1), 2.0
    prefills: list[tuple[float, float]] = []
    while now_s < 900.0:
        prefills.append((now_s, now_s + random.uniform(25.0, 60.0)))
        now_s = prefills[-1][1] + random.uniform(2.7, 3.5)
    accountant = Accountant(CLOCK, SETTINGS)
    for item in (GPU, Process(PID, 1, "w", "j"), Engine("e", "vllm", "m", (PID,))):
        accountant.observe(item)
    told = 0
    for second in range(900):
        start_ns = second * NS_PER_S
        while prefills[told][1] <= second:
            low_s, high_s = prefills[told]
            parts = (RequestTokens("r", round(1000 * (high_s - low_s)), 0, 0),)
            told += 1
            accountant.observe(Step("e", told, ns(low_s), ns(high_s), parts))
        for poll in range(10):
            t_s = second + poll / 10
            busy_s = sum(max(0.0, min(t_s, high_s) - low_s) for low_s, high_s in prefills)
            energy_uj = round(1e6 * (60.0 * t_s + 240.0 * busy_s))
            accountant.observe(CounterReading("gpu0", ns(t_s), energy_uj))
        use = UseRecord("gpu0", start_ns, start_ns + NS_PER_S, (ProcessUse(PID, 60.0, 1 << 30),))
        accountant.observe(use)
        for page in accountant.due(start_ns):
            accountant.booked(page)
    (state,) = map(load, states(accountant))
    assert state is not None
    assert state.rows > 10
    idle = state.step_free.idle()
    assert idle is not None
    assert idle.power_w == pytest.approx(60.0, rel=0.05)


def test_the_simulation_conserves_and_its_truth_is_what_it_says() -> None:
    outcome = run(TRUTH, 5, 60.0, 0.0)
    assert outcome.imbalance_uj == 0
    assert outcome.pages >= 12
    spent = outcome.engine.spent.values()
    assert sum(outcome.engine.tokens) > 1000
    assert all(item.energy_j() > 0.0 for item in spent)
