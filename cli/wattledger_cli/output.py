"""Data to stdout as JSON, CSV or a table; notes to stderr."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wattledger_cli.figures import ABSENT, Quantity, decimals, fixed
from wattledger_cli.options import Format, Options

if TYPE_CHECKING:
    from rich.console import RenderableType

PIPE_WIDTH = 160
NOTE_WIDTH = 66


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table, its cells in row order; `total` stands below the last rule."""

    title: str
    cells: tuple[str, ...]
    total: str = ""
    unit: str = ""
    right: bool = False


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


def printable(text: str) -> str:
    """`text` without what could steer a terminal: names in a ledger come from anywhere."""
    return "".join(char if char.isprintable() else "\ufffd" for char in text)


def words(title: str, values: Sequence[str | None], total: str = "") -> Column:
    """A column of names; a missing one is a dash."""
    return Column(title, tuple(ABSENT if v is None else printable(v) for v in values), total)


def numbers(
    title: str,
    of: Quantity,
    values: Sequence[float | None],
    total: float | None = None,
    *,
    peers: Sequence[float | None] = (),
    suffix: str = "",
) -> Column:
    """A column of numbers in base units, shown in one unit with one number of decimals.

    `peers` are values of other columns that must share its unit and decimals.
    """
    scale = of.scale([*values, total, *peers])
    shown = [None if value is None else value * scale.per_base for value in (*values, total)]
    # Counts are whole; everything else gets the decimals of the largest beside it.
    largest = [*shown, *(value * scale.per_base for value in peers if value is not None)]
    places = 0 if scale.unit == "" else decimals(largest)
    *cells, below = (fixed(value, places) for value in shown)
    return Column(title, tuple(cells), below, f"{scale.unit}{suffix}", right=True)


def draw_table(columns: Sequence[Column], *, totals: bool = False) -> None:
    """Draw columns with thin rules; numbers never wrap, names do. Without rows nothing is drawn."""
    if not columns[0].cells:
        return
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        box=box.SIMPLE if totals else box.SIMPLE_HEAD,
        show_footer=totals,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )
    units = any(column.unit for column in columns)
    for column in columns:
        header = Text(column.title, style="bold")
        if units:
            header.append(f"\n{column.unit}", style="dim not bold")
        table.add_column(
            header,
            footer=Text(column.total, style="bold"),
            justify="right" if column.right else "left",
            no_wrap=column.right,
            overflow="fold",
        )
    for row in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*(Text(cell) for cell in row))
    _print(table)
    sys.stdout.write("\n")


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


def _print(drawing: RenderableType) -> None:
    from rich.console import Console

    width = None if sys.stdout.isatty() else PIPE_WIDTH
    console = Console(file=sys.stdout, width=width, highlight=False, markup=False, emoji=False)
    with console.capture() as captured:
        console.print(drawing)
    lines = [line.rstrip() for line in captured.get().splitlines()]
    sys.stdout.write("\n".join(lines) + "\n")
