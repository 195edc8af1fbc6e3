"""Fake GPU cards, Grace and Jetson meters below a temporary /sys, laid out as the kernel does."""

from __future__ import annotations

from pathlib import Path


class FakeSys:
    """A `/sys` with DRM cards and hwmon folders; `path` of what was added is returned."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "class" / "hwmon").mkdir(parents=True)
        (root / "class" / "drm").mkdir()

    def card(self, number: int, pci: str, driver: str, device_id: str = "0x56c0") -> Path:
        """`class/drm/cardN` as a link into the PCI device's folder, and a connector beside it."""
        folder = self.root / "devices" / "pci0000:00" / pci
        card = folder / "drm" / f"card{number}"
        card.mkdir(parents=True)
        (folder / "device").write_text(f"{device_id}\n")
        drivers = self.root / "bus" / "drivers" / driver
        drivers.mkdir(parents=True, exist_ok=True)
        (folder / "driver").symlink_to(drivers)
        (card / "device").symlink_to(folder)
        (self.root / "class" / "drm" / f"card{number}").symlink_to(card)
        (self.root / "class" / "drm" / f"card{number}-DP-1").mkdir()
        return folder

    def energy(self, gpu: Path, number: int, name: str, **channels: int) -> dict[str, Path]:
        """A hwmon folder of a card; channels by label, `plain` for one without."""
        folder = gpu / "hwmon" / f"hwmon{number}"
        folder.mkdir(parents=True)
        (folder / "name").write_text(f"{name}\n")
        files: dict[str, Path] = {}
        for index, (label, energy_uj) in enumerate(channels.items(), start=1):
            files[label] = folder / f"energy{index}_input"
            files[label].write_text(f"{energy_uj}\n")
            if label != "plain":
                (folder / f"energy{index}_label").write_text(f"{label}\n")
        return files

    def power_meter(self, number: int, label: str, power_uw: int, *, parent: bool = True) -> Path:
        """An ACPI power meter; older kernels keep its files below the parent device."""
        folder = self.root / "class" / "hwmon" / f"hwmon{number}"
        place = folder / "device" if parent else folder
        place.mkdir(parents=True)
        (place / "power1_oem_info").write_text(f"{label}\n")
        (place / "power1_average_interval").write_text("50\n")
        file = place / "power1_average"
        file.write_text(f"{power_uw}\n")
        return file

    def grace_chip(self) -> None:
        soc = self.root / "devices" / "soc0"
        soc.mkdir(parents=True)
        (soc / "soc_id").write_text("jep106:036b:0241\n")

    def ina3221(self, number: int, **rails: tuple[int, int]) -> Path:
        """Three rails at most: millivolts and milliamperes by label."""
        folder = self.root / "class" / "hwmon" / f"hwmon{number}"
        folder.mkdir()
        (folder / "name").write_text("ina3221\n")
        for index, (label, (voltage_mv, current_ma)) in enumerate(rails.items(), start=1):
            (folder / f"in{index}_label").write_text(f"{label}\n")
            (folder / f"in{index}_enable").write_text("1\n")
            (folder / f"in{index}_input").write_text(f"{voltage_mv}\n")
            (folder / f"curr{index}_input").write_text(f"{current_ma}\n")
        (folder / "in7_label").write_text("sum of shunt voltages\n")
        (folder / "in7_input").write_text("1234\n")
        return folder


def nvidia_gpu(proc: Path, model: str) -> None:
    """What the NVIDIA driver tells of a GPU below /proc."""
    folder = proc / "driver" / "nvidia" / "gpus" / "0009:01:00.0"
    folder.mkdir(parents=True)
    (folder / "information").write_text(
        f"Model: \t\t {model}\nIRQ:   \t\t 100\nBus Location: \t 0009:01:00.0\n"
    )
