"""What both exporters tell, one immutable value a second."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from wattledger.records import NS_PER_S
from wattledger_daemon.export.totals import Quantity, Series, Standing, label
from wattledger_daemon.health import Snapshot
from wattledger_daemon.sampling import SensorHealth


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose figures these are; `started_ns` is CLOCK_MONOTONIC."""

    host: str
    version: str
    instance_id: str
    started_ns: int


@dataclass(frozen=True, slots=True)
class Figures:
    """The totals and the daemon's state as of one turn of the pipeline."""

    identity: Identity
    standing: Standing
    snapshot: Snapshot

    @property
    def uptime_s(self) -> float:
        """Seconds since the daemon began."""
        return (self.snapshot.t_ns - self.identity.started_ns) / NS_PER_S

    def of(self, *quantities: Quantity) -> Iterator[tuple[Series, int]]:
        """The totals of these quantities, in the order in which they first appeared."""
        return (item for item in self.standing.totals if item[0].quantity in quantities)

    def powers(self) -> Iterator[tuple[str, str, str, str, float]]:
        """(device, kind, model, quality, watts) of each device whose power is known now."""
        for health in self.snapshot.devices:
            if health.power_w is not None and math.isfinite(health.power_w):
                device = health.device
                named = (label(device.device), device.kind.value, label(device.model))
                yield *named, health.quality.value, health.power_w

    def sensors(self) -> dict[str, SensorHealth]:
        """How each sensor is doing, by its name."""
        return {label(sensor.name): sensor for sensor in self.snapshot.sensors}


Source = Callable[[], Figures | None]
"""The figures now; None before the first turn."""
