"""What was calibrated of an engine's cost model: coefficients, their intervals, or why not.

Source: accounting.md section 3.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from wattledger.records import Device


class FitKey(NamedTuple):
    """What shares one cost model on a host: engine kind, model, and its devices in words."""

    kind: str
    model: str | None
    devices: str


def in_words(devices: Iterable[Device]) -> str:
    """Models and how many of each, e.g. `2 x NVIDIA H200`."""
    counted = Counter(device.model or device.kind.value for device in devices)
    return " + ".join(
        name if count == 1 else f"{count} x {name}" for name, count in sorted(counted.items())
    )


@dataclass(frozen=True, slots=True)
class Coefficient:
    """An estimate with the bounds of its 95 % interval, joules."""

    value_j: float
    low_j: float
    high_j: float


@dataclass(frozen=True, slots=True)
class Fit:
    """One calibration of f + a * prefill + b * decode + c * context.

    `fitted_ns` and `since_ns` are UTC; `method` has been in force since `since_ns` for `engines`,
    of which `engine` taught last. `rank` counts the coefficients fitted, idle power apart; one
    that was not, or is not known, is None. `reason` says why the fit is not `identified`, or what
    of it is not known. `residual_ratio` is what a window's energy strays from the fit by.
    `idle_basis` is `step-free`, `static` or `fitted`.
    """

    key: FitKey
    engine: str
    fitted_ns: int
    rows: int
    rank: int
    identified: bool
    reason: str
    f: Coefficient | None
    a: Coefficient | None
    b: Coefficient | None
    c: Coefficient | None
    lag_s: float
    idle_w: float | None
    idle_basis: str
    residual_ratio: float
    method: str
    since_ns: int
    engines: tuple[str, ...]


class Calibrated(NamedTuple):
    """What the daemon keeps of a key: its state for restarts (opaque), and a fit where it is new.

    `taught_ns` is UTC.
    """

    key: FitKey
    taught_ns: int
    state: str
    fit: Fit | None


class KeptFit(NamedTuple):
    """A fit that a ledger keeps, and of which host it is."""

    host: str
    fit: Fit
