"""Every way a run can end, as one line on stderr and an exit status (contract.md)."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping

import typer

from wattledger.errors import WattledgerError

DEBUG = "WATTLEDGER_DEBUG"
INTERRUPTED = 130
USAGE = 2


def status_of(fault: Exception | KeyboardInterrupt, environ: Mapping[str, str]) -> int:
    """Tell `fault` on stderr and return the exit status it stands for."""
    if isinstance(fault, typer.Exit):
        return fault.exit_code
    if isinstance(fault, BrokenPipeError):
        # Nobody reads on, as under `| head`.
        return 0
    if environ.get(DEBUG):
        import traceback

        traceback.print_exception(fault)
    if isinstance(fault, KeyboardInterrupt | typer.Abort):
        tell("stopped")
        return INTERRUPTED
    if isinstance(fault, WattledgerError):
        tell(str(fault))
        return fault.exit_status
    # Typer carries its own click or depends on one, by version: their usage errors share no
    # importable name, only this method.
    if hasattr(fault, "format_message"):
        tell(_usage(fault, str(fault.format_message())))
        return USAGE
    kind = type(fault).__name__
    tell(f"internal fault, {kind}: {fault}: please report it, {DEBUG}=1 shows the traceback")
    return 1


def tell(message: str) -> None:
    """Write one line to stderr under the program's name."""
    sys.stderr.write(f"wattledger: {' '.join(message.split())}\n")


def _usage(fault: BaseException, message: str) -> str:
    context = getattr(fault, "ctx", None)
    path = getattr(context, "command_path", "wattledger")
    option = getattr(fault, "option_name", None)
    if type(fault).__name__ != "NoSuchOption" or option is None or context is None:
        message = message.rstrip(".").replace(". Did you", ": did you")
        mend = "" if "did you mean" in message else f": see {path} --help"
        return f"{message[:1].lower()}{message[1:]}{mend}"
    known = [name for param in context.command.params for name in param.opts]
    near = difflib.get_close_matches(option, known, n=1, cutoff=0.5)
    mend = f"did you mean {near[0]}?" if near else f"see {path} --help"
    return f"no such option {option} of {path}: {mend}"
