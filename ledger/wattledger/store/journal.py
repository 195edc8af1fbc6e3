"""The daemon's log of raw evidence; the caller holds the transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field

from wattledger.store.protocol import JournalEntry


@dataclass(slots=True)
class BootIds:
    """Ids of boots, written where they are new; `forget` after a rollback or a deletion."""

    conn: sqlite3.Connection
    _ids: dict[str, int] = field(default_factory=dict)

    def id_of(self, boot_id: str) -> int:
        """Id of a boot, new or known."""
        if boot_id not in self._ids:
            self.conn.execute("INSERT OR IGNORE INTO journal_boot (boot_id) VALUES (?)", (boot_id,))
            (self._ids[boot_id],) = self.conn.execute(
                "SELECT id FROM journal_boot WHERE boot_id = ?", (boot_id,)
            ).fetchone()
        return self._ids[boot_id]

    def forget(self) -> None:
        """Drop every remembered id."""
        self._ids.clear()


def append(conn: sqlite3.Connection, boot: int, entries: Sequence[JournalEntry]) -> None:
    """As `Journal.append`, by the boot's id."""
    conn.executemany(
        "INSERT INTO journal (boot, t_ns, kind, seq, body) VALUES (?, ?, ?, ?, ?)",
        [(boot, entry.t_ns, entry.kind, entry.seq, entry.body) for entry in entries],
    )


def entries(conn: sqlite3.Connection, boot_id: str) -> list[JournalEntry]:
    """As `Journal.entries`."""
    rows = conn.execute(
        """SELECT kind, body, t_ns, seq FROM journal
        WHERE boot = (SELECT id FROM journal_boot WHERE boot_id = ?) ORDER BY id""",
        (boot_id,),
    )
    return [JournalEntry(kind, body, t_ns, seq) for kind, body, t_ns, seq in rows]


def boots(conn: sqlite3.Connection) -> list[str]:
    """As `Journal.boots`."""
    rows = conn.execute(
        """SELECT boot_id FROM journal_boot AS known
        WHERE EXISTS (SELECT 1 FROM journal WHERE boot = known.id) ORDER BY id"""
    )
    return [row[0] for row in rows]


def trim(conn: sqlite3.Connection, boot_id: str, before_t_ns: int) -> None:
    """As `Journal.trim`."""
    conn.execute(
        """DELETE FROM journal WHERE boot = (SELECT id FROM journal_boot WHERE boot_id = ?)
        AND t_ns < ?""",
        (boot_id, before_t_ns),
    )


def forget(conn: sqlite3.Connection, boot_id: str) -> None:
    """As `Journal.forget`."""
    conn.execute(
        "DELETE FROM journal WHERE boot = (SELECT id FROM journal_boot WHERE boot_id = ?)",
        (boot_id,),
    )
    conn.execute("DELETE FROM journal_boot WHERE boot_id = ?", (boot_id,))
