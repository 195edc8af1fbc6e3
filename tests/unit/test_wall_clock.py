"""A wall clock that cannot be right costs no page, no history and no daemon."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fakes.daemon_parts import CLOCK, EPOCH_NS, FakeTime
from fakes.pipeline_world import ALL_TIME, S, World, begin, use
from wattledger.errors import InputError
from wattledger.store.protocol import Retention
from wattledger_daemon.hosttime import LATEST_NS, believed

DAY = 86_400 * S
YEAR = 365 * DAY
LAST = (CLOCK, EPOCH_NS + 7 * S)
OTHER_BOOT = replace(CLOCK, boot_id="99999999-2222-3333-4444-555555555555")


def posted_uj(world: World, start_ns: int = 0) -> int:
    devices = world.ledger.books(start_ns, ALL_TIME[1]).devices
    assert [book.metered_uj for book in devices] == [book.posted_uj for book in devices]
    return sum(book.posted_uj for book in devices)


def a_next_boot(tmp_path: Path) -> World:
    """A boot on a ledger that has forgotten its days of more than a day ago."""
    world = begin(tmp_path)
    world.run(1020)
    world.pipeline.finish()
    time = FakeTime(1000 * S)
    time.epoch_ns = EPOCH_NS + 2 * DAY
    world = World(world.ledger, time, tmp_path, clock=OTHER_BOOT)
    world.ledger.prune(Retention(raw_days=1.0), EPOCH_NS + 2 * DAY)
    assert world.ledger.kept_ns() > EPOCH_NS
    world.intake.offer([use()])
    world.run(1020)
    return world


@pytest.mark.parametrize("epoch_ns", [0, EPOCH_NS + 300 * YEAR])
def test_a_clock_stepped_to_what_cannot_be_is_not_followed(
    tmp_path: Path, epoch_ns: int, caplog: pytest.LogCaptureFixture
) -> None:
    world = a_next_boot(tmp_path)
    right_ns, before_uj = world.time.epoch_ns, posted_uj(world, EPOCH_NS + DAY)
    world.time.epoch_ns = epoch_ns
    world.run(1050)
    world.time.epoch_ns = right_ns
    world.run(1100)
    world.pipeline.finish()
    assert caplog.text.count("event=wall_clock_wrong") == 1
    assert "wall_clock_stepped" not in caplog.text
    assert "page_refused" not in caplog.text
    assert before_uj < posted_uj(world, EPOCH_NS + DAY) == 99_900_000 * 100


def test_a_boot_in_1970_goes_on_from_the_last_page_until_the_clock_is_right(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = a_next_boot(tmp_path)
    world.pipeline.finish()
    ledger, before_uj = world.ledger, posted_uj(world)
    time = FakeTime(10 * S)
    time.epoch_ns = 0
    clock = replace(CLOCK, boot_id="aaaaaaaa-2222-3333-4444-555555555555")
    world = World(ledger, time, tmp_path, clock=clock)
    world.intake.offer([use()])
    world.run(40)
    # Restarted before its network has answered.
    world = World(ledger, time, tmp_path, clock=clock)
    world.run(70)
    time.epoch_ns = EPOCH_NS + 3 * DAY
    world.run(100)
    world.pipeline.finish()
    assert posted_uj(world) - before_uj == 89_900_000 * 100
    late_ns = EPOCH_NS + 2 * DAY + 1020 * S
    assert posted_uj(world, late_ns) == 89_900_000 * 100
    # The first turn after the step follows it.
    assert posted_uj(world, EPOCH_NS + 3 * DAY) == 29_000_000 * 100
    assert caplog.text.count("event=wall_clock_wrong") == 2
    assert "page_refused" not in caplog.text


def test_a_clock_that_can_be_right_is_believed() -> None:
    assert believed(CLOCK, 5 * S, EPOCH_NS, LAST) == CLOCK
    assert believed(CLOCK, 5 * S, 0, None) == CLOCK
    # With nothing to go on from, one that is merely old is taken as it is.
    assert believed(CLOCK, 5 * S, EPOCH_NS + DAY, None) == CLOCK


def test_one_that_cannot_goes_on_from_the_last_page() -> None:
    early = replace(CLOCK, epoch_ns=0)
    assert believed(early, 5 * S, DAY, LAST) == CLOCK
    other = replace(early, boot_id=OTHER_BOOT.boot_id)
    assert believed(other, 5 * S, DAY, LAST) == replace(OTHER_BOOT, epoch_ns=EPOCH_NS + 2 * S)
    beyond = replace(other, epoch_ns=LATEST_NS)
    assert believed(beyond, 5 * S, 0, LAST) == replace(OTHER_BOOT, epoch_ns=EPOCH_NS + 2 * S)
    with pytest.raises(InputError, match="beyond the year 2232: set it"):
        believed(beyond, 5 * S, 0, None)
