"""The thermal design power that the estimate stands on, and where it is known from.

Source: `hardware/data/cpu_tdp.csv` of the library, each row with its own; /proc/cpuinfo.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from wattledger.hardware.catalogue import read_rows

DEFAULT_TDP_W = 85.0
_MARKS = re.compile(r"\((r|tm)\)|[®™]|@.*|\b\d+-core\b", re.IGNORECASE)
_FILLERS = frozenset({"cpu", "processor"})
_MEND = "set power.cpu_tdp_w to that of all CPUs together"


@dataclass(frozen=True, slots=True)
class CpuModel:
    """A CPU of the table: watts and hardware threads of one socket."""

    name: str
    tdp_w: float
    threads: int
    source: str


@dataclass(frozen=True, slots=True)
class Processors:
    """What /proc/cpuinfo shows: `visible` logical CPUs in `sockets`, of a guest or of a machine."""

    model: str | None
    visible: int
    sockets: int
    virtual: bool


@dataclass(frozen=True, slots=True)
class Tdp:
    """A thermal design power in watts, all that is visible together; `note` says whence."""

    tdp_w: float
    note: str


def tdp_of(configured_w: float | None, processors: Processors) -> Tdp:
    """The config's figure, else the table's, else 85 W.

    A machine has its sockets' TDP. A guest sees a part of a socket, or of several: it has the
    share of its vCPUs in a socket's threads, which is too low by half where a vCPU is a whole
    core.
    """
    if configured_w is not None:
        return Tdp(configured_w, f"TDP {configured_w:g} W from config")
    cpu = find_cpu(processors.model) if processors.model else None
    if cpu is None:
        shown = processors.model or "a CPU without a model name"
        return Tdp(
            DEFAULT_TDP_W,
            f"TDP {DEFAULT_TDP_W:g} W is a default, as {shown!r} is not in the table; {_MEND}",
        )
    if processors.virtual:
        tdp_w = cpu.tdp_w * processors.visible / cpu.threads
        share = f"{processors.visible} vCPUs of {cpu.threads} threads of {cpu.tdp_w:g} W"
        return Tdp(tdp_w, f"TDP {tdp_w:.4g} W: {share} ({cpu.name}), if a vCPU is a thread")
    tdp_w = cpu.tdp_w * processors.sockets
    return Tdp(tdp_w, f"TDP {tdp_w:g} W: {processors.sockets} x {cpu.tdp_w:g} W ({cpu.name})")


def find_cpu(model: str) -> CpuModel | None:
    """The row of a `model name`; None for a near miss, since 8480C is not 8480+."""
    wanted = _words(model)
    for row in read_rows("cpu_tdp.csv"):
        if _words(row["name"]) == wanted:
            return CpuModel(row["name"], float(row["tdp_w"]), int(row["threads"]), row["source"])
    return None


def read_processors(proc_root: Path) -> Processors:
    """Read /proc/cpuinfo; one CPU of unknown model where it cannot be read."""
    try:
        text = (proc_root / "cpuinfo").read_text(errors="replace")
    except OSError:
        text = ""
    model: str | None = None
    visible = 0
    packages: set[str] = set()
    virtual = False
    for line in text.splitlines():
        label, _, value = line.partition(":")
        match label.strip():
            case "processor":
                visible += 1
            case "model name":
                model = model or " ".join(value.split()) or None
            case "physical id":
                packages.add(value.strip())
            case "flags":
                virtual = virtual or "hypervisor" in value.split()
    return Processors(model, max(visible, 1), max(len(packages), 1), virtual)


def _words(name: str) -> tuple[str, ...]:
    """A model's name without marks, clock and fillers, for comparison."""
    words = _MARKS.sub(" ", name).casefold().split()
    return tuple(word for word in words if word not in _FILLERS)
