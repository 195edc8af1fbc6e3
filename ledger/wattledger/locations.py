"""Where the ledger and the config of this machine lie, for the daemon and the command line alike.

The environment is always handed in, so that both ask the same question the same way.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from wattledger.errors import InputError

ValueT = TypeVar("ValueT", str, float)

SYSTEM_CONFIG = Path("/etc/wattledger/wattledger.toml")


@dataclass(frozen=True, slots=True)
class LocalSettings:
    """What the local daemon's config says that the command line wants to know.

    All but the ledger's path are None where the config is silent or absent.
    """

    ledger_path: Path
    socket: Path | None = None
    zone: str | None = None
    pue: float | None = None


def state_directory(environ: Mapping[str, str]) -> Path:
    """`$XDG_STATE_HOME/wattledger`, else `~/.local/state/wattledger`.

    Source: XDG Base Directory Specification, which bids to ignore a relative path.
    """
    state_home = environ.get("XDG_STATE_HOME", "")
    if Path(state_home).is_absolute():
        return Path(state_home) / "wattledger"
    home = Path(environ["HOME"]) if environ.get("HOME") else Path.home()
    return home / ".local" / "state" / "wattledger"


def default_ledger_path(environ: Mapping[str, str]) -> Path:
    """The ledger of a daemon whose config does not name one."""
    return state_directory(environ) / "ledger.db"


def default_config_path(environ: Mapping[str, str]) -> Path:
    """`$WATTLEDGER_CONFIG`, else `/etc/wattledger/wattledger.toml`; it need not exist."""
    named = environ.get("WATTLEDGER_CONFIG")
    return Path(named) if named else SYSTEM_CONFIG


def local_settings(environ: Mapping[str, str]) -> LocalSettings:
    """What the local daemon's config says; the defaults where there is no config.

    Only the keys named here are looked at: `wattledgerd --check` judges the whole file.
    Raises InputError for a file that cannot be read, is not TOML, has one of those keys in
    the wrong type, or is named by `$WATTLEDGER_CONFIG` and not there.
    """
    path = default_config_path(environ)
    try:
        tables = tomllib.loads(path.read_bytes().decode())
    except FileNotFoundError:
        if environ.get("WATTLEDGER_CONFIG"):
            raise InputError(f"no config file {path}: mend or unset WATTLEDGER_CONFIG") from None
        return LocalSettings(default_ledger_path(environ))
    except OSError as error:
        raise InputError(f"cannot read {path}, {error.strerror}: mend its permissions") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path} is not TOML, {error}: run wattledgerd --check") from error
    ledger = _value(path, tables, "ledger", "path", str)
    socket = _value(path, tables, "collect", "socket", str)
    return LocalSettings(
        default_ledger_path(environ) if ledger is None else Path(ledger),
        None if socket is None else Path(socket),
        _value(path, tables, "site", "zone", str),
        _value(path, tables, "site", "pue", float),
    )


def _value(
    path: Path, tables: Mapping[str, object], table: str, key: str, kind: type[ValueT]
) -> ValueT | None:
    section = tables.get(table, {})
    if not isinstance(section, dict):
        raise InputError(f"{path}: {table} must be a table: write [{table}]")
    value: object = section.get(key)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if value is not None and not isinstance(value, kind):
        raise InputError(f"{path}: {table}.{key} must be a {kind.__name__}: mend it there")
    return value
