"""`wattledger usage`: energy and tokens of a window."""

from __future__ import annotations

import typer

from wattledger_cli import selection
from wattledger_cli.carbon import ViewFlag
from wattledger_cli.options import options_of
from wattledger_cli.output import emit, note, warn

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def usage(
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
    request: selection.Request = None,
    activity: selection.Activities = None,
    by: selection.By = None,
    view: ViewFlag = "direct",
) -> None:
    """Energy and tokens of a window, in total and by group.

    Example: wattledger usage --day 2026-10-01 --tz Europe/Paris --by hour,job
    """
    from wattledger.statement.query import UsageQuery, parse_groups, parse_view
    from wattledger.statement.usage import usage_statement
    from wattledger_cli.statement_tables import draw_usage, records_of

    options = options_of(context)
    span = selection.span(from_=from_, to=to, last=last, day=day, month=month, tz=tz)
    query = UsageQuery(
        window=span.window,
        filters=selection.choose(
            host=host,
            job=job,
            workload=workload,
            engine=engine,
            model=model,
            request=request,
            activity=activity,
        ),
        by=parse_groups(by) if by else (),
        view=parse_view(view),
        tz=span.tz,
    )
    with options.store() as store:
        missed = selection.missed(store, query.window)
        statement = usage_statement(store, query)
    document = statement.to_json()
    emit(options, document, records_of(document), lambda: draw_usage(statement))
    note(options, [missed] if missed else [])
    warn(options, statement.warnings)
