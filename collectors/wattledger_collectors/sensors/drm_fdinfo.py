"""What one DRM client used of its GPU, as `/proc/PID/fdinfo/FD` tells it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_UNIT_BYTES = {None: 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_OWN_MEMORY = ("vram", "local")
# Begins as a figure of memory does, and is none.
_CLOCK_FIGURE = "drm-total-cycles-"
_ENGINE_FIGURES = ("drm-engine-capacity-", "drm-engine-", "drm-cycles-", _CLOCK_FIGURE)
# Told side by side by some drivers for the same memory: what lies there now goes first.
_MEMORY_FIGURES = ("drm-resident-", "drm-total-", "drm-memory-")

_Figures = Mapping[str, tuple[int, str | None]]
"""Numbers and their units by key."""


@dataclass(frozen=True, slots=True)
class Engine:
    """One engine's busy time since its client was opened, in nanoseconds or in cycles.

    With cycles, `clock_cycles` is what its clock has counted meanwhile. `capacity` is how many
    such engines there are.
    """

    busy: int
    capacity: int
    clock_cycles: int | None = None


@dataclass(frozen=True, slots=True)
class Client:
    """A DRM client: its GPU's PCI address, its number there, its engines and its memory."""

    pci: str
    number: int
    engines: Mapping[str, Engine]
    memory_bytes: int


def read_client(text: str) -> Client | None:
    """Read an fdinfo file; None where it is not that of a DRM client of a PCI device.

    Lines that do not fit the specification are left out. Memory is that of the GPU's own
    regions, where it has some. Source: Documentation/gpu/drm-usage-stats.rst.
    """
    pci, number = "", ""
    figures: dict[str, tuple[int, str | None]] = {}
    for line in text.splitlines():
        if not line.startswith("drm-"):
            continue
        key, _, rest = line.partition(":")
        match rest.split():
            case [value] if key == "drm-pdev":
                pci = value.lower()
            case [value] if key == "drm-client-id":
                number = value
            case [value, *units] if len(units) < 2 and value.isdecimal() and len(value) <= 20:
                figures[key] = (int(value), units[0] if units else None)
    if not pci or not number.isdecimal():
        return None
    return Client(pci, int(number), _engines(figures), _memory_bytes(figures))


def busy_percent(before: Client, after: Client, elapsed_ns: int) -> float | None:
    """How busy the client kept the engine that it used most, percent of that engine's capacity.

    None where no engine tells. A count that fell tells nothing new: it is to catch up.
    """
    shares: list[float] = []
    for name, engine in after.engines.items():
        earlier = before.engines.get(name)
        if earlier is None:
            continue
        whole = elapsed_ns
        if engine.clock_cycles is not None:
            whole = engine.clock_cycles - (earlier.clock_cycles or 0)
        if whole > 0:
            busy = max(engine.busy - earlier.busy, 0) / (whole * engine.capacity)
            shares.append(min(100.0 * busy, 100.0))
    return max(shares, default=None)


def caught_up(before: Client, after: Client) -> Client:
    """`after`, where no engine's count is less than it was before."""
    engines = {
        name: before.engines[name]
        if name in before.engines and engine.busy < before.engines[name].busy
        else engine
        for name, engine in after.engines.items()
    }
    return Client(after.pci, after.number, engines, after.memory_bytes)


def _engines(figures: _Figures) -> dict[str, Engine]:
    told: dict[str, dict[str, int]] = {}
    for key, (number, unit) in figures.items():
        for what in _ENGINE_FIGURES:
            if key.startswith(what):
                if what != "drm-engine-" or unit == "ns":
                    told.setdefault(key.removeprefix(what), {})[what] = number
                break
    engines: dict[str, Engine] = {}
    for name, parts in told.items():
        capacity = max(parts.get("drm-engine-capacity-", 1), 1)
        if "drm-engine-" in parts:
            engines[name] = Engine(parts["drm-engine-"], capacity)
        elif "drm-cycles-" in parts and _CLOCK_FIGURE in parts:
            engines[name] = Engine(parts["drm-cycles-"], capacity, parts[_CLOCK_FIGURE])
    return engines


def _memory_bytes(figures: _Figures) -> int:
    """What the client holds of each region, by the first figure that is told of it."""
    regions: dict[str, int] = {}
    memory = {k: told for k, told in figures.items() if not k.startswith(_CLOCK_FIGURE)}
    for what in _MEMORY_FIGURES:
        for key, (number, unit) in memory.items():
            if key.startswith(what) and unit in _UNIT_BYTES:
                regions.setdefault(key.removeprefix(what), number * _UNIT_BYTES[unit])
    own = [held for name, held in regions.items() if name.startswith(_OWN_MEMORY)]
    return sum(own or regions.values())
