"""Numbers for people: a unit that suits the column, and four significant digits of its largest.

Machines read JSON and CSV, where nothing is scaled or rounded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

DIGITS = 4
ABSENT = "-"


@dataclass(frozen=True, slots=True)
class Scale:
    """A unit, and how many of it the base unit of its quantity holds."""

    unit: str
    per_base: float


@dataclass(frozen=True, slots=True)
class Quantity:
    """Scales of one quantity, finest first; `floors` are the least base values of the others."""

    scales: tuple[Scale, ...]
    floors: tuple[float, ...]

    def scale(self, values: Sequence[float | None]) -> Scale:
        """The scale in which the largest of `values` (in the base unit) reads well."""
        largest = max((abs(value) for value in values if value), default=0.0)
        if not largest:
            return next(scale for scale in self.scales if scale.per_base == 1.0)
        return self.scales[sum(largest >= floor for floor in self.floors)]


ENERGY_J = Quantity(
    (
        Scale("uJ", 1e6),
        Scale("mJ", 1e3),
        Scale("J", 1.0),
        Scale("Wh", 1 / 3600),
        Scale("kWh", 1 / 3.6e6),
        Scale("MWh", 1 / 3.6e9),
    ),
    (1e-3, 1.0, 1e5, 3.6e7, 3.6e10),
)
CARBON_G = Quantity(
    (
        Scale("ng", 1e9),
        Scale("ug", 1e6),
        Scale("mg", 1e3),
        Scale("g", 1.0),
        Scale("kg", 1e-3),
        Scale("t", 1e-6),
    ),
    (1e-6, 1e-3, 1.0, 1e4, 1e7),
)
DURATION_S = Quantity((Scale("s", 1.0), Scale("h", 1 / 3600)), (36_000.0,))
COUNT = Quantity((Scale("", 1.0),), ())


def decimals(values: Sequence[float | None]) -> int:
    """Decimal places that give the largest of `values` four significant digits."""
    largest = max((abs(value) for value in values if value), default=0.0)
    if not largest:
        return 0
    rounded = float(f"{largest:.{DIGITS - 1}e}")
    return max(0, DIGITS - 1 - math.floor(math.log10(rounded)))


def fixed(value: float | None, places: int) -> str:
    """`value` with `places` decimals; what would round to nothing is told as below the least."""
    if value is None:
        return ABSENT
    if value == 0:
        return "0"
    least = 10.0**-places
    if abs(value) < least / 2:
        return f"<{least:.{places}f}"
    return f"{value:,.{places}f}"


def figure(value: float | None) -> str:
    """One number by itself, to four significant digits, without idle zeros."""
    text = fixed(value, decimals((value,)))
    return text.rstrip("0").rstrip(".") if "." in text else text


def quantity(value: float | None, of: Quantity) -> str:
    """One number by itself with its unit."""
    if value is None:
        return ABSENT
    scale = of.scale((value,))
    return f"{figure(value * scale.per_base)} {scale.unit}"


def share(ratio: float) -> str:
    """A share in percent: whole where it is, else one decimal, never a false 0 or 100."""
    percent = ratio * 100
    if percent == round(percent):
        return f"{percent:.0f} %"
    if percent < 0.1:
        return "<0.1 %"
    if 99.9 < percent < 100:
        return ">99.9 %"
    return f"{percent:.1f} %"


def shares(parts: dict[str, float]) -> str:
    """Shares by name, the largest first: `80 % measured, 20 % estimated`."""
    ordered = sorted(parts.items(), key=lambda part: (-part[1], part[0]))
    return ", ".join(f"{share(ratio)} {name.replace('_', ' ')}" for name, ratio in ordered)
