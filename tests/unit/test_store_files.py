"""Ledger files: what cannot be used is told in one line, and left as it was."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

import wattledger
from fakes.pages import T0_NS, steady_page
from wattledger.errors import InputError, UnreachableError
from wattledger.records import NS_PER_S
from wattledger.store import book_into, ledger_path, open_ledger
from wattledger.store.connection import LedgerLostError
from wattledger.store.schema import SCHEMA_VERSION
from wattledger.store.sqlite import SqliteLedger


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


def ledger_with_a_page(path: Path) -> int:
    with SqliteLedger(path, create=True) as ledger:
        ledger.book(steady_page(T0_NS))
    return energy_uj(path)


def energy_uj(path: Path) -> int:
    with SqliteLedger(path) as ledger:
        found = ledger.slices([T0_NS, T0_NS + 3600 * NS_PER_S]).slices
    return sum(piece.amounts.energy_uj for piece in found)


@pytest.mark.parametrize("writable", [False, True])
@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "no such ledger"),
        (b"", "no ledger of this version in it"),
        (b"start,end,host\n" * 100, "not a wattledger ledger"),
        (b"SQLite format 3\x00" + b"\x07" * 5000, "not a wattledger ledger|damaged"),
    ],
)
def test_what_is_no_ledger_is_told(
    path: Path, content: bytes | None, told: str, writable: bool
) -> None:
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UnreachableError, match=told) as caught:
        SqliteLedger(path, writable=writable)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert content == (path.read_bytes() if path.exists() else None)


def test_another_programs_database_is_left_alone(path: Path) -> None:
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE bookmarks (url TEXT)")
    before = path.read_bytes()
    for flags in ({}, {"writable": True}, {"create": True}):
        with pytest.raises(UnreachableError, match="not a wattledger ledger"):
            SqliteLedger(path, **flags)
    assert path.read_bytes() == before


def test_a_newer_schema_is_refused(path: Path) -> None:
    ledger_with_a_page(path)
    with closing(sqlite3.connect(path)) as other:
        other.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    for writable in (False, True):
        with pytest.raises(UnreachableError, match=r"newer wattledger \(schema 4, .* 3\): upgrade"):
            SqliteLedger(path, writable=writable)


def test_a_folder_a_file_on_the_way_and_a_damaged_ledger_are_told(path: Path) -> None:
    with pytest.raises(UnreachableError, match="no such ledger"):
        SqliteLedger(path.parent)
    ledger_with_a_page(path)
    with pytest.raises(UnreachableError, match="check its folder"):
        SqliteLedger(path / "inner" / "ledger.db", create=True)
    head = path.read_bytes()[:4096]
    path.write_bytes(head + b"\xff" * (path.stat().st_size - 4096))
    with pytest.raises(UnreachableError, match="damaged"), SqliteLedger(path) as ledger:
        ledger.slices([T0_NS, T0_NS + 1])


def test_a_lock_is_waited_for_and_then_told(path: Path) -> None:
    ledger_with_a_page(path)
    with (
        closing(sqlite3.connect(path, isolation_level=None)) as other,
        SqliteLedger(path, writable=True, busy_s=0.01) as ledger,
    ):
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(UnreachableError, match="locked by another process"):
            ledger.book(steady_page(T0_NS, seed=1))
        assert energy_uj(path) > 0
        other.execute("ROLLBACK")
        assert ledger.book(steady_page(T0_NS, seed=1))


def test_the_daemon_waits_for_a_lock_no_longer_than_it_may(path: Path) -> None:
    ledger_with_a_page(path)
    with (
        closing(sqlite3.connect(path, isolation_level=None)) as other,
        SqliteLedger(path, writable=True, busy_s=30.0) as ledger,
    ):
        ledger.wait_at_most(0.01)
        other.execute("BEGIN IMMEDIATE")
        before_s = time.monotonic()
        with pytest.raises(UnreachableError, match="locked by another process"):
            ledger.book(steady_page(T0_NS, seed=1))
        assert time.monotonic() - before_s < 15.0


def test_a_reader_cannot_write_and_a_closed_ledger_cannot_answer(path: Path) -> None:
    ledger_with_a_page(path)
    with SqliteLedger(path) as ledger:
        with pytest.raises(UnreachableError, match="read-only"):
            ledger.book(steady_page(T0_NS, seed=1))
        assert ledger.slices([T0_NS, T0_NS + NS_PER_S]).prorated
    with pytest.raises(UnreachableError, match="closed"):
        ledger.slices([T0_NS, T0_NS + 1])


@pytest.fixture
def locked_folder() -> Iterator[Path]:
    """A folder that everyone may enter and read, and nobody may write."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder
        folder.chmod(0o755)


def read_without_rights(path: Path) -> str:
    path.parent.chmod(0o555)
    child = subprocess.run(
        [sys.executable, "-m", "fakes.store_child", "read", str(path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return child.stdout.strip()


def test_a_ledger_at_rest_is_read_from_a_folder_that_cannot_be_written(locked_folder: Path) -> None:
    path = locked_folder / "led ger?#.db"
    expected_uj = ledger_with_a_page(path)
    for leftover in ("-wal", "-shm"):
        path.with_name(path.name + leftover).unlink(missing_ok=True)
    assert read_without_rights(path) == str(expected_uj)


def test_a_live_ledger_is_read_from_a_folder_that_cannot_be_written(locked_folder: Path) -> None:
    path = locked_folder / "ledger.db"
    with SqliteLedger(path, create=True) as ledger:
        ledger.book(steady_page(T0_NS))
        assert path.with_name("ledger.db-wal").stat().st_size
        assert read_without_rights(path) == str(energy_uj(path)) != "0"


def test_a_ledger_that_may_not_be_read_is_told(locked_folder: Path) -> None:
    path = locked_folder / "ledger.db"
    ledger_with_a_page(path)
    path.chmod(0o000)
    assert read_without_rights(path).endswith("check the permissions of the file and its folder")


def test_urls() -> None:
    assert ledger_path("sqlite:a/b.sqlite") == Path("a/b.sqlite")
    assert ledger_path("sqlite:/a/b") == ledger_path("sqlite:///a/b") == Path("/a/b")
    assert ledger_path("x/ledger.db") == Path("x/ledger.db")
    assert ledger_path("sqlite:~/l.db") == Path.home() / "l.db"
    with pytest.raises(InputError, match="not in this version"):
        open_ledger("influx://host:8086/bucket")
    for wrong in ("", "sqlite:", "sqlite://host/x.db", "postgres://h/x.db", "ledger", "ledger.csv"):
        with pytest.raises(InputError, match="sqlite:PATH"):
            open_ledger(wrong)


def test_create_makes_the_folder_and_keeps_what_is_there(path: Path) -> None:
    inner = path.parent / "new" / "er" / "ledger.db"
    expected_uj = ledger_with_a_page(inner)
    with open_ledger(str(inner), create=True):
        assert energy_uj(inner) == expected_uj


def test_a_directory_is_called_one(path: Path) -> None:
    path.mkdir()
    for flags in ({}, {"create": True}):
        with pytest.raises(UnreachableError, match="a directory, not a ledger file: name a file"):
            open_ledger(f"sqlite:{path}", **flags)
    with pytest.raises(UnreachableError, match="a directory"), book_into(str(path)):
        pass
    endless = f"{path}/{'x' * 300}.db"
    with pytest.raises(UnreachableError, match="too long: check its folder"):
        open_ledger(endless)
    with pytest.raises(UnreachableError, match="too long"), book_into(endless):
        pass


def test_a_failed_booking_leaves_no_new_ledger(path: Path) -> None:
    with pytest.raises(InputError, match="mine"), book_into(str(path)) as ledger:
        ledger.extent()
        raise InputError("mine")
    assert not list(path.parent.iterdir())
    told = f"no such folder: mkdir -p {path}"
    with pytest.raises(UnreachableError, match=told), book_into(str(path / "ledger.db")):
        pass
    assert not path.exists()


def test_a_failed_booking_leaves_what_was_there_or_what_another_booked(path: Path) -> None:
    with pytest.raises(InputError), book_into(str(path)):
        expected_uj = ledger_with_a_page(path)
        raise InputError("mine")
    with pytest.raises(InputError), book_into(str(path)):
        raise InputError("mine")
    assert energy_uj(path) == expected_uj
    empty = path.with_name("empty.db")
    open_ledger(str(empty), create=True).close()
    with pytest.raises(InputError), book_into(str(empty)):
        raise InputError("mine")
    assert empty.exists()


def test_the_package_offers_its_front_door_and_loads_nothing_for_it() -> None:
    loaded = (
        "import sys, wattledger; print([m for m in sys.modules if m.startswith('wattledger.')])"
    )
    child = subprocess.run(
        [sys.executable, "-c", loaded], capture_output=True, text=True, check=True
    )
    assert child.stdout.strip() == "[]"
    assert wattledger.open_ledger is open_ledger
    assert wattledger.records.NS_PER_S == NS_PER_S
    assert wattledger.Filters().host == ()
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = wattledger.nothing


def test_a_ledger_replaced_while_open_takes_no_more_writes(path: Path) -> None:
    with SqliteLedger(path, create=True) as ledger:
        ledger.book(steady_page(T0_NS))
        other = path.with_name("other.db")
        ledger_with_a_page(other)
        other.rename(path)
        with pytest.raises(LedgerLostError, match="deleted or replaced while in use"):
            ledger.set_meta("a", "b")
    with SqliteLedger(path) as other_ledger:
        assert other_ledger.get_meta("a") is None
        assert other_ledger.check() == []
