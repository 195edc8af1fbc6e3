"""What the rows of one key have taught: the sums, the last fit, and the model in force.

A fold without a clock: the same lessons in the same order end in the same state, and a state
told as JSON goes on as it would have.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from math import sqrt
from statistics import median

from wattledger.fits import Coefficient, Fit, FitKey
from wattledger.records import CALIBRATED, DEFAULT_COST_MODEL, CostModel
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
from wattledger_daemon.heart.calibration.rows import Lesson

YOUNG_ROWS = 24
"""Before that many rows there is no fit: two minutes of work."""
_REFIT_ROWS = 12
_STRAY_RATIO = 0.25
"""A row that strays further from the fit is not this engine's doing."""
_STRAYS = 12
"""So many in a row are: hardware, driver or engine changed, and all is learned anew."""
_IDLE_LEAST_S = 6.0
_STATIC_ERROR = 0.6
_IDLE_MEMORY = 360
_SAME_RATIO = 0.02
_TOLD_AGAIN = 1.5
_ENGINES = 8


@dataclass(frozen=True, slots=True)
class StepFree:
    """Power while nothing was computed: the lowest that lasts, watts."""

    stretches: int = 0
    seconds: float = 0.0
    mean_w: float = 0.0
    spread: float = 0.0

    def plus(self, power_w: float, seconds: float) -> StepFree:
        """With one stretch more; one far lower begins anew, one far higher was no idling."""
        slack_w = 0.25 * self.mean_w + 1.0
        if not self.stretches or power_w < self.mean_w - slack_w:
            return StepFree(1, seconds, power_w)
        if power_w > self.mean_w + slack_w:
            return self
        stretches = min(self.stretches + 1, _IDLE_MEMORY)
        off_w = power_w - self.mean_w
        mean_w = self.mean_w + off_w / stretches
        spread = self.spread + (off_w * (power_w - mean_w) - self.spread) / stretches
        return StepFree(stretches, self.seconds + seconds, mean_w, spread)

    def idle(self) -> Idle | None:
        """As idle power to fix; None before it is known."""
        if self.seconds < _IDLE_LEAST_S:
            return None
        # Twice the error of a mean of independent stretches: neighbours are warm alike.
        error_w = 2.0 * 2.0 * sqrt(self.spread / self.stretches)
        return Idle(self.mean_w, error_w, "step-free")


@dataclass(frozen=True, slots=True)
class Calibration:
    """All that is known of one key; `learn` returns the next state.

    `cost` is the model in force since `since_ns` (UTC), None: the default weights. `until` is the
    boot and the moment up to which lessons are in it. `fit` is the latest worth telling.
    """

    key: FitKey
    engines: tuple[str, ...] = ()
    until: tuple[str, int] = ("", 0)
    rows: int = 0
    young: tuple[Row, ...] = ()
    groups: Groups = field(default_factory=Groups)
    step_free: StepFree = StepFree()
    static_w: float | None = None
    strays: int = 0
    doubted: bool = False
    found: Estimate | None = None
    cost: CostModel | None = None
    since_ns: int = 0
    fit: Fit | None = None

    def learn(self, lesson: Lesson, boot_id: str, epoch_ns: int) -> Calibration:
        """Take a lesson; one that is in the state already changes nothing."""
        if self.until[0] == boot_id and lesson.end_ns <= self.until[1]:
            return self
        engines = tuple(name for name in self.engines if name != lesson.engine)
        state = replace(
            self,
            engines=(*engines, lesson.engine)[-_ENGINES:],
            until=(boot_id, lesson.end_ns),
            static_w=lesson.static_w,
        )
        if lesson.still_s:
            step_free = self.step_free.plus(lesson.still_w, lesson.still_s)
            state = replace(state, step_free=step_free)
        if not lesson.did.steps:
            return state
        row = Row((lesson.seconds, *map(float, lesson.did)), lesson.energies_j)
        return state._take(row, lesson.engine, epoch_ns + lesson.end_ns)

    def _take(self, row: Row, engine: str, now_ns: int) -> Calibration:
        if self.found is None:
            young = (*self.young, row)
            if len(young) < YOUNG_ROWS:
                return replace(self, young=young, rows=self.rows + 1)
            groups = Groups()
            for kept in _screened(young, self._idle()):
                groups = groups.plus(kept)
            state = replace(self, young=(), groups=groups, rows=self.rows + 1, strays=0)
            return state._refit(engine, now_ns)
        expected_j = self.found.energy_j(row.x, self._idle_w())
        if abs(row.energy_j[NO_LAG] - expected_j) > _STRAY_RATIO * row.energy_j[NO_LAG]:
            if self.strays + 1 < _STRAYS:
                return replace(self, strays=self.strays + 1)
            return replace(
                self, young=(), groups=Groups(), rows=0, strays=0, doubted=True, found=None
            )
        state = replace(self, groups=self.groups.plus(row), rows=self.rows + 1, strays=0)
        return state._refit(engine, now_ns) if state.rows % _REFIT_ROWS == 0 else state

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

    def _refit(self, engine: str, now_ns: int) -> Calibration:
        found = estimate(self.groups.grams, self._idle())
        cost, since_ns = self.cost, self.since_ns
        if found.identified and (cost is None or self.doubted or _differs(cost, found)):
            cost, since_ns = _cost_of(found), now_ns
        elif self.doubted and cost is not None:
            cost, since_ns = None, now_ns
        since_ns = since_ns or now_ns
        state = replace(self, found=found, cost=cost, since_ns=since_ns, doubted=False)
        told = self.fit
        worth = (
            told is None
            or told.identified != found.identified
            or cost != self.cost
            or self.rows >= _TOLD_AGAIN * told.rows
            or self.rows < told.rows
        )
        return replace(state, fit=state._fit(engine, now_ns)) if worth else state

    def _fit(self, engine: str, now_ns: int) -> Fit:
        found, known = self.found, self._idle()
        assert found is not None
        idle_w: float | None = known.power_w if known is not None else None
        basis = known.basis if known is not None else "unknown"
        if TIME in found.columns:
            idle_w, basis = found.values[TIME], "fitted"
        f, a, b, c = (_coefficient(found, at) for at in (STEPS, PREFILL, DECODE, CONTEXT))
        return Fit(
            self.key,
            engine,
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
    f_j, a_j, b_j, c_j = (_rounded(found.values[at]) for at in (STEPS, PREFILL, DECODE, CONTEXT))
    return CostModel(f_j, a_j, b_j, c_j, CALIBRATED)


def _coefficient(found: Estimate, at: int) -> Coefficient | None:
    if at not in found.told:
        return None
    value_j, half_j = found.values[at], found.halves[at]
    return Coefficient(
        _rounded(value_j), _rounded(max(value_j - half_j, 0.0)), _rounded(value_j + half_j)
    )


def _rounded(value: float) -> float:
    """To six digits: more would only be noise."""
    return float(f"{value:.6g}")
