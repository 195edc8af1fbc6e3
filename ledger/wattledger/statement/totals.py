"""Totals of lines, and their groups, as the contract prints them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from wattledger.records import NS_PER_S, UJ_PER_J, Activity, Amounts
from wattledger.statement.lines import NO_GRAMS, Grams, Line, add_amounts, add_grams


def ratio(value: float, count: float) -> float | None:
    """`value` per `count`, None where there is nothing to divide by."""
    return value / count if count else None


@dataclass(frozen=True, slots=True)
class Totals:
    """What some lines sum to; `decode_uj` is the energy of activity `decode` among them."""

    amounts: Amounts
    grams: Grams = NO_GRAMS
    decode_uj: int = 0

    @property
    def carbon_gco2e(self) -> float:
        """Operational and embodied carbon together, gCO2e."""
        return self.grams.operational + self.grams.embodied

    @property
    def tokens(self) -> int:
        """Prefill and decode tokens; cached ones are told apart."""
        return self.amounts.prefill_tokens + self.amounts.decode_tokens

    def usage_json(self) -> dict[str, object]:
        """The contract's keys of a total without carbon, in its order."""
        return {**self._energy(), **self._counts(), **self._energy_rates()}

    def carbon_json(self) -> dict[str, object]:
        """The contract's keys of a total, in its order."""
        grams = self.grams
        return {
            **self._energy(),
            "facility_kwh": grams.facility_kwh,
            "operational_gco2e": grams.operational,
            "embodied_gco2e": grams.embodied,
            "carbon_gco2e": self.carbon_gco2e,
            "carbon_gco2e_low": grams.operational_low + grams.embodied_low,
            "carbon_gco2e_high": grams.operational_high + grams.embodied_high,
            "intensity_gco2e_per_kwh": ratio(grams.operational, grams.facility_kwh),
            **self._counts(),
            **self._energy_rates(),
            "gco2e_per_token": ratio(self.carbon_gco2e, self.tokens),
        }

    def _energy(self) -> dict[str, object]:
        return {
            "energy_j": self.amounts.energy_uj / UJ_PER_J,
            "static_j": self.amounts.static_uj / UJ_PER_J,
            "dynamic_j": self.amounts.dynamic_uj / UJ_PER_J,
        }

    def _counts(self) -> dict[str, object]:
        return {
            "device_s": self.amounts.device_ns / NS_PER_S,
            "requests": self.amounts.requests,
            "prefill_tokens": self.amounts.prefill_tokens,
            "cached_tokens": self.amounts.cached_tokens,
            "decode_tokens": self.amounts.decode_tokens,
        }

    def _energy_rates(self) -> dict[str, object]:
        return {
            "j_per_decode_token": ratio(self.decode_uj / UJ_PER_J, self.amounts.decode_tokens),
            "j_per_token": ratio(self.amounts.energy_uj / UJ_PER_J, self.tokens),
        }


@dataclass(frozen=True, slots=True)
class Group:
    """The totals of the lines that share these group values; None: the ledger has no value."""

    by: dict[str, str | None]
    total: Totals


def decode_uj(lines: Iterable[Line]) -> int:
    """Energy of activity `decode`, microjoules."""
    return sum(line.amounts.energy_uj for line in lines if line.key.activity is Activity.DECODE)


def total_of(lines: Sequence[Line]) -> Totals:
    """The totals of some lines; zeros for none."""
    return Totals(
        add_amounts(line.amounts for line in lines),
        add_grams(line.grams for line in lines),
        decode_uj(lines),
    )


def groups_of(lines: Iterable[Line], by: Sequence[str]) -> tuple[Group, ...]:
    """Groups by their values, ascending, those without a value last; () where none are asked."""
    if not by:
        return ()
    found: dict[tuple[str | None, ...], list[Line]] = {}
    for line in lines:
        found.setdefault(line.key.by, []).append(line)
    ordered = sorted(found, key=lambda values: [(value is None, value or "") for value in values])
    return tuple(
        Group(dict(zip(by, values, strict=True)), total_of(found[values])) for values in ordered
    )
