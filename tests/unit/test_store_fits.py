"""What a ledger keeps of calibrated cost models, and a version-2 file that gets room for it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from fakes.memory_store import MemoryStore
from wattledger.errors import UnreachableError
from wattledger.fits import Calibrated, Coefficient, Fit, FitKey, in_words
from wattledger.records import Device, DeviceKind
from wattledger.store.calibrated import FITS_KEPT, KEYS_KEPT
from wattledger.store.protocol import FitBook
from wattledger.store.schema import _VERSION_1, _VERSION_2, APPLICATION_ID
from wattledger.store.sqlite import SqliteLedger

KEY = FitKey("vllm", "llama", "2 x NVIDIA H200")


def fit(fitted_ns: int = 5, key: FitKey = KEY) -> Fit:
    return Fit(
        key=key,
        engine="vllm-41",
        fitted_ns=fitted_ns,
        rows=36,
        rank=3,
        identified=True,
        reason="",
        f=Coefficient(2.0, 1.9, 2.1),
        a=Coefficient(0.01, 0.009, 0.011),
        b=Coefficient(0.03, 0.02, 0.04),
        c=None,
        lag_s=0.05,
        idle_w=110.0,
        idle_basis="step-free",
        residual_ratio=0.01,
        method="calibrated",
        since_ns=3,
        engines=("e", "é\n"),
    )


def told(at_ns: int, one: Fit | None = None, key: FitKey = KEY) -> Calibrated:
    return Calibrated(key, at_ns, f"state {at_ns}", one)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


def test_states_replace_each_other_and_fits_are_added(path: Path) -> None:
    refused = replace(fit(9), identified=False, reason="why", f=None, a=None, b=None, idle_w=None)
    nameless = FitKey("llama.cpp", None, "cpu")
    with SqliteLedger(path, create=True) as ledger:
        assert ledger.calibrations("h1") == []
        ledger.calibrate("h1", [told(1), told(2, fit(key=nameless), nameless)])
        ledger.calibrate("h1", [told(3, fit())])
        ledger.calibrate("h1", [told(4, refused)])
        ledger.calibrate("h2", [told(5, fit(7))])
        assert ledger.calibrations("h1") == ["state 2", "state 4"]
        assert ledger.calibrations("h2") == ["state 5"]
    with SqliteLedger(path) as ledger:
        assert isinstance(ledger, FitBook)
        assert ledger.fits(0, 100) == [
            ("h1", fit(key=nameless)),
            ("h1", fit()),
            ("h1", refused),
            ("h2", fit(7)),
        ]
        assert ledger.check() == []


def test_a_window_has_its_fits_and_the_last_before_it(path: Path) -> None:
    with SqliteLedger(path, create=True) as ledger:
        for at_ns in (10, 20, 30, 40):
            ledger.calibrate("h1", [told(at_ns, fit(at_ns))])
        times = [
            [one.fit.fitted_ns for one in ledger.fits(*window)]
            for window in ((0, 50), (0, 30), (20, 40), (25, 26), (45, 99), (0, 10))
        ]
        assert times == [[10, 20, 30, 40], [10, 20], [20, 30], [20], [40], []]


def test_a_fit_told_twice_is_kept_once_and_history_is_bounded(path: Path) -> None:
    with SqliteLedger(path, create=True) as ledger:
        many = [told(n, fit(n)) for n in range(FITS_KEPT + 20)]
        ledger.calibrate("h1", many)
        ledger.calibrate("h1", many[-3:])
        kept = [one.fit.fitted_ns for one in ledger.fits(0, 10**6)]
        assert kept == list(range(20, FITS_KEPT + 20))


def test_keys_of_a_host_are_bounded_and_take_their_fits_with_them(path: Path) -> None:
    keys = [KEY._replace(model=f"m{n:03}") for n in range(KEYS_KEPT + 5)]
    with SqliteLedger(path, create=True) as ledger:
        ledger.calibrate("h2", [told(0, fit())])
        ledger.calibrate("h1", [told(n, fit(key=key), key) for n, key in enumerate(keys)])
        assert ledger.calibrations("h1")[0] == "state 5"
        hosts = [one.host for one in ledger.fits(0, 100)]
        assert (hosts.count("h1"), hosts.count("h2")) == (KEYS_KEPT, 1)
        assert ledger.check() == []


def version_2(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        conn.execute("PRAGMA journal_mode = WAL")
        for statement in (*_VERSION_1, *_VERSION_2):
            conn.execute(statement)
        conn.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        conn.execute("PRAGMA user_version = 2")
        conn.execute("INSERT INTO meta VALUES ('k', 'v')")
        conn.execute("INSERT INTO learned VALUES (1, 'h1', 'gpu0', 'gpu', 'A40', 50.0, 9)")


def test_a_version_2_ledger_keeps_what_it_holds_and_gets_fits(path: Path) -> None:
    version_2(path)
    with pytest.raises(UnreachableError, match=r"schema 2, not 3.*let wattledgerd open it once"):
        SqliteLedger(path)
    fresh = path.with_name("fresh.db")
    with SqliteLedger(fresh, create=True) as ledger:
        tables = ledger._conn.execute("SELECT sql FROM sqlite_master ORDER BY name").fetchall()
    with SqliteLedger(path, writable=True) as ledger:
        assert ledger.get_meta("k") == "v"
        assert [device.model for device in ledger.learned("h1")] == ["A40"]
        ledger.calibrate("h1", [told(1, fit())])
        migrated = ledger._conn.execute("SELECT sql FROM sqlite_master ORDER BY name").fetchall()
        assert migrated == tables
    with SqliteLedger(path) as ledger:
        assert [one.fit for one in ledger.fits(0, 9)] == [fit()]


def test_a_migration_that_fails_leaves_version_2_as_it_was(path: Path) -> None:
    version_2(path)
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("CREATE TABLE fit (somebody TEXT)")
    with pytest.raises(UnreachableError, match="already exists"):
        SqliteLedger(path, writable=True)
    with closing(sqlite3.connect(path)) as conn:
        assert conn.execute("PRAGMA user_version").fetchone() == (2,)
        names = {row[0] for row in conn.execute("SELECT name FROM sqlite_master")}
        assert "calibration" not in names


def test_a_ledger_without_fits_is_no_fit_book() -> None:
    assert not isinstance(MemoryStore(), FitBook)


def test_devices_in_words() -> None:
    h200, a40 = (Device(n, DeviceKind.GPU, n) for n in ("H200", "A40"))
    assert in_words([h200, a40, h200]) == "A40 + 2 x H200"
    assert in_words([Device("cpu0", DeviceKind.CPU)]) == "cpu"
