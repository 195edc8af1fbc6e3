"""The gRPC server on its Unix socket."""

from __future__ import annotations

import os
import socket
import stat
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import grpc

from wattledger.errors import UnreachableError
from wattledger_daemon.ingest import CollectorService
from wattledger_daemon.node_service import NodeService
from wattledger_proto.v1 import collect_pb2_grpc, node_pb2_grpc

_THREADS = 4
_MAX_MESSAGE_BYTES = 4 << 20
_MAX_RPCS = 64
_GRACE_S = 0.5


class SocketServer:
    """Serves `Collector` and `Node` on a Unix socket that only `mode` may open."""

    def __init__(
        self, path: Path, mode: int, collector: CollectorService, node: NodeService
    ) -> None:
        self._path = path
        self._mode = mode
        self._server = grpc.server(
            ThreadPoolExecutor(_THREADS, thread_name_prefix="grpc"),
            options=[("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES)],
            maximum_concurrent_rpcs=_MAX_RPCS,
        )
        collect_pb2_grpc.add_CollectorServicer_to_server(collector, self._server)
        node_pb2_grpc.add_NodeServicer_to_server(node, self._server)

    def start(self) -> None:
        """Bind and serve.

        A socket that nobody answers is a dead daemon's and is removed. Raises UnreachableError
        where somebody answers, the path is no socket, or it cannot be bound.
        """
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._clear()
            # Private from its first moment: gRPC itself would create it for everybody.
            umask = os.umask(0o177)
            try:
                self._server.add_insecure_port(f"unix:{quote(str(self._path))}")
            finally:
                os.umask(umask)
            self._path.chmod(self._mode)
        except OSError as error:
            raise UnreachableError(
                f"{self._path}: {error.strerror}: mend its folder or set collect.socket"
            ) from error
        except RuntimeError as error:
            raise UnreachableError(
                f"{self._path}: cannot bind the socket: mend its folder or set collect.socket"
            ) from error
        self._server.start()

    def stop(self) -> None:
        """Answer no more calls, give running ones a moment, and remove the socket."""
        self._server.stop(_GRACE_S).wait(2 * _GRACE_S)
        self._path.unlink(missing_ok=True)

    def _clear(self) -> None:
        try:
            mode = self._path.lstat().st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(mode):
            raise UnreachableError(f"{self._path}: is not a socket: set another collect.socket")
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller,
            suppress(TimeoutError),  # a daemon too busy to answer
        ):
            caller.settimeout(1.0)
            try:
                caller.connect(str(self._path))
            except ConnectionRefusedError:
                self._path.unlink()
                return
        raise UnreachableError(
            f"{self._path}: another daemon answers there: stop it or set another collect.socket"
        )
