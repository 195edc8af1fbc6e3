"""What the daemon notes of itself and of its hardware; the caller holds the transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from math import isfinite

from wattledger.records import Device, DeviceKind, SelfMetric, StaticBasis


def note(conn: sqlite3.Connection, metrics: Iterable[SelfMetric]) -> None:
    """As `Notebook.note`; a value that is no finite number says nothing and is left out."""
    kept = [metric for metric in metrics if isfinite(metric.value)]
    conn.executemany(
        "INSERT OR IGNORE INTO metric (part, name) VALUES (?, ?)",
        dict.fromkeys((metric.part, metric.name) for metric in kept),
    )
    conn.executemany(
        """INSERT OR REPLACE INTO self_metric (t_ns, metric, value)
        SELECT ?, id, ? FROM metric WHERE part = ? AND name = ?""",
        [(metric.t_ns, metric.value, metric.part, metric.name) for metric in kept],
    )


def noted(conn: sqlite3.Connection, start_ns: int, end_ns: int) -> list[SelfMetric]:
    """As `Notebook.noted`."""
    rows = conn.execute(
        """SELECT t_ns, part, name, value FROM self_metric JOIN metric ON metric.id = metric
        WHERE t_ns >= ? AND t_ns < ? ORDER BY t_ns, part, name""",
        (start_ns, end_ns),
    )
    return [SelfMetric(*row) for row in rows]


def learn(conn: sqlite3.Connection, host: str, devices: Iterable[Device], learned_ns: int) -> None:
    """As `Notebook.learn`."""
    for device in devices:
        key = (host, device.device, device.kind.value, device.model)
        conn.execute(
            """DELETE FROM learned WHERE host = ? AND device = ? AND kind = ?
            AND ifnull(model, x'') = ifnull(?, x'')""",
            key,
        )
        if device.static_w is not None:
            conn.execute(
                """INSERT INTO learned (host, device, kind, model, static_w, learned_ns)
                VALUES (?, ?, ?, ?, ?, ?)""",
                (*key, device.static_w, learned_ns),
            )


def learned(conn: sqlite3.Connection, host: str) -> list[Device]:
    """As `Notebook.learned`."""
    rows = conn.execute(
        """SELECT device, kind, model, static_w FROM learned WHERE host = ?
        ORDER BY device, learned_ns, model""",
        (host,),
    )
    return [
        Device(device, DeviceKind(kind), model, static_w, StaticBasis.LEARNED)
        for device, kind, model, static_w in rows
    ]
