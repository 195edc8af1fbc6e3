"""Embodied carbon factors: which figure of a device to use, and how far it may be off.

Lookup order (accounting.md, 4.9): the site's own figure, the manufacturer's product carbon
footprint, a life cycle assessment, an LCA-calibrated model or component sum, ACT; else none.
Source: `data/gpu_embodied.csv`, each row with its own source and doubts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache

from wattledger.errors import InputError
from wattledger.hardware.catalogue import canonical_name, normalised, read_rows

# ACT counts silicon and memory only. A product footprint is 5.7 times ACT's figure for the H100
# (164 / 28.6 kg) and an assessment 5.8 times for the A100 (127.6 / 22.1 kg).
ACT_HIGH_RATIO = 6.0


class FactorClass(StrEnum):
    """How a figure was made, in lookup order; `reference` rows are shown and never chosen."""

    OVERRIDE = "override"
    PCF = "pcf"
    LCA = "lca"
    PARAMETRIC = "parametric"
    ACT = "act"
    REFERENCE = "reference"


_LOOKUP_ORDER = tuple(FactorClass)


@dataclass(frozen=True, slots=True)
class EmbodiedRow:
    """One published or computed figure; `grade` is its confidence as a footprint: H, M or L."""

    device_model: str
    kg_co2e: float
    factor_class: FactorClass
    grade: str
    method: str
    scope: str
    note: str
    source: str
    verified: str
    confidence: str


@dataclass(frozen=True, slots=True)
class EmbodiedFactor:
    """The figure chosen for a device, kg CO2e, with its range and the reason for the range."""

    device_model: str
    kg: float
    low_kg: float
    high_kg: float
    method: str
    source: str
    scope: str
    confidence: str
    range_reason: str

    def to_json(self) -> dict[str, object]:
        """Its fields by name, for `factors.embodied`."""
        return {
            "device_model": self.device_model,
            "kgco2e": self.kg,
            "kgco2e_low": self.low_kg,
            "kgco2e_high": self.high_kg,
            "method": self.method,
            "scope": self.scope,
            "source": self.source,
            "confidence": self.confidence,
            "range_reason": self.range_reason,
        }


def embodied_rows(name: str) -> tuple[EmbodiedRow, ...]:
    """Every figure known of a device, best first: by lookup order, then by confidence."""
    return _rows_by_device().get(normalised(canonical_name(name)), ())


def embodied_factor(
    name: str, overrides: Mapping[str, float] | None = None
) -> EmbodiedFactor | None:
    """The factor of a device by the lookup order, None where nothing is known of it.

    `overrides` maps device models to kg CO2e and is matched as names are in the catalogue.
    """
    for model, kg in (overrides or {}).items():
        if is_same_device(model, name):
            return _override(name, kg)
    rows = _rows_by_device().get(normalised(canonical_name(name)), ())
    if not rows or rows[0].factor_class is FactorClass.REFERENCE:
        return None
    chosen = rows[0]
    low_kg, high_kg, reason = _range(chosen, rows)
    return EmbodiedFactor(
        device_model=name,
        kg=chosen.kg_co2e,
        low_kg=low_kg,
        high_kg=high_kg,
        method=chosen.method,
        source=chosen.source,
        scope=chosen.scope,
        confidence=chosen.grade,
        range_reason=reason,
    )


def parse_override(text: str) -> tuple[str, float]:
    """Device model and kg CO2e of `NAME=KG`; raises `InputError` for anything else."""
    name, found, kg_text = text.rpartition("=")
    try:
        kg = float(kg_text)
    except ValueError:
        kg = math.nan
    if not found or not normalised(name) or not 0.0 <= kg < math.inf:
        raise InputError(
            f"--embodied {text!r} is not understood: write 'NVIDIA H200=364', in kg CO2e per device"
        )
    return name.strip(), kg


def parse_overrides(texts: Iterable[str]) -> dict[str, float]:
    """Device models with kg CO2e, of several `NAME=KG`; `InputError` for a device given twice."""
    found: dict[str, float] = {}
    for text in texts:
        name, kg = parse_override(text)
        if any(is_same_device(name, known) for known in found):
            raise InputError(f"--embodied {text!r} names a device that another one names: keep one")
        found[name] = kg
    return found


def is_same_device(one: str, other: str) -> bool:
    """Whether two names mean the same device model to the catalogue."""
    return normalised(canonical_name(one)) == normalised(canonical_name(other))


def _override(name: str, kg: float) -> EmbodiedFactor:
    return EmbodiedFactor(
        device_model=name,
        kg=kg,
        low_kg=kg,
        high_kg=kg,
        method=FactorClass.OVERRIDE.value,
        source="--embodied",
        scope="as given",
        confidence="H",
        range_reason="given without a range",
    )


def _range(chosen: EmbodiedRow, rows: tuple[EmbodiedRow, ...]) -> tuple[float, float, str]:
    if chosen.factor_class is FactorClass.ACT:
        return (
            chosen.kg_co2e,
            round(chosen.kg_co2e * ACT_HIGH_RATIO, 6),
            "ACT counts silicon and memory only: a lower bound; "
            f"whole-device figures are up to {ACT_HIGH_RATIO:g} times as high",
        )
    if chosen.grade == "L":
        every = [row.kg_co2e for row in rows]
        return min(every), max(every), "of low confidence: every known figure counts as possible"
    peers = [row.kg_co2e for row in rows if row.grade != "L" or row is chosen]
    reason = f"{len(peers)} figures of fair confidence" if len(peers) > 1 else "the only figure"
    return min(peers), max(peers), reason


@cache
def _rows_by_device() -> Mapping[tuple[str, ...], tuple[EmbodiedRow, ...]]:
    found: dict[tuple[str, ...], list[EmbodiedRow]] = {}
    for line in read_rows("gpu_embodied.csv"):
        row = _row(line)
        found.setdefault(normalised(canonical_name(row.device_model)), []).append(row)
    return {name: tuple(sorted(rows, key=_preference)) for name, rows in found.items()}


def _preference(row: EmbodiedRow) -> tuple[int, int]:
    return _LOOKUP_ORDER.index(row.factor_class), "HML".index(row.grade)


def _row(line: Mapping[str, str]) -> EmbodiedRow:
    return EmbodiedRow(
        device_model=line["device"],
        kg_co2e=float(line["kg_co2e"]),
        factor_class=FactorClass(line["class"]),
        grade=line["grade"],
        method=line["method"],
        scope=line["scope"],
        note=line["note"],
        source=line["source"],
        verified=line["verified"],
        confidence=line["confidence"],
    )
