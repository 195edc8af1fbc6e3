"""The daemon: a pure heart that does the accounting, and a shell that measures and writes."""

from __future__ import annotations

import os
import sys


def main() -> int:
    """Run `wattledgerd` on the process's arguments and return its exit status (contract.md)."""
    try:
        import grpc  # noqa: F401 - asked for here alone, so that its absence has one answer
    except ModuleNotFoundError:
        sys.stderr.write(
            "wattledgerd: grpc is not installed: run pip install 'wattledger[daemon]'\n"
        )
        return 2
    from wattledger_daemon.app import run

    return run(sys.argv[1:], os.environ)
