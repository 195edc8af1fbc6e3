"""`wattledger jobs`: the costliest jobs of a window."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from wattledger.records import NS_PER_S, UJ_PER_J
from wattledger.timespan import format_instant
from wattledger_cli import selection
from wattledger_cli.figures import COUNT, ENERGY_J
from wattledger_cli.options import options_of
from wattledger_cli.output import draw_notes, draw_table, emit, left_out_note, note, warn
from wattledger_cli.requests import DEFAULT_LIMIT, Limit, parse_limit
from wattledger_cli.tables import numbers, words

if TYPE_CHECKING:
    from wattledger.statement.jobs import UserLine, UsersStatement
    from wattledger.timespan import Window

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def jobs(
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
    """The costliest jobs of a window, with their tokens, joules and times.

    Example: wattledger jobs --month 2026-10 --limit 50
    """
    from wattledger.statement.jobs import jobs_statement

    options = options_of(context)
    shown = parse_limit(limit)
    span = selection.span(from_=from_, to=to, last=last, day=day, month=month, tz=tz)
    filters = selection.choose(host=host, job=job, workload=workload, engine=engine, model=model)
    with options.store() as store:
        missed = selection.missed(store, span.window)
        statement = jobs_statement(store, span.window, filters, shown)
    document = statement.to_json()
    emit(options, document, _records(document), lambda: _draw(statement))
    note(options, [missed] if missed else [])
    warn(options, statement.warnings)


def _records(document: dict[str, object]) -> list[dict[str, object]]:
    lines = document["jobs"]
    if not isinstance(lines, list):
        return []
    return [{**line, "hosts": " ".join(line["hosts"])} for line in lines]


def _draw(statement: UsersStatement) -> None:
    from wattledger_cli.statement_tables import window_note

    users = statement.users
    totals = [user.total for user in users]
    joules = [total.amounts.energy_uj / UJ_PER_J for total in totals]
    tokens = [total.tokens for total in totals]
    left_out = draw_table(
        (
            words("job", [user.name for user in users]),
            numbers("energy", ENERGY_J, joules),
            numbers("requests", COUNT, [total.amounts.requests for total in totals], spare=2),
            numbers("prefill", COUNT, [total.amounts.prefill_tokens for total in totals], spare=1),
            numbers("decode", COUNT, [total.amounts.decode_tokens for total in totals], spare=1),
            numbers(
                "per token",
                ENERGY_J,
                [of / count if count else None for of, count in zip(joules, tokens, strict=True)],
                spare=4,
            ),
            words("first", [_first(user, statement.window) for user in users], spare=3),
        )
    )
    shown = f"{len(users)} of {statement.found:,} jobs, costliest first"
    draw_notes((window_note(statement.window), ("shown", shown), *left_out_note(left_out)))


def _first(user: UserLine, window: Window) -> str:
    """Its first minute, but never a time before the window."""
    minute_ns = user.first_ns - user.first_ns % (60 * NS_PER_S)
    if minute_ns < window.start_ns:
        return format_instant(window.start_ns)
    return format_instant(minute_ns)[:16] + "Z"
