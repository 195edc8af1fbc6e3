"""Which device each engine's tokens go with, chosen as evidence of use comes.

Not when a page is made: so that a restart, which makes no pages again, chooses the same.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from wattledger.records import Device, DeviceKind

_KIND_ORDER = (DeviceKind.GPU, DeviceKind.CPU, DeviceKind.DRAM, DeviceKind.NODE)


class _Seen(NamedTuple):
    device: Device
    until_ns: int


class TokenDevices:
    """The chosen device by engine."""

    def __init__(self) -> None:
        self._chosen: dict[str, _Seen] = {}

    def of(self, engine: str) -> str | None:
        """The device chosen for an engine; None while no use record named it."""
        chosen = self._chosen.get(engine)
        return None if chosen is None else chosen.device.device

    def saw(self, engine: str, device: Device, start_ns: int, end_ns: int) -> None:
        """Take note that an engine was seen on a device in a stretch of time.

        A GPU takes the place of any other kind at any time. Of devices of one kind it is the first
        of those that it was seen on at once: a context elsewhere later on moves nothing.
        """
        chosen = self._chosen.get(engine)
        if device.kind is DeviceKind.NODE:
            return
        if chosen is not None:
            at_once = start_ns < chosen.until_ns or device.kind is not chosen.device.kind
            if not at_once or natural_order(device) >= natural_order(chosen.device):
                return
        self._chosen[engine] = _Seen(device, end_ns)

    def drop(self, engine: str) -> None:
        """Forget an engine that is gone."""
        self._chosen.pop(engine, None)


def natural_order(device: Device) -> tuple[int, str, int]:
    """Kind first (gpu, cpu, dram, node), then gpu2 before gpu10."""
    digits = re.search(r"(\d+)$", device.device)
    stem = device.device[: digits.start()] if digits else device.device
    return _KIND_ORDER.index(device.kind), stem, int(digits.group(1)) if digits else -1
