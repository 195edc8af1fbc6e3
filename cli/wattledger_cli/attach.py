"""`wattledger attach -- COMMAND...`: start an engine with its collector hooked in."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer
from typer.core import TyperCommand

from wattledger.errors import InputError
from wattledger_cli.node import configured_socket

if TYPE_CHECKING:
    # Typer's own click in newer versions, the click package in older ones.
    from typer._click import Context

app = typer.Typer(add_completion=False, rich_markup_mode=None)


class AttachCommand(TyperCommand):
    """Its usage line shows the dashes, which no declaration of typer's can."""

    def collect_usage_pieces(self, ctx: Context) -> list[str]:
        """What stands behind the command's name."""
        return ["[OPTIONS]", "--", "COMMAND..."]


@app.command(cls=AttachCommand, context_settings={"allow_interspersed_args": False})
def attach(
    command: Annotated[list[str], typer.Argument(metavar="COMMAND...", hidden=True)],
    job: Annotated[
        str | None, typer.Option(metavar="NAME", help="Job that its requests belong to.")
    ] = None,
    workload: Annotated[
        str | None, typer.Option(metavar="NAME", help="Workload that it is.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of the model it serves.")
    ] = None,
    socket: Annotated[
        str | None, typer.Option(metavar="PATH", help="The daemon's socket, if not the default.")
    ] = None,
) -> None:
    """Start an engine with its collector hooked in; nothing installed is changed.

    COMMAND is the engine as it is always started. It takes this process's place, so that signals
    and its exit status are its own.

    Example: wattledger attach --job chat -- python -m llama_cpp.server --model m.gguf
    """
    from wattledger_collectors.engines.attach import attach_environment

    named = socket or configured_socket()
    try:
        environment = attach_environment(
            os.environ,
            socket=None if named is None else str(named),
            job=job,
            workload=workload,
            model=model,
        )
    except OSError as error:
        raise InputError(
            f"cannot link the collector, {error}: mend that folder or set XDG_CACHE_HOME"
        ) from error
    try:
        os.execvpe(command[0], command, environment)  # noqa: S606 - the user's own command
    except OSError as error:
        raise InputError(
            f"cannot start {command[0]}, {error.strerror}: give the engine's command after --"
        ) from error
