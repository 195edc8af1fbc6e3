"""How a sensor's faults are told: a line where they begin, one where they are over.

A source that comes and goes would fill the log. So it is told to be well only after a minute
without a fault; what happens before that is counted, and the count told then.
"""

from __future__ import annotations

import logging
from collections.abc import Container
from dataclasses import dataclass

from wattledger.records import NS_PER_S
from wattledger_collectors.sensors.protocol import ReadFault
from wattledger_daemon.logs import event

_LOG = logging.getLogger(__name__)
QUIET_NS = 60 * NS_PER_S


@dataclass(slots=True)
class _Bout:
    """Faults of which none lies more than `QUIET_NS` of good answers after another."""

    faults: int = 0
    _fresh: bool = False
    _well_ns: int | None = None

    def failed(self) -> None:
        self.faults += 1
        self._fresh, self._well_ns = True, None

    def over(self, now_ns: int) -> bool:
        """Whether it has gone well for long enough; called as often as answers were good.

        What was handed over together with a fault counts for nothing, whichever came last.
        """
        if self._fresh:
            self._fresh = False
        elif self._well_ns is None:
            self._well_ns = now_ns
        else:
            return now_ns - self._well_ns >= QUIET_NS
        return False


class FaultLog:
    """The faults of one sensor: of its devices, its own, and the calls that did not return."""

    def __init__(self, sensor: str) -> None:
        self._sensor = sensor
        self._devices: dict[str, _Bout] = {}
        self._own: _Bout | None = None
        self._hangs: _Bout | None = None
        self._told_stuck = False

    @property
    def open(self) -> bool:
        """Whether anything is still to be told as over."""
        return bool(self._devices or self._own or self._hangs)

    @property
    def failing(self) -> bool:
        """Whether the sensor itself failed, and has not been well for long since."""
        return self._own is not None

    def device_failed(self, fault: ReadFault) -> None:
        """Count a device's fault; told where it is the first."""
        bout = self._devices.get(fault.device)
        if bout is None:
            bout = self._devices[fault.device] = _Bout()
            fields = {"device": fault.device, "reason": fault.reason}
            _LOG.warning(event("read_fault", sensor=self._sensor, **fields))
        bout.failed()

    def failed(self) -> bool:
        """Count a failure of the sensor itself; whether it is the first, and to be told."""
        first = self._own is None
        self._own = self._own or _Bout()
        self._own.failed()
        return first

    def stuck(self) -> None:
        """Count a call that does not return; told unless the last line said so already."""
        self._hangs = self._hangs or _Bout()
        self._hangs.failed()
        if not self._told_stuck:
            self._told_stuck = True
            mend = "it has its thread to itself"
            _LOG.warning(event("sensor_stuck", sensor=self._sensor, mend=mend))

    def back(self, after_ns: int) -> None:
        """Note that the call returned at last; told at once the first time."""
        if self._hangs is None or self._hangs.faults == 1:
            self._told_stuck = False
            after_s = f"{after_ns / NS_PER_S:.1f}"
            _LOG.info(event("sensor_back", sensor=self._sensor, after_s=after_s))

    def look(self, now_ns: int, read: Container[str] | None) -> None:
        """Tell what has been well for long enough, as of a hand-over of a sensor that runs.

        `read` are the devices that were read since the last one; None: all.
        """
        for device, bout in list(self._devices.items()):
            if (read is None or device in read) and bout.over(now_ns):
                del self._devices[device]
                fields = {"device": device, "faults": bout.faults}
                _LOG.info(event("read_again", sensor=self._sensor, **fields))
        if self._own is not None and self._own.over(now_ns):
            fields = {"was": "failing", "faults": self._own.faults}
            self._own = None
            _LOG.info(event("sensor_running", sensor=self._sensor, **fields))
        if self._hangs is not None and self._hangs.over(now_ns):
            faults, self._hangs = self._hangs.faults, None
            if self._told_stuck:
                self._told_stuck = False
                _LOG.info(event("sensor_back", sensor=self._sensor, faults=faults))
