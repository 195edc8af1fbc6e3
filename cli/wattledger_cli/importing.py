"""`wattledger import`: what others measured, posted into a ledger."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wattledger_cli.options import options_of
from wattledger_cli.output import draw_notes, emit, note

app = typer.Typer(
    add_completion=False, rich_markup_mode=None, help="Post another meter's records into a ledger."
)


@app.callback()
def importing() -> None:
    """Post another meter's records into a ledger."""


@app.command()
def energy(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE.csv", help="An Energy CSV.")],
) -> None:
    """Post another meter's energy into a ledger; the same file again changes nothing.

    Columns: start,end,host,device,energy_j and any of kind, device_model, workload, job, engine,
    model, activity, prefill_tokens, cached_tokens, decode_tokens, requests, static_j, device_s,
    quality. The whole file is checked before anything is written.

    Example: wattledger import energy rack4.csv --ledger sqlite:fleet.db
    """
    from wattledger.energy_csv import read_energy_csv
    from wattledger.store import book_into
    from wattledger.timespan import format_instant

    options = options_of(context)
    read = read_energy_csv(file)
    note(options, read.notes)
    with book_into(options.ledger_url()) as store:
        changed = store.post(read.entries)
    start_ns = min(entry.posting.start_ns for entry in read.entries)
    end_ns = max(entry.posting.end_ns for entry in read.entries)
    record = {
        "rows": read.rows,
        "entries": len(read.entries),
        "changed": changed,
        "from": format_instant(start_ns),
        "to": format_instant(end_ns),
    }

    def draw() -> None:
        draw_notes(
            (
                ("rows", f"{read.rows} read, {len(read.entries)} entries, {changed} changed"),
                ("window", f"{record['from']} to {record['to']}"),
                ("ledger", options.ledger_url()),
            )
        )

    emit(options, {"schema": "wattledger.import/1", **record}, [record], draw)
