"""Intel's discrete GPUs, by the energy counters that i915 and xe show as hwmon."""

from __future__ import annotations

import re
from pathlib import Path

from wattledger.records import Device, DeviceKind
from wattledger_collectors.sensors.drm_cards import Card, find_cards
from wattledger_collectors.sensors.hwmon_files import FileMeter, Found, hwmon_folders, text_of
from wattledger_collectors.sensors.protocol import SensorSettings

_DRIVERS = frozenset({"i915", "xe"})
_ENERGY = re.compile(r"energy(\d+)_input")
# The card holds the package; i915 tells one figure, without a label.
_SCOPES = ("card", "", "pkg")


def intel_meters(settings: SensorSettings) -> Found:
    """One meter per GPU that tells energy; integrated ones are part of the CPU package.

    xe tells a card by two channels, `card` (energy1) and `pkg` (energy2, part of it): the widest
    is read, and only that one. i915's `i915_gt0`.. are parts of `i915` and are left out. The
    counters are 64-bit in the driver, which follows the hardware's 32 bits across a wrap as long
    as it is read now and then. Source: Documentation/ABI/testing, sysfs-driver-intel-i915-hwmon
    and sysfs-driver-intel-xe-hwmon.
    """
    meters: list[FileMeter] = []
    for card in find_cards(settings.sysfs_root):
        if card.driver not in _DRIVERS:
            continue
        channel = _widest(card)
        if channel is None:
            continue
        scope, path = channel
        static_w, basis = settings.static_of(card.device)
        device = Device(card.device, DeviceKind.GPU, _model(card, scope), static_w, basis)
        meters.append(FileMeter((device,), (path,)))
    return Found(tuple(meters))


def _widest(card: Card) -> tuple[str, Path] | None:
    """The scope and the file of the channel that covers most of the card."""
    channels: dict[str, Path] = {}
    for folder in hwmon_folders(card.folder / "hwmon"):
        if text_of(folder / "name") != card.driver:
            continue
        for path in sorted(folder.iterdir()):
            if match := _ENERGY.fullmatch(path.name):
                label = text_of(folder / f"energy{match[1]}_label") or ""
                channels.setdefault(label, path)
    return next(((scope, channels[scope]) for scope in _SCOPES if scope in channels), None)


def _model(card: Card, scope: str) -> str:
    number = text_of(card.folder / "device") or "unknown"
    return f"Intel GPU {number} (package alone)" if scope == "pkg" else f"Intel GPU {number}"
