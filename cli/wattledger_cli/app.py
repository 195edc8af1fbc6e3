"""The root command: it knows every command by name and loads only the one that is asked for."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import TYPE_CHECKING

import typer
from typer.core import TyperGroup

from wattledger.errors import InputError
from wattledger_cli import faults, options
from wattledger_cli.stdout import Stdout, StdoutError

if TYPE_CHECKING:
    # Typer's own click in newer versions, the click package in older ones.
    from typer._click import Command, Context
    from typer._click.formatting import HelpFormatter

# Each module holds an `app`; its own help says more than the line here.
COMMANDS = {
    "carbon": ("carbon", "Carbon of a window, in total and by group."),
    "usage": ("usage", "Energy and tokens of a window, in total and by group."),
    "requests": ("requests", "The costliest requests finished in a window."),
    "jobs": ("jobs", "The costliest jobs of a window."),
    "models": ("models", "The costliest models of a window, and what their tokens cost."),
    "audit": ("audit", "Check the laws on a window: balance, gaps, resets, drops."),
    "replay": ("replay", "Run a recorded trace through the pipeline into a ledger."),
    "import": ("importing", "Post another meter's energy into a ledger."),
    "attach": ("attach", "Start an engine with its collector hooked in."),
    "proxy": ("proxy", "Pass requests on to an engine and count what its answers tell."),
    "record": ("record", "Record a trace from the running daemon."),
    "demo": ("demo", "The whole path on this machine, from an engine to grams."),
    "top": ("top", "Live power, tokens/s and J/token per workload, engine and device."),
    "doctor": ("doctor", "What can be measured here, what not, why, and the mend."),
    "grid": ("grid", "Grid intensities that the statements can use."),
    "hardware": ("hardware", "Device catalogue and embodied factors."),
}


class RootGroup(TyperGroup):
    """The commands, each loaded when it is asked for, with the global options on all of them."""

    def list_commands(self, ctx: Context) -> list[str]:
        """Names in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: Context, cmd_name: str) -> Command | None:
        """Load one command; None where the table has no such name."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"wattledger_cli.{COMMANDS[cmd_name][0]}")
        command = typer.main.get_command(module.app)
        command.name = cmd_name
        for each in (command, *getattr(command, "commands", {}).values()):
            each.params.extend(self.params)
        return command

    def resolve_command(
        self, ctx: Context, args: list[str]
    ) -> tuple[str | None, Command | None, list[str]]:
        """The command that `args` begin with; an unknown one is told with its neighbour."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            mend = f"did you mean {near[0]}?" if near else "see wattledger --help"
            raise InputError(f"no command {args[0]!r}: {mend}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Context, formatter: HelpFormatter) -> None:
        """Write the table without loading any command."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


app = typer.Typer(
    cls=RootGroup,
    name="wattledger",
    help="Measured joules and grams of CO2e per LLM request, phase, job and host.",
    epilog="Exit status: 0 done, 1 internal fault, 2 usage or input, 3 data missing,"
    " 4 out of reach, 5 the books do not balance.",
    add_completion=False,
    rich_markup_mode=None,
)
app.callback()(options.declare)


def run(arguments: Sequence[str]) -> int:
    """Run one command line; what goes wrong is one line on stderr and an exit status."""
    command = typer.main.get_command(app)
    stdout = Stdout(sys.stdout)
    with redirect_stdout(stdout):
        try:
            try:
                with command.make_context("wattledger", list(arguments) or ["--help"]) as context:
                    command.invoke(context)
            finally:
                stdout.flush()
        except (Exception, KeyboardInterrupt) as fault:  # noqa: BLE001 - the process's border
            if isinstance(fault, BrokenPipeError | StdoutError):
                stdout.abandon()
            return faults.status_of(fault, os.environ)
    return 0
