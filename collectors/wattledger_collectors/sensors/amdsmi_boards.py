"""What AMD SMI lists, as boards: dies and partitions that share a meter are one device."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from typing import NamedTuple

from wattledger_collectors.sensors.amdsmi_driver import AmdDriver, AmdError, AmdGpu

_TWO_DIES = "MI250"
_WITH_CPU = "MI300A"


class Board(NamedTuple):
    """One metered board: its device id, the GPU that is asked, its product name."""

    device: str
    gpu: AmdGpu
    model: str | None


def find_boards(driver: AmdDriver, devices: Mapping[str, str]) -> list[Board]:
    """The boards in the order of their PCI addresses; `devices` names them by address.

    Partitions of one GPU differ in the function of their address alone: the first one stands for
    all. Of an MI250's two dies the even one counts for both, and the odd one tells 0. Raises
    `AmdError`. Source: measurement of others (Zeus, amdsmi#38); not tested on hardware.
    """
    boards: list[Board] = []
    seen: set[str] = set()
    even: AmdGpu | None = None
    # One that sysfs does not show comes after all that it does.
    further = count(len(devices))
    for gpu in driver.gpus():
        slot = gpu.pci.rpartition(".")[0]
        if slot in seen:
            continue
        seen.add(slot)
        model = _model(driver, gpu)
        if has_two_dies(model):
            if even is not None and _tells_nothing(driver, gpu):
                even = None
                continue
            even = gpu
        device = devices.get(gpu.pci) or f"amd{next(further)}"
        boards.append(Board(device, gpu, model))
    return boards


def has_two_dies(model: str | None) -> bool:
    """Whether a board of this product name is two GPUs behind one meter."""
    return model is not None and _TWO_DIES in model.upper()


def holds_cpu(model: str | None) -> bool:
    """Whether a socket of this product name has CPU cores, which its figures hold too."""
    return model is not None and _WITH_CPU in model.upper()


def _model(driver: AmdDriver, gpu: AmdGpu) -> str | None:
    try:
        return driver.model(gpu)
    except AmdError:
        return None


def _tells_nothing(driver: AmdDriver, gpu: AmdGpu) -> bool:
    try:
        return driver.energy_uj(gpu) == 0
    except AmdError:
        return True
