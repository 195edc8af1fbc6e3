"""`wattledger attach -- COMMAND...`: start an engine with its collector hooked in."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from wattledger.errors import InputError
from wattledger_cli.node import configured_socket

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(context_settings={"allow_interspersed_args": False})
def attach(
    command: Annotated[
        list[str], typer.Argument(metavar="COMMAND...", help="The engine, as it is always started.")
    ],
    job: Annotated[str | None, typer.Option(help="Job that its requests belong to.")] = None,
    workload: Annotated[str | None, typer.Option(help="Workload that it is.")] = None,
    model: Annotated[str | None, typer.Option(help="Name of the model it serves.")] = None,
    socket: Annotated[
        str | None, typer.Option(metavar="PATH", help="The daemon's socket, if not the default.")
    ] = None,
) -> None:
    """Start an engine with its collector hooked in; nothing installed is changed.

    The engine takes this process's place, so that signals and its exit status are its own.

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
