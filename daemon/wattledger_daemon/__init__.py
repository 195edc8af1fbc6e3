"""The daemon: a pure heart that does the accounting, and a shell that measures and writes."""

from __future__ import annotations

import os
import sys
from types import ModuleType


def main() -> int:
    """Run `wattledgerd` on the process's arguments and return its exit status (contract.md)."""
    try:
        _import_grpc()
    except ModuleNotFoundError:
        sys.stderr.write(
            "wattledgerd: grpc is not installed: run pip install 'wattledger[daemon]'\n"
        )
        return 2
    from wattledger_daemon.app import run

    return run(sys.argv[1:], os.environ)


def _import_grpc() -> None:
    """Import gRPC without OpenSSL; raises ModuleNotFoundError where it is not installed.

    gRPC brings asyncio, and asyncio brings `ssl` where it can: 4.7 MB that a Unix socket never
    needs. Whoever needs it later (Redfish, OTLP) imports it as ever.
    """
    modules: dict[str, ModuleType | None] = sys.modules  # type: ignore[assignment]
    hidden = "ssl" not in modules
    if hidden:
        modules["ssl"] = None
    try:
        import grpc.aio  # noqa: F401 - asked for here alone, so that its absence has one answer
    finally:
        if hidden:
            del modules["ssl"]
