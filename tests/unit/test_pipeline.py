"""From the queue to the ledger: durable first, booked after."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from fakes.daemon_parts import BOOT_ID, CLOCK, EPOCH_NS, FakeTime, FlakyLedger
from fakes.pipeline_world import (
    ALL_TIME,
    GPU,
    S,
    World,
    begin,
    energy_uj,
    finished,
    kinds,
    tokens,
    use,
)
from wattledger.records import CounterReading, Engine, Evidence, Process, StaticBasis
from wattledger.store.connection import LedgerLostError
from wattledger.store.protocol import Retention
from wattledger.trace import TraceHeader, decode


def test_windows_are_booked_past_the_watermark(tmp_path: Path) -> None:
    world = begin(tmp_path)
    world.push(1, 1001, 1002)
    world.run(1014)
    assert tokens(world.ledger) == 0
    world.run(1015)
    assert tokens(world.ledger) == 100
    slices = world.ledger.slices(ALL_TIME).slices
    assert {s.account.job for s in slices if s.amounts.prefill_tokens} == {"4711"}
    assert world.pipeline.snapshot.windows_booked == 1
    assert [round(d.power_w or 0) for d in world.pipeline.snapshot.devices] == [100]


def test_finish_books_a_last_partial_window(tmp_path: Path) -> None:
    world = begin(tmp_path)
    world.push(1, 1006, 1007)
    world.run(1007.5)
    world.pipeline.finish()
    # The first reading is a point of E(t); what came before it is unknown.
    assert energy_uj(world.ledger) == 7_400_000 * 100
    assert (tokens(world.ledger), finished(world.ledger)) == (100, 1)


def test_nothing_is_acknowledged_before_it_is_durable(tmp_path: Path) -> None:
    ledger = FlakyLedger(tmp_path / "ledger.db")
    world = begin(tmp_path, ledger)
    world.push(1, 1000, 1001)
    ledger.full = "append"
    world.run(1003)
    assert world.committed() == 0
    assert world.push(2, 1002, 1003) == 0
    ledger.full = None
    world.run(1004)
    assert world.committed() == 2
    assert kinds(ledger.appended).count("batch") == 2


@pytest.mark.parametrize("what", ["append", "book", "all"])
def test_a_full_disk_is_told_once_and_costs_nothing(
    tmp_path: Path, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = FlakyLedger(tmp_path / "ledger.db")
    world = begin(tmp_path, ledger)
    world.run(1010)
    ledger.full = what
    world.push(1, 1010, 1011)
    world.run(1030)
    ledger.full = None
    world.run(1040)
    world.pipeline.finish()
    assert energy_uj(ledger) == 39_900_000 * 100
    assert (tokens(ledger), finished(ledger)) == (100, 1)
    told = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert told == [
        'event=ledger_failing reason="ledger.db: no space left on its disk: free some"',
        "event=ledger_works_again",
    ]


def test_a_stop_on_a_full_disk_says_what_it_leaves_to_the_next_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = FlakyLedger(tmp_path / "ledger.db")
    world = begin(tmp_path, ledger)
    world.run(1020)
    ledger.full = "all"
    world.run(1023)
    world.pipeline.finish()
    lines = [r.getMessage() for r in caplog.records if "last_part_not_booked" in r.getMessage()]
    assert len(lines) == 1
    assert "seconds=13.0 not_journalled=30 reason=" in lines[0]
    assert "no space left" in lines[0]
    ledger.full = None
    World(ledger, world.time, tmp_path).pipeline.finish()
    # The readings of the last three seconds are gone; the next one brings their energy.
    assert energy_uj(ledger) == 19_900_000 * 100


def test_a_queue_that_overflows_counts_what_it_lost(tmp_path: Path) -> None:
    world = begin(tmp_path)
    world.run(1001)
    world.intake.offer([use()] * 100_001)
    world.run(1020)
    assert world.ledger.books(*ALL_TIME).dropped == 100_001


def test_a_ledger_that_is_gone_ends_the_daemon_and_acknowledges_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = begin(tmp_path)
    world.run(1001)
    for path in tmp_path.glob("ledger.db*"):
        path.unlink()
    world.push(1, 1001.1, 1001.9)
    for end in (world.pipeline.turn, world.pipeline.finish):
        with pytest.raises(LedgerLostError, match="deleted or replaced while in use"):
            end()
    assert world.committed() == 0
    assert caplog.text.count("event=ledger_lost") == 2
    assert not list(tmp_path.glob("ledger.db*"))


@pytest.mark.parametrize("step_s", [-3600, 3600, 0.7])
def test_a_wall_clock_step_neither_merges_nor_overwrites(
    tmp_path: Path, step_s: float, caplog: pytest.LogCaptureFixture
) -> None:
    time = FakeTime(1000 * S)
    world = begin(tmp_path, time=time)
    world.run(1012.5)
    time.epoch_ns += round(step_s * S)
    world.run(1030)
    world.pipeline.finish()
    assert energy_uj(world.ledger) == 29_900_000 * 100
    assert f"event=wall_clock_stepped step_s={step_s:.3f}" in caplog.text
    last = world.ledger.last_page("h1")
    assert last
    assert last[0].epoch_ns == EPOCH_NS + round(step_s * S)


def test_a_small_drift_is_no_step(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    time = FakeTime(1000 * S)
    world = begin(tmp_path, time=time)
    world.run(1005)
    time.epoch_ns += 4 * S // 10
    world.run(1006)
    world = World(world.ledger, time, tmp_path)
    assert world.accountant.clock == CLOCK
    assert "wall_clock_stepped" not in caplog.text


def test_a_page_that_the_ledger_refuses_for_what_it_says_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Pages of a time that was pruned meanwhile: told once, and in the end how many."""
    world = begin(tmp_path)
    world.run(1020)
    world.ledger.prune(Retention(), EPOCH_NS + 8 * 86400 * S)
    world.run(1060)
    assert "event=pages_not_booked" not in caplog.text
    world.pipeline.finish()
    assert caplog.text.count("event=page_refused") == 1
    assert "event=pages_not_booked refused=10" in caplog.text


def test_a_registered_process_keeps_its_name(tmp_path: Path) -> None:
    world = begin(tmp_path)
    world.push(1, 1000.1, 1000.9)
    world.intake.offer([Process(41, 5, "session-1.scope", None)])
    world.run(1001)
    assert Process(41, 5, "session-1.scope", "4711") in world.accountant.roster()


def test_a_recording_can_be_replayed(tmp_path: Path) -> None:
    world = begin(tmp_path)
    world.run(1002)
    subscription = world.recorder.subscribe()
    assert subscription
    world.push(1, 1002.1, 1002.9)
    world.run(1004)
    records: list[Evidence | TraceHeader] = []
    while lines := subscription.next():
        records += map(decode, lines)
    header = records[0]
    assert header == TraceHeader("h1", EPOCH_NS, "FRA", BOOT_ID)
    assert records[1] == GPU
    assert Engine("fake-1", "fake", "tiny", (41,)) in records
    assert sum(isinstance(record, CounterReading) for record in records) >= 10


def test_config_gives_a_running_device_another_idle_power(tmp_path: Path) -> None:
    world = begin(tmp_path)
    world.run(1005)
    world.intake.offer([replace(GPU, static_w=40.0, static_basis=StaticBasis.CONFIG)])
    world.run(1020)
    world.pipeline.finish()
    static_uj = sum(s.amounts.static_uj for s in world.ledger.slices(ALL_TIME).slices)
    assert static_uj > 0
    assert energy_uj(world.ledger) == 19_900_000 * 100


def test_turns_are_rarer_where_nobody_reports_and_nobody_looks(tmp_path: Path) -> None:
    world = begin(tmp_path)
    assert world.pipeline.pace_s == 1.0
    world.run(1035)
    assert world.pipeline.pace_s == 5.0
    assert world.pipeline.snapshot
    assert world.pipeline.pace_s == 1.0
    world.run(1050)
    assert world.pipeline.pace_s == 5.0
    world.push(1, 1049.1, 1049.9)
    world.run(1052)
    assert world.pipeline.pace_s == 1.0
    world.run(1090)
    subscription = world.recorder.subscribe()
    assert subscription
    assert world.pipeline.pace_s == 1.0
    world.recorder.unsubscribe(subscription)
    assert world.pipeline.pace_s == 5.0
