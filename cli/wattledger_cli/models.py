"""`wattledger models`: the costliest models of a window, and what their tokens cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from wattledger.records import UJ_PER_J
from wattledger.timespan import format_instant
from wattledger_cli import selection
from wattledger_cli.figures import COUNT, ENERGY_J, quantity
from wattledger_cli.options import options_of
from wattledger_cli.output import draw_notes, draw_table, emit, left_out_note, note
from wattledger_cli.requests import DEFAULT_LIMIT, Limit, parse_limit
from wattledger_cli.tables import Cells, numbers, words

if TYPE_CHECKING:
    from wattledger.fits import Coefficient, Fit
    from wattledger.statement.models import ModelsStatement, Served

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def models(
    context: typer.Context,
    *,
    from_: selection.From = None,
    to: selection.To = None,
    last: selection.Last = None,
    day: selection.Day = None,
    month: selection.Month = None,
    tz: selection.TimeZone = "UTC",
    host: selection.Host = None,
    job: selection.Job = None,
    workload: selection.Workload = None,
    engine: selection.Engine = None,
    model: selection.Model = None,
    limit: Limit = DEFAULT_LIMIT,
) -> None:
    """The costliest models of a window by engine: tokens, J per token, and the cost model.

    Example: wattledger models --last 24h
    """
    from wattledger.statement.models import models_report

    options = options_of(context)
    shown = parse_limit(limit)
    span = selection.span(from_=from_, to=to, last=last, day=day, month=month, tz=tz)
    filters = selection.choose(host=host, job=job, workload=workload, engine=engine, model=model)
    with options.store() as store:
        missed = selection.missed(store, span.window)
        statement = models_report(store, span.window, filters, shown)
    emit(options, statement.to_json(), _records(statement), lambda: _draw(statement))
    note(options, [missed] if missed else [])


def _records(statement: ModelsStatement) -> list[dict[str, object]]:
    """One record an engine; those of its fit begin with `fit_`."""
    records = []
    for one in statement.served:
        record: dict[str, object] = {"model": one.model, **one.to_json()}
        fit = record.pop("fit")
        record["methods"] = " ".join(one.methods)
        if isinstance(fit, dict):
            record |= {f"fit_{name}": value for name, value in fit.items()}
        records.append(record)
    return records


def _draw(statement: ModelsStatement) -> None:
    from wattledger_cli.statement_tables import window_note

    served = statement.served
    totals = [one.total for one in served]
    prefill = [one.j_per_prefill_token for one in served]
    decode = [one.j_per_decode_token for one in served]
    left_out = draw_table(
        (
            words("model", [one.model for one in served]),
            words("engine", [one.engine for one in served]),
            words("host", [one.host for one in served], spare=4),
            words("devices", [one.devices for one in served], spare=3),
            numbers("energy", ENERGY_J, [t.amounts.energy_uj / UJ_PER_J for t in totals]),
            numbers("prefill", COUNT, [t.amounts.prefill_tokens for t in totals], spare=1),
            numbers("decode", COUNT, [t.amounts.decode_tokens for t in totals], spare=1),
            numbers("per prefill", ENERGY_J, prefill),
            numbers("per decode", ENERGY_J, decode),
        )
    )
    left_out += _draw_fits(served)
    users = statement.users
    shown = f"{len(users.users)} of {users.found:,} models, costliest first"
    notes = [window_note(users.window), ("shown", shown), *_reasons(served)]
    draw_notes((*notes, *left_out_note(left_out)))


def _fits(served: tuple[Served, ...]) -> dict[Fit, Served]:
    """Each fit once, with the first engine that it is of."""
    found: dict[Fit, Served] = {}
    for one in served:
        if one.fit is not None:
            found.setdefault(one.fit, one)
    return found


def _draw_fits(served: tuple[Served, ...]) -> tuple[str, ...]:
    """What a pass and a token cost over idle power, by calibration."""
    fits = list(_fits(served))
    return draw_table(
        (
            words("cost model of", [fit.key.model for fit in fits]),
            words("on", [fit.key.devices for fit in fits], spare=1),
            words("method", [fit.method for fit in fits], holds=Cells.WHOLE),
            words("pass", [_bounds(fit.f) for fit in fits], holds=Cells.WHOLE),
            words("prefill", [_bounds(fit.a) for fit in fits], holds=Cells.WHOLE),
            words("decode", [_bounds(fit.b) for fit in fits], holds=Cells.WHOLE),
            words("context", [_bounds(fit.c) for fit in fits], holds=Cells.WHOLE, spare=4),
            numbers("rows", COUNT, [fit.rows for fit in fits], spare=2),
            numbers("rank", COUNT, [fit.rank for fit in fits], spare=5),
            words("lag", [f"{fit.lag_s * 1000:+.0f} ms" for fit in fits], spare=5),
            words("since", [_minute(fit) for fit in fits], holds=Cells.WHOLE, spare=3),
        )
    )


def _bounds(of: Coefficient | None) -> str | None:
    if of is None:
        return None
    if not of.value_j:
        return f"0 to {quantity(of.high_j, ENERGY_J)}"
    half = max(of.high_j - of.value_j, of.value_j - of.low_j) / of.value_j
    percent = f"{half * 100:.1f}" if half < 0.0995 else f"{half * 100:.0f}"
    return f"{quantity(of.value_j, ENERGY_J)} ±{percent} %"


def _reasons(served: tuple[Served, ...]) -> list[tuple[str, str]]:
    """Why a cost model is not calibrated, or what of it is not known."""
    told = [
        ("not fitted" if not fit.identified else "fitted", f"{one.model}: {fit.reason}")
        for fit, one in _fits(served).items()
        if fit.reason
    ]
    if any(one.fit is None for one in served):
        names = ", ".join(dict.fromkeys(one.model for one in served if one.fit is None))
        told.append(("no fit", f"{names}: two minutes of work on a metered GPU of its own tell it"))
    return told


def _minute(fit: Fit) -> str:
    return format_instant(fit.since_ns)[:16] + "Z"
