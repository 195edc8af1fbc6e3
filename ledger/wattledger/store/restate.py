"""Replacing raw rows, and carrying the difference into what is summed from them."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from operator import add, neg, sub
from typing import NamedTuple

from wattledger.store.tiers import (
    HOUR_NS,
    MINUTE_NS,
    Family,
    Ids,
    Kept,
    Values,
    floor_to,
    span_of,
    sql,
)

# A raw row's key within its clock: start_ns, end_ns, then the family's ids.
Rows = dict[Ids, Values]


class Change(NamedTuple):
    """How a raw row differs from what it was; `parts` is +1 where it is new, -1 where gone."""

    key: Ids
    values: Values
    parts: int


def read_kept(conn: sqlite3.Connection) -> Kept:
    """From when on each tier is whole."""
    kept = dict(conn.execute("SELECT tier, kept_ns FROM horizon"))
    return Kept(kept["raw"], kept["minute"], kept["hour"])


def summed(pairs: Iterable[tuple[Ids, Values]]) -> Rows:
    """Rows by key; entries that share a key are added up."""
    found = list(pairs)
    rows: Rows = dict(found)
    if len(rows) == len(found):
        return rows
    rows = {}
    for key, values in found:
        known = rows.get(key)
        rows[key] = values if known is None else tuple(map(add, known, values))
    return rows


def restate(
    conn: sqlite3.Connection, family: Family, clock: int, old: Rows, new: Rows
) -> list[Change]:
    """Put `new` in the place of `old` among one clock's raw rows; returns what differs."""
    gone = [key for key in old if key not in new]
    # Most pages are new.
    put = [key for key, values in new.items() if old.get(key) != values] if old else list(new)
    if gone:
        conn.executemany(
            sql(
                family,
                """DELETE FROM ${name}_raw
                WHERE start_ns = ? AND end_ns = ? AND $match AND clock = ?""",
            ),
            [(*key, clock) for key in gone],
        )
    if put:
        conn.executemany(
            sql(
                family,
                """INSERT OR REPLACE INTO ${name}_raw
                (start_ns, end_ns, $dims, $amounts, clock, span) VALUES (?, ?, $marks, ?, ?)""",
            ),
            [(*key, *new[key], clock, span_of(key[0], key[1])) for key in put],
        )
    if not old:
        return [Change(key, values, 1) for key, values in new.items()]
    changes = [Change(key, tuple(map(neg, old[key])), -1) for key in gone]
    for key in put:
        known = old.get(key)
        values = new[key] if known is None else tuple(map(sub, new[key], known))
        changes.append(Change(key, values, int(known is None)))
    return changes


def roll(conn: sqlite3.Connection, family: Family, changes: list[Change]) -> None:
    """Adjust the minute and hour sums by exact differences."""
    minutes: dict[Ids, Values] = {}
    hours: dict[Ids, Values] = {}
    for (start_ns, end_ns, *ids), values, _ in changes:
        span = span_of(start_ns, end_ns)
        if span == 0:
            _add(minutes, (floor_to(start_ns, MINUTE_NS), *ids), values)
        if span <= 1:
            _add(hours, (floor_to(start_ns, HOUR_NS), *ids), values)
    into = """ (start_ns, $dims, $amounts) VALUES (?, $marks)
        ON CONFLICT (start_ns, $dims) DO UPDATE SET $added"""
    for tier, sums in (("minute", minutes), ("hour", hours)):
        rows = [(*key, *values) for key, values in sums.items() if any(values)]
        conn.executemany(sql(family, "INSERT INTO ${name}_" + tier + into), rows)


def _add(sums: dict[Ids, Values], key: Ids, values: Values) -> None:
    known = sums.get(key)
    sums[key] = values if known is None else tuple(map(add, known, values))
