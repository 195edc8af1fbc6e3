"""How much of a statement stands on what: shares by energy, and by time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from wattledger.carbon.intensity import Tier
from wattledger.records import QUALITY_ORDER, DeviceKind
from wattledger.statement.lines import Line
from wattledger.statement.terms import EmbodiedTerms
from wattledger.store.protocol import Books, DeviceBook, glob_match
from wattledger.timespan import Window

_MEASURED = (Tier.MEASURED, Tier.CONSTANT)


@dataclass(frozen=True, slots=True)
class Coverage:
    """Shares from 0 to 1; by energy but for `time`, and empty where there is no energy."""

    energy: dict[str, float]
    time: float
    intensity: dict[str, float]
    embodied: float

    @property
    def measured_intensity(self) -> float:
        """The share by energy whose intensity was measured or given as a constant."""
        return sum(self.intensity.get(tier.value, 0.0) for tier in _MEASURED)

    def usage_json(self) -> dict[str, object]:
        """The keys that concern energy."""
        return {"energy": self.energy, "time": self.time}

    def carbon_json(self) -> dict[str, object]:
        """All keys, in the contract's order."""
        return {**self.usage_json(), "intensity": self.intensity, "embodied": self.embodied}


def coverage_of(
    lines: Sequence[Line], booked_ns: Mapping[str, int], window: Window, terms: EmbodiedTerms
) -> Coverage:
    """The coverage of lines; `booked_ns` as of the function of that name."""
    factored = {line.key for line in lines if terms.factor(line.key.device_model)}
    tiers = [tier.value for tier in Tier]
    return Coverage(
        energy=_shares(lines, lambda line: line.key.quality.value, QUALITY_ORDER),
        time=_time(booked_ns.values(), window),
        intensity=_shares(lines, lambda line: line.key.tier or "", tiers),
        embodied=_share_of(lines, lambda line: line.key in factored),
    )


def _share_of(lines: Sequence[Line], belongs: Callable[[Line], bool]) -> float:
    """The share by energy, where there is none by device time: embodied carbon goes by that."""
    if any(line.amounts.energy_uj for line in lines):
        return share(lines, belongs)
    total_ns = sum(line.amounts.device_ns for line in lines)
    part_ns = sum(line.amounts.device_ns for line in lines if belongs(line))
    return part_ns / total_ns if total_ns else 0.0


def share(lines: Iterable[Line], belongs: Callable[[Line], bool]) -> float:
    """The share by energy of the lines that belong; 0 where there is no energy."""
    part_uj = total_uj = 0
    for line in lines:
        total_uj += line.amounts.energy_uj
        part_uj += line.amounts.energy_uj if belongs(line) else 0
    return part_uj / total_uj if total_uj else 0.0


def device_books(books: Books, host_globs: Sequence[str]) -> tuple[DeviceBook, ...]:
    """The books that count in totals: those of the hosts asked for, without node meters."""
    return tuple(
        book
        for book in books.devices
        if book.device.kind is not DeviceKind.NODE and glob_match(host_globs, book.host)
    )


def booked_ns(books: Iterable[DeviceBook]) -> dict[str, int]:
    """Posted device time by `host/device`, in nanoseconds.

    A device whose description changed has a book for each.
    """
    booked: dict[str, int] = {}
    for book in books:
        name = f"{book.host}/{book.device.device}"
        booked[name] = booked.get(name, 0) + book.posted_ns
    return booked


def _shares(
    lines: Sequence[Line], name: Callable[[Line], str], order: Iterable[str]
) -> dict[str, float]:
    sums: dict[str, int] = {}
    for line in lines:
        sums[name(line)] = sums.get(name(line), 0) + line.amounts.energy_uj
    total_uj = sum(sums.values())
    return {key: sums[key] / total_uj for key in map(str, order) if sums.get(key)}


def _time(booked_ns: Collection[int], window: Window) -> float:
    # Clamped per device, so that one booked twice cannot hide one that was silent.
    covered_ns = sum(min(device_ns, window.length_ns) for device_ns in booked_ns)
    return covered_ns / (len(booked_ns) * window.length_ns) if booked_ns else 0.0
