"""The gRPC server on its Unix socket.

An asyncio server on a thread of its own: gRPC's threaded server wakes five times a second to look
whether it should stop, which alone costs more than reading eight GPUs.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import stat
import threading
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import grpc.aio

from wattledger.errors import UnreachableError
from wattledger_daemon.ingest import CollectorService
from wattledger_daemon.logs import event
from wattledger_daemon.node_service import NodeService
from wattledger_proto.v1 import node_pb2_grpc

_LOG = logging.getLogger(__name__)
_MAX_MESSAGE_BYTES = 4 << 20
_MAX_RPCS = 64
_GRACE_S = 0.5
_STOP_S = 2.0
_DO_S = 10.0
_SILENCE_MS = 10_000

T = TypeVar("T")


class SocketServer:
    """Serves `Collector` and `Node` on a Unix socket that only `mode` may open."""

    def __init__(self, path: Path, mode: int, silence_ms: int = _SILENCE_MS) -> None:
        """Prepare to serve; whoever connects and says nothing for so long is hung up on."""
        self._path = path
        self._mode = mode
        self._silence_ms = silence_ms
        self._bound: tuple[int, int] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._server: grpc.aio.Server | None = None
        self._services: tuple[CollectorService, NodeService] | None = None
        self._astray = False

    def bind(self) -> None:
        """Take the socket; calls wait until `start`.

        A socket that nobody answers is a dead daemon's and is removed. Raises UnreachableError
        where somebody answers, the path is no socket, or it cannot be bound.
        """
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._refuse_taken()
            self._begin_loop()
            self._bound = self._do(self._bind())
        except OSError as error:
            raise UnreachableError(
                f"{self._path}: {error.strerror}: mend its folder or set collect.socket"
            ) from error
        except RuntimeError as error:
            raise UnreachableError(
                f"{self._path}: cannot bind the socket: mend its folder or set collect.socket"
            ) from error

    def start(self, collector: CollectorService, node: NodeService) -> None:
        """Answer calls, those that wait first."""
        self._services = collector, node
        self._do(self._start())

    def look(self) -> None:
        """Bind anew where the socket is gone: what nobody can find, nobody reports to.

        Calls on the old one end, and their clients find the new one by its path. Where another
        file has come into its place that is told once, and tried again at each look.
        """
        with suppress(OSError):
            if self._bound == _identity(self._path):
                self._astray = False
                return
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._refuse_taken()
            self._do(self._bind_anew())
        except (UnreachableError, OSError, RuntimeError, TimeoutError) as error:
            if not self._astray:
                _LOG.error(event("socket_lost", socket=self._path, reason=error))
            self._astray = True
        else:
            self._astray = False
            mend = "leave it where it is while the daemon runs"
            _LOG.warning(event("socket_bound_anew", socket=self._path, mend=mend))

    def unlink(self) -> None:
        """Remove the socket unless it is another's by now."""
        bound, self._bound = self._bound, None
        # While ours is open no other file can be given its inode number.
        with suppress(OSError):
            if bound == _identity(self._path):
                self._path.unlink()

    def stop(self) -> None:
        """Remove the socket as `unlink`, and give running calls a moment."""
        self.unlink()
        loop, thread, self._loop = self._loop, self._thread, None
        if loop is None or thread is None:
            return
        if self._server is not None:
            stopping = asyncio.run_coroutine_threadsafe(self._server.stop(_GRACE_S), loop)
            with suppress(TimeoutError):
                stopping.result(_STOP_S)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(_STOP_S)
        if not thread.is_alive():
            loop.close()

    def _begin_loop(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="grpc", daemon=True)
        self._thread.start()

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        """Have the server's own thread do this, and wait for it; raises what it raises."""
        assert self._loop is not None, "bind comes first"
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_DO_S)

    async def _bind_anew(self) -> None:
        before = self._server
        try:
            self._bound = await self._bind()
            await self._start()
        except BaseException:
            self._server = before
            raise
        if before is not None:
            await before.stop(_GRACE_S)

    async def _start(self) -> None:
        assert self._server is not None, "bind comes first"
        assert self._services is not None, "start comes first"
        collector, node = self._services
        self._server.add_generic_rpc_handlers((collector.handler(),))
        node_pb2_grpc.add_NodeServicer_to_server(node, self._server)
        await self._server.start()

    async def _bind(self) -> tuple[int, int]:
        """Bind under another name and move it into place; returns which file it is.

        gRPC removes, as it stops, whatever lies where it bound.
        """
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
                ("grpc.server_handshake_timeout_ms", self._silence_ms),
            ],
            maximum_concurrent_rpcs=_MAX_RPCS,
        )
        # No longer than the path itself, which may be as long as a socket's may be.
        name = self._path.name
        aside = self._path.with_name(name[:-1] + ("-" if name.endswith("~") else "~"))
        # Private from its first moment: gRPC itself would create it for everybody.
        umask = os.umask(0o177)
        try:
            self._server.add_insecure_port(f"unix:{quote(str(aside))}")
        finally:
            os.umask(umask)
        aside.chmod(self._mode)
        bound = _identity(aside)
        aside.rename(self._path)
        return bound

    def _refuse_taken(self) -> None:
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
                return
        raise UnreachableError(
            f"{self._path}: another daemon answers there: stop it or set another collect.socket"
        )


def _identity(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_dev, status.st_ino
