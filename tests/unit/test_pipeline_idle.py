"""Learned idle power through the daemon's inner half: journalled, kept, and there after a crash."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fakes.daemon_parts import BOOT_ID, CLOCK, EPOCH_NS, FakeTime, FlakyLedger
from wattledger.records import (
    NS_PER_S,
    Clock,
    CounterReading,
    Device,
    DeviceKind,
    ProcessUse,
    StaticBasis,
    UseRecord,
)
from wattledger.store.protocol import Retention
from wattledger_daemon.heart.accountant import AccountantSettings
from wattledger_daemon.intake import Intake
from wattledger_daemon.pipeline import Pipeline
from wattledger_daemon.recording import Recorder
from wattledger_daemon.recovery import recover
from wattledger_daemon.sources import Sources

SETTINGS = AccountantSettings(learn_idle=True)
GPU = Device("gpu0", DeviceKind.GPU, "NVIDIA H200")
LEARNED = replace(GPU, static_w=70.0, static_basis=StaticBasis.LEARNED)
ALL_TIME = [0, 4 * EPOCH_NS]
OTHER_BOOT = replace(CLOCK, boot_id="99999999-2222-3333-4444-555555555555")


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[FlakyLedger]:
    with FlakyLedger(tmp_path / "ledger.db") as found:
        yield found


class Host(FakeTime):
    """Time and a GPU's counter, which both go on while no daemon runs."""

    energy_uj = 0


class Life:
    """One life of the daemon: a GPU whose sensor opens, and then reads each second."""

    def __init__(
        self, ledger: FlakyLedger, time: Host, *, clock: Clock = CLOCK, device: Device = GPU
    ) -> None:
        self.time, self.ledger = time, ledger
        self.intake = Intake(100_000)
        sources = Sources(self.intake, lambda _: None, Path(ledger._path).parent)
        present = replace(clock, epoch_ns=time.epoch_ns)
        recovered = recover(ledger, sources, present, time.now_ns, settings=SETTINGS)
        self.pipeline = Pipeline(
            ledger,
            recovered,
            self.intake,
            sources,
            recorder=Recorder(),
            time=time.host,
            retention=Retention(),
            horizon_ns=SETTINGS.horizon_ns or 0,
            sensors=list,
        )
        self.pipeline.begin()
        self.intake.offer([device])

    def run(self, seconds: int, power_w: int, owner: bool = False) -> None:
        for _ in range(seconds):
            start_ns = self.time.now_ns
            self.time.now_ns += NS_PER_S
            now_ns = self.time.now_ns
            self.time.energy_uj += power_w * 10**6
            owners = (ProcessUse(9),) if owner else ()
            self.intake.offer(
                [
                    CounterReading("gpu0", now_ns, self.time.energy_uj),
                    UseRecord("gpu0", start_ns, now_ns, owners),
                ]
            )
            self.pipeline.turn()


def told(ledger: FlakyLedger) -> dict[StaticBasis, int]:
    """Energy by what idle power is known from."""
    sums: dict[StaticBasis, int] = {}
    for piece in ledger.slices(ALL_TIME).slices:
        basis = piece.account.static_basis
        sums[basis] = sums.get(basis, 0) + piece.amounts.energy_uj
    return sums


def test_a_restart_under_load_keeps_what_was_known_and_learns_nothing(ledger: FlakyLedger) -> None:
    time = Host(1000 * NS_PER_S)
    Life(ledger, time).run(90, 70)
    assert ledger.learned("h1") == [LEARNED]
    before = told(ledger)[StaticBasis.UNKNOWN]
    for _ in range(2):
        Life(ledger, time).run(120, 50, owner=True)
    assert ledger.learned("h1") == [LEARNED]
    assert told(ledger)[StaticBasis.UNKNOWN] == before
    assert ledger.check() == []


def test_a_trimmed_journal_still_knows(ledger: FlakyLedger) -> None:
    time = Host(1000 * NS_PER_S)
    Life(ledger, time).run(90, 70)
    Life(ledger, time).run(1000, 400, owner=True)
    ledger.learn("h1", [replace(GPU, static_w=None)], 0)
    Life(ledger, time).run(20, 400, owner=True)
    assert ledger.learned("h1") == [LEARNED]


def test_another_boot_knows_and_another_model_does_not(ledger: FlakyLedger) -> None:
    Life(ledger, Host(1000 * NS_PER_S)).run(90, 70)
    later = Host(0)
    later.epoch_ns += 10_000 * NS_PER_S
    before = told(ledger)
    Life(ledger, later, clock=OTHER_BOOT).run(60, 400, owner=True)
    assert told(ledger)[StaticBasis.UNKNOWN] == before[StaticBasis.UNKNOWN]
    assert told(ledger)[StaticBasis.LEARNED] > before[StaticBasis.LEARNED] + 40 * 400 * 10**6
    swapped = Host(0)
    swapped.epoch_ns += 20_000 * NS_PER_S
    third = replace(CLOCK, boot_id="third")
    Life(ledger, swapped, clock=third, device=replace(GPU, model="A40")).run(60, 400, owner=True)
    assert told(ledger)[StaticBasis.UNKNOWN] > before[StaticBasis.UNKNOWN] + 40 * 400 * 10**6


class Forgetful(FlakyLedger):
    """A ledger whose disk fills up just when idle power is to be kept."""

    def learn(self, host: str, devices: Iterable[Device], learned_ns: int) -> None:
        self._write("learn")
        super().learn(host, devices, learned_ns)


def test_a_crash_before_it_is_kept_is_made_good_from_the_journal(tmp_path: Path) -> None:
    time = Host(1000 * NS_PER_S)
    with Forgetful(tmp_path / "other.db") as ledger:
        ledger.full = "learn"
        Life(ledger, time).run(90, 70)
        assert ledger.learned("h1") == []
        ledger.full = None
        Life(ledger, time)
        assert ledger.learned("h1") == [LEARNED]
        assert BOOT_ID in ledger.boots()
