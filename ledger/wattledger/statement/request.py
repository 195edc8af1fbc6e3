"""One request by its id, whenever it was: booked, or provisional as a daemon told of it."""

from __future__ import annotations

from dataclasses import dataclass

from wattledger.carbon.intensity import IntensitySource, covering
from wattledger.carbon.operational import operational_gco2e
from wattledger.carbon.pue import ASSUMED_PUE, PueSource
from wattledger.records import NS_PER_S, UJ_PER_J
from wattledger.statement.requests import SCHEMA
from wattledger.store.named import NamedRequest, NameRule, RequestLookup
from wattledger.timespan import Window, format_instant

_RESTATED_NS = 600 * NS_PER_S


@dataclass(frozen=True, slots=True)
class OneRequest:
    """A request, finished or not; `gco2e` is operational only, None without an intensity."""

    request: NamedRequest
    provisional: bool
    gco2e: float | None = None

    def to_json(self) -> dict[str, object]:
        """The contract's keys of a request; `finished` is null while it runs."""
        item = self.request
        told: dict[str, object] = {
            "request": item.key.request,
            "engine": item.key.engine,
            "model": item.model,
            "workload": item.workload,
            "job": item.job,
            "finished": None if item.finished_ns is None else format_instant(item.finished_ns),
            "prompt_tokens": item.prompt_tokens,
            "cached_tokens": item.cached_tokens,
            "decode_tokens": item.decode_tokens,
            "prefill_tokens": item.prefill_tokens,
            "energy_j": item.energy_uj / UJ_PER_J,
            "prefill_j": item.prefill_uj / UJ_PER_J,
            "decode_j": item.decode_uj / UJ_PER_J,
        }
        if self.gco2e is not None:
            told["gco2e"] = self.gco2e
        return told | {
            "method": item.method,
            "quality": item.quality.value,
            "host": item.key.host,
            "provisional": self.provisional,
        }


@dataclass(frozen=True, slots=True)
class OneRequestStatement:
    """Every request that bears an id, the latest first; `until_ns` is when it was asked, UTC."""

    requests: tuple[OneRequest, ...]
    until_ns: int

    def to_json(self) -> dict[str, object]:
        """The contract's `wattledger.requests/1`, over all time."""
        return {
            "schema": SCHEMA,
            "window": Window(0, self.until_ns).to_json(),
            "requests": [item.to_json() for item in self.requests],
            "found": len(self.requests),
            "warnings": [],
        }


def booked(ledger: RequestLookup, rule: NameRule, now_ns: int) -> list[OneRequest]:
    """What a ledger alone knows: one without an end may still run, or be booked in part only."""
    return [
        OneRequest(item, item.finished_ns is None and now_ns - item.last_ns < _RESTATED_NS)
        for item in ledger.named(rule)
    ]


def priced(
    item: OneRequest, intensity: IntensitySource, now_ns: int, pue: PueSource = ASSUMED_PUE
) -> OneRequest:
    """With its operational carbon, priced when it finished, or now; as `requests_statement`.

    Raises `DataMissingError` where the intensity has no value.
    """
    at_ns = item.request.finished_ns or now_ns
    (step,) = covering(intensity, at_ns, at_ns + 1)
    (facility,) = pue.segments(at_ns, at_ns + 1)
    grams = operational_gco2e(item.request.energy_uj, facility.pue, step.intensity_gco2e_per_kwh)
    return OneRequest(item.request, item.provisional, grams)
