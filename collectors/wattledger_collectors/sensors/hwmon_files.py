"""The kernel's hwmon folders, and what a meter made of their files is."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from wattledger.records import Device
from wattledger_collectors.sensors.procfs import OpenFile

_NUMBER_BYTES = 32
_NUMBER = re.compile(rb"-?\d{1,20}")
_FOLDER = re.compile(r"hwmon(\d+)")

PowersUw = Callable[[Sequence[int]], Sequence[int]]
"""From a meter's files, in order, the power of each of its devices; raises ValueError."""


@dataclass(frozen=True, slots=True)
class FileMeter:
    """Files that are read together, and the devices that they meter.

    Without `powers_uw` it is one file, the energy counter of one device in microjoules.
    """

    devices: tuple[Device, ...]
    paths: tuple[Path, ...]
    powers_uw: PowersUw | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """The meters of one family of hardware, and what is to be said of them.

    `mend` is what would bring meters that this hardware has and does not show.
    """

    meters: tuple[FileMeter, ...] = ()
    notes: tuple[str, ...] = ()
    mend: str = ""


class KeptFile:
    """One sysfs file with one whole number; its descriptor is kept."""

    __slots__ = ("_descriptor", "_open_file", "path")

    def __init__(self, path: Path, open_file: OpenFile) -> None:
        self.path = path
        self._open_file = open_file
        self._descriptor: int | None = None

    def read(self) -> int:
        """The number; raises OSError, or ValueError where it is none, naming the file."""
        if self._descriptor is None:
            self._descriptor = self._open_file(self.path)
        try:
            raw = os.pread(self._descriptor, _NUMBER_BYTES, 0).strip()
        except OSError as failed:
            raise OSError(failed.errno, failed.strerror, str(self.path)) from failed
        if not _NUMBER.fullmatch(raw):
            raise ValueError(f"{self.path}: {raw[:16]!r} is no whole number")
        return int(raw)

    def close(self) -> None:
        """Close the file; the next read opens it anew."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def hwmon_folders(root: Path) -> Iterator[Path]:
    """The `hwmonN` folders below `root`, by number."""
    if not root.is_dir():
        return
    numbered = [
        (int(match[1]), path)
        for path in root.iterdir()
        if (match := _FOLDER.fullmatch(path.name)) is not None
    ]
    yield from (path for _, path in sorted(numbered))


def text_of(path: Path) -> str | None:
    """The first 200 characters of a sysfs file, stripped; None where it cannot be read."""
    try:
        return path.read_text(errors="replace").strip()[:200]
    except OSError:
        return None
