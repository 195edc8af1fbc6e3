"""`wattledger replay`: a recorded trace through the daemon's own pipeline."""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Protocol

import typer

from wattledger.errors import InputError
from wattledger_cli.options import options_of
from wattledger_cli.output import draw_notes, emit

app = typer.Typer(add_completion=False, rich_markup_mode=None)


class ReplaySummary(Protocol):
    """What a replay did; its extent is in UTC nanoseconds, None where the trace has no window."""

    @property
    def lines(self) -> int:
        """Lines read."""

    @property
    def pages(self) -> int:
        """Windows booked."""

    @property
    def changed(self) -> int:
        """Windows that told the ledger something new."""

    @property
    def start_ns(self) -> int | None:
        """Start of the first window."""

    @property
    def end_ns(self) -> int | None:
        """End of the last window."""


class Replay(Protocol):
    """The pipeline's entry point (group `wattledger.pipelines`, name `replay`)."""

    def __call__(self, path: Path, ledger_url: str, window_s: int) -> ReplaySummary:
        """Book a trace file into a ledger."""


def find_replay() -> Replay:
    """The installed pipeline; raises InputError with the mend where there is none."""
    missing = "the daemon's pipeline is not installed: pip install 'wattledger[daemon]'"
    for entry in entry_points(group="wattledger.pipelines", name="replay"):
        try:
            replay: Replay = entry.load()
        except ModuleNotFoundError as error:
            raise InputError(f"{missing} ({error.name} is missing)") from error
        return replay
    raise InputError(missing)


@app.command()
def replay(
    context: typer.Context,
    trace: Annotated[Path, typer.Argument(metavar="TRACE.jsonl", help="A recorded trace.")],
    window: Annotated[
        str, typer.Option(metavar="5s", help="Length of a booked window, 1s to 60s.")
    ] = "5s",
) -> None:
    """Run a recorded trace through the daemon's own pipeline into a ledger.

    The same trace again changes nothing. --ledger is needed, so that no trace ends up among this
    machine's own records by chance.

    Example: wattledger replay run.jsonl --ledger sqlite:run.db
    """
    from wattledger.records import NS_PER_S
    from wattledger.timespan import format_instant, parse_duration

    options = options_of(context)
    if options.ledger is None:
        raise InputError("replay, no --ledger: name the one to write, as --ledger sqlite:run.db")
    window_s, rest_ns = divmod(parse_duration(window), NS_PER_S)
    if rest_ns or not 1 <= window_s <= 60 or 60 % window_s:
        raise InputError(f"--window {window!r}: give seconds that divide a minute, 1s to 60s")
    summary = find_replay()(trace, options.ledger, window_s)
    start, end = (
        None if t_ns is None else format_instant(t_ns)
        for t_ns in (summary.start_ns, summary.end_ns)
    )
    record = {
        "lines": summary.lines,
        "pages": summary.pages,
        "changed": summary.changed,
        "from": start,
        "to": end,
    }
    ledger = options.ledger

    def draw() -> None:
        did = f"{summary.lines} lines, {summary.pages} windows, {summary.changed} changed"
        notes = [("trace", did), ("ledger", ledger)]
        if start is not None:
            flags = f"--ledger {ledger} --from {start} --to {end}"
            notes.append(("window", f"{start} to {end}"))
            notes.append(("next", f"wattledger usage {flags} --by job,activity"))
        draw_notes(notes)

    emit(options, {"schema": "wattledger.replay/1", **record}, [record], draw)
