"""What the rows of one key have taught: the sums, the last fit, and the model in force.

A fold without a clock: the same lessons in the same order end in the same state, and a state
told as JSON goes on as it would have.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from statistics import median
from typing import NamedTuple

from wattledger.fits import Coefficient, Fit, FitKey
from wattledger.records import CALIBRATED, DEFAULT_COST_MODEL, NS_PER_S, CostModel
from wattledger_daemon.heart.calibration.fit import Estimate, Idle, estimate
from wattledger_daemon.heart.calibration.gram import (
    CONTEXT,
    DECODE,
    NO_LAG,
    PREFILL,
    STEPS,
    TIME,
    Groups,
    Row,
    lag_s,
)
from wattledger_daemon.heart.calibration.rows import SURE_NS, Lesson
from wattledger_daemon.heart.calibration.step_free import StepFree

YOUNG_ROWS = 24
"""Before that many rows there is no fit: two minutes of work."""
_REFIT_ROWS = 12
_STRAY_RATIO = 0.25
"""A row that strays further from the fit is not this engine's doing."""
_STRAYS = 12
"""So many in a row are: hardware, driver or engine changed, and all is learned anew."""
_STATIC_ERROR = 0.6
_SAME_RATIO = 0.02
_TOLD_AGAIN = 1.5
_ROUGHEST_RATIO = 0.5
_ENGINES = 64
_BESIDE_NS = 30 * NS_PER_S
_LONGEST_S = (SURE_NS - 30 * NS_PER_S) / NS_PER_S
"""Under a longer step, told so late, idle power may have been learned: it is forgotten."""
_YOUNG_ENGINES = 4
"""So many engines' first rows are waited for: to screen them takes their number squared."""


class Taught(NamedTuple):
    """An engine, and the boot and the moments up to which its lessons and its rows are known."""

    engine: str
    boot_id: str
    until_ns: int
    row_ns: int


@dataclass(frozen=True, slots=True)
class Calibration:
    """All that is known of one key; `learn` returns the next state.

    `cost` is the model in force since `since_ns` (UTC), None: the default weights. `taught` are the
    engines that it is of, the one heard last at the end. `rows` came since all was learned anew,
    `news` since the last fit. `fit` is the latest worth telling.
    """

    key: FitKey
    taught: tuple[Taught, ...] = ()
    rows: int = 0
    news: int = 0
    young: tuple[Row, ...] = ()
    groups: Groups = field(default_factory=Groups)
    step_free: StepFree = field(default_factory=StepFree)
    static_w: float | None = None
    strays: int = 0
    doubted: bool = False
    found: Estimate | None = None
    cost: CostModel | None = None
    since_ns: int = 0
    fit: Fit | None = None

    def learn(self, lesson: Lesson, boot_id: str, epoch_ns: int) -> Calibration:
        """Take a lesson; one that is in the state already changes nothing."""
        known = [one for one in self.taught if one.engine == lesson.engine]
        before = known[0] if known and known[0].boot_id == boot_id else None
        if before is not None and lesson.end_ns <= before.until_ns:
            return self
        row_ns = before.row_ns if before is not None else lesson.start_ns - _BESIDE_NS
        if lesson.did.steps:
            row_ns = lesson.end_ns
        others = [one for one in self.taught if one.engine != lesson.engine]
        taught = (*others, Taught(lesson.engine, boot_id, lesson.end_ns, row_ns))[-_ENGINES:]
        state = replace(self, taught=taught, static_w=lesson.static_w)
        step_free = self.step_free
        if lesson.still_s:
            step_free = step_free.plus(lesson.still_w, lesson.still_s)
        if lesson.longest_s > _LONGEST_S:
            step_free = StepFree()
        if not lesson.did.steps:
            return replace(state, step_free=step_free)
        # However idle the engine seems: it draws no more than it does at work.
        step_free = step_free.beside(lesson.energies_j[NO_LAG] / lesson.seconds)
        row = Row((lesson.seconds, *map(float, lesson.did)), lesson.energies_j)
        return replace(state, step_free=step_free)._take(row, epoch_ns + lesson.end_ns)

    @property
    def engines(self) -> tuple[str, ...]:
        """Every engine that the model in force is of."""
        return tuple([one.engine for one in self.taught])

    def _take(self, row: Row, now_ns: int) -> Calibration:
        beside = self._side_by_side()
        if self.found is None:
            young = (*self.young, row)
            if len(young) < YOUNG_ROWS * min(beside, _YOUNG_ENGINES):
                return replace(self, young=young, rows=self.rows + 1)
            groups = Groups()
            for kept in _screened(young, self._idle()):
                groups = groups.plus(kept, beside)
            state = replace(self, young=(), groups=groups, rows=self.rows + 1, strays=0)
            return state._refit(now_ns)
        expected_j = self.found.energy_j(row.x, self._idle_w())
        if abs(row.energy_j[NO_LAG] - expected_j) > _STRAY_RATIO * row.energy_j[NO_LAG]:
            strays = self.strays + 1
            if strays < _STRAYS * beside:
                return replace(self, strays=strays)
            return replace(
                self, young=(), groups=Groups(), rows=0, strays=0, doubted=True, found=None
            )
        groups = self.groups.plus(row, beside)
        state = replace(self, groups=groups, rows=self.rows + 1, news=self.news + 1, strays=0)
        return state._refit(now_ns) if state.news >= _REFIT_ROWS * beside else state

    def _side_by_side(self) -> int:
        """How many engines make rows at this time, as of the one heard last."""
        _, boot_id, now_ns, _ = self.taught[-1]
        near = [
            one
            for one in self.taught
            if one.boot_id == boot_id and now_ns - one.row_ns < _BESIDE_NS
        ]
        return len(near)

    # ----------------------------------------------------------------------- fits

    def _idle(self) -> Idle | None:
        known = self.step_free.idle()
        if known is not None or self.static_w is None:
            return known
        # A GPU that an engine holds idles well above one that nobody holds.
        return Idle(self.static_w, _STATIC_ERROR * self.static_w, "static")

    def _idle_w(self) -> float:
        known = self._idle()
        return known.power_w if known is not None else 0.0

    def _refit(self, now_ns: int) -> Calibration:
        found = estimate(self.groups.grams, self._idle())
        cost, since_ns = self.cost, self.since_ns
        if found.identified and (cost is None or self.doubted or _differs(cost, found)):
            cost, since_ns = _cost_of(found), now_ns
        elif self.doubted and cost is not None:
            cost, since_ns = None, now_ns
        since_ns = since_ns or now_ns
        state = replace(self, found=found, cost=cost, since_ns=since_ns, doubted=False, news=0)
        told = self.fit
        worth = (
            told is None
            or told.identified != found.identified
            or set(told.engines) != set(self.engines)
            or cost != self.cost
            or self.rows >= _TOLD_AGAIN * told.rows
            or self.rows < told.rows
        )
        return replace(state, fit=state._fit(now_ns)) if worth else state

    def _fit(self, now_ns: int) -> Fit:
        found, known = self.found, self._idle()
        assert found is not None
        idle_w: float | None = known.power_w if known is not None else None
        basis = known.basis if known is not None else "unknown"
        if TIME in found.columns:
            idle_w, basis = found.values[TIME], "fitted"
        f, a, b, c = (_coefficient(found, at) for at in (STEPS, PREFILL, DECODE, CONTEXT))
        return Fit(
            self.key,
            self.taught[-1].engine,
            now_ns,
            self.rows,
            sum(at != TIME for at in found.columns),
            found.identified,
            found.reason,
            f,
            a,
            b,
            c,
            round(lag_s(found.lag), 4),
            None if idle_w is None else _rounded(idle_w),
            basis,
            _rounded(found.residual_ratio),
            (self.cost or DEFAULT_COST_MODEL).method,
            self.since_ns,
            self.engines,
        )


def _screened(rows: Sequence[Row], idle: Idle | None) -> Iterable[Row]:
    """Rows without those that stray from what most of them say, worst first, a quarter at most."""
    kept = list(rows)
    for _ in range(len(rows) // 4):
        groups = Groups()
        for row in kept:
            groups = groups.plus(row)
        found = estimate(groups.grams, idle)
        idle_w = idle.power_w if idle is not None else 0.0
        strays = [
            abs(row.energy_j[NO_LAG] - found.energy_j(row.x, idle_w)) / row.energy_j[NO_LAG]
            for row in kept
        ]
        worst = max(range(len(kept)), key=strays.__getitem__)
        if strays[worst] <= max(8.0 * median(strays), 0.05):
            break
        del kept[worst]
    return kept


def _differs(cost: CostModel, found: Estimate) -> bool:
    """Whether the model in force lies outside what is found now, and not by a hair."""
    olds = (cost.f_j, cost.a_j, cost.b_j, cost.c_j)
    for at, old_j in zip((STEPS, PREFILL, DECODE, CONTEXT), olds, strict=True):
        new_j = found.values[at]
        if abs(new_j - old_j) > max(found.halves[at], _SAME_RATIO * max(new_j, old_j)):
            return True
    return False


def _cost_of(found: Estimate) -> CostModel:
    """What is found; a phase of which hardly anything is known stands to the other as by default.

    As far as its interval allows: what is 0 or ten times too much by chance would be booked.
    """
    values = list(found.values)
    ratio = DEFAULT_COST_MODEL.a_j / DEFAULT_COST_MODEL.b_j
    slight = [at for at in (PREFILL, DECODE) if _roughness(found, at) > _ROUGHEST_RATIO]
    if len(slight) == 2:
        slight.remove(min(slight, key=lambda at: _roughness(found, at)))
    for at in slight:
        by_other = values[DECODE] * ratio if at == PREFILL else values[PREFILL] / ratio
        low, high = found.values[at] - found.halves[at], found.values[at] + found.halves[at]
        values[at] = min(max(by_other, low), high)
    f_j, a_j, b_j, c_j = (_rounded(values[at]) for at in (STEPS, PREFILL, DECODE, CONTEXT))
    return CostModel(f_j, a_j, b_j, c_j, CALIBRATED)


def _roughness(found: Estimate, at: int) -> float:
    return found.halves[at] / found.values[at] if found.values[at] else inf


def _coefficient(found: Estimate, at: int) -> Coefficient | None:
    if at not in found.told or found.halves[at] == inf:
        return None
    value_j, half_j = found.values[at], found.halves[at]
    return Coefficient(
        _rounded(value_j), _rounded(max(value_j - half_j, 0.0)), _rounded(value_j + half_j)
    )


def _rounded(value: float) -> float:
    """To six digits: more would only be noise."""
    return float(f"{value:.6g}")
