"""Answering `requests`: finished requests with their energy per phase."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from itertools import groupby

from wattledger.records import QUALITY_ORDER, Activity, FinishedRequest, Quality
from wattledger.store.names import Lookup
from wattledger.store.protocol import Filters, RequestEnergy, glob_match

_FINISHES = """SELECT boot.host, request.request, request.engine, finish.model, finish.workload,
    finish.job, finish.finished_ns, finish.prompt_tokens, finish.cached_tokens,
    finish.decode_tokens, total.account, total.energy_uj
    FROM finish JOIN request ON request.id = finish.request JOIN boot ON boot.id = request.boot
    LEFT JOIN request_total AS total ON total.request = finish.request AND total.parts > 0
    WHERE finish.finished_ns >= ? AND finish.finished_ns < ?
    ORDER BY finish.finished_ns, finish.request, finish.clock"""
_FINISH_COLUMNS = 10


def requests(
    conn: sqlite3.Connection, start_ns: int, end_ns: int, filters: Filters
) -> list[RequestEnergy]:
    """As `Store.requests`; a request that no posting names has method `none`, energy 0."""
    names = Lookup(conn)
    rows = conn.execute(_FINISHES, (start_ns, end_ns))
    found = []
    for head, group in groupby(rows, key=lambda row: row[:_FINISH_COLUMNS]):
        host, request, engine, model, workload, job, *rest = head
        finish = FinishedRequest(request, engine, model, workload, job, *rest)
        if glob_match(filters.host, host) and _matches(finish, filters):
            totals = [row[_FINISH_COLUMNS:] for row in group if row[_FINISH_COLUMNS] is not None]
            found.append(_energy_of(host, finish, totals, filters, names))
    found.sort(key=lambda item: (-item.energy_uj, item.finish.engine, item.finish.request))
    return found


def _matches(finish: FinishedRequest, filters: Filters) -> bool:
    return all(
        glob_match(globs, value)
        for globs, value in (
            (filters.job, finish.job),
            (filters.workload, finish.workload),
            (filters.engine, finish.engine),
            (filters.model, finish.model),
            (filters.request, finish.request),
        )
    )


def _energy_of(
    host: str,
    finish: FinishedRequest,
    totals: Iterable[tuple[int, int]],
    filters: Filters,
    names: Lookup,
) -> RequestEnergy:
    phase_uj = {Activity.PREFILL: 0, Activity.DECODE: 0}
    methods: set[str] = set()
    qualities: set[Quality] = set()
    for at, energy_uj in totals:
        account = names.account(at)
        if account.activity in phase_uj and glob_match(filters.activity, account.activity.value):
            phase_uj[account.activity] += energy_uj
        methods.add(account.method)
        qualities.add(account.quality)
    return RequestEnergy(
        host,
        finish,
        phase_uj[Activity.PREFILL],
        phase_uj[Activity.DECODE],
        "+".join(sorted(methods)) or "none",
        max(qualities, key=QUALITY_ORDER.index, default=Quality.ESTIMATED),
    )
