"""The fold of lessons: what it keeps, what comes into force, and going on after a restart."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.evidence import CLOCK
from wattledger.fits import FitKey
from wattledger.records import NS_PER_S
from wattledger_daemon.heart.calibration.book import SAVE_LESSONS, CostBook, Saving
from wattledger_daemon.heart.calibration.gram import LAGS_NS, PREFILL
from wattledger_daemon.heart.calibration.lessons import YOUNG_ROWS, Calibration
from wattledger_daemon.heart.calibration.rows import Lesson
from wattledger_daemon.heart.calibration.state import dump, load
from wattledger_daemon.heart.calibration.step_free import StepFree
from wattledger_daemon.heart.calibration.sums import StepSums

KEY = FitKey("vllm", "m", "NVIDIA H200")
ROW_NS = 5 * NS_PER_S


class Hardware:
    """Lessons of an engine that costs f=2, a=0.01, b=0.03 J over 50 W."""

    def __init__(self, seed: int = 1, scale: float = 1.0) -> None:
        self.random = Random(seed)
        self.scale = scale
        self.end_ns = 0

    def lesson(
        self, mix: float | None = None, spoiled_j: float = 0.0, *, beside: bool = False
    ) -> Lesson:
        """The next lesson; `beside`: of the same stretch as the one before."""
        random = self.random
        self.end_ns += 0 if beside else ROW_NS
        steps = random.uniform(50, 400)
        decode = steps * random.uniform(1, 200)
        prefill = (random.uniform(0, 2) if mix is None else mix) * decode
        model_j = (2 * steps + 0.01 * prefill + 0.03 * decode) * self.scale
        energy_j = 250 + model_j * random.gauss(1, 0.005) + spoiled_j
        did = StepSums(steps, prefill, decode, 0.0)
        start_ns = self.end_ns - ROW_NS
        energies_j = (energy_j,) * len(LAGS_NS)
        return Lesson(KEY, "e", start_ns, self.end_ns, did, energies_j, 50.0)

    def still(self, power_w: float) -> Lesson:
        self.end_ns += ROW_NS
        energies_j = (5 * power_w,) * len(LAGS_NS)
        start_ns = self.end_ns - ROW_NS
        return Lesson(KEY, "e", start_ns, self.end_ns, StepSums(), energies_j, 50.0, 5.0, power_w)


def learned(lessons: list[Lesson], state: Calibration | None = None) -> Calibration:
    state = state or Calibration(KEY)
    for lesson in lessons:
        state = state.learn(lesson, "boot", 0)
    return state


def test_nothing_is_in_force_before_there_are_rows_enough_and_then_it_is_calibrated() -> None:
    hardware = Hardware()
    state = learned([hardware.lesson() for _ in range(YOUNG_ROWS - 1)])
    assert (state.cost, state.fit) == (None, None)
    state = learned([hardware.lesson() for _ in range(40)], state)
    assert state.cost is not None
    assert state.cost.method == "calibrated"
    assert (state.cost.f_j, state.cost.a_j, state.cost.b_j) == pytest.approx(
        (2.0, 0.01, 0.03), rel=0.05
    )
    assert state.fit is not None
    assert (state.fit.identified, state.fit.method, state.fit.rank) == (True, "calibrated", 3)
    assert state.fit.a is not None
    assert state.fit.a.low_j < 0.01 < state.fit.a.high_j


def test_a_constant_mix_leaves_the_default_weights_in_force_and_says_why() -> None:
    hardware = Hardware()
    state = learned([hardware.lesson(mix=0.5) for _ in range(100)])
    assert state.cost is None
    assert state.fit is not None
    assert (state.fit.method, state.fit.a, state.fit.b) == ("default-weights", None, None)
    assert "one ratio" in state.fit.reason


def test_what_is_in_force_stays_while_the_hardware_does_and_while_the_mix_stands_still() -> None:
    hardware = Hardware()
    state = learned([hardware.lesson() for _ in range(120)])
    costs, tellings = {state.cost}, {state.fit}
    for _ in range(200):
        state = learned([hardware.lesson()], state)
        costs.add(state.cost)
        tellings.add(state.fit)
    assert len(costs) == 1
    assert len(tellings) <= 4
    state = learned([hardware.lesson(mix=0.5) for _ in range(6000)], state)
    assert state.found is not None
    assert not state.found.identified
    assert {state.cost} == costs


def test_other_hardware_is_learned_anew_and_never_by_way_of_the_default() -> None:
    hardware = Hardware()
    state = learned([hardware.lesson() for _ in range(60)])
    hardware.scale = 3.0
    seen = []
    for _ in range(80):
        state = learned([hardware.lesson()], state)
        assert state.cost is not None
        seen.append(state.cost.a_j)
    assert seen[-1] == pytest.approx(0.03, rel=0.05)
    assert len(set(seen)) <= 4


def test_a_model_that_no_longer_foretells_goes_where_nothing_takes_its_place() -> None:
    hardware = Hardware()
    state = learned([hardware.lesson() for _ in range(60)])
    hardware.scale = 3.0
    state = learned([hardware.lesson(mix=0.5) for _ in range(60)], state)
    assert state.cost is None
    assert state.fit is not None
    assert state.fit.method == "default-weights"


def test_rows_that_stray_are_left_out_early_and_late() -> None:
    hardware = Hardware()
    early = [hardware.lesson(spoiled_j=9000.0 if n in (3, 11, 17) else 0.0) for n in range(24)]
    state = learned(early)
    late = [hardware.lesson(spoiled_j=9000.0 if n % 9 == 0 else 0.0) for n in range(48)]
    state = learned(late, state)
    assert state.cost is not None
    assert (state.cost.a_j, state.cost.b_j) == pytest.approx((0.01, 0.03), rel=0.05)


def test_a_lesson_that_is_in_the_state_changes_nothing() -> None:
    hardware = Hardware()
    lessons = [hardware.lesson() for _ in range(30)]
    state = learned(lessons)
    assert learned(lessons, state) is state
    other_boot = state.learn(lessons[0], "later", 0)
    assert other_boot.rows == state.rows + 1


def test_idle_power_is_the_lowest_that_lasts() -> None:
    known = StepFree()
    for power_w in (200.0, 201.0, 110.0, 111.0, 300.0, 109.0):
        known = known.plus(power_w, 5.0)
    assert (known.stretches, known.seconds) == (3, 15.0)
    idle = known.idle()
    assert idle is not None
    assert idle.power_w == pytest.approx(110.0)
    assert idle.basis == "step-free"
    assert idle.error_w < 5.0
    assert StepFree().plus(110.0, 5.0).idle() is None


def test_step_free_time_goes_before_what_the_device_is_known_for() -> None:
    hardware = Hardware()
    state = learned([hardware.lesson() for _ in range(40)])
    assert state.fit is not None
    assert (state.fit.idle_basis, state.fit.idle_w) == ("static", 50.0)
    state = learned([hardware.still(52.0), hardware.still(52.0)], state)
    state = learned([hardware.lesson() for _ in range(40)], state)
    assert state.fit is not None
    assert (state.fit.idle_basis, state.fit.idle_w) == ("step-free", 52.0)


@settings(max_examples=15, deadline=None)
@given(cut=st.integers(0, 70), seed=st.integers(0, 3))
def test_a_state_that_was_kept_goes_on_as_it_would_have(cut: int, seed: int) -> None:
    hardware = Hardware(seed)
    lessons = [
        hardware.still(51.0) if n % 10 == 9 else hardware.lesson(spoiled_j=5e3 * (n == 33))
        for n in range(71)
    ]
    whole = learned(lessons)
    kept = load(dump(learned(lessons[:cut])))
    assert kept is not None
    # All of it comes again, as a journal tells it: what is in the state is passed over.
    assert dump(learned(lessons, kept)) == dump(whole)


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"layout":[1]}'])
def test_a_state_of_another_version_is_forgotten(text: str) -> None:
    assert load(text) is None
    assert CostBook().remember([text]).costs() == {}


def test_an_engine_that_starts_anew_has_the_model_of_its_kind_with_its_first_lesson() -> None:
    hardware = Hardware()
    book = CostBook()
    for _ in range(60):
        book = book.learn([hardware.lesson()], CLOCK)
    (cost,) = book.costs().values()
    book = book.learn([replace(hardware.lesson(), engine="later")], CLOCK)
    assert book.costs() == {"e": cost, "later": cost}
    other = replace(hardware.lesson(), engine="later", key=KEY._replace(devices="2 x NVIDIA H200"))
    assert book.learn([other], CLOCK).costs() == {"e": cost}


def side_by_side(hardware: Hardware, engines: int, mix: float | None = None) -> list[Lesson]:
    """One window's lessons of engines of one key."""
    return [replace(hardware.lesson(mix=mix, beside=n > 0), engine=f"e{n}") for n in range(engines)]


@pytest.mark.parametrize("engines", [2, 16, 64])
def test_every_engine_of_a_key_teaches_and_stands_under_it(engines: int) -> None:
    hardware, book = Hardware(), CostBook()
    for _ in range(36):
        book = book.learn(side_by_side(hardware, engines), CLOCK)
    costs = book.costs()
    assert set(costs) == {f"e{n}" for n in range(engines)}
    assert len(set(costs.values())) == 1
    (state,) = book.known.values()
    assert state.rows == 36 * engines
    assert (costs["e1"].f_j, costs["e1"].a_j, costs["e1"].b_j) == pytest.approx(
        (2.0, 0.01, 0.03), rel=0.05
    )
    assert state.fit is not None
    assert set(state.fit.engines) == set(costs)


def test_many_engines_need_two_minutes_as_one_does_and_no_fit_a_window() -> None:
    hardware, state = Hardware(), Calibration(KEY)
    estimates, identified_at = 0, 0
    for n in range(48):
        found = state.found
        state = learned(side_by_side(hardware, 8), state)
        estimates += state.found is not found
        if not identified_at and state.cost is not None:
            identified_at = n + 1
    assert 18 <= identified_at <= 30
    assert estimates <= 5
    assert state.groups.blocks == 8


def test_an_engine_of_the_key_that_joins_is_told_of_with_the_next_fit() -> None:
    hardware = Hardware()
    state = learned([hardware.lesson() for _ in range(220)])
    assert state.fit is not None
    assert state.fit.engines == ("e",)
    for _ in range(24):
        state = learned([hardware.lesson(), side_by_side(hardware, 1)[0]], state)
    assert state.fit is not None
    assert set(state.fit.engines) == {"e", "e0"}


def test_a_restart_takes_each_engines_lessons_once() -> None:
    hardware = Hardware()
    windows = [side_by_side(hardware, 3) for _ in range(40)]
    whole = CostBook()
    for window in windows:
        whole = whole.learn(window, CLOCK)
    early = CostBook()
    for window in windows[:31]:
        early = early.learn(window, CLOCK)
    again = CostBook().remember([dump(one) for one in early.known.values()])
    for window in windows:
        again = again.learn(window, CLOCK)
    assert again == whole


def test_hardware_that_changed_under_all_engines_is_learned_anew() -> None:
    hardware, book = Hardware(), CostBook()
    for _ in range(40):
        book = book.learn(side_by_side(hardware, 4), CLOCK)
    hardware.scale = 3.0
    for _ in range(60):
        book = book.learn(side_by_side(hardware, 4), CLOCK)
    assert len(book.costs()) == 4
    for cost in book.costs().values():
        assert cost.a_j == pytest.approx(0.03, rel=0.05)


def test_a_phase_that_cannot_be_told_is_booked_within_its_interval() -> None:
    """Prompts of a token or two beside passes of 50 J: of a noise makes what it likes."""
    for seed in range(6):
        hardware = Hardware(seed)
        lessons = []
        for _ in range(72):
            one = hardware.lesson(mix=0.0)
            prefill = one.did.steps * hardware.random.uniform(0.0, 0.1)
            lessons.append(replace(one, did=one.did._replace(prefill_tokens=prefill)))
        state = learned(lessons)
        assert state.cost is not None
        assert state.fit is not None
        assert (state.fit.identified, state.fit.a) == (True, None)
        assert "a costs too little to be told" in state.fit.reason
        assert state.found is not None
        value_j, half_j = state.found.values[PREFILL], state.found.halves[PREFILL]
        assert max(value_j - half_j, 0.0) <= state.cost.a_j <= value_j + half_j
        assert 0.0 < state.cost.a_j < 0.1


def test_what_stands_in_for_a_phase_keeps_to_its_interval() -> None:
    hardware = Hardware()
    lessons = []
    for _ in range(96):
        one = hardware.lesson(mix=0.0)
        prefill = one.did.decode_tokens * hardware.random.uniform(0, 2)
        lessons.append(replace(one, did=one.did._replace(prefill_tokens=prefill)))
    state = learned(lessons)
    assert state.cost is not None
    assert state.found is not None
    assert state.fit is not None
    assert state.fit.a is None
    assert state.found.values[PREFILL] + state.found.halves[PREFILL] < state.cost.b_j / 8 / 2
    assert state.cost.a_j < state.cost.b_j / 8 / 2


def test_idle_power_above_what_work_draws_is_forgotten_as_is_what_a_long_step_may_cover() -> None:
    hardware = Hardware()
    state = learned([hardware.still(200.0), hardware.still(200.0)])
    assert state.step_free.idle() is not None
    lesson = hardware.lesson()
    assert lesson.energies_j[0] / lesson.seconds > 200.0
    quiet = replace(lesson, energies_j=(5 * 120.0,) * len(LAGS_NS))
    assert learned([quiet], state).step_free == StepFree()
    assert learned([lesson], state).step_free == state.step_free
    assert learned([replace(lesson, longest_s=100.0)], state).step_free == StepFree()


def test_keys_are_bounded_and_the_one_longest_untaught_goes_first() -> None:
    hardware = Hardware()
    book = CostBook()
    for n in range(100):
        book = book.learn([replace(hardware.lesson(), key=KEY._replace(model=str(n)))], CLOCK)
    assert [key.model for key in book.known] == [str(n) for n in range(36, 100)]


def test_states_are_kept_now_and_then_and_at_once_where_a_fit_is_new() -> None:
    hardware, saving, book = Hardware(), Saving(), CostBook()
    told = []
    for n in range(60):
        after = book.learn([hardware.lesson()], CLOCK)
        saving.moved(book, after)
        book = after
        told += [(n + 1, item.fit is not None) for item in saving.take(book, n)]
    assert told[0] == (SAVE_LESSONS, False)
    assert (YOUNG_ROWS, True) in told
    assert len(told) <= 60 / SAVE_LESSONS + 3
    saving.moved(book, book.learn([hardware.lesson()], CLOCK))
    assert saving.take(book, 0) == []
    assert [item.key for item in saving.take(book, 0, every=True)] == [KEY]
