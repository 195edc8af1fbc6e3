"""Where daemon and engines meet, when nobody says otherwise."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

SYSTEM_SOCKET = Path("/run/wattledger/wattledger.sock")
MOST_BYTES = 107
"""Room for a path in `sockaddr_un`, unix(7), less its closing zero."""


def default_socket_path(environ: Mapping[str, str], system_socket: Path = SYSTEM_SOCKET) -> str:
    """The Unix socket of this host's daemon; the daemon and its engines ask the same way.

    In order: `$WATTLEDGER_SOCKET`; the system daemon's socket if it is there; a folder in
    `$XDG_RUNTIME_DIR`; else one beside the ledger, in `$XDG_STATE_HOME` (`~/.local/state`).

    Raises `wattledger.errors.InputError` for a path that the kernel has no room for.
    """
    configured = environ.get("WATTLEDGER_SOCKET")
    if configured:
        return checked_socket_path(configured)
    if _is_there(system_socket):
        return str(system_socket)
    home = environ.get("HOME") or str(Path.home())
    state_home = environ.get("XDG_STATE_HOME") or str(Path(home, ".local", "state"))
    folder = environ.get("XDG_RUNTIME_DIR") or state_home
    return checked_socket_path(str(Path(folder, "wattledger", "wattledger.sock")))


def _is_there(socket: Path) -> bool:
    """Whether it exists; in a folder that this user may not enter it is taken to."""
    try:
        return socket.exists()
    except PermissionError:
        return True


def checked_socket_path(path: str) -> str:
    """Returns the path; raises `wattledger.errors.InputError` if it is too long for a socket."""
    length = len(os.fsencode(path))
    if length > MOST_BYTES:
        # Imported here alone: inside an engine this module loads nothing of the ledger.
        from wattledger.errors import InputError

        message = f"socket path {path} has {length} bytes, a Unix socket takes {MOST_BYTES}"
        raise InputError(f"{message}: set WATTLEDGER_SOCKET to a shorter path")
    return path
