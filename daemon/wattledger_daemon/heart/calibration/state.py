"""A calibration as JSON and back; floats come back as they were, so that the fold goes on."""

from __future__ import annotations

import json
from dataclasses import asdict

from wattledger.fits import Coefficient, Fit, FitKey
from wattledger.records import CostModel
from wattledger_daemon.heart.calibration.fit import Estimate
from wattledger_daemon.heart.calibration.gram import COLUMNS, GROUPS, LAGS_NS, Gram, Groups, Row
from wattledger_daemon.heart.calibration.lessons import Calibration, Taught
from wattledger_daemon.heart.calibration.step_free import StepFree

_LAYOUT = [2, COLUMNS, GROUPS, *LAGS_NS]


def dump(calibration: Calibration) -> str:
    """One line of JSON."""
    state = asdict(calibration)
    state["groups"]["grams"] = [
        list(gram.sums) if gram.rows else None for gram in calibration.groups.grams
    ]
    return json.dumps({"layout": _LAYOUT, **state}, separators=(",", ":"))


def load(text: str) -> Calibration | None:
    """The calibration of such a line; None for one that another version wrote."""
    try:
        state = json.loads(text)
        if state.pop("layout") != _LAYOUT:
            return None
        state["key"] = FitKey(*state["key"])
        state["taught"] = tuple(Taught(*one) for one in state["taught"])
        state["young"] = tuple(Row(tuple(x), tuple(y)) for x, y in state["young"])
        grams = state["groups"]["grams"]
        state["groups"] = Groups(
            tuple(Gram() if sums is None else Gram(tuple(sums)) for sums in grams),
            state["groups"]["blocks"],
            state["groups"]["held"],
        )
        state["step_free"] = StepFree(**state["step_free"])
        found, cost, fit = state["found"], state["cost"], state["fit"]
        state["found"] = found and _estimate(found)
        state["cost"] = cost and CostModel(**cost)
        state["fit"] = fit and _fit(fit)
        return Calibration(**state)
    except (ValueError, LookupError, TypeError, AttributeError):
        return None


def _estimate(state: dict[str, object]) -> Estimate:
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in state.items()}
    return Estimate(**values)  # type: ignore[arg-type]


def _fit(state: dict[str, object]) -> Fit:
    for name in "fabc":
        value = state[name]
        state[name] = Coefficient(**value) if isinstance(value, dict) else None
    key = state["key"]
    assert isinstance(key, list)
    state["key"] = FitKey(*key)
    state["engines"] = tuple(state["engines"])  # type: ignore[arg-type]
    return Fit(**state)  # type: ignore[arg-type]
