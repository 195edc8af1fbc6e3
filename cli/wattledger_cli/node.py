"""Asking the local daemon how it does, and what it measures."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Self

from wattledger.errors import InputError, UnreachableError
from wattledger.locations import local_settings
from wattledger_collectors.socket_path import default_socket_path

if TYPE_CHECKING:
    from grpc import Channel, RpcError

    from wattledger_proto.v1.node_pb2 import RequestAnswer, Status

DEADLINE_S = 1.0
ANSWER_DEADLINE_S = 8.0
_TRANSPORT = re.compile(
    "failed to connect|connections to all|socket closed|connection reset|goaway|recvmsg|sendmsg"
    "|cancelling all calls",
    re.IGNORECASE,
)


def configured_socket() -> Path | None:
    """The socket that the local daemon's config names, unless the environment names another."""
    if os.environ.get("WATTLEDGER_SOCKET"):
        return None
    return local_settings(os.environ).socket


def local_socket() -> Path:
    """The local daemon's socket: what its config names, else the default."""
    return configured_socket() or Path(default_socket_path(os.environ))


class NoAnswerError(UnreachableError):
    """Somebody holds the daemon's socket, and did not answer: what it knows is not known here."""


class Node:
    """A channel to the daemon at `socket`, which may come and go; used as a `with` block.

    Every call raises UnreachableError, with the mend, where there is no answer.
    """

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._grpc = _grpc()
        self._channel: Channel = self._grpc.insecure_channel(
            f"unix:{socket}", options=[("grpc.max_reconnect_backoff_ms", 1000)]
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._channel.close()

    def status(self, deadline_s: float = DEADLINE_S) -> Status:
        """What the daemon says of itself."""
        from wattledger_proto.v1.node_pb2 import StatusRequest
        from wattledger_proto.v1.node_pb2_grpc import NodeStub

        reach(self._socket)
        try:
            return NodeStub(self._channel).GetStatus(StatusRequest(), timeout=deadline_s)
        except self._grpc.RpcError as error:
            raise UnreachableError(_no_answer(self._socket, error)) from error

    def request(
        self, request: str, engine: str = "", deadline_s: float = ANSWER_DEADLINE_S
    ) -> RequestAnswer:
        """What a request took so far, by its id; of one engine where that is named."""
        from wattledger_proto.v1.node_pb2 import RequestQuestion
        from wattledger_proto.v1.node_pb2_grpc import NodeStub

        reach(self._socket)
        question = RequestQuestion(request=request, engine=engine)
        try:
            return NodeStub(self._channel).GetRequest(question, timeout=deadline_s)
        except self._grpc.RpcError as error:
            if error.code() is self._grpc.StatusCode.UNIMPLEMENTED:
                raise UnreachableError(
                    f"the daemon at {self._socket} cannot tell of requests: update it"
                ) from error
            if error.code() is self._grpc.StatusCode.INVALID_ARGUMENT:
                raise InputError(f"--request: {error.details()}") from error
            raise NoAnswerError(_excuse(self._socket, error)) from error


class Recording:
    """The daemon's evidence as lines of a trace, until it or `stop` ends them.

    Iterating raises UnreachableError where the daemon never began; afterwards `ended` says why
    it ended by itself, None where `stop` did it.
    """

    def __init__(self, socket: Path) -> None:
        self._grpc = _grpc()
        from wattledger_proto.v1.node_pb2 import RecordRequest
        from wattledger_proto.v1.node_pb2_grpc import NodeStub

        self.ended: str | None = None
        self._socket = socket
        self._stopped = False
        reach(socket)
        self._channel: Channel = self._grpc.insecure_channel(f"unix:{socket}")
        self._stream = NodeStub(self._channel).Record(RecordRequest())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._channel.close()

    def stop(self) -> None:
        """End it; a signal handler and another thread may call this too."""
        self._stopped = True
        self._stream.cancel()

    def __iter__(self) -> Iterator[list[str]]:
        begun = False
        try:
            for chunk in self._stream:
                begun = True
                yield list(chunk.lines)
            self.ended = "the daemon ended the recording"
        except self._grpc.RpcError as error:
            if self._stopped:
                return
            self.ended = _why(self._socket, error)
            if not begun:
                raise UnreachableError(self.ended) from error


def daemon_status(socket: Path, deadline_s: float = DEADLINE_S) -> Status:
    """What the daemon at `socket` says of itself; raises UnreachableError with the mend."""
    reach(socket)
    with Node(socket) as node:
        return node.status(deadline_s)


def reach(socket: Path) -> None:
    """Raise UnreachableError where the socket is not there, or not ours to open."""
    try:
        mode = socket.stat()
    except PermissionError:
        raise UnreachableError(
            f"the folder of {socket} is closed to this user: ask for its group"
        ) from None
    except OSError:
        raise UnreachableError(f"no daemon, {socket} is not there: start wattledgerd") from None
    if not os.access(socket, os.R_OK | os.W_OK):
        raise UnreachableError(
            f"{socket} is closed to this user: {join_group(mode.st_mode, mode.st_gid)}"
        )


def join_group(mode: int, gid: int) -> str:
    """The command that opens a file to this user by its group, or what else to do."""
    import grp
    import pwd

    if mode & 0o060 != 0o060 or gid == 0:
        return "run this as the user of wattledgerd, or with sudo"
    try:
        group = grp.getgrgid(gid).gr_name
        user = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return f"ask for membership of the group with gid {gid}"
    return f"sudo usermod -aG {group} {user}, then log in anew"


def _grpc() -> ModuleType:
    try:
        import grpc
    except ModuleNotFoundError as error:
        raise UnreachableError(
            f"cannot ask the daemon, {error.name} is missing: pip install 'wattledger[cli]'"
        ) from error
    return grpc


def _no_answer(socket: Path, error: RpcError) -> str:
    return (
        f"no answer from the daemon at {socket}, {error.code().name}:"
        " see systemctl status wattledgerd"
    )


def _excuse(socket: Path, error: RpcError) -> str:
    """The daemon's own words where it gave any; gRPC's of a lost connection help nobody."""
    words = str(error.details() or "")
    own = error.code().name in ("RESOURCE_EXHAUSTED", "UNAVAILABLE")
    if own and words and not _TRANSPORT.match(words):
        return f"the daemon at {socket} does not answer now: {words}"
    return _no_answer(socket, error)


def _why(socket: Path, error: RpcError) -> str:
    """What ended a recording: the daemon's own words where it gave any."""
    if error.code().name in ("ABORTED", "RESOURCE_EXHAUSTED"):
        return str(error.details())
    if error.code().name == "UNIMPLEMENTED":
        return f"the daemon at {socket} cannot record: update it"
    return (
        f"the daemon at {socket} went away, {error.code().name}: see systemctl status wattledgerd"
    )
