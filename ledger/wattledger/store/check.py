"""Whether a ledger file is whole, and its sums are the sums of their rows."""

from __future__ import annotations

import sqlite3

from wattledger.store.restate import read_kept
from wattledger.store.tiers import HOUR_NS, METERED, MINUTE_NS, POSTING, sql

_UNEVEN_MINUTES = """SELECT unit_ns, $dims FROM (
    SELECT start_ns - start_ns % :unit AS unit_ns, $dims, $amounts FROM ${name}_raw
    WHERE span = 0 AND start_ns >= :kept
    UNION ALL SELECT start_ns, $dims, $negated FROM ${name}_minute WHERE start_ns >= :kept
    ) GROUP BY unit_ns, $dims HAVING $uneven"""
_UNEVEN_HOURS = """SELECT unit_ns, $dims FROM (
    SELECT start_ns - start_ns % :unit AS unit_ns, $dims, $amounts FROM ${name}_minute
    WHERE start_ns >= :kept
    UNION ALL SELECT start_ns - start_ns % :unit, $dims, $amounts FROM ${name}_raw
    WHERE span > 0 AND span = 1 AND start_ns >= :kept
    UNION ALL SELECT start_ns, $dims, $negated FROM ${name}_hour WHERE start_ns >= :kept
    ) GROUP BY unit_ns, $dims HAVING $uneven"""
_UNEVEN_REQUESTS = """SELECT request, account FROM (
    SELECT request, account, 1 AS parts, static_uj + dynamic_uj AS energy_uj FROM request_raw
    UNION ALL SELECT request, account, -parts, -energy_uj FROM request_total)
    WHERE request IN (SELECT id FROM request WHERE booked_ns >= :kept)
    GROUP BY request, account HAVING SUM(parts) <> 0 OR SUM(energy_uj) <> 0"""


def check(conn: sqlite3.Connection) -> list[str]:
    """What is wrong with a ledger, one line each; empty where nothing is."""
    kept = read_kept(conn)
    found = [f"file: {row[0]}" for row in conn.execute("PRAGMA integrity_check") if row[0] != "ok"]
    found += [
        f"{row[0]}: row without its {row[2]}" for row in conn.execute("PRAGMA foreign_key_check")
    ]
    for family in (POSTING, METERED):
        for text, unit_ns, kept_ns in (
            (_UNEVEN_MINUTES, MINUTE_NS, kept.raw_ns),
            (_UNEVEN_HOURS, HOUR_NS, kept.minute_ns),
        ):
            rows = conn.execute(sql(family, text), {"unit": unit_ns, "kept": kept_ns})
            found += [
                f"{family.name}: sum of {unit_ns} ns at {row} is not its rows'" for row in rows
            ]
    rows = conn.execute(_UNEVEN_REQUESTS, {"kept": kept.raw_ns})
    found += [f"request: total at {row} is not its rows'" for row in rows]
    return found
