"""The journal: an ordered log per boot, trimmed by the clock of that boot."""

from __future__ import annotations

from pathlib import Path

import pytest

from wattledger.errors import InputError
from wattledger.store import open_ledger
from wattledger.store.connection import connect
from wattledger.store.journal import BootIds, append, entries, forget
from wattledger.store.protocol import Journal, JournalEntry, Store


def entry(t_ns: int, body: bytes = b"") -> JournalEntry:
    return JournalEntry("batch", body or str(t_ns).encode(), t_ns, seq=t_ns + 1)


def test_entries_come_back_as_written_and_in_order(tmp_path: Path) -> None:
    path = f"sqlite:{tmp_path}/ledger.db"
    with open_ledger(path, create=True) as ledger:
        journal: Journal = ledger
        journal.append("b", [entry(9, b"\x00\xff"), entry(3)])
        journal.append("a", [entry(1)])
        journal.append("b", [entry(5)])
        journal.append("b", [])
    with open_ledger(path) as ledger:
        assert ledger.entries("b") == [entry(9, b"\x00\xff"), entry(3), entry(5)]
        assert ledger.entries("a") == [entry(1)]
        assert ledger.entries("c") == []
        assert ledger.boots() == ["b", "a"]


def test_trim_and_forget_touch_one_boot(tmp_path: Path) -> None:
    with open_ledger(f"sqlite:{tmp_path}/ledger.db", create=True) as ledger:
        store: Store = ledger
        ledger.append("a", [entry(t_ns) for t_ns in (1, 2, 3)])
        ledger.append("b", [entry(t_ns) for t_ns in (1, 2, 3)])
        ledger.trim("a", 3)
        assert ledger.entries("a") == [entry(3)]
        ledger.trim("a", 4)
        assert ledger.boots() == ["b"]
        ledger.append("a", [entry(7)])
        ledger.forget("b")
        assert ledger.boots() == ["a"]
        assert ledger.entries("b") == []
        assert store.slices([0, 10]).slices == ()


def test_a_boot_is_looked_up_once_and_again_after_it_was_forgotten(tmp_path: Path) -> None:
    conn = connect(tmp_path / "ledger.db", writable=True, create=True, busy_s=1.0)
    said: list[str] = []
    boots = BootIds(conn)
    first = boots.id_of("a")
    conn.set_trace_callback(said.append)
    assert boots.id_of("a") == first
    assert said == []
    forget(conn, "a")
    boots.forget()
    append(conn, boots.id_of("a"), [entry(1)])
    assert entries(conn, "a") == [entry(1)]
    conn.close()


def test_an_append_that_failed_remembers_no_boot(tmp_path: Path) -> None:
    with open_ledger(f"sqlite:{tmp_path}/ledger.db", create=True) as ledger:
        with pytest.raises(InputError, match="exceeds 64 bits"):
            ledger.append("a", [entry(2**70)])
        ledger.append("a", [entry(1)])
        assert ledger.entries("a") == [entry(1)]
