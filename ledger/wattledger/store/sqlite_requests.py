"""Answering `requests`: finished requests with their energy per phase."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import groupby
from operator import itemgetter
from typing import Any

from wattledger.records import QUALITY_ORDER, Activity, FinishedRequest, Quality
from wattledger.store.names import Lookup
from wattledger.store.protocol import Filters, RequestEnergy, glob_match

_FINISHES = """SELECT finish.request, finish.finished_ns, finish.clock, boot.host, request.request,
    request.engine, finish.model, finish.workload, finish.job, finish.prompt_tokens,
    finish.cached_tokens, finish.decode_tokens, total.account, total.energy_uj
    FROM finish JOIN request ON request.id = finish.request JOIN boot ON boot.id = request.boot
    LEFT JOIN request_total AS total ON total.request = finish.request AND total.parts > 0
    WHERE finish.finished_ns >= ? AND finish.finished_ns < ?
    ORDER BY finish.request, finish.finished_ns, finish.clock"""
_FINISH_COLUMNS = 12

_Total = tuple[int, int]
_Owner = tuple[str | None, str | None]


def requests(
    conn: sqlite3.Connection, start_ns: int, end_ns: int, filters: Filters
) -> list[RequestEnergy]:
    """As `Store.requests`; a request that no posting names has method `none`, energy 0."""
    names = Lookup(conn)
    found = []
    rows = conn.execute(_FINISHES, (start_ns, end_ns))
    for _, group in groupby(rows, key=itemgetter(0)):
        host, finishes, totals = _read(group)
        owners = list(dict.fromkeys(map(_owner_of, finishes)))
        for owner in owners if glob_match(filters.host, host) else ():
            merged = _merged([finish for finish in finishes if _owner_of(finish) == owner])
            own = totals if len(owners) == 1 else _of(owner, totals, names)
            if _matches(merged, filters):
                found.append(_energy_of(host, merged, own, filters, names))
    found.sort(key=lambda item: (-item.energy_uj, item.finish.engine, item.finish.request))
    return found


def _read(
    rows: Iterable[tuple[Any, ...]],
) -> tuple[str, list[FinishedRequest], Sequence[_Total]]:
    """One id's host, finishes by time, and energy by account: every finish bears it all."""
    host, finishes, totals = "", list[FinishedRequest](), list[_Total]()
    for head, group in groupby(rows, key=lambda row: row[:_FINISH_COLUMNS]):
        _, finished_ns, _, host, request, engine, model, workload, job, *counts = head
        whose = request, engine, model, workload, job
        finishes.append(FinishedRequest(*whose, finished_ns, *counts))
        totals = [row[_FINISH_COLUMNS:] for row in group if row[_FINISH_COLUMNS] is not None]
    return host, finishes, totals


def _owner_of(finish: FinishedRequest) -> _Owner:
    return finish.workload, finish.job


def _merged(finishes: Sequence[FinishedRequest]) -> FinishedRequest:
    """Requests of one id as one: the last of them, with the tokens of all."""
    return replace(
        finishes[-1],
        prompt_tokens=sum(finish.prompt_tokens for finish in finishes),
        cached_tokens=sum(finish.cached_tokens for finish in finishes),
        decode_tokens=sum(finish.decode_tokens for finish in finishes),
    )


def _of(owner: _Owner, totals: Iterable[_Total], names: Lookup) -> list[_Total]:
    """What is booked to one owner."""
    accounts = ((names.account(at), at, energy_uj) for at, energy_uj in totals)
    return [(at, uj) for who, at, uj in accounts if (who.workload, who.job) == owner]


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
