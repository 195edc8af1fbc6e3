"""`wattledger requests`: the costliest requests of a window."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from wattledger.errors import InputError
from wattledger.records import UJ_PER_J
from wattledger_cli import pricing, selection
from wattledger_cli.figures import CARBON_G, COUNT, ENERGY_J
from wattledger_cli.one_request import is_one, show_if_literal, show_request
from wattledger_cli.options import Options, options_of
from wattledger_cli.output import draw_notes, draw_table, emit, left_out_note, note, warn
from wattledger_cli.tables import numbers, words

if TYPE_CHECKING:
    from wattledger.statement.requests import RequestsStatement
    from wattledger.store.protocol import Filters
    from wattledger.timespan import Window

app = typer.Typer(add_completion=False, rich_markup_mode=None)

SHORT_ID = 16

Limit = Annotated[str, typer.Option(metavar="N", help="How many to show.")]
DEFAULT_LIMIT = "20"


def parse_limit(text: str) -> int:
    """The number that --limit gives; raises InputError."""
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"--limit {text!r}: give a whole number of 1 or more")
    return int(text)


@app.command()
def requests(
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
    limit: Limit = DEFAULT_LIMIT,
    zone: pricing.Zone = None,
    intensity: pricing.Intensity = None,
    pue: pricing.Pue = None,
) -> None:
    """The costliest requests that finished in a window, with their joules per phase.

    With --zone or --intensity each is told its operational carbon too. --request ID without a
    window tells of that one request, whenever it was, one that still runs too.

    Example: wattledger requests --last 90m --job chat --limit 5
    """
    options = options_of(context)
    shown = parse_limit(limit)
    span = selection.span(from_=from_, to=to, last=last, day=day, month=month, tz=tz)
    filters = selection.choose(
        host=host, job=job, workload=workload, engine=engine, model=model, request=request
    )
    price = pricing.prices(options, zone, intensity, pue)
    others = (from_, to, last, day, month, host, job, workload, model)
    if request and len(request) == 1 and not any(others) and _at_most_one_name(engine):
        show = show_request if is_one(request) else show_if_literal
        if show(options, request[0], (engine or [""])[0], shown, price):
            return
    show_requests(options, span.window, filters, shown, price)


def _at_most_one_name(engine: list[str] | None) -> bool:
    return not engine or is_one(engine)


def show_requests(
    options: Options,
    window: Window,
    filters: Filters,
    limit: int,
    price: pricing.Prices | None = None,
) -> None:
    """Ask the ledger and write the answer."""
    from wattledger.carbon.pue import ASSUMED_PUE
    from wattledger.statement.requests import requests_statement

    with options.store() as store:
        missed = selection.missed(store, window)
        statement = requests_statement(
            store,
            window,
            filters,
            limit,
            intensity=price.intensity if price else None,
            pue=price.pue if price else ASSUMED_PUE,
        )
    records = [line.to_json() for line in statement.requests]
    emit(options, statement.to_json(), records, lambda: _draw(statement))
    note(options, [missed] if missed else [])
    warn(options, statement.warnings)


def _short(request: str) -> str:
    """A long id as the glob that `--request` takes."""
    return request if len(request) <= SHORT_ID else f"{request[: SHORT_ID - 1]}*"


def _draw(statement: RequestsStatement) -> None:
    from wattledger_cli.statement_tables import window_note

    lines = [line.request for line in statement.requests]
    grams = [line.gco2e for line in statement.requests]
    energies = [[uj / UJ_PER_J for uj in (x.energy_uj, x.prefill_uj, x.decode_uj)] for x in lines]
    peers = [value for row in energies for value in row]
    columns = [
        words("request", [_short(line.finish.request) for line in lines]),
        words("job", [line.finish.job for line in lines]),
        numbers("prompt", COUNT, [line.finish.prompt_tokens for line in lines]),
        numbers("cached", COUNT, [line.finish.cached_tokens for line in lines], spare=2),
        numbers("output", COUNT, [line.finish.decode_tokens for line in lines]),
        *(
            numbers(title, ENERGY_J, [row[at] for row in energies], peers=peers, spare=at and 1)
            for at, title in enumerate(("energy", "prefill", "decode"))
        ),
    ]
    if any(value is not None for value in grams):
        columns.append(numbers("operat.", CARBON_G, grams, suffix="CO2e"))
    left_out = draw_table(columns)
    methods = sorted({f"{line.quality} ({line.method})" for line in lines})
    draw_notes(
        (
            window_note(statement.window),
            ("shown", f"{len(lines)} of {statement.found:,} finished requests, costliest first"),
            *([("energy", ", ".join(methods))] if methods else []),
            *left_out_note(left_out),
        )
    )
