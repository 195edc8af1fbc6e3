"""The options that every command has, accepted before and after its name."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wattledger.errors import InputError

if TYPE_CHECKING:
    from wattledger.locations import LocalSettings
    from wattledger.store.sqlite import SqliteLedger


class Format(StrEnum):
    """How data is written to stdout."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


@dataclass(slots=True)
class Options:
    """What the global options said; a later mention on the command line wins."""

    ledger: str | None = None
    token_file: str | None = None
    format: Format = Format.TABLE
    quiet: bool = False

    def settings(self) -> LocalSettings:
        """What this machine's config says."""
        from wattledger.locations import local_settings

        return local_settings(os.environ)

    def ledger_url(self) -> str:
        """`--ledger`, else the local daemon's ledger."""
        return self.ledger or f"sqlite:{self.settings().ledger_path}"

    @contextmanager
    def store(self) -> Iterator[SqliteLedger]:
        """The ledger, open to read for the length of a `with` block."""
        from wattledger.store import open_ledger

        store = open_ledger(self.ledger_url())
        try:
            yield store
        finally:
            store.close()


def options_of(context: typer.Context) -> Options:
    """The options of this run."""
    options = context.ensure_object(Options)
    if not isinstance(options, Options):
        raise TypeError("the run's context holds something else than Options")
    return options


def _ledger(context: typer.Context, value: str | None) -> None:
    if value is not None:
        options_of(context).ledger = value


def _token_file(context: typer.Context, value: str | None) -> None:
    if value is not None:
        options_of(context).token_file = value


def _format(context: typer.Context, value: str | None) -> None:
    if value is None:
        return
    try:
        options_of(context).format = Format(value)
    except ValueError:
        raise InputError(f"no format {value!r}: use --format {'|'.join(Format)}") from None


def _quiet(context: typer.Context, value: bool) -> None:
    if value:
        options_of(context).quiet = True


def _version(context: typer.Context, value: bool) -> None:
    if value:
        from wattledger import __version__

        sys.stdout.write(f"wattledger {__version__}\n")
        raise typer.Exit


def declare(
    ledger: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="sqlite:PATH; by default the local daemon's ledger.",
            callback=_ledger,
            expose_value=False,
        ),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="File that holds a remote ledger's token.",
            callback=_token_file,
            expose_value=False,
        ),
    ] = None,
    output_format: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="|".join(Format),
            help="How to write data to stdout; table by default.",
            callback=_format,
            expose_value=False,
        ),
    ] = None,
    quiet: Annotated[
        bool,
        typer.Option("--quiet", help="No notes on stderr.", callback=_quiet, expose_value=False),
    ] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Print the version and exit.",
            callback=_version,
            expose_value=False,
            is_eager=True,
        ),
    ] = False,
) -> None:
    """Carry the declarations: their callbacks keep what was given, so the body has no work."""
