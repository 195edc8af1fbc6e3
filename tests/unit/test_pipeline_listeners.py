"""Who listens to the books hears every page, and cannot stop them."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fakes.daemon_parts import EPOCH_NS, FakeTime
from fakes.pipeline_world import S, World, energy_uj
from wattledger.errors import UnreachableError
from wattledger.records import Page
from wattledger.store.sqlite import SqliteLedger
from wattledger_daemon import settings
from wattledger_daemon.config import DaemonConfig
from wattledger_daemon.export.exports import Exports
from wattledger_daemon.export.figures import Identity
from wattledger_daemon.export.totals import Quantity, Totals
from wattledger_daemon.health import Snapshot

HOUR_NS = 3600 * S


@dataclass
class Ear:
    """A listener that raises from some call on; `heard` is each call, in order."""

    raises_in: str = ""
    error: Exception = field(default_factory=StopIteration)
    heard: list[str] = field(default_factory=list)
    pages: list[Page] = field(default_factory=list)

    def booked(self, page: Page) -> None:
        self._hear("booked")
        self.pages.append(page)

    def turned(self, snapshot: Snapshot) -> None:
        self._hear("turned")

    def dropped(self) -> None:
        self._hear("dropped")

    def _hear(self, call: str) -> None:
        self.heard.append(call)
        if call == self.raises_in:
            raise self.error


def ledger_at(tmp_path: Path) -> SqliteLedger:
    return SqliteLedger(tmp_path / "ledger.db", create=True)


@pytest.mark.parametrize("raises_in", ["booked", "turned"])
@pytest.mark.parametrize("error", [StopIteration(), UnreachableError("a receiver is gone")])
def test_one_that_raises_is_told_of_once_dropped_and_stops_neither_books_nor_others(
    tmp_path: Path, raises_in: str, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    bad, good = Ear(raises_in, error), Ear()
    world = World(ledger_at(tmp_path), FakeTime(1000 * S), tmp_path, listeners=(bad, good))
    world.run(1040)
    world.pipeline.finish()
    assert energy_uj(world.ledger) == 39_900_000 * 100
    assert bad.heard.count(raises_in) == 1
    assert bad.heard[-1] == "dropped"
    assert len(good.pages) == 8
    assert "dropped" not in good.heard
    (told,) = [r for r in caplog.records if "event=listener_dropped" in r.getMessage()]
    assert told.levelno == logging.ERROR
    assert type(error).__name__ in told.getMessage()
    assert not any("ledger_failing" in r.getMessage() for r in caplog.records)


class Counting(Ear):
    """Totals of what is booked, as an exporter keeps them."""

    def __init__(self, booked_until_ns: int | None) -> None:
        super().__init__()
        self.totals = Totals(booked_until_ns)

    def booked(self, page: Page) -> None:
        super().booked(page)
        self.totals.add(page)

    def energy_uj(self) -> int:
        found = self.totals.standing().totals
        return sum(v for s, v in found if s.quantity is Quantity.ENERGY_UJ)


def test_hours_without_a_daemon_are_counted_through(tmp_path: Path) -> None:
    time, ledger = FakeTime(1000 * S), ledger_at(tmp_path)
    World(ledger, time, tmp_path).run(1060)
    before_uj = energy_uj(ledger)
    # Killed, and three hours later up again on the same boot.
    time.now_ns += 3 * HOUR_NS
    recovered = World(ledger, time, tmp_path).accountant.booked_until_ns
    ear = Counting(recovered)
    world = World(ledger, time, tmp_path, listeners=(ear,))
    world.run(time.now_ns / S + 60)
    world.pipeline.finish()
    assert any(page.end_ns - page.start_ns == HOUR_NS for page in ear.pages)
    assert all(page.start_ns >= EPOCH_NS + (recovered or 0) for page in ear.pages)
    assert ear.energy_uj() == energy_uj(ledger) - before_uj
    assert "dropped" not in ear.heard


def test_an_exporter_that_was_dropped_says_nothing_instead_of_the_last_figures() -> None:
    config = settings.parse(DaemonConfig, '[prometheus]\nlisten = "127.0.0.1:0"', "w.toml")
    exports = Exports(config, Identity("h1", "1", "i", 0))
    exports.start()
    exports.turned(Snapshot(0))
    assert exports.figures() is not None
    exports.dropped()
    assert exports.figures() is None
    exports.stop()
    assert exports.figures() is None
