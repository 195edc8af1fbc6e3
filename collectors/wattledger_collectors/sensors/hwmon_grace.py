"""NVIDIA Grace, by the ACPI power meters of its sockets."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from wattledger.records import Device, DeviceKind
from wattledger_collectors.sensors.hwmon_files import FileMeter, Found, hwmon_folders, text_of
from wattledger_collectors.sensors.nvml_power import is_superchip
from wattledger_collectors.sensors.protocol import SensorSettings

_LABEL = re.compile(r"(module|grace|cpu|sysio) power socket (\d+)", re.IGNORECASE)
# SMCCC's name of the chip (T241).
_GRACE_CHIP = "jep106:036b:0241"
_MEND = (
    "load the driver with `sudo modprobe acpi_power_meter force_cap_on=y`, for good by "
    "acpi_power_meter.force_cap_on=y on the kernel's command line"
)
_MEMORY = "Grace memory (Grace - CPU - SysIO)"
# Below node0 and node1 by name, so that a meter of the whole node goes before it.
_MODULES = "module0"


def grace_meters(settings: SensorSettings) -> Found:
    """Per socket a CPU and, where its parts are told, its memory; all modules as one node meter.

    `Grace` is the whole socket: memory is what CPU and SysIO leave of it, the CPU device is the
    rest, and their sum is always Grace itself. Beside a superchip's GPU there is no CPU device:
    NVML's counter holds the whole module of a GH200, Grace too. Source: NVIDIA Grace performance
    tuning guide (power telemetry); Documentation/hwmon/acpi_power_meter.rst.
    """
    sockets = _sockets(settings.sysfs_root / "class" / "hwmon")
    covered = module_is_metered(settings.proc_root)
    if not sockets:
        chip = text_of(settings.sysfs_root / "devices" / "soc0" / "soc_id")
        return Found(mend=_MEND if chip == _GRACE_CHIP and not covered else "")
    meters: list[FileMeter] = []
    notes: list[str] = []
    if covered:
        notes.append("Grace is left out: NVML's counter may hold the whole module")
    else:
        for number, socket in enumerate(sorted(sockets)):
            meters += _socket(settings, number, sockets[socket])
    modules = tuple(parts["module"] for parts in sockets.values() if "module" in parts)
    if modules:
        meters.append(
            FileMeter(
                (_device(settings, _MODULES, DeviceKind.NODE, "Grace modules"),), modules, _sum_uw
            )
        )
    return Found(tuple(meters), tuple(notes))


def module_is_metered(proc_root: Path) -> bool:
    """Whether the NVIDIA driver runs a superchip, whose NVML counter may cover Grace too.

    Source: /proc/driver/nvidia/gpus/*/information, the `Model:` line; Zeus pull request 172.
    """
    for path in (proc_root / "driver" / "nvidia" / "gpus").glob("*/information"):
        for line in (text_of(path) or "").splitlines():
            label, _, model = line.partition(":")
            if label.strip() == "Model" and is_superchip(model):
                return True
    return False


def _sockets(root: Path) -> Mapping[int, Mapping[str, Path]]:
    """The power file of each part, by socket."""
    sockets: defaultdict[int, dict[str, Path]] = defaultdict(dict)
    for folder in hwmon_folders(root):
        # Kernels differ in whether the files lie beside the class device or below its parent.
        for place in (folder, folder / "device"):
            match = _LABEL.fullmatch(text_of(place / "power1_oem_info") or "")
            path = place / "power1_average"
            if match and path.exists():
                sockets[int(match[2])].setdefault(match[1].lower(), path)
    return sockets


def _socket(settings: SensorSettings, number: int, parts: Mapping[str, Path]) -> list[FileMeter]:
    if "grace" not in parts:
        return []
    cpu = _device(settings, f"cpu{number}", DeviceKind.CPU, "NVIDIA Grace")
    if not {"cpu", "sysio"} <= parts.keys():
        return [FileMeter((cpu,), (parts["grace"],), _sum_uw)]
    dram = _device(settings, f"dram{number}", DeviceKind.DRAM, _MEMORY)
    paths = (parts["grace"], parts["cpu"], parts["sysio"])
    return [FileMeter((cpu, dram), paths, split_uw)]


def split_uw(powers_uw: Sequence[int]) -> Sequence[int]:
    """CPU and memory; averages of different moments may leave less than nothing for memory."""
    grace_uw, cpu_uw, sysio_uw = powers_uw
    dram_uw = max(grace_uw - cpu_uw - sysio_uw, 0)
    return grace_uw - dram_uw, dram_uw


def _sum_uw(powers_uw: Sequence[int]) -> Sequence[int]:
    return (sum(powers_uw),)


def _device(settings: SensorSettings, name: str, kind: DeviceKind, model: str) -> Device:
    static_w, basis = settings.static_of(name)
    return Device(name, kind, model, static_w, basis)
