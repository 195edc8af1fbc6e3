"""Which AMD and Intel GPUs the kernel shows, and the device id of each."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

# Not card0-DP-1 and its like, which are connectors.
_CARD = re.compile(r"card\d+")
_PCI = re.compile(r"[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_VENDORS = {"amdgpu": "amd", "i915": "intel", "xe": "intel"}


class Card(NamedTuple):
    """One GPU: its device id, PCI address, kernel driver and sysfs folder."""

    device: str
    pci: str
    driver: str
    folder: Path


def find_cards(sysfs_root: Path) -> tuple[Card, ...]:
    """Every AMD and Intel GPU, `amd0`.. and `intel0`.. in the order of their PCI addresses.

    Integrated GPUs count too, metered or not, so that an id stays with its card. Partitions of a
    GPU, which are no PCI devices, are left out. Source: /sys/class/drm/card*/device.
    """
    numbers: Counter[str] = Counter()
    cards: list[Card] = []
    for pci, driver, folder in sorted(_found(sysfs_root / "class" / "drm"), key=_by_address):
        vendor = _VENDORS[driver]
        cards.append(Card(f"{vendor}{numbers[vendor]}", pci, driver, folder))
        numbers[vendor] += 1
    return tuple(cards)


def pci_order(pci: str) -> tuple[int, ...]:
    """What to sort PCI addresses by; raises ValueError where it is none."""
    return tuple(int(part, 16) for part in re.split(r"[:.]", pci))


def _by_address(found: tuple[str, str, Path]) -> tuple[int, ...]:
    return pci_order(found[0])


def _found(root: Path) -> set[tuple[str, str, Path]]:
    found: set[tuple[str, str, Path]] = set()
    if not root.is_dir():
        return found
    for path in root.iterdir():
        if not _CARD.fullmatch(path.name):
            continue
        folder = (path / "device").resolve()
        driver = (folder / "driver").resolve().name
        if driver in _VENDORS and _PCI.fullmatch(folder.name):
            found.add((folder.name, driver, folder))
    return found
