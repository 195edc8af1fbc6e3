"""Powercap trees in the shapes that kernels show them: zone folder, name, energy, range."""

from __future__ import annotations

from fakes.sysfs import FakePowercap

WIDE_UJ = 262143328850  # a unit of 61 uJ
NARROW_UJ = 65712999613  # a unit of 15.3 uJ, as DRAM of Xeons and AMD's packages have

Zone = tuple[str, str, int, int]

DESKTOP: tuple[Zone, ...] = (
    ("intel-rapl:0", "package-0", 190_000_000_000, WIDE_UJ),
    ("intel-rapl:0:0", "core", 120_000_000_000, WIDE_UJ),
    ("intel-rapl:0:1", "uncore", 9_000_000_000, WIDE_UJ),
    ("intel-rapl:1", "psys", 230_000_000_000, WIDE_UJ),
    ("intel-rapl-mmio:0", "package-0", 190_000_000_001, WIDE_UJ),
)
TWO_SOCKETS: tuple[Zone, ...] = (
    ("intel-rapl:0", "package-0", 11_000_000_000, WIDE_UJ),
    ("intel-rapl:0:0", "dram", 1_100_000_000, NARROW_UJ),
    ("intel-rapl:1", "package-1", 22_000_000_000, WIDE_UJ),
    ("intel-rapl:1:0", "dram", 2_200_000_000, NARROW_UJ),
)
TWO_SOCKETS_WITH_DIES: tuple[Zone, ...] = (
    ("intel-rapl:0", "package-1-die-0", 100, WIDE_UJ),
    ("intel-rapl:0:0", "dram", 101, NARROW_UJ),
    ("intel-rapl:1", "package-0-die-1", 11, WIDE_UJ),
    ("intel-rapl:1:0", "dram", 12, NARROW_UJ),
    ("intel-rapl:2", "package-0-die-0", 1, WIDE_UJ),
    ("intel-rapl:2:0", "dram", 2, NARROW_UJ),
    ("intel-rapl:3", "package-1-die-1", 110, WIDE_UJ),
    ("intel-rapl:3:0", "dram", 111, NARROW_UJ),
)
SERVER_WITH_PSYS: tuple[Zone, ...] = (
    *TWO_SOCKETS,
    ("intel-rapl:2", "psys", 99_000_000_000, WIDE_UJ),
)
DRAM_ON_ONE: tuple[Zone, ...] = (
    ("intel-rapl:0", "package-0", 10, WIDE_UJ),
    ("intel-rapl:1", "package-1", 20, WIDE_UJ),
    ("intel-rapl:1:0", "dram", 21, NARROW_UJ),
)
EPYC: tuple[Zone, ...] = (
    ("intel-rapl:0", "package-0", 31_000_000_000, NARROW_UJ),
    ("intel-rapl:0:0", "core", 70_000_000, NARROW_UJ),
    ("intel-rapl:1", "package-1", 32_000_000_000, NARROW_UJ),
    ("intel-rapl:1:0", "core", 80_000_000, NARROW_UJ),
)
TWICE: tuple[Zone, ...] = (
    ("intel-rapl:0", "package-0", 10, WIDE_UJ),
    ("intel-rapl:1", "package-0", 11, WIDE_UJ),
)
ALL_AT_ZERO: tuple[Zone, ...] = (
    ("intel-rapl:0", "package-0", 0, WIDE_UJ),
    ("intel-rapl:0:0", "dram", 0, NARROW_UJ),
)
DRAM_AT_ZERO: tuple[Zone, ...] = (
    ("intel-rapl:0", "package-0", 10, WIDE_UJ),
    ("intel-rapl:0:0", "dram", 0, NARROW_UJ),
)


def lay(powercap: FakePowercap, zones: tuple[Zone, ...]) -> None:
    for zone, name, energy_uj, range_uj in zones:
        powercap.zone(zone, name, energy_uj, range_uj)
