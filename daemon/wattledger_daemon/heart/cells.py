"""A meter's memory: the stretches of E(t), kept in columns.

Ten minutes of 8 GPUs at 10 Hz are 48,000 stretches: as objects they take 13 MB, as columns 2.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, MutableSequence
from typing import NamedTuple

from wattledger.records import NS_PER_S, Quality

UNITS_PER_UJ = 2 * NS_PER_S
"""The area under a trapezoid of uW and ns is whole in units of uJ / (2 * 10^9)."""

_QUALITIES: tuple[Quality | None, ...] = (None, *Quality)
_NUMBER_OF = {quality: number for number, quality in enumerate(_QUALITIES)}


class Cell(NamedTuple):
    """One stretch of E(t) from `start_ns`; `quality` None where nothing was metered.

    `first_uw` and `last_uw` are the power at both ends. A counter's cell has no power: it rises
    evenly by `rise_uj`. `carried` is what E(start) has beyond whole microjoules, in units of
    uJ / (2 * 10^9), so that rounding telescopes from cell to cell.
    """

    start_ns: int
    end_ns: int
    carried: int
    rise_uj: int
    first_uw: int
    last_uw: int
    quality: Quality | None

    def energy_uj_at(self, t_ns: int) -> int:
        """E(t) over the whole microjoules of E(start), rounded half up to integers."""
        elapsed_ns, length_ns = t_ns - self.start_ns, self.end_ns - self.start_ns
        area = (
            UNITS_PER_UJ * self.rise_uj * elapsed_ns
            + 2 * self.first_uw * elapsed_ns * length_ns
            + (self.last_uw - self.first_uw) * elapsed_ns * elapsed_ns
        )
        unit = UNITS_PER_UJ * length_ns
        return (2 * (self.carried * length_ns + area) + unit) // (2 * unit)

    @property
    def carries(self) -> int:
        """What E(end) has beyond whole microjoules, for the cell that follows."""
        length_ns = self.end_ns - self.start_ns
        return (self.carried + (self.first_uw + self.last_uw) * length_ns) % UNITS_PER_UJ


class Cells:
    """Cells side by side, oldest first: each begins where the one before it ends."""

    __slots__ = ("_columns", "_numbers", "_starts_ns", "end_ns")

    def __init__(self) -> None:
        self.end_ns = 0
        self._starts_ns = array("q")
        # carried, rise_uj, first_uw, last_uw
        self._columns: list[MutableSequence[int]] = [array("q") for _ in range(4)]
        self._numbers = array("b")

    def __len__(self) -> int:
        return len(self._starts_ns)

    @property
    def first_ns(self) -> int:
        """Where the oldest cell begins; raises IndexError without one."""
        return self._starts_ns[0]

    def append(self, cell: Cell) -> None:
        """Add a cell that begins where the last one ends."""
        self._starts_ns.append(cell.start_ns)
        for index, value in enumerate(cell[2:6]):
            try:
                self._columns[index].append(value)
            except OverflowError:
                # More than 64 bits: no device's energy, but the books shall balance all the same.
                self._columns[index] = [*self._columns[index], value]
        self._numbers.append(_NUMBER_OF[cell.quality])
        self.end_ns = cell.end_ns

    def touching(self, start_ns: int, end_ns: int) -> Iterator[Cell]:
        """Cells that have a part in [start_ns, end_ns), oldest first."""
        first = max(0, bisect_right(self._starts_ns, start_ns) - 1)
        return self._slice(first, bisect_left(self._starts_ns, end_ns))

    def newest_first(self) -> Iterator[Cell]:
        """Every cell, from the last one back."""
        for index in range(len(self) - 1, -1, -1):
            yield from self._slice(index, index + 1)

    def clear(self) -> None:
        """Forget every cell."""
        self._drop(len(self))

    def forget_before(self, t_ns: int) -> bool:
        """Forget cells that end by `t_ns`; whether there were any."""
        keep = bisect_right(self._starts_ns, t_ns) - 1 if t_ns < self.end_ns else len(self)
        if keep <= 0:
            return False
        self._drop(keep)
        return True

    def _slice(self, first: int, stop: int) -> Iterator[Cell]:
        if first >= stop:
            return iter(())
        ends_ns = self._starts_ns[first + 1 : stop + 1]
        if stop == len(self):
            ends_ns.append(self.end_ns)
        rows = zip(
            self._starts_ns[first:stop],
            ends_ns,
            *(column[first:stop] for column in self._columns),
            (_QUALITIES[number] for number in self._numbers[first:stop]),
            strict=True,
        )
        return map(Cell._make, rows)

    def _drop(self, count: int) -> None:
        del self._starts_ns[:count], self._numbers[:count]
        for column in self._columns:
            del column[:count]
