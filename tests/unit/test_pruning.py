"""When the daemon forgets: never because a wall clock said something wrong for a while."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes.daemon_parts import CLOCK, EPOCH_NS, FakeTime
from fakes.pipeline_world import ALL_TIME, S, World, begin, energy_uj
from wattledger.records import Clock
from wattledger.store.protocol import Retention
from wattledger_daemon.pruning import Pruning

HOUR = 3600 * S
DAY = 24 * HOUR
YEAR = 365 * DAY
LAST = (CLOCK, EPOCH_NS)


def test_the_first_time_is_an_hour_after_the_start_and_then_once_an_hour() -> None:
    pruning = Pruning(50 * S, LAST)
    assert pruning.due_ns == 50 * S + HOUR
    pruning.pruned(pruning.due_ns)
    assert pruning.due_ns == 50 * S + 2 * HOUR


@pytest.mark.parametrize(
    ("last", "wall_ns", "today_ns"),
    [
        (LAST, EPOCH_NS + 5 * S, EPOCH_NS + 5 * S),
        (LAST, EPOCH_NS + 11 * YEAR, EPOCH_NS + HOUR),
        (LAST, 5 * S, 5 * S),
        (None, EPOCH_NS + 11 * YEAR, EPOCH_NS + 11 * YEAR),
    ],
)
def test_today_is_no_later_than_the_last_page_and_what_passed_since(
    last: tuple[Clock, int] | None, wall_ns: int, today_ns: int
) -> None:
    assert Pruning(1000 * S, last).today_ns(1000 * S + HOUR, wall_ns) == today_ns


def test_a_clock_without_a_step_is_trusted_after_a_week() -> None:
    """A daemon that was off for a month forgets what is due, if later."""
    pruning = Pruning(0, LAST)
    late_ns = EPOCH_NS + 30 * DAY
    assert pruning.today_ns(7 * DAY - 1, late_ns) == EPOCH_NS + 7 * DAY - 1
    assert pruning.today_ns(7 * DAY, late_ns) == late_ns
    pruning.stepped(8 * DAY, late_ns, late_ns + 11 * YEAR)
    assert pruning.due_ns == 8 * DAY + HOUR
    assert pruning.today_ns(9 * DAY, late_ns + 11 * YEAR + 9 * DAY) == late_ns + 9 * DAY


def test_a_clock_set_once_an_hour_by_a_little_does_not_hold_it_up() -> None:
    pruning = Pruning(0, LAST)
    pruning.stepped(HOUR - 1, EPOCH_NS, EPOCH_NS + S)
    assert pruning.due_ns == HOUR


@given(
    steps=st.lists(
        st.tuples(
            st.integers(1, 6 * DAY),
            st.integers(HOUR, 20 * YEAR) | st.integers(-20 * YEAR, -HOUR),
        ),
        min_size=1,
        max_size=5,
    ),
    rest_ns=st.integers(0, 6 * DAY),
)
def test_no_steps_ever_bring_today_past_the_true_time(
    steps: list[tuple[int, int]], rest_ns: int
) -> None:
    """As long as none lasts for a week, and the ledger was up to date at the start."""
    pruning = Pruning(0, LAST)
    now_ns, epoch_ns = 0, EPOCH_NS
    for stay_ns, step_ns in steps:
        now_ns += stay_ns
        pruning.stepped(now_ns, epoch_ns, epoch_ns + step_ns)
        epoch_ns += step_ns
        at_ns = now_ns + rest_ns
        assert pruning.today_ns(at_ns, epoch_ns + at_ns) <= EPOCH_NS + at_ns


def hourly(world: World, hours: int) -> None:
    """Turns far apart, so that hours pass in no time."""
    for _ in range(hours * 60):
        world.time.now_ns += 60 * S
        world.pipeline.turn()


@pytest.mark.parametrize("years", [0.03, 2, 11])
def test_a_clock_ahead_at_a_start_costs_no_history(tmp_path: Path, years: float) -> None:
    """The host boots with its clock ahead, and its network puts it right after 2 s or 3 h."""
    world = begin(tmp_path)
    world.run(1060)
    world.pipeline.finish()
    before_uj = energy_uj(world.ledger)
    for wrong_hours in (0, 3):
        world.time.epoch_ns = EPOCH_NS + round(years * YEAR)
        world = World(world.ledger, world.time, tmp_path)
        world.run(world.time.now_ns / S + 2)
        hourly(world, wrong_hours)
        # No clock is ever put right to the nanosecond.
        world.time.epoch_ns = EPOCH_NS + wrong_hours + 1
        world.run(world.time.now_ns / S + 30)
        world.pipeline.finish()
        assert world.ledger.kept_ns() == 0
    assert energy_uj(world.ledger) > before_uj
    assert world.ledger.check() == []


def test_a_young_ledger_under_a_clock_ahead_takes_pages_of_the_right_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    time = FakeTime(1000 * S)
    time.epoch_ns += 11 * YEAR
    world = begin(tmp_path, time=time)
    world.run(1030)
    hourly(world, 3)
    time.epoch_ns = EPOCH_NS
    world.run(time.now_ns / S + 30)
    world.pipeline.finish()
    assert "page_refused" not in caplog.text
    (book,) = world.ledger.books(0, EPOCH_NS + YEAR).devices
    assert book.posted_uj > 0


def test_what_is_due_is_forgotten_under_a_right_clock(tmp_path: Path) -> None:
    world = begin(tmp_path)
    world.pipeline.retention = Retention(raw_days=1 / 24)
    world.run(1030)
    hourly(world, 4)
    assert world.ledger.kept_ns() > EPOCH_NS + 1030 * S
    assert world.ledger.slices(ALL_TIME).slices
