"""What the energy of a request weighs in carbon, by the zone and the PUE of the config."""

from __future__ import annotations

import logging

from wattledger.errors import WattledgerError
from wattledger_daemon.logs import event

_LOG = logging.getLogger(__name__)


class Grams:
    """Operational gCO2e; the zone's table is read at the first question."""

    def __init__(self, zone: str | None = None, pue: float | None = None) -> None:
        self._zone = zone
        self._pue = pue

    def of(self, energy_uj: int, at_ns: int) -> float | None:
        """Grams of an energy used around `at_ns`, UTC; None where no zone is known.

        As `wattledger requests` prices it: by the annual mean of the zone.
        """
        if self._zone is None:
            return None
        from wattledger.carbon.annual import annual_intensity
        from wattledger.carbon.operational import operational_gco2e

        try:
            (point,) = annual_intensity(self._zone).segments(at_ns, at_ns + 1)
        except WattledgerError as error:
            _LOG.warning(event("no_intensity", zone=self._zone, reason=error))
            self._zone = None
            return None
        return operational_gco2e(energy_uj, self._pue or 1.0, point.intensity_gco2e_per_kwh)
