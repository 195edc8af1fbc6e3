"""Which processes of this host a scraped engine lives in."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from wattledger_collectors.workloads.listeners import (
    Listeners,
    is_this_host,
    listeners,
    process_group,
)

_MOST = 1024
_PORTS = {"http": 80, "https": 443}


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
    parts = urlsplit(url)
    host = parts.hostname or ""
    port = parts.port or _PORTS.get(parts.scheme, 0)
    found = listeners(host, port, proc_root)
    if found.pids:
        return Processes(process_group(found.pids, launchers, proc_root)[:_MOST])
    return _nobody(found, host, port)


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
