"""`wattledger carbon`: the carbon of a window."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from wattledger.errors import DataMissingError
from wattledger_cli import pricing, selection
from wattledger_cli.options import Options, options_of
from wattledger_cli.output import emit, warn

if TYPE_CHECKING:
    from wattledger.statement.query import CarbonQuery

app = typer.Typer(add_completion=False, rich_markup_mode=None)

ViewFlag = Annotated[
    str,
    typer.Option(metavar="direct|loaded|active", help="Idle as its own line, spread, or left out."),
]


@app.command()
def carbon(
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
    zone: pricing.Zone = None,
    intensity: pricing.Intensity = None,
    pue: pricing.Pue = None,
    lifetime: Annotated[
        str, typer.Option(metavar="5y|36mo|43800h", help="What embodied carbon is spread over.")
    ] = "5y",
    embodied: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=KG", help="Embodied kgCO2e of a device model; repeatable."),
    ] = None,
    no_embodied: Annotated[
        bool, typer.Option("--no-embodied", help="Operational carbon alone.")
    ] = False,
    min_coverage: Annotated[
        float | None,
        typer.Option(metavar="0.95", help="Least share of measured or constant intensity."),
    ] = None,
) -> None:
    """Carbon of a window, in total and by group: operational and embodied.

    Filters are globs and repeatable: any within one, all across them. Embodied carbon is shared
    by device time, operational is energy x PUE x the grid intensity of those hours.

    Example: wattledger carbon --last 7d --by job,activity --zone FRA --pue 1.2
    """
    from wattledger.carbon.embodied import parse_lifetime
    from wattledger.hardware.factors import parse_overrides
    from wattledger.statement.query import CarbonQuery, parse_groups, parse_view

    options = options_of(context)
    span = selection.span(from_=from_, to=to, last=last, day=day, month=month, tz=tz)
    price = pricing.needed(pricing.prices(options, zone, intensity, pue))
    query = CarbonQuery(
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
        intensity=price.intensity,
        zone=price.zone,
        pue=price.pue,
        lifetime_s=parse_lifetime(lifetime),
        embodied_kg=parse_overrides(embodied or ()),
        include_embodied=not no_embodied,
        min_coverage=min_coverage,
    )
    show_carbon(options, query)


def show_carbon(options: Options, query: CarbonQuery) -> None:
    """Ask the ledger and write the answer; raises DataMissingError where it holds none."""
    from wattledger.statement.carbon import carbon_statement
    from wattledger_cli.statement_tables import draw_carbon, records_of

    with options.store() as store:
        missed = selection.missed(store, query.window)
        if missed:
            raise DataMissingError(missed)
        statement = carbon_statement(store, query)
    document = statement.to_json()
    emit(options, document, records_of(document), lambda: draw_carbon(statement))
    warn(options, statement.warnings)
