"""Forgetting what is older than its tier is kept, in bounded bites."""

from __future__ import annotations

import sqlite3
from typing import NamedTuple

from wattledger.records import NS_PER_S
from wattledger.store.protocol import Retention
from wattledger.store.tiers import HOUR_NS, METERED, POSTING, REQUEST, Family, floor_to, sql

_NS_PER_DAY = 86_400 * NS_PER_S

# Imported entries stay as long as the hours do: they are few, and only against them can a
# second import of the same file be seen to change nothing.
_FITTING_A_MINUTE = """DELETE FROM ${name}_raw WHERE (start_ns, end_ns, $dims, clock) IN (
    SELECT start_ns, end_ns, $dims, clock FROM ${name}_raw
    WHERE start_ns >= :swept_ns AND start_ns < :kept_ns AND span = 0
    AND clock NOT IN (SELECT id FROM clock WHERE imported) LIMIT :limit)"""
_FITTING_AN_HOUR = """DELETE FROM ${name}_raw WHERE (start_ns, end_ns, $dims, clock) IN (
    SELECT start_ns, end_ns, $dims, clock FROM ${name}_raw
    WHERE span > 0 AND span = 1 AND end_ns > :swept_ns AND end_ns <= :kept_ns
    AND clock NOT IN (SELECT id FROM clock WHERE imported) LIMIT :limit)"""
_ALL_RAW = """DELETE FROM ${name}_raw WHERE (start_ns, end_ns, $dims, clock) IN (
    SELECT start_ns, end_ns, $dims, clock FROM ${name}_raw
    WHERE start_ns < :kept_ns AND end_ns <= :kept_ns LIMIT :limit)"""
_SHARES = """DELETE FROM request_raw
    WHERE (start_ns, end_ns, device, account, request, clock) IN (
    SELECT start_ns, end_ns, device, account, request, clock FROM request_raw
    WHERE start_ns < :kept_ns LIMIT :limit)"""
_MINUTES = """DELETE FROM ${name}_minute WHERE (start_ns, $dims) IN (
    SELECT start_ns, $dims FROM ${name}_minute WHERE start_ns < :kept_ns LIMIT :limit)"""
_HOURS = """DELETE FROM ${name}_hour WHERE (start_ns, $dims) IN (
    SELECT start_ns, $dims FROM ${name}_hour WHERE start_ns < :kept_ns LIMIT :limit)"""
_EVENTS = """DELETE FROM event WHERE (start_ns, clock) IN (
    SELECT start_ns, clock FROM event WHERE start_ns < :kept_ns LIMIT :limit)"""
_SELF_METRICS = """DELETE FROM self_metric WHERE (t_ns, metric) IN (
    SELECT t_ns, metric FROM self_metric WHERE t_ns < :kept_ns LIMIT :limit)"""

_BOTH = (POSTING, METERED)
_DATED = {
    "hour": ("metered_hour", "posting_hour", "metered_raw", "posting_raw", "event"),
    "minute": ("metered_minute", "posting_minute", "metered_raw", "posting_raw"),
    "raw": ("metered_raw", "posting_raw", "self_metric"),
}
_TIERS: dict[str, tuple[tuple[tuple[Family, ...], str], ...]] = {
    "raw": ((_BOTH, _FITTING_A_MINUTE), ((REQUEST,), _SHARES), ((POSTING,), _SELF_METRICS)),
    "minute": ((_BOTH, _FITTING_AN_HOUR), (_BOTH, _MINUTES)),
    "hour": ((_BOTH, _ALL_RAW), (_BOTH, _HOURS), ((POSTING,), _EVENTS)),
}


class _Horizon(NamedTuple):
    kept_ns: int
    swept_ns: int


def prune(conn: sqlite3.Connection, retention: Retention, now_ns: int, limit: int) -> int:
    """Delete at most `limit` rows that no tier is to keep; returns how many, 0 when done.

    Readers stop relying on a tier before its first row goes, so that an answer never mixes
    what is left of it with what is not. Requests outlive the raw rows they are made of. Where
    a tier holds nothing to forget it is relied on as far back as before: a clock that is
    ahead on a young ledger must not keep out what a right one says later.
    """
    hour_ns = _cut_ns(now_ns, retention.hour_days)
    minute_ns = max(hour_ns, _cut_ns(now_ns, retention.minute_days))
    raw_ns = max(minute_ns, _cut_ns(now_ns, retention.raw_days))
    coarser_ns = 0
    for tier, cut_ns in (("hour", hour_ns), ("minute", minute_ns), ("raw", raw_ns)):
        coarser_ns = _move(conn, tier, cut_ns, coarser_ns)
    deleted = 0
    for tier in ("raw", "minute", "hour"):
        deleted += _sweep(conn, tier, limit - deleted)
    cut_ns = min(raw_ns, _cut_ns(now_ns, retention.request_days))
    deleted += conn.execute(
        """DELETE FROM request WHERE id IN (
        SELECT id FROM request WHERE booked_ns < ? ORDER BY booked_ns LIMIT ?)""",
        (cut_ns, limit - deleted),
    ).rowcount
    return deleted


def _cut_ns(now_ns: int, days: float) -> int:
    return floor_to(max(0, now_ns - int(days * _NS_PER_DAY)), HOUR_NS)


def _move(conn: sqlite3.Connection, tier: str, cut_ns: int, coarser_ns: int) -> int:
    """Keep a tier from `cut_ns` on only, if it holds anything older; returns from when it is kept.

    A coarser tier is never kept from later on than a finer one.
    """
    kept_ns = _horizon(conn, tier).kept_ns
    if cut_ns <= kept_ns:
        return kept_ns
    if coarser_ns <= kept_ns and not any(
        _holds(conn, table, kept_ns, cut_ns) for table in _DATED[tier]
    ):
        return kept_ns
    conn.execute("UPDATE horizon SET kept_ns = ? WHERE tier = ?", (cut_ns, tier))
    return cut_ns


def _holds(conn: sqlite3.Connection, table: str, from_ns: int, to_ns: int) -> bool:
    time = "t_ns" if table == "self_metric" else "start_ns"
    text = f"SELECT 1 FROM {table} WHERE {time} >= ? AND {time} < ? LIMIT 1"  # noqa: S608 - ours
    return conn.execute(text, (from_ns, to_ns)).fetchone() is not None


def _horizon(conn: sqlite3.Connection, tier: str) -> _Horizon:
    row = conn.execute("SELECT kept_ns, swept_ns FROM horizon WHERE tier = ?", (tier,)).fetchone()
    return _Horizon(*row)


def _sweep(conn: sqlite3.Connection, tier: str, limit: int) -> int:
    horizon = _horizon(conn, tier)
    if horizon.swept_ns == horizon.kept_ns:
        return 0
    deleted = 0
    for families, text in _TIERS[tier]:
        for family in families:
            bounds = {**horizon._asdict(), "limit": limit - deleted}
            deleted += conn.execute(sql(family, text), bounds).rowcount
    if deleted < limit:
        conn.execute("UPDATE horizon SET swept_ns = kept_ns WHERE tier = ?", (tier,))
    return deleted
