"""Which processes of this host a scraped engine lives in."""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from wattledger_collectors.sensors.procfs import process_ticks
from wattledger_collectors.workloads.listeners import (
    Listeners,
    is_this_host,
    listeners,
    process_group,
)

_MOST = 1024
_PORTS = {"http": 80, "https": 443}
_NS_PER_S = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Processes:
    """An engine's processes; where none was found, why, and the mend."""

    pids: tuple[int, ...] = ()
    why: str = ""
    mend: str = ""


def processes_behind(
    url: str, launchers: Collection[str] = (), proc_root: Path = Path("/proc")
) -> Processes:
    """Whoever listens where a URL leads, and all that stand below, at most 1,024 of them."""
    host, port = _where(url)
    found = listeners(host, port, proc_root)
    if found.pids:
        return Processes(process_group(found.pids, launchers, proc_root)[:_MOST])
    return _nobody(found, host, port)


def began_ns(url: str, proc_root: Path = Path("/proc")) -> int | None:
    """When the eldest of those who listen there began, CLOCK_MONOTONIC; None where nobody is seen.

    Source: proc_pid_stat(5), field 22, in ticks of CLOCK_BOOTTIME.
    """
    starts = [start_ticks(pid, proc_root) for pid in listeners(*_where(url), proc_root).pids]
    if not all(starts) or not starts:
        return None
    asleep_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.monotonic_ns()
    return min(starts) * (_NS_PER_S // os.sysconf("SC_CLK_TCK")) - asleep_ns


def start_ticks(pid: int, proc_root: Path = Path("/proc")) -> int:
    """When a process began, which tells it from a later one of its pid; 0 for one gone."""
    try:
        return process_ticks((proc_root / str(pid) / "stat").read_bytes()).start
    except (OSError, ValueError, IndexError):
        return 0


def _where(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or _PORTS.get(parts.scheme, 0)


def _nobody(found: Listeners, host: str, port: int) -> Processes:
    if found.forwarder:
        return Processes(
            (),
            f"{found.forwarder} listens on port {port}, and only hands on",
            "run the engine on the host's network, or wattledgerd beside it",
        )
    if found.sockets:
        return Processes(
            (),
            f"who listens on port {port} is another user's process",
            "run wattledgerd as root, or with CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH",
        )
    if not is_this_host(host):
        return Processes((), f"{host} is not this host", "run a wattledgerd there")
    return Processes(
        (),
        f"nobody listens on port {port} of {host} in this network namespace",
        "run the engine on the host's network, or wattledgerd beside it",
    )
