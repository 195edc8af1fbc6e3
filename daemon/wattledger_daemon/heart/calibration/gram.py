"""Sums over rows from which a fit is solved, forgotten slowly, in groups for the jackknife."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from wattledger.records import NS_PER_S

LAGS_NS = tuple(range(-200_000_000, 300_000_001, 50_000_000))
"""Where the energy of a stretch is looked for: that much later than its steps."""
NO_LAG = LAGS_NS.index(0)
COLUMNS = 5
TIME, STEPS, PREFILL, DECODE, CONTEXT = range(COLUMNS)
GROUPS = 16
_BLOCK_ROWS = 6
MEMORY_ROWS = 720
"""A row weighs 1/e after as many others of one engine: an hour under load."""

_SIZE = COLUMNS * COLUMNS + COLUMNS * len(LAGS_NS) + len(LAGS_NS) + 2


class Row(NamedTuple):
    """A good stretch: seconds, passes, tokens, context, and joules at each of `LAGS_NS`."""

    x: tuple[float, ...]
    energy_j: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Gram:
    """Weighted sums of x x', x y and y y per lag; then of weights and of energy.

    A row weighs 1 / energy: what a step draws strays by a part of itself, so the variance of a
    sum of them goes with the sum.
    """

    sums: tuple[float, ...] = (0.0,) * _SIZE

    @property
    def rows(self) -> float:
        """How many rows there are, as far as they are remembered."""
        return self.sums[-2]

    @property
    def energy_j(self) -> float:
        """Their energy without lag, as far as they are remembered."""
        return self.sums[-1]

    def matrix(self, columns: Sequence[int]) -> list[list[float]]:
        """X'WX of some columns."""
        return [[self.sums[i * COLUMNS + j] for j in columns] for i in columns]

    def vector(self, columns: Sequence[int], lag: float) -> list[float]:
        """X'Wy of some columns, `lag` counted in places of `LAGS_NS`, between them linear."""
        low = min(int(lag), len(LAGS_NS) - 2)
        part = lag - low
        first = COLUMNS * (COLUMNS + low)
        return [
            self.sums[first + j] * (1.0 - part) + self.sums[first + COLUMNS + j] * part
            for j in columns
        ]

    def square(self, lag: int) -> float:
        """Weighted y'y at a place of `LAGS_NS`."""
        return self.sums[COLUMNS * (COLUMNS + len(LAGS_NS)) + lag]

    def plus(self, row: Row) -> Gram:
        """With one row more, and nothing forgotten."""
        x, y = row
        weight = 1.0 / y[NO_LAG]
        scaled = [weight * value for value in x]
        news = [one * other for one in scaled for other in x]
        news += [one * energy_j for energy_j in y for one in scaled]
        news += [weight * energy_j * energy_j for energy_j in y]
        news += [1.0, y[NO_LAG]]
        return Gram(tuple(map(float.__add__, self.sums, news)))

    def scaled(self, factor: float) -> Gram:
        """All sums times `factor`."""
        return Gram(tuple([value * factor for value in self.sums]))


def total(grams: Iterable[Gram]) -> Gram:
    """The sum of several."""
    sums = [gram.sums for gram in grams]
    return Gram(tuple(map(sum, zip(*sums, strict=True)))) if sums else Gram()


def without(whole: Gram, part: Gram) -> Gram:
    """The rest of a whole."""
    return Gram(tuple(map(float.__sub__, whole.sums, part.sums)))


@dataclass(frozen=True, slots=True)
class Groups:
    """Rows in `GROUPS` groups, blocks of neighbours together, since neighbours err alike."""

    grams: tuple[Gram, ...] = (Gram(),) * GROUPS
    blocks: int = 0
    held: int = 0

    def plus(self, row: Row, engines: int = 1) -> Groups:
        """With one row more of so many engines side by side; a new block forgets a little.

        A block is half a minute, so an hour is remembered of one engine as of many.
        """
        grams, blocks, held = list(self.grams), self.blocks, self.held
        if not held or held >= _BLOCK_ROWS * engines:
            keep = (1.0 - 1.0 / MEMORY_ROWS) ** _BLOCK_ROWS
            grams = [gram.scaled(keep) for gram in grams]
            blocks, held = blocks + 1, 0
        at = (blocks - 1) % GROUPS
        grams[at] = grams[at].plus(row)
        return Groups(tuple(grams), blocks, held + 1)


def lag_s(place: float) -> float:
    """Seconds of a place among `LAGS_NS`."""
    step_ns = LAGS_NS[1] - LAGS_NS[0]
    return (LAGS_NS[0] + place * step_ns) / NS_PER_S
