"""On which terms embodied carbon is charged: factor, lifetime and date of service per device."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from wattledger.carbon.embodied import embodied_gco2e, end_of_life_ns
from wattledger.hardware.factors import EmbodiedFactor, embodied_factor, is_same_device
from wattledger.statement.query import CarbonQuery


def service_edges_ns(query: CarbonQuery) -> list[int]:
    """Instants at which some device's lifetime begins or ends, UTC nanoseconds."""
    starts = query.in_service_ns.values()
    return [*starts, *(end_of_life_ns(start_ns, query.lifetime_s) for start_ns in starts)]


@dataclass(slots=True)
class EmbodiedTerms:
    """The embodied side of a query; None: nothing embodied is charged."""

    query: CarbonQuery | None = None
    _factors: dict[str, EmbodiedFactor | None] = field(default_factory=dict)

    def factor(self, device_model: str | None) -> EmbodiedFactor | None:
        """The factor of a device model, None where nothing is known or asked."""
        if self.query is None or not self.query.include_embodied or device_model is None:
            return None
        if device_model not in self._factors:
            self._factors[device_model] = embodied_factor(device_model, self.query.embodied_kg)
        return self._factors[device_model]

    def unmatched(self, device_models: Iterable[str]) -> list[str]:
        """Overrides that name none of `device_models`, in order."""
        known = list(device_models)
        names = self.query.embodied_kg if self.query is not None else {}
        return [name for name in names if not any(is_same_device(name, model) for model in known)]

    def in_service(self, host: str, device: str, t_ns: int) -> bool:
        """Whether the device is within its lifetime at `t_ns`; yes where its start is unknown."""
        if self.query is None:
            return True
        start_ns = self.query.in_service_ns.get((host, device))
        return start_ns is None or (
            start_ns <= t_ns < end_of_life_ns(start_ns, self.query.lifetime_s)
        )

    def grams(self, device_model: str | None, device_ns: int) -> tuple[float, float, float]:
        """Low, central and high gCO2e of `device_ns` of use; zeros without a factor."""
        factor = self.factor(device_model)
        if self.query is None or factor is None:
            return 0.0, 0.0, 0.0
        lifetime_s = self.query.lifetime_s
        return (
            embodied_gco2e(factor.low_kg, device_ns, lifetime_s),
            embodied_gco2e(factor.kg, device_ns, lifetime_s),
            embodied_gco2e(factor.high_kg, device_ns, lifetime_s),
        )
