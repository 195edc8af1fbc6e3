"""Columns of a table, and how many of them fit a terminal without a fold inside a word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from wattledger_cli.figures import ABSENT, Quantity, decimals, fixed

LABEL_FLOOR = 8
PROSE_FLOOR = 20
GAP = 2


class Cells(StrEnum):
    """What a column holds: labels may be cut short, prose wraps, the rest stays whole."""

    NUMBERS = "numbers"
    LABELS = "labels"
    WHOLE = "whole"
    PROSE = "prose"


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table, its cells in row order; `total` stands below the last rule.

    `spare` above 0: left out where the table is too wide, the highest first, equal ones together.
    """

    title: str
    cells: tuple[str, ...]
    total: str = ""
    unit: str = ""
    holds: Cells = Cells.LABELS
    spare: int = 0

    def width(self) -> int:
        """Terminal cells that it takes when nothing is cut."""
        from rich.cells import cell_len

        texts = (self.title, self.unit, self.total, *self.cells)
        return max(cell_len(line) for text in texts for line in text.split("\n"))


@dataclass(frozen=True, slots=True)
class Fitted:
    """Columns that are shown, the width of each, and the titles of those left out."""

    columns: tuple[Column, ...]
    widths: tuple[int, ...]
    left_out: tuple[str, ...]

    @property
    def width(self) -> int:
        """Of the whole table, gaps included."""
        return sum(self.widths) + GAP * (len(self.widths) - 1)


def fit(columns: Sequence[Column], width: int) -> Fitted:
    """As many columns as fit `width`, labels cut to what is left, but never below a floor.

    What has no `spare` stays, so that the answer may be wider still.
    """
    shown = list(columns)
    while _least(shown) > width and (spare := max(column.spare for column in shown)):
        shown = [column for column in shown if column.spare < spare]
    widths = [column.width() for column in shown]
    floors = [_floor(column) for column in shown]
    while sum(widths) + GAP * (len(widths) - 1) > width:
        above = [at for at, floor in enumerate(floors) if widths[at] > floor]
        if not above:
            break
        widths[max(above, key=lambda at: widths[at])] -= 1
    left_out = tuple(column.title for column in columns if column not in shown)
    return Fitted(tuple(shown), tuple(widths), left_out)


def _least(columns: Sequence[Column]) -> int:
    return sum(_floor(column) for column in columns) + GAP * (len(columns) - 1)


def _floor(column: Column) -> int:
    floors = {Cells.LABELS: LABEL_FLOOR, Cells.PROSE: PROSE_FLOOR}
    from rich.cells import cell_len

    title = cell_len(column.title)
    width = column.width()
    return max(title, min(width, floors.get(column.holds, width)))


def words(
    title: str,
    values: Sequence[str | None],
    total: str = "",
    *,
    holds: Cells = Cells.LABELS,
    spare: int = 0,
) -> Column:
    """A column of names or prose; a missing one is a dash."""
    cells = tuple(ABSENT if value is None else printable(value) for value in values)
    return Column(title, cells, total, holds=holds, spare=spare)


def numbers(
    title: str,
    of: Quantity,
    values: Sequence[float | None],
    total: float | None = None,
    *,
    peers: Sequence[float | None] = (),
    suffix: str = "",
    spare: int = 0,
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
    return Column(title, tuple(cells), below, f"{scale.unit}{suffix}", Cells.NUMBERS, spare)


def printable(text: str) -> str:
    """`text` without what could steer a terminal: names in a ledger come from anywhere."""
    return "".join(char if char.isprintable() else "\ufffd" for char in text)
