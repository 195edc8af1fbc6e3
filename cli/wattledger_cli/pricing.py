"""The flags that price energy: grid intensity and PUE, else what the local config says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from wattledger.errors import InputError
from wattledger_cli.options import Options

if TYPE_CHECKING:
    from wattledger.carbon.intensity import IntensitySource
    from wattledger.carbon.pue import PueSource

Zone = Annotated[
    str | None,
    typer.Option(metavar="ZONE", help="Grid zone, as FRA, FR or France: its annual mean."),
]
Intensity = Annotated[
    float | None, typer.Option(metavar="G", help="A constant intensity, gCO2e/kWh.")
]
Pue = Annotated[
    float | None,
    typer.Option(metavar="X", help="Facility energy over IT energy; the config's, else 1."),
]


@dataclass(frozen=True, slots=True)
class Prices:
    """What a kWh costs in carbon; `zone` is None for a constant."""

    intensity: IntensitySource
    pue: PueSource
    zone: str | None


def prices(
    options: Options, zone: str | None, intensity: float | None, pue: float | None
) -> Prices | None:
    """The prices that flags and config name, None where neither names an intensity.

    Raises InputError where both flags do, or one names what does not exist.
    """
    from wattledger.carbon.annual import annual_intensity
    from wattledger.carbon.intensity import ConstantIntensity

    if zone is not None and intensity is not None:
        raise InputError("--zone and --intensity both name an intensity: give one of them")
    if intensity is not None:
        return Prices(ConstantIntensity(intensity), _pue(options, pue), None)
    zone = zone or options.settings().zone
    if zone is None:
        return None
    annual = annual_intensity(zone)
    return Prices(annual, _pue(options, pue), annual.zone.code)


def needed(found: Prices | None) -> Prices:
    """The prices; raises InputError with the mend where there are none."""
    if found is None:
        raise InputError(
            "no grid intensity, carbon has no price: give --zone FRA or --intensity G,"
            " or set site.zone in the config"
        )
    return found


def _pue(options: Options, pue: float | None) -> PueSource:
    from wattledger.carbon.pue import ASSUMED_PUE, ConstantPue

    if pue is not None:
        return ConstantPue(pue)
    configured = options.settings().pue
    return ASSUMED_PUE if configured is None else ConstantPue(configured, "site.pue of the config")
