"""The bundled annual means per country: the last rungs of the ladder, and a default by `--zone`.

Source: Our World in Data and Ember, CC BY 4.0; see `data/README.md`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache

from wattledger.carbon.intensity import Basis, IntensityPoint, Signal, Tier
from wattledger.errors import InputError
from wattledger.records import NS_PER_S

ATTRIBUTION = "Our World in Data / Ember, CC BY 4.0"


@dataclass(frozen=True, slots=True)
class Zone:
    """An entity of the annual table; `code` is ISO 3166-1 alpha-3 or OWID's own."""

    code: str
    entity: str


@dataclass(frozen=True, slots=True)
class AnnualIntensity:
    """Annual means of one zone by UTC year, gCO2e/kWh; a later year gets the latest mean."""

    zone: Zone
    by_year: Mapping[int, float]
    attribution: str = ATTRIBUTION
    signal: Signal = field(default=Signal.AVERAGE, init=False)
    basis: Basis = field(default=Basis.LIFECYCLE, init=False)

    def segments(self, start_ns: int, end_ns: int) -> tuple[IntensityPoint, ...]:
        """One step per UTC year, tier `annual`, or `latest_annual` where the year has no mean."""
        return tuple(self._step(*span) for span in _years(start_ns, end_ns))

    def _step(self, year: int, start_ns: int, end_ns: int) -> IntensityPoint:
        tier = Tier.ANNUAL if year in self.by_year else Tier.LATEST_ANNUAL
        known = year if tier is Tier.ANNUAL else max(self.by_year)
        source = f"{self.zone.entity} ({self.zone.code}) {known}, {self.attribution}"
        return IntensityPoint(start_ns, end_ns, self.by_year[known], tier, source)


def _years(start_ns: int, end_ns: int) -> Iterator[tuple[int, int, int]]:
    while start_ns < end_ns:
        year = datetime.fromtimestamp(start_ns // NS_PER_S, UTC).year
        next_ns = int(datetime(year + 1, 1, 1, tzinfo=UTC).timestamp()) * NS_PER_S
        yield year, start_ns, min(next_ns, end_ns)
        start_ns = next_ns


def annual_intensity(zone_text: str) -> AnnualIntensity:
    """The annual series of a zone; raises `InputError` for an unknown one."""
    zone = resolve_zone(zone_text)
    return AnnualIntensity(zone, _table()[zone])


def zones() -> tuple[Zone, ...]:
    """Every zone of the table, by code."""
    return tuple(_table())


def resolve_zone(text: str) -> Zone:
    """The zone that `FRA`, `FR`, `France` or `WORLD` names, whatever the case.

    Raises `InputError` that names the nearest zone: the country of a grid region such as
    `US-CAL-CISO`, else a like name.
    """
    wanted = text.strip().casefold()
    names = _names()
    if wanted in names:
        return names[wanted]
    nearest = names.get(wanted.split("-")[0]) or _alike(wanted)
    hint = f"; the nearest known is {nearest.code} ({nearest.entity})" if nearest else ""
    mend = f"--zone {nearest.code}" if nearest else "--zone with an ISO country code"
    raise InputError(f"--zone {text!r} has no annual intensity{hint}: use {mend}, or --intensity G")


def _alike(wanted: str) -> Zone | None:
    from difflib import get_close_matches

    names = _names()
    found = get_close_matches(wanted, names, n=1, cutoff=0.75)
    return names[found[0]] if found else None


@cache
def _table() -> Mapping[Zone, Mapping[int, float]]:
    table: dict[Zone, dict[int, float]] = {}
    for line in _lines("grid_annual.csv"):
        entity, code, year, value = line.split(",")
        table.setdefault(Zone(code, entity), {})[int(year)] = float(value)
    return table


@cache
def _names() -> Mapping[str, Zone]:
    by_code = {zone.code: zone for zone in _table()}
    names = {zone.entity.casefold(): zone for zone in by_code.values()}
    names |= {code.casefold(): zone for code, zone in by_code.items()}
    for line in _lines("iso3166.csv"):
        iso2, iso3 = line.split(",")
        names[iso2.casefold()] = by_code[iso3]
    return names


def _lines(name: str) -> list[str]:
    from importlib.resources import files

    text = files("wattledger.carbon").joinpath("data", name).read_text(encoding="utf-8")
    return text.splitlines()[1:]
