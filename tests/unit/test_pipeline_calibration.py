"""Calibration through the daemon: kept in the ledger, and exactly there after a crash."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from fakes.daemon_parts import CLOCK, FakeTime, FlakyLedger
from wattledger.fits import Calibrated
from wattledger.records import (
    NS_PER_S,
    Clock,
    CounterReading,
    Device,
    DeviceKind,
    Engine,
    Evidence,
    PinnedCost,
    ProcessUse,
    RequestTokens,
    StaticBasis,
    Step,
    UseRecord,
)
from wattledger.store.protocol import Retention
from wattledger_daemon.heart.accountant import AccountantSettings
from wattledger_daemon.intake import Intake
from wattledger_daemon.pipeline import Pipeline
from wattledger_daemon.recording import Recorder
from wattledger_daemon.recovery import recover
from wattledger_daemon.sources import Sources

SETTINGS = AccountantSettings(learn_costs=True)
GPU = Device("gpu0", DeviceKind.GPU, "NVIDIA H200", 50.0, StaticBasis.CONFIG)
EVER = (0, 4 * CLOCK.epoch_ns)


class Host(FakeTime):
    """Time and an engine's work, which are the same in every telling of them."""

    def __init__(self, now_ns: int, epoch_ns: int = CLOCK.epoch_ns) -> None:
        super().__init__(now_ns)
        self.epoch_ns = epoch_ns
        self.random = Random(1)
        self.energy_uj = 0
        self.seq = 0

    def second(self) -> list[Evidence]:
        """One second of work, 20 passes of which cost 2 J + 0.01 a prefill + 0.03 a decode."""
        start_ns = self.now_ns
        self.now_ns += NS_PER_S
        found: list[Evidence] = []
        batch, mix = self.random.randint(1, 200), self.random.choice((0, 0, 100, 400))
        for at in range(20):
            self.seq += 1
            low_ns = start_ns + at * NS_PER_S // 20
            parts = (RequestTokens("", mix, batch, 0),)
            found.append(Step("e", self.seq, low_ns, low_ns + NS_PER_S // 20, parts))
        self.energy_uj += round(1e6 * (50 + 20 * (2 + 0.01 * mix + 0.03 * batch)))
        use = UseRecord("gpu0", start_ns, self.now_ns, (ProcessUse(9, 60.0, 1 << 30),))
        return [*found, use, CounterReading("gpu0", self.now_ns, self.energy_uj)]


class Life:
    """One life of the daemon, which ends without a word."""

    def __init__(self, ledger: FlakyLedger, time: Host, clock: Clock = CLOCK) -> None:
        self.time, self.ledger = time, ledger
        self.intake = Intake(100_000)
        sources = Sources(self.intake, lambda _: None, Path(ledger._path).parent)
        present = replace(clock, epoch_ns=time.epoch_ns)
        recovered = recover(ledger, sources, present, time.now_ns, settings=SETTINGS)
        self.accountant = recovered.accountant
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
        engine = Engine("e", "vllm", "m", (9,))
        self.intake.offer([GPU, CounterReading("gpu0", time.now_ns, time.energy_uj), engine])

    def run(self, seconds: int) -> Life:
        for _ in range(seconds):
            self.intake.offer(self.time.second())
            self.pipeline.turn()
        return self

    def costs(self) -> list[PinnedCost]:
        return [item for item in self.accountant.roster() if isinstance(item, PinnedCost)]


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[FlakyLedger]:
    with FlakyLedger(tmp_path / "ledger.db") as found:
        yield found


def states(ledger: FlakyLedger) -> list[str]:
    return ledger.calibrations("h1")


def test_fits_and_states_are_kept_and_phases_booked_as_calibrated(ledger: FlakyLedger) -> None:
    life = Life(ledger, Host(1000 * NS_PER_S)).run(240)
    (cost,) = life.costs()
    assert (cost.cost.a_j, cost.cost.b_j) == pytest.approx((0.01, 0.03), rel=0.05)
    fits = [kept.fit for kept in ledger.fits(*EVER)]
    assert fits[-1].identified
    assert len(states(ledger)) == 1
    methods = {piece.account.method for piece in ledger.slices(EVER).slices}
    assert {"default-weights", "calibrated"} <= methods
    assert ledger.check() == []


@pytest.mark.parametrize("crashes_s", [(90,), (170, 171), (40, 150, 200, 260)])
def test_crashes_change_nothing_of_what_is_learned(
    ledger: FlakyLedger, tmp_path: Path, crashes_s: tuple[int, ...]
) -> None:
    with FlakyLedger(tmp_path / "whole.db") as other:
        whole = Life(other, Host(1000 * NS_PER_S)).run(300)
        whole.pipeline.finish()
        expected = states(other)
    time, lived_s = Host(1000 * NS_PER_S), 0
    for until_s in crashes_s:
        Life(ledger, time).run(until_s - lived_s)
        lived_s = until_s
    last = Life(ledger, time).run(300 - lived_s)
    last.pipeline.finish()
    assert states(ledger) == expected
    assert last.costs() == whole.costs()


class Forgetful(FlakyLedger):
    """A ledger whose disk fills up just when a calibration is to be kept."""

    def calibrate(self, host: str, told: Iterable[Calibrated]) -> None:
        self._write("calibrate")
        super().calibrate(host, told)


def test_what_could_not_be_kept_is_made_good_from_the_journal(tmp_path: Path) -> None:
    time = Host(1000 * NS_PER_S)
    with Forgetful(tmp_path / "other.db") as ledger:
        ledger.full = "calibrate"
        life = Life(ledger, time).run(240)
        assert (states(ledger), ledger.fits(*EVER)) == ([], [])
        ledger.full = None
        again = Life(ledger, time)
        assert again.costs() == life.costs() != []
        assert len(states(ledger)) == 1
        assert ledger.fits(*EVER)[-1].fit.identified


def test_another_boot_begins_with_what_the_last_one_knew(ledger: FlakyLedger) -> None:
    life = Life(ledger, Host(1000 * NS_PER_S)).run(240)
    later = Host(0, CLOCK.epoch_ns + 10_000 * NS_PER_S)
    other_boot = replace(CLOCK, boot_id="99999999-2222-3333-4444-555555555555")
    again = Life(ledger, later, other_boot)
    assert again.costs() == life.costs() != []
    again.run(60)
    assert again.costs() == life.costs()
