"""Ledger entries in a few words; seconds and joules, as people think of them."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wattledger.records import (
    NS_PER_S,
    UJ_PER_J,
    Account,
    Activity,
    Amounts,
    Device,
    DeviceKind,
    Posting,
    Quality,
    StaticBasis,
)
from wattledger.store.protocol import ImportedEntry
from wattledger.timespan import Window

DATA = Path(__file__).parent.parent / "data" / "carbon"
H100 = Device("gpu0", DeviceKind.GPU, "NVIDIA H100 80GB HBM3")
CPU = Device("cpu0", DeviceKind.CPU, "AMD EPYC 9654")


def vector(name: str) -> dict[str, Any]:
    """A reference calculation by its id."""
    vectors = json.loads((DATA / "vectors.json").read_text())["vectors"]
    return next(v for v in vectors if v["id"] == name)


def window(start_s: float, end_s: float) -> Window:
    return Window(round(start_s * NS_PER_S), round(end_s * NS_PER_S))


@dataclass(frozen=True)
class Entry:
    """An imported entry to be; `on` makes it whole."""

    start_s: float
    end_s: float
    energy_j: float = 0.0
    static_j: float = 0.0
    device_s: float | None = None
    job: str | None = None
    activity: Activity = Activity.PROCESS
    quality: Quality = Quality.MEASURED
    static_basis: StaticBasis = StaticBasis.CONFIG
    prefill: int = 0
    cached: int = 0
    decode: int = 0
    requests: int = 0
    model: str | None = None

    def on(self, device: Device = H100, host: str = "h1") -> ImportedEntry:
        device_s = self.end_s - self.start_s if self.device_s is None else self.device_s
        account = Account(
            activity=self.activity,
            quality=self.quality,
            method="test",
            static_basis=self.static_basis,
            job=self.job,
            model=self.model,
        )
        amounts = Amounts(
            static_uj=round(self.static_j * UJ_PER_J),
            dynamic_uj=round((self.energy_j - self.static_j) * UJ_PER_J),
            device_ns=round(device_s * NS_PER_S),
            prefill_tokens=self.prefill,
            cached_tokens=self.cached,
            decode_tokens=self.decode,
            requests=self.requests,
        )
        start_ns, end_ns = round(self.start_s * NS_PER_S), round(self.end_s * NS_PER_S)
        return ImportedEntry(
            host, device, Posting(device.device, account, start_ns, end_ns, amounts)
        )


def steady(start_s: int, end_s: int, power_w: float, step_s: int = 300) -> list[ImportedEntry]:
    """One device at one power, booked in even windows."""
    return [
        Entry(at, at + step_s, power_w * step_s, job="j").on()
        for at in range(start_s, end_s, step_s)
    ]


def renamed(entry: ImportedEntry, device: str) -> ImportedEntry:
    """The same entry on another device of the same host."""
    return ImportedEntry(
        entry.host,
        replace(entry.device, device=device),
        replace(entry.posting, device=device),
    )
