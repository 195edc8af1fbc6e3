"""`wattledger audit`: whether the books balance."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from wattledger.errors import UnbalancedError
from wattledger.records import NS_PER_S, UJ_PER_J
from wattledger_cli import selection
from wattledger_cli.figures import DURATION_S, ENERGY_J, Quantity, Scale
from wattledger_cli.options import Options, options_of
from wattledger_cli.output import draw_notes, draw_table, emit, note
from wattledger_cli.tables import numbers, words

if TYPE_CHECKING:
    from wattledger.statement.audit import AuditStatement
    from wattledger.timespan import Window

app = typer.Typer(add_completion=False, rich_markup_mode=None)
_MICROJOULES = Quantity((Scale("uJ", 1.0),), ())
_NANOSECONDS = Quantity((Scale("ns", 1.0),), ())


@app.command()
def audit(
    context: typer.Context,
    *,
    from_: selection.From = None,
    to: selection.To = None,
    last: selection.Last = None,
    day: selection.Day = None,
    month: selection.Month = None,
    tz: selection.TimeZone = "UTC",
) -> None:
    """Check the laws on a window: what was metered is posted, to the microjoule.

    Gaps, resets and wraps of counters and late, repeated and dropped events are counted.
    Exit status 5 where the books do not balance.

    Example: wattledger audit --last 7d
    """
    options = options_of(context)
    span = selection.span(from_=from_, to=to, last=last, day=day, month=month, tz=tz)
    show_audit(options, span.window)


def show_audit(options: Options, window: Window) -> None:
    """Ask the ledger and write the answer; raises UnbalancedError after it."""
    from wattledger.statement.audit import audit_statement

    with options.store() as store:
        missed = selection.missed(store, window)
        statement = audit_statement(store, window)
    document = statement.to_json()
    devices = document["devices"]
    emit(
        options,
        document,
        devices if isinstance(devices, list) else [],
        lambda: _draw(statement, document),
    )
    note(options, [missed] if missed else [])
    if not statement.balanced:
        raise UnbalancedError(
            f"the books do not balance, {statement.imbalance_uj} uJ and"
            f" {statement.imbalance_device_ns} ns of device time are off:"
            " keep the ledger as it is and report it"
        )


def _draw(statement: AuditStatement, document: dict[str, object]) -> None:
    from wattledger_cli.statement_tables import window_note

    books = statement.devices
    metered = [book.metered_uj / UJ_PER_J for book in books]
    posted = [book.posted_uj / UJ_PER_J for book in books]
    draw_table(
        (
            words("host", [book.host for book in books]),
            words("device", [book.device.device for book in books]),
            numbers("metered", ENERGY_J, metered, peers=posted),
            numbers("posted", ENERGY_J, posted, peers=metered),
            numbers("off", _MICROJOULES, [book.metered_uj - book.posted_uj for book in books]),
            numbers("booked", DURATION_S, [book.posted_ns / NS_PER_S for book in books]),
            numbers("off", _NANOSECONDS, [book.metered_ns - book.posted_ns for book in books]),
        )
    )
    verdict = "balanced" if statement.balanced else "NOT BALANCED"
    off = f"{statement.imbalance_uj} uJ and {statement.imbalance_device_ns} ns are off"
    counters = ", ".join(f"{document[name]} {name}" for name in ("gaps", "resets", "wraps"))
    events = ", ".join(f"{document[name]} {name}" for name in ("late", "duplicates", "dropped"))
    draw_notes(
        (
            window_note(statement.window),
            ("books", f"{verdict}: {off}"),
            ("counters", counters),
            ("events", events),
        )
    )
