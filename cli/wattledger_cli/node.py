"""Asking the local daemon how it does."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from wattledger.errors import UnreachableError
from wattledger.locations import local_settings
from wattledger_collectors.socket_path import default_socket_path

if TYPE_CHECKING:
    from wattledger_proto.v1.node_pb2 import Status

DEADLINE_S = 1.0


def configured_socket() -> Path | None:
    """The socket that the local daemon's config names, unless the environment names another."""
    if os.environ.get("WATTLEDGER_SOCKET"):
        return None
    return local_settings(os.environ).socket


def local_socket() -> Path:
    """The local daemon's socket: what its config names, else the default."""
    return configured_socket() or Path(default_socket_path(os.environ))


def daemon_status(socket: Path, deadline_s: float = DEADLINE_S) -> Status:
    """What the daemon at `socket` says of itself; raises UnreachableError with the mend."""
    if not socket.exists():
        raise UnreachableError(f"no daemon, {socket} is not there: start wattledgerd")
    try:
        import grpc

        from wattledger_proto.v1.node_pb2 import StatusRequest
        from wattledger_proto.v1.node_pb2_grpc import NodeStub
    except ModuleNotFoundError as error:
        raise UnreachableError(
            f"cannot ask the daemon, {error.name} is missing: pip install 'wattledger[cli]'"
        ) from error
    with grpc.insecure_channel(f"unix:{socket}") as channel:
        try:
            return NodeStub(channel).GetStatus(StatusRequest(), timeout=deadline_s)
        except grpc.RpcError as error:
            raise UnreachableError(
                f"no answer from the daemon at {socket}, {error.code().name}:"
                " see systemctl status wattledgerd"
            ) from error
