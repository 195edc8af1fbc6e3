"""The requests statement: the costliest finished requests of a window."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from wattledger.carbon.intensity import IntensitySource, covering
from wattledger.carbon.operational import operational_gco2e
from wattledger.carbon.pue import ASSUMED_PUE, PueSource
from wattledger.records import UJ_PER_J
from wattledger.statement.lines import is_coarse
from wattledger.statement.notices import coarse_notices
from wattledger.statement.query import EVERYTHING, UsageQuery
from wattledger.statement.timeline import Timeline, priced_timeline
from wattledger.store.protocol import Filters, RequestEnergy, Store
from wattledger.timespan import Window, format_instant

SCHEMA = "wattledger.requests/1"
DEFAULT_LIMIT = 20


@dataclass(frozen=True, slots=True)
class RequestLine:
    """A finished request; `gco2e` is operational only, None where no intensity was asked."""

    request: RequestEnergy
    gco2e: float | None = None

    def to_json(self) -> dict[str, object]:
        """The contract's keys of a request, and its host; energy in J."""
        energy, finish = self.request, self.request.finish
        told: dict[str, object] = {
            "request": finish.request,
            "engine": finish.engine,
            "model": finish.model,
            "workload": finish.workload,
            "job": finish.job,
            "finished": format_instant(finish.finished_ns),
            "prompt_tokens": finish.prompt_tokens,
            "cached_tokens": finish.cached_tokens,
            "decode_tokens": finish.decode_tokens,
            "energy_j": energy.energy_uj / UJ_PER_J,
            "prefill_j": energy.prefill_uj / UJ_PER_J,
            "decode_j": energy.decode_uj / UJ_PER_J,
        }
        if self.gco2e is not None:
            told["gco2e"] = self.gco2e
        return told | {
            "method": energy.method,
            "quality": energy.quality.value,
            "host": energy.host,
            "provisional": False,
        }


@dataclass(frozen=True, slots=True)
class RequestsStatement:
    """The costliest requests first; `found` counts all that finished in the window."""

    window: Window
    requests: tuple[RequestLine, ...]
    found: int
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """The contract's `wattledger.requests/1`."""
        return {
            "schema": SCHEMA,
            "window": self.window.to_json(),
            "requests": [line.to_json() for line in self.requests],
            "found": self.found,
            "warnings": list(self.warnings),
        }


def requests_statement(
    store: Store,
    window: Window,
    filters: Filters = EVERYTHING,
    limit: int = DEFAULT_LIMIT,
    *,
    intensity: IntensitySource | None = None,
    pue: PueSource = ASSUMED_PUE,
) -> RequestsStatement:
    """The `limit` costliest requests that finished in the window; none: an empty list.

    With an intensity, each is priced at the instant it finished, which holds for requests shorter
    than the intensity's steps. Raises `DataMissingError` where that has no value.
    """
    found = store.requests(window.start_ns, window.end_ns, filters)
    chosen = found[:limit]
    warnings = coarse_notices(_coarse_ratio(chosen))
    if intensity is None:
        lines = tuple(map(RequestLine, chosen))
        return RequestsStatement(window, lines, len(found), tuple(warnings))
    prices = priced_timeline(
        UsageQuery(window=window),
        covering(intensity, window.start_ns, window.end_ns),
        pue.segments(window.start_ns, window.end_ns),
        (),
    )
    return RequestsStatement(
        window,
        tuple(RequestLine(request, _gco2e(request, prices)) for request in chosen),
        len(found),
        (*warnings, "gco2e of requests is operational carbon only, priced when each finished"),
    )


def _coarse_ratio(requests: Iterable[RequestEnergy]) -> float:
    """The share by energy of requests any part of which is split coarsely."""
    total_uj = coarse_uj = 0
    for request in requests:
        total_uj += request.energy_uj
        # Several methods are joined by +.
        coarse_uj += any(map(is_coarse, request.method.split("+"))) * request.energy_uj
    return coarse_uj / total_uj if total_uj else 0.0


def _gco2e(request: RequestEnergy, prices: Timeline) -> float:
    price = prices.at(request.finish.finished_ns).price
    return operational_gco2e(request.energy_uj, price.pue, price.intensity_gco2e_per_kwh)
