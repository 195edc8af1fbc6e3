"""The estimate from the sums: lag, what can be told apart, coefficients and their intervals.

Intervals come from a jackknife over groups of neighbouring rows: each group is left out in turn
and all is done again, the search for the lag and the idle power included. So noise that grows
with load, neighbours that err alike and a lag that is only roughly known are all in them,
without a word about how any of it is distributed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import hypot, inf, sqrt

from wattledger_daemon.heart.calibration.algebra import inflation, least_squares, solve
from wattledger_daemon.heart.calibration.gram import (
    COLUMNS,
    CONTEXT,
    DECODE,
    LAGS_NS,
    NO_LAG,
    PREFILL,
    STEPS,
    TIME,
    Gram,
    total,
    without,
)

MOST_INFLATION = 100.0
"""Of a coefficient's variance by other columns: 1 % of wrongness in the model becomes 10 %."""
WIDEST_RATIO = 0.2
_HARMLESS_RATIO = 0.03
MOST_RESIDUAL_RATIO = 0.1
_SYSTEMATIC_RATIO = 0.01
"""What no number of rows makes better: a chip that drifts is no straight line."""
_ALIKE = 1.2
"""Blocks that follow one another err a little alike too: found in simulation."""
_SURELY = 1.5
_LEAST_GROUPS = 4
# Student's t at 97.5 %, by groups less one.
_T = (inf, 12.71, 4.31, 3.19, 2.78, 2.58, 2.45, 2.37, 2.31, 2.27, 2.23, 2.21, 2.18, 2.17, 2.15)
_T_OF_MANY = 2.14
_ONE_RATIO = "prefill and decode keep one ratio: no telling them apart"
_NAMES = ("idle power", "f", "a", "b", "c")


@dataclass(frozen=True, slots=True)
class Idle:
    """Idle power taken as known, watts, and how far off it may be; `basis` as `Fit.idle_basis`."""

    power_w: float
    error_w: float
    basis: str


@dataclass(frozen=True, slots=True)
class Estimate:
    """What the rows tell; `values` and `halves` (of 95 % intervals) go by column of a row.

    What is not among `columns` was not fitted: its value is 0. Only what is `told` is known; the
    others still foretell energy, and bound what may stand in for them. `lag` is a place among
    `LAGS_NS`; `reason` says why not, or what of it is not known.
    """

    columns: tuple[int, ...]
    values: tuple[float, ...]
    halves: tuple[float, ...]
    lag: float
    residual_ratio: float
    identified: bool = False
    reason: str = ""
    told: tuple[int, ...] = ()

    def energy_j(self, x: Sequence[float], idle_w: float) -> float:
        """What a row should have drawn."""
        known_j = 0.0 if TIME in self.columns else idle_w * x[TIME]
        return known_j + sum(one * other for one, other in zip(self.values, x, strict=True))


def estimate(groups: Sequence[Gram], idle: Idle | None) -> Estimate:
    """The estimate from groups of rows; `idle` None fits idle power as well, where that can be."""
    groups = [gram for gram in groups if gram.rows > 0.0]
    whole = total(groups)
    columns, refused, note = _choose(whole, known_idle=idle is not None)
    found = _fitted(whole, groups, columns, idle)
    with_context = (*columns, CONTEXT)
    if not refused and _told_apart(whole, with_context, CONTEXT):
        richer = _fitted(whole, groups, with_context, idle)
        if richer.values[CONTEXT] > _SURELY * richer.halves[CONTEXT]:
            found = richer
        else:
            found = _widened(found, richer)
    reason = refused or _too_early(groups) or _too_rough(found, whole)
    # One phase alone is known well; two that keep one ratio are not known at all.
    told = () if refused == _ONE_RATIO else found.columns
    if not reason:
        slight = [at for at in (PREFILL, DECODE) if _is_rough(found, at)]
        told = tuple(at for at in told if at not in slight)
        notes = [note, *(f"{_NAMES[at]} costs too little to be told" for at in slight)]
        note = "; ".join(filter(None, notes))
    return replace(found, identified=not reason, reason=reason or note, told=told)


def _widened(found: Estimate, richer: Estimate) -> Estimate:
    """With intervals that hold what a context cost too small to tell would make of the others."""
    pairs = zip(found.halves, found.values, richer.values, strict=True)
    halves = tuple([hypot(half, other - value) for half, value, other in pairs])
    return replace(found, halves=halves)


def _choose(whole: Gram, *, known_idle: bool) -> tuple[tuple[int, ...], str, str]:
    """Columns to fit; why the split cannot be told; what of it cannot.

    Idle power and f may go without harm to the phases, where they cannot be told from them.
    """
    phases = [at for at in (PREFILL, DECODE) if whole.matrix([at])[0][0] > 0.0]
    others = [STEPS] if known_idle else [TIME, STEPS]
    every = tuple(sorted([*others, *phases]))
    choices = [(), *((at,) for at in others), tuple(others)]
    for lost in choices:
        columns = tuple(at for at in every if at not in lost)
        if all(_told_apart(whole, columns, at) for at in columns):
            break
    else:
        return every, _ONE_RATIO, ""
    note = " and ".join(_NAMES[at] for at in lost)
    note = f"{note} not told apart: in the others" if lost else ""
    if len(phases) == 2:
        return columns, "", note
    seen, missing = ("prefill", "decode") if phases == [PREFILL] else ("decode", "prefill")
    return columns, f"nothing but {seen} yet: what a {missing} token costs is not known", note


def _told_apart(whole: Gram, columns: Sequence[int], at: int) -> bool:
    return inflation_of(whole, columns, at) <= MOST_INFLATION


def inflation_of(whole: Gram, columns: Sequence[int], at: int) -> float:
    """By how much the other columns inflate the variance of one."""
    if whole.matrix([at])[0][0] <= 0.0:
        return inf
    return inflation(whole.matrix(columns), list(columns).index(at))


def _too_early(groups: Sequence[Gram]) -> str:
    if len(groups) >= _LEAST_GROUPS:
        return ""
    return f"too early: {len(groups)} of {_LEAST_GROUPS} half minutes of work"


def _is_rough(found: Estimate, at: int) -> bool:
    return found.halves[at] > WIDEST_RATIO * found.values[at]


def _too_rough(found: Estimate, whole: Gram) -> str:
    if found.residual_ratio > MOST_RESIDUAL_RATIO:
        return f"energy strays {found.residual_ratio:.0%} from the model"
    for at in (PREFILL, DECODE):
        value, half = found.values[at], found.halves[at]
        # Tokens that hardly cost anything need not be known well: rows weigh 1 / energy.
        unknown_j = half * whole.vector([at], NO_LAG)[0]
        if not _is_rough(found, at) or unknown_j <= _HARMLESS_RATIO * whole.energy_j:
            continue
        if value <= 0.0:
            return f"{_NAMES[at]} comes out as nothing: the rows do not tell the phases apart"
        return f"{_NAMES[at]} is known to {half / value:.0%} only"
    return ""


def _fitted(
    whole: Gram, groups: Sequence[Gram], columns: Sequence[int], idle: Idle | None
) -> Estimate:
    lag, residual_ratio = _search(whole, columns, idle)
    values = _solved(whole, columns, idle, lag)
    squares = [0.0] * COLUMNS
    many = len(groups)
    if many >= _LEAST_GROUPS:
        left_out = []
        for gram in groups:
            rest = without(whole, gram)
            left_out.append(_free(rest, columns, idle, _search(rest, columns, idle)[0]))
        quantile = _T[many - 1] if many <= len(_T) else _T_OF_MANY
        for at in columns:
            mean = sum(found[at] for found in left_out) / many
            spread = sum((found[at] - mean) ** 2 for found in left_out)
            squares[at] = (_ALIKE * quantile) ** 2 * spread * (many - 1) / many
    if idle is not None and idle.error_w:
        moved = _free(whole, columns, replace(idle, power_w=idle.power_w + idle.error_w), lag)
        still = _free(whole, columns, idle, lag)
        squares = [
            old + (new - value) ** 2 for old, new, value in zip(squares, moved, still, strict=True)
        ]
    halves = tuple(
        sqrt(square + (_SYSTEMATIC_RATIO * value) ** 2) if many >= _LEAST_GROUPS else inf
        for square, value in zip(squares, values, strict=True)
    )
    return Estimate(tuple(columns), values, halves, lag, residual_ratio)


def _solved(gram: Gram, columns: Sequence[int], idle: Idle | None, lag: float) -> tuple[float, ...]:
    found = least_squares(gram.matrix(columns), _over_idle(gram, columns, idle, lag))
    return _by_column(columns, found)


def _free(gram: Gram, columns: Sequence[int], idle: Idle | None, lag: float) -> tuple[float, ...]:
    """The solution that may be negative: one held at 0 would look as if it were sure."""
    found = solve(gram.matrix(columns), [_over_idle(gram, columns, idle, lag)])
    return _by_column(columns, found[0]) if found else _solved(gram, columns, idle, lag)


def _over_idle(gram: Gram, columns: Sequence[int], idle: Idle | None, lag: float) -> list[float]:
    vector = gram.vector(columns, lag)
    if idle is None:
        return vector
    times = gram.matrix(sorted({TIME, *columns}))[0][-len(columns) :]
    return [y - idle.power_w * t for y, t in zip(vector, times, strict=True)]


def _by_column(columns: Sequence[int], found: Sequence[float]) -> tuple[float, ...]:
    values = [0.0] * COLUMNS
    for at, value in zip(columns, found, strict=True):
        values[at] = value
    return tuple(values)


def _search(gram: Gram, columns: Sequence[int], idle: Idle | None) -> tuple[float, float]:
    """The lag that leaves least, between two of `LAGS_NS`, and what it leaves, as a ratio."""
    power_w = idle.power_w if idle is not None else 0.0
    times = gram.matrix(sorted({TIME, *columns}))[0]
    vectors = []
    for place in range(len(LAGS_NS)):
        vector = gram.vector(columns, place)
        vectors.append(
            [y - power_w * t for y, t in zip(vector, times[-len(columns) :], strict=True)]
        )
    solved = solve(gram.matrix(columns), vectors)
    if solved is None:
        return NO_LAG, inf
    left = []
    for place, (vector, found) in enumerate(zip(vectors, solved, strict=True)):
        square = gram.square(place) - 2.0 * power_w * gram.vector([TIME], place)[0]
        square += power_w**2 * times[0]
        left.append(max(square - sum(x * y for x, y in zip(found, vector, strict=True)), 0.0))
    best = left.index(min(left))
    if left[NO_LAG] - left[best] <= 1e-9 * gram.energy_j:
        best = NO_LAG
    lag = float(best)
    if 0 < best < len(left) - 1:
        bend = left[best - 1] - 2.0 * left[best] + left[best + 1]
        lag += 0.5 * (left[best - 1] - left[best + 1]) / bend if bend > 0.0 else 0.0
    free = max(gram.rows - len(columns) - 1.0, 1.0)
    return lag, sqrt(left[best] / free / (gram.energy_j / gram.rows))
