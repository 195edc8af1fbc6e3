"""One life after another of a daemon's inner half on one ledger, in simulated time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from fakes.daemon_parts import BOOT_ID, CLOCK, EPOCH_NS, FakeTime
from fakes.push_client import a_batch
from wattledger.records import (
    Clock,
    CounterReading,
    Device,
    DeviceKind,
    PinnedCost,
    ProcessUse,
    UseRecord,
)
from wattledger.store.protocol import JournalEntry, Retention
from wattledger.store.sqlite import SqliteLedger
from wattledger_daemon.heart.accountant import AccountantSettings
from wattledger_daemon.intake import Intake
from wattledger_daemon.listening import Listener
from wattledger_daemon.pipeline import Pipeline
from wattledger_daemon.questions import Questions
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
        listeners: Sequence[Listener] = (),
        questions: Questions | None = None,
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
            listeners=listeners,
            questions=questions,
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
    tmp_path: Path,
    ledger: SqliteLedger | None = None,
    time: FakeTime | None = None,
    *,
    questions: Questions | None = None,
) -> World:
    ledger = ledger or SqliteLedger(tmp_path / "ledger.db", create=True)
    world = World(ledger, time or FakeTime(1000 * S), tmp_path, questions=questions)
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
