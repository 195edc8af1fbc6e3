"""Operational carbon: energy x PUE x grid intensity, piece by piece (accounting.md, 4.1)."""

from __future__ import annotations

from collections.abc import Iterable

UJ_PER_KWH = 3_600_000 * 1_000_000


def facility_kwh(energy_uj: int, pue: float) -> float:
    """Energy at the facility's meter in kWh, from IT energy in microjoules."""
    return energy_uj / UJ_PER_KWH * pue


def operational_gco2e(energy_uj: int, pue: float, intensity_gco2e_per_kwh: float) -> float:
    """Grams of CO2e of an energy used while PUE and intensity were constant."""
    return facility_kwh(energy_uj, pue) * intensity_gco2e_per_kwh


def refine(start_ns: int, end_ns: int, *series: Iterable[int]) -> tuple[int, ...]:
    """The common refinement: both ends and every edge of `series` between them, ascending."""
    inner = {edge_ns for edges in series for edge_ns in edges if start_ns < edge_ns < end_ns}
    return (start_ns, *sorted(inner), end_ns)
