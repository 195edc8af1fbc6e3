"""Data to stdout as JSON, CSV or a table; notes to stderr."""

from __future__ import annotations

import csv
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from wattledger_cli.options import Format, Options
from wattledger_cli.tables import Cells, Column, fit, printable

if TYPE_CHECKING:
    from rich.console import RenderableType

PIPE_WIDTH = 160
NOTE_WIDTH = 66
# The rules stand out by the padding of the last column.
RIM = 1


def emit(
    options: Options,
    document: Mapping[str, object],
    records: Sequence[Mapping[str, object]],
    draw: Callable[[], None],
) -> None:
    """Write one answer in the format asked for: the document, its records, or a drawing."""
    if options.format is Format.JSON:
        json.dump(document, sys.stdout, indent=2, ensure_ascii=False, allow_nan=False)
        sys.stdout.write("\n")
    elif options.format is Format.CSV:
        names = list(dict.fromkeys(name for record in records for name in record))
        writer = csv.DictWriter(sys.stdout, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
    else:
        draw()


def note(options: Options, lines: Sequence[str]) -> None:
    """Tell lines on stderr, unless the run is to be quiet."""
    if not options.quiet:
        for line in lines:
            sys.stderr.write(f"{printable(line)}\n")


def warn(options: Options, warnings: Sequence[str]) -> None:
    """Tell an answer's warnings on stderr; a JSON document carries its own."""
    if options.format is not Format.JSON:
        note(options, [f"warning: {text}" for text in warnings])


def draw_table(columns: Sequence[Column], *, totals: bool = False) -> tuple[str, ...]:
    """Draw columns with thin rules, nothing folded inside a word; no rows, no table.

    Returns the titles of columns that the terminal has no room for.
    """
    if not columns[0].cells:
        return ()
    from rich import box
    from rich.table import Table
    from rich.text import Text

    fitted = fit(columns, _width() - RIM)
    table = Table(
        box=box.SIMPLE if totals else box.SIMPLE_HEAD,
        show_footer=totals,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )
    units = any(column.unit for column in fitted.columns)
    for column, width in zip(fitted.columns, fitted.widths, strict=True):
        header = Text(column.title, style="bold")
        if units:
            header.append(f"\n{column.unit}", style="dim not bold")
        prose = column.holds is Cells.PROSE
        table.add_column(
            header,
            footer=Text(column.total, style="bold"),
            justify="right" if column.holds is Cells.NUMBERS else "left",
            no_wrap=not prose,
            overflow="fold" if prose else "ellipsis",
            width=width,
        )
    for row in zip(*(column.cells for column in fitted.columns), strict=True):
        table.add_row(*(Text(cell) for cell in row))
    _print(table, fitted.width + RIM)
    sys.stdout.write("\n")
    return fitted.left_out


def left_out_note(titles: Sequence[str]) -> list[tuple[str, str]]:
    """What to say of columns that found no room."""
    if not titles:
        return []
    return [("left out", f"{', '.join(titles)}: --format json or a wider terminal has them")]


def draw_notes(notes: Sequence[tuple[str, str]]) -> None:
    """Draw labelled lines below a table."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(max_width=NOTE_WIDTH)
    for label, text in notes:
        grid.add_row(Text(f" {label}", style="dim"), Text(printable(text)))
    _print(grid)


def _width() -> int:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else PIPE_WIDTH


def _print(drawing: RenderableType, least: int = 0) -> None:
    from rich.console import Console

    seen = sys.stdout.isatty()
    console = Console(
        file=sys.stdout,
        width=max(_width(), least),
        force_terminal=seen,
        # Without colours rich would still write bold and dim.
        color_system="auto" if seen and not os.environ.get("NO_COLOR") else None,
        highlight=False,
        markup=False,
        emoji=False,
    )
    with console.capture() as captured:
        console.print(drawing)
    lines = [line.rstrip() for line in captured.get().splitlines()]
    sys.stdout.write("\n".join(lines) + "\n")
