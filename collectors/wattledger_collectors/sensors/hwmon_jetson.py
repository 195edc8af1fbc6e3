"""NVIDIA Jetson, by the INA3221 monitors on its power rails."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from wattledger.records import Device, DeviceKind
from wattledger_collectors.sensors.hwmon_files import FileMeter, Found, hwmon_folders, text_of
from wattledger_collectors.sensors.protocol import SensorSettings

_CHIP = "ina3221"
_LABEL = re.compile(r"in([123])_label")
_NOISE_UW = 1_000_000


class _Rail(NamedTuple):
    """The two files whose product is a rail's power: millivolts and milliamperes."""

    voltage: Path
    current: Path


class _Part(NamedTuple):
    device: str
    kind: DeviceKind
    model: str
    rails: tuple[str, ...]


class _Module(NamedTuple):
    """A kind of module, known by labels that it has; the parts that are metered by which rails."""

    labels: frozenset[str]
    parts: tuple[_Part, ...]


_MODULES = (
    # AGX Orin has no input rail; its three supplies are the module. VDDQ_VDD2_1V8AO is part
    # of VIN_SYS_5V0.
    _Module(
        frozenset({"VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"}),
        (
            _Part("igpu0", DeviceKind.GPU, "Jetson VDD_GPU_SOC", ("VDD_GPU_SOC",)),
            _Part("cpu0", DeviceKind.CPU, "Jetson VDD_CPU_CV", ("VDD_CPU_CV",)),
            _Part(
                "module0",
                DeviceKind.NODE,
                "Jetson AGX Orin module",
                ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
            ),
        ),
    ),
    # Orin NX, Orin Nano and Xavier NX tell CPU and GPU by one rail alone.
    _Module(
        frozenset({"VDD_IN", "VDD_CPU_GPU_CV"}),
        (
            _Part(
                "cpu0", DeviceKind.CPU, "Jetson VDD_CPU_GPU_CV (CPU and GPU)", ("VDD_CPU_GPU_CV",)
            ),
            _Part("module0", DeviceKind.NODE, "Jetson VDD_IN", ("VDD_IN",)),
        ),
    ),
    # AGX Xavier.
    _Module(
        frozenset({"GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"}),
        (
            _Part("igpu0", DeviceKind.GPU, "Jetson GPU rail", ("GPU",)),
            _Part("cpu0", DeviceKind.CPU, "Jetson CPU rail", ("CPU",)),
            _Part("dram0", DeviceKind.DRAM, "Jetson VDDRQ rail", ("VDDRQ",)),
            _Part(
                "module0",
                DeviceKind.NODE,
                "Jetson AGX Xavier module",
                ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),
            ),
        ),
    ),
)


def jetson_meters(settings: SensorSettings) -> Found:
    """The parts of a module whose rails are known by their labels; others are named in a note.

    Voltage and current are two reads of a few hundred microseconds, not one. Source:
    Documentation/hwmon/ina3221.rst; Jetson Linux developer guide 35 and 36 (power monitors).
    """
    rails = _rails(settings.sysfs_root / "class" / "hwmon")
    module = next((m for m in _MODULES if m.labels <= rails.keys()), None)
    if module is None:
        unknown = ", ".join(sorted(rails))
        return Found(notes=(f"INA3221 rails that no known module has: {unknown}",) if rails else ())
    notes: tuple[str, ...] = ()
    if "VDD_CPU_GPU_CV" in module.labels:
        notes = ("cpu0 holds the GPU too: this module meters both by one rail",)
    return Found(tuple(_meter(settings, part, rails) for part in module.parts), notes)


def _rails(root: Path) -> Mapping[str, _Rail]:
    """Every rail in use by its label; channels that are off or not connected are left out."""
    rails: dict[str, _Rail] = {}
    for folder in hwmon_folders(root):
        if text_of(folder / "name") != _CHIP:
            continue
        for path in sorted(folder.iterdir()):
            match = _LABEL.fullmatch(path.name)
            label = text_of(path) if match else None
            if not match or not label or label == "NC":
                continue
            if text_of(folder / f"in{match[1]}_enable") != "0":
                voltage, current = folder / f"in{match[1]}_input", folder / f"curr{match[1]}_input"
                rails.setdefault(label, _Rail(voltage, current))
    return rails


def _meter(settings: SensorSettings, part: _Part, rails: Mapping[str, _Rail]) -> FileMeter:
    static_w, basis = settings.static_of(part.device)
    device = Device(part.device, part.kind, part.model, static_w, basis)
    paths = tuple(path for label in part.rails for path in rails[label])
    return FileMeter((device,), paths, _sum_uw)


def _sum_uw(numbers: Sequence[int]) -> Sequence[int]:
    """Millivolts times milliamperes, summed; an idle rail's noise may be below nothing."""
    power_uw = sum(mv * ma for mv, ma in zip(numbers[::2], numbers[1::2], strict=True))
    return (max(power_uw, 0) if power_uw >= -_NOISE_UW else power_uw,)
