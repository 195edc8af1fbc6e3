"""The whole node's power as its management controller tells it by Redfish, over HTTPS."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from wattledger.records import NS_PER_S, Device, DeviceKind, PowerReading
from wattledger_collectors.sensors.protocol import (
    Absent,
    MonotonicClock,
    ReadFault,
    Reading,
    RedfishSettings,
    SensorSettings,
)

if TYPE_CHECKING:
    from wattledger_collectors.sensors.redfish_link import RedfishLink

NODE = "node1"
_CHASSIS = "/redfish/v1/Chassis"
_MOST_CHASSIS = 64
_MOST_W = 1_000_000.0
_UW_PER_W = 1_000_000
_STALE_NS = 30 * NS_PER_S


def at(document: object, *keys: str | int) -> object:
    """What lies below these keys and positions of a JSON document, None where nothing does."""
    for key in keys:
        if isinstance(key, str) and isinstance(document, dict):
            document = document.get(key)
        elif isinstance(key, int) and isinstance(document, list) and key < len(document):
            document = document[key]
        else:
            return None
    return document


def watts_of(document: object) -> float:
    """The power a resource tells, in watts; raises ValueError where it tells none.

    Power: the first PowerControl's PowerConsumedWatts. EnvironmentMetrics: PowerWatts. Sensor:
    Reading, if it is in W. A host that asks is running, so 0 W is no measurement.
    Source: DMTF DSP0268, Power, EnvironmentMetrics and Sensor.
    """
    power: object = None
    state: object = None
    if at(document, "PowerControl", 0) is not None:
        power = at(document, "PowerControl", 0, "PowerConsumedWatts")
        state = at(document, "PowerControl", 0, "Status", "State")
    elif at(document, "PowerWatts") is not None:
        power = at(document, "PowerWatts", "Reading")
    elif at(document, "ReadingUnits") == "W":
        power, state = at(document, "Reading"), at(document, "Status", "State")
    if state not in (None, "Enabled"):
        raise ValueError(f"the meter's state is {str(state)[:40]!r}")
    if isinstance(power, bool) or not isinstance(power, int | float):
        raise ValueError("it tells no power in watts")
    if not 0.0 < power <= _MOST_W:
        raise ValueError(f"{str(power)[:40]} W is not the power of a running host")
    return float(power)


def find_resource(link: RedfishLink) -> str:
    """The path of the one resource that tells the node's power; raises `Absent`.

    Each chassis is asked for Power, then for EnvironmentMetrics. Those inside another chassis
    (a board of GPUs, say) and those of no computer are left aside where others are not: nothing
    is ever added up.
    """
    members = at(link.get(_CHASSIS), "Members")
    paths = [at(member, "@odata.id") for member in members] if isinstance(members, list) else []
    chassis = {path: link.get(path) for path in paths[:_MOST_CHASSIS] if isinstance(path, str)}
    found = {path: told for path, body in chassis.items() if (told := _power_path(link, body))}
    for is_better in (_is_outermost, _is_computer):
        better = {path: told for path, told in found.items() if is_better(chassis[path])}
        found = better or found
    if not found:
        raise Absent("no chassis tells its power by Redfish")
    if len(found) > 1:
        names = ", ".join(sorted(found.values()))
        raise Absent(f"several chassis tell a power: set redfish.resource to one of {names}")
    return next(iter(found.values()))


def _power_path(link: RedfishLink, chassis: object) -> str | None:
    for kind in ("Power", "EnvironmentMetrics"):
        path = at(chassis, kind, "@odata.id")
        if isinstance(path, str):
            try:
                watts_of(link.get(path))
            except (ValueError, LookupError):
                continue
            return path
    return None


def _is_outermost(chassis: object) -> bool:
    return at(chassis, "Links", "ContainedBy", "@odata.id") is None


def _is_computer(chassis: object) -> bool:
    return bool(at(chassis, "Links", "ComputerSystems"))


class RedfishSensor:
    """Reads the controller as `node1`, of kind `node`: never part of a total.

    A Sensor's time stamp that was given before is no news; after 30 s of it the reading is a
    fault. What fails is a `ReadFault`, but refused credentials end it: each further try with
    them would bring the account nearer to being locked.
    """

    name = "redfish"

    def __init__(self, settings: SensorSettings, clock: MonotonicClock = time.monotonic_ns) -> None:
        self._settings = settings
        self._access: RedfishSettings | None = settings.redfish
        self.period_s = self._access.period_s if self._access else 4.0
        self._clock = clock
        self._link: RedfishLink | None = None
        self._resource = ""
        self._stamp: object = None
        self._news_ns = 0

    def open(self) -> tuple[Device, ...]:
        """The one device; raises `Absent`, `Denied`, or OSError and ValueError as a read."""
        self.close()
        if self._access is None:
            raise Absent("redfish.url is not set")
        # TLS takes 5 MB, and most hosts ask no controller.
        from wattledger_collectors.sensors.redfish_link import RedfishLink

        self._link = RedfishLink(self._access)
        try:
            self._resource = self._access.resource or find_resource(self._link)
        except LookupError as missing:
            raise Absent(f"{self._access.url} has no {missing}") from missing
        static_w, basis = self._settings.static_of(NODE)
        return (Device(NODE, DeviceKind.NODE, None, static_w, basis),)

    def read(self) -> list[Reading]:
        """Power where the controller has news; raises `Denied`. See the class."""
        if self._link is None:
            return []
        try:
            document = self._link.get(self._resource)
            power_w = watts_of(document)
        except (OSError, ValueError, LookupError) as failed:
            return [ReadFault(NODE, self._clock(), f"{self._resource}: {failed}")]
        now_ns = self._clock()
        stamp = at(document, "ReadingTime")
        if stamp is not None and stamp == self._stamp:
            if now_ns - self._news_ns <= _STALE_NS:
                return []
            reason = f"{self._resource}: the reading of {str(stamp)[:40]} again and again"
            return [ReadFault(NODE, now_ns, reason)]
        self._stamp, self._news_ns = stamp, now_ns
        return [PowerReading(NODE, now_ns, round(power_w * _UW_PER_W))]

    def close(self) -> None:
        """Close the connection."""
        if self._link is not None:
            self._link.close()
        self._link = None
        self._stamp = None
