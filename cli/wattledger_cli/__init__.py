"""The command line of wattledger: parse, call the library, render."""

from __future__ import annotations

import sys


def main() -> int:
    """Run `wattledger` on the process's arguments and return its exit status (contract.md)."""
    try:
        import typer  # noqa: F401 - asked for here alone, so that its absence has one answer
    except ModuleNotFoundError:
        sys.stderr.write(
            "wattledger: the command line is not installed: run pip install 'wattledger[cli]'\n"
        )
        return 2
    from wattledger_cli.app import run

    return run(sys.argv[1:])
