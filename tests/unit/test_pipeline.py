"""From the queue to the ledger: durable first, booked after, and the same again after a crash."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from fakes.daemon_parts import BOOT_ID, CLOCK, EPOCH_NS, FakeTime, FlakyLedger
from fakes.push_client import a_batch
from wattledger.records import (
    Clock,
    CostModel,
    CounterReading,
    Device,
    DeviceKind,
    Engine,
    Evidence,
    PinnedCost,
    Process,
    ProcessUse,
    StaticBasis,
    UseRecord,
)
from wattledger.store.connection import LedgerLostError
from wattledger.store.protocol import JournalEntry, Retention
from wattledger.store.sqlite import SqliteLedger
from wattledger.trace import TraceHeader, decode
from wattledger_daemon.heart.accountant import AccountantSettings
from wattledger_daemon.intake import Intake
from wattledger_daemon.pipeline import Pipeline
from wattledger_daemon.recording import Recorder
from wattledger_daemon.recovery import recover
from wattledger_daemon.sources import Sources

S = 1_000_000_000
SETTINGS = AccountantSettings()
GPU = Device("gpu0", DeviceKind.GPU, "NVIDIA H200")
ALL_TIME = (0, 4 * EPOCH_NS)


class World:
    """One life of a daemon's inner half on a ledger; a later life may follow on the same one."""

    def __init__(
        self,
        ledger: SqliteLedger,
        time: FakeTime,
        tmp_path: Path,
        *,
        clock: Clock = CLOCK,
        pinned: Iterable[PinnedCost] = (),
    ) -> None:
        self.time = time
        self.ledger = ledger
        self.intake = Intake(100_000)
        self.sources = Sources(self.intake, lambda _: None, tmp_path)
        self.recorder = Recorder()
        recovered = recover(
            ledger,
            self.sources,
            replace(clock, epoch_ns=time.epoch_ns),
            time.now_ns,
            settings=SETTINGS,
            pinned=tuple(pinned),
        )
        self.accountant = recovered.accountant
        self.pipeline = Pipeline(
            ledger,
            recovered,
            self.intake,
            self.sources,
            recorder=self.recorder,
            time=time.host,
            retention=Retention(),
            horizon_ns=SETTINGS.horizon_ns or 0,
            sensors=list,
            zone="FRA",
        )
        self.pipeline.begin()
        # As a sensor does when it opens.
        self.intake.offer([GPU])

    def run(self, until_s: float, watts: int = 100) -> None:
        """Live until then: a reading ten times, and a turn once, a second."""
        while self.time.now_ns < round(until_s * S):
            self.time.now_ns += S // 10
            now_ns = self.time.now_ns
            self.intake.offer([CounterReading("gpu0", now_ns, now_ns * watts // 1000)])
            if now_ns % S == 0:
                self.pipeline.turn()

    def push(self, sequence: int, start_s: float, end_s: float, request: str = "r") -> int:
        """A batch of one step and its finish; returns the committed sequence."""
        start_ns, end_ns = round(start_s * S), round(end_s * S)
        batch = a_batch(
            sequence,
            [(start_ns, end_ns, [(f"{request}{sequence}", 100, 0, 0)])],
            [(f"{request}{sequence}", end_ns, 100, 0, 0)],
            boot_id=BOOT_ID,
            sent_ns=self.time.now_ns,
            pids=[41],
            job="4711",
        )
        return self.sources.take(batch, self.time.now_ns)

    def committed(self) -> int:
        question = a_batch(0, boot_id=BOOT_ID, sent_ns=self.time.now_ns, pids=[41], job="4711")
        return self.sources.take(question, self.time.now_ns)


def use(end_s: int = 10_000) -> UseRecord:
    return UseRecord("gpu0", 0, end_s * S, (ProcessUse(41, 60, 1 << 30),))


def begin(
    tmp_path: Path, ledger: SqliteLedger | None = None, time: FakeTime | None = None
) -> World:
    ledger = ledger or SqliteLedger(tmp_path / "ledger.db", create=True)
    world = World(ledger, time or FakeTime(1000 * S), tmp_path)
    world.intake.offer([use()])
    return world


def energy_uj(ledger: SqliteLedger) -> int:
    (device,) = ledger.books(*ALL_TIME).devices
    assert device.metered_uj == device.posted_uj
    return device.posted_uj


def tokens(ledger: SqliteLedger) -> int:
    return sum(s.amounts.prefill_tokens for s in ledger.slices(ALL_TIME).slices)


def finished(ledger: SqliteLedger) -> int:
    return sum(s.amounts.requests for s in ledger.slices(ALL_TIME).slices)


def kinds(entries: Iterable[JournalEntry]) -> list[str]:
    return [str(entry.kind) for entry in entries]


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


def test_a_queue_that_overflows_counts_what_it_lost(tmp_path: Path) -> None:
    world = begin(tmp_path)
    world.run(1001)
    world.intake.offer([use()] * 100_001)
    world.run(1020)
    assert world.ledger.books(*ALL_TIME).dropped == 100_001


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


def test_a_small_drift_is_no_step(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    time = FakeTime(1000 * S)
    world = begin(tmp_path, time=time)
    world.run(1005)
    time.epoch_ns += 4 * S // 10
    world.run(1006)
    world = World(world.ledger, time, tmp_path)
    assert world.accountant.clock == CLOCK
    assert "wall_clock_stepped" not in caplog.text


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


def test_a_page_that_the_ledger_refuses_for_what_it_says_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A wall clock back at 1970 gives windows older than all the ledger keeps."""
    time = FakeTime(1000 * S)
    world = begin(tmp_path, time=time)
    world.run(1020)
    time.epoch_ns = 0
    world.run(1040)
    assert caplog.text.count("event=page_refused") >= 1
    time.epoch_ns = EPOCH_NS
    world.run(1060)
    world.pipeline.finish()
    assert world.ledger.books(*ALL_TIME).devices[0].metered_uj > 0


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
    while lines := subscription.next(0):
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
