"""A daemon that died: the same books after as if it had not, and what it may forget."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fakes.daemon_parts import BOOT_ID, CLOCK, EPOCH_NS, FakeTime
from fakes.pipeline_world import ALL_TIME, S, World, begin, energy_uj, finished, tokens
from fakes.push_client import a_batch
from wattledger.records import CostModel, PinnedCost
from wattledger.store.protocol import JournalEntry


@pytest.mark.parametrize("crash_s", [1001, 1004, 1012, 1015, 1017, 1031])
def test_a_crash_anywhere_loses_and_doubles_nothing(tmp_path: Path, crash_s: int) -> None:
    time = FakeTime(1000 * S)
    world = begin(tmp_path, time=time)
    for second in range(1001, 1040):
        if second == crash_s:
            # The dead daemon took this in and never acknowledged it.
            world.push(second - 1000, second - 0.9, second - 0.1)
            world = World(world.ledger, time, tmp_path)
            assert world.committed() == second - 1001
        world.push(second - 1000, second - 0.9, second - 0.1)
        world.run(second)
        if second == crash_s + 1:
            # The reporter sends again what it does not know to be on disk.
            world.push(second - 1000, second - 0.9, second - 0.1)
    world.pipeline.finish()
    assert energy_uj(world.ledger) == 38_900_000 * 100
    assert (tokens(world.ledger), finished(world.ledger)) == (3900, 39)
    assert world.ledger.check() == []


def test_a_crash_leaves_the_same_books_as_none(tmp_path: Path) -> None:
    books = []
    for name, crashes in (("whole", ()), ("broken", (1013, 1016, 1027))):
        folder = tmp_path / name
        folder.mkdir()
        time = FakeTime(1000 * S)
        world = begin(folder, time=time)
        for second in range(1001, 1040):
            world.push(second - 1000, second - 0.9, second - 0.1)
            world.run(second)
            if second in crashes:
                world = World(world.ledger, time, folder)
        # A late event of a window that was booked before the crashes.
        world.push(40, 1003.0, 1003.5, "late")
        world.run(1060)
        found = world.ledger.slices(ALL_TIME).slices
        books.append(sorted((repr(s.account), s.amounts.energy_uj, s.amounts) for s in found))
    assert books[0] == books[1]


def test_a_dead_stretch_is_booked_when_the_daemon_is_back(tmp_path: Path) -> None:
    time = FakeTime(1000 * S)
    world = begin(tmp_path, time=time)
    world.run(1012)
    time.now_ns = 1400 * S
    world = World(world.ledger, time, tmp_path)
    world.run(1420)
    world.pipeline.finish()
    assert energy_uj(world.ledger) == 419_900_000 * 100
    qualities = {s.account.quality.value for s in world.ledger.slices(ALL_TIME).slices}
    assert qualities == {"measured", "spread"}


def test_counts_survive_a_crash(tmp_path: Path) -> None:
    time = FakeTime(1000 * S)
    world = begin(tmp_path, time=time)
    world.push(1, 1000.1, 1000.9)
    world.run(1001)
    world.push(1, 1000.1, 1000.9)
    world.run(1002)
    world = World(world.ledger, time, tmp_path)
    world.run(1020)
    assert world.ledger.books(*ALL_TIME).duplicates == 2


def test_what_a_source_dropped_is_counted_once_across_crashes(tmp_path: Path) -> None:
    time = FakeTime(1000 * S)
    world = begin(tmp_path, time=time)

    def dropped(total: int, sequence: int = 0) -> None:
        batch = a_batch(sequence, boot_id=BOOT_ID, sent_ns=time.now_ns, pids=[41])
        batch.dropped_events = total
        world.sources.take(batch, time.now_ns)

    world.run(1001)
    dropped(3)
    world.run(1002)
    world = World(world.ledger, time, tmp_path)
    dropped(3)
    dropped(5, sequence=1)
    world.run(1003)
    # Died before this one was on disk.
    dropped(9, sequence=2)
    world = World(world.ledger, time, tmp_path)
    dropped(9, sequence=2)
    world.run(1900)
    world = World(world.ledger, time, tmp_path)
    dropped(9)
    world.run(1920)
    assert world.ledger.books(*ALL_TIME).dropped == 9


def test_another_boots_journal_is_booked_and_forgotten(tmp_path: Path) -> None:
    world = begin(tmp_path)
    world.push(1, 1000.5, 1001)
    world.run(1012)
    time = FakeTime(5 * S)
    time.epoch_ns = EPOCH_NS + 2000 * S
    boot = replace(CLOCK, boot_id="99999999-2222-3333-4444-555555555555")
    again = World(world.ledger, time, tmp_path, clock=boot)
    assert energy_uj(again.ledger) == 11_900_000 * 100
    assert (tokens(again.ledger), finished(again.ledger)) == (100, 1)
    assert again.ledger.boots() == [boot.boot_id]
    again.pipeline.turn()
    assert again.committed() == 0


def test_a_crash_after_a_step_folds_each_stretch_under_its_own_clock(tmp_path: Path) -> None:
    time = FakeTime(1000 * S)
    world = begin(tmp_path, time=time)
    world.run(1012.5)
    time.epoch_ns += 3600 * S
    world.run(1030)
    before = world.ledger.slices(ALL_TIME).slices
    world = World(world.ledger, time, tmp_path)
    assert world.ledger.slices(ALL_TIME).slices == before
    world.run(1040)
    world.pipeline.finish()
    assert energy_uj(world.ledger) == 39_900_000 * 100


def test_a_step_while_the_daemon_was_dead(tmp_path: Path) -> None:
    time = FakeTime(1000 * S)
    world = begin(tmp_path, time=time)
    world.run(1012.5)
    time.epoch_ns -= 3600 * S
    world = World(world.ledger, time, tmp_path)
    assert energy_uj(world.ledger) == 11_900_000 * 100
    world = World(world.ledger, time, tmp_path)
    world.run(1030)
    world.pipeline.finish()
    assert energy_uj(world.ledger) == 29_900_000 * 100


def test_another_host_name_in_the_config_holds_from_the_restart_on(tmp_path: Path) -> None:
    time = FakeTime(1000 * S)
    world = begin(tmp_path, time=time)
    world.run(1012)
    for _ in range(2):
        world = World(world.ledger, time, tmp_path, clock=replace(CLOCK, host="h2"))
        world.run(time.now_ns // S + 10)
    world.pipeline.finish()
    by_host = {"h1": 0, "h2": 0}
    for found in world.ledger.slices(ALL_TIME).slices:
        by_host[found.host] += found.amounts.energy_uj
    assert by_host == {"h1": 11_900_000 * 100, "h2": 20_000_000 * 100}


def test_a_trimmed_journal_still_knows_who_and_how_far(tmp_path: Path) -> None:
    time = FakeTime(1000 * S)
    world = begin(tmp_path, time=time)
    world.push(1, 1000.1, 1000.9)
    world.run(2200)
    entries = world.ledger.entries(BOOT_ID)
    assert min(entry.t_ns for entry in entries) >= 1300 * S
    world = World(world.ledger, time, tmp_path)
    assert world.committed() == 1
    assert world.accountant.clock == CLOCK
    world.push(1, 1000.1, 1000.9)
    world.run(2220)
    world.pipeline.finish()
    assert energy_uj(world.ledger) == 1_219_900_000 * 100
    assert (tokens(world.ledger), finished(world.ledger)) == (100, 1)


def test_costs_come_from_the_config_of_today_not_from_the_journal(tmp_path: Path) -> None:
    time = FakeTime(1000 * S)
    world = begin(tmp_path, time=time)
    world.intake.offer([PinnedCost("fake-1", CostModel(0, 1, 1, 0))])
    world.run(1001)
    assert any(isinstance(item, PinnedCost) for item in world.accountant.roster())
    world = World(world.ledger, time, tmp_path)
    assert not any(isinstance(item, PinnedCost) for item in world.accountant.roster())
    pinned = PinnedCost("fake-1", CostModel(0, 2, 2, 0))
    world = World(world.ledger, time, tmp_path, pinned=[pinned])
    assert pinned in world.accountant.roster()


def test_a_damaged_journal_entry_costs_itself_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    time = FakeTime(1000 * S)
    world = begin(tmp_path, time=time)
    world.run(1002)
    damaged = [
        JournalEntry("trace", b'{"type":"counter"\n\xff', time.now_ns),
        JournalEntry("batch", b"\xff\xff", time.now_ns),
        JournalEntry("booked", b"{}", time.now_ns),
        JournalEntry("count", b'{"colour":1}', time.now_ns),
    ]
    world.ledger.append(BOOT_ID, damaged)
    world = World(world.ledger, time, tmp_path)
    assert caplog.text.count("event=journal_entry_unreadable") == 5
    world.run(1010)
    world.pipeline.finish()
    assert energy_uj(world.ledger) == 9_900_000 * 100


def test_a_journal_whose_clock_cannot_be_read_is_told_and_forgotten(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Never a daemon that dies of its own past at every start."""
    time = FakeTime(1000 * S)
    world = begin(tmp_path, time=time)
    world.ledger.forget(BOOT_ID)
    world.ledger.append(BOOT_ID, [JournalEntry("clock", b'{"host":"h1"}', time.now_ns)])
    world = World(world.ledger, time, tmp_path)
    assert caplog.text.count("event=journal_without_clock") == 1
    assert world.ledger.entries(BOOT_ID)[0].body != b'{"host":"h1"}'
