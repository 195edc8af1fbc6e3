"""Answering `named`: one request from the sums per request; the caller holds the transaction."""

from __future__ import annotations

import sqlite3

from wattledger.records import Activity, Quality
from wattledger.store.named import NamedRequest, NameRule, RequestKey, the_meant
from wattledger.store.names import Lookup

_MOST = 100
_LOOKED_AT = 10_000
_COLUMNS = """SELECT request.id, request.request, boot.host, boot.boot_id, request.engine
    FROM request JOIN boot ON boot.id = request.boot WHERE """
_RANGE = _COLUMNS + "request.request >= ? AND request.request < ? LIMIT ?"
_FINISH = """SELECT model, workload, job, finished_ns, prompt_tokens, cached_tokens, decode_tokens
    FROM finish WHERE request = ? ORDER BY finished_ns DESC"""
_TOTAL = "SELECT account, energy_uj FROM request_total WHERE request = ? AND parts > 0"
_STEPS = """SELECT TOTAL(prefill_tokens), TOTAL(decode_tokens), MAX(end_ns)
    FROM request_raw WHERE request = ?"""

_Row = tuple[int, str, str, str, str]


def named(conn: sqlite3.Connection, rule: NameRule) -> list[NamedRequest]:
    """As `RequestLookup.named`."""
    rows = _candidates(conn, rule)
    meant = the_meant(rule, [row[1] for row in rows])
    # The latest ids are the latest booked: what an old boot left under a name comes last.
    chosen = sorted((row for row in rows if row[1] in meant), reverse=True)[:_MOST]
    names = Lookup(conn)
    found = [_request(conn, names, row) for row in chosen]
    return sorted(found, key=lambda item: -(item.finished_ns or item.last_ns))


def _candidates(conn: sqlite3.Connection, rule: NameRule) -> list[_Row]:
    marks = ", ".join("?" * len(rule.plain))
    text = f"{_COLUMNS} request.request IN ({marks}) LIMIT ?"
    rows: list[_Row] = conn.execute(text, (*rule.plain, _LOOKED_AT)).fetchall()
    for low, high in rule.ranges():
        rows += conn.execute(_RANGE, (low, high, _LOOKED_AT)).fetchall()
    return list(dict.fromkeys(rows))


def _request(conn: sqlite3.Connection, names: Lookup, row: _Row) -> NamedRequest:
    at, request, host, boot_id, engine = row
    key = RequestKey(host, boot_id, engine, request)
    phase_uj = {Activity.PREFILL: 0, Activity.DECODE: 0}
    methods: set[str] = set()
    qualities: set[Quality] = set()
    whose: tuple[str | None, str | None, str | None] = (None, None, None)
    for account_at, energy_uj in conn.execute(_TOTAL, (at,)):
        account = names.account(account_at)
        if account.activity in phase_uj:
            phase_uj[account.activity] += energy_uj
        methods.add(account.method)
        qualities.add(account.quality)
        whose = (account.model, account.workload, account.job)
    prefill, decode, last_ns = conn.execute(_STEPS, (at,)).fetchone()
    prefill_tokens, decode_tokens = round(prefill), round(decode)
    finishes = conn.execute(_FINISH, (at,)).fetchall()
    prompt_tokens, cached_tokens = prefill_tokens, 0
    if finishes:
        whose = finishes[0][:3]
        prompt_tokens, cached_tokens, decode_tokens = (
            sum(finish[column] for finish in finishes) for column in (4, 5, 6)
        )
        if last_ns is None:
            prefill_tokens = prompt_tokens - cached_tokens
    finished_ns = finishes[0][3] if finishes else None
    return NamedRequest(
        key,
        *whose,
        finished_ns,
        prompt_tokens,
        cached_tokens,
        decode_tokens,
        prefill_tokens,
        phase_uj[Activity.PREFILL],
        phase_uj[Activity.DECODE],
        frozenset(methods),
        frozenset(qualities),
        last_ns or finished_ns or 0,
    )
