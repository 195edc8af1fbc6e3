"""The reporter's end of the wire: who it is, its messages, and its channel to the daemon.

gRPC and the stubs are imported by the thread that uses them: an engine's start stays as it was.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from wattledger_collectors.engines.events import Counts, Event, Part

if TYPE_CHECKING:
    import grpc

    from wattledger_proto.v1 import collect_pb2


@dataclass(frozen=True, slots=True)
class Identity:
    """Who reports: a process, by pid and start time (clock ticks since boot), and its labels."""

    kind: str
    pid: int
    start: int
    boot_id: str
    workload: str = ""
    job: str = ""

    @classmethod
    def of_this_process(cls, kind: str, environ: Mapping[str, str]) -> Identity:
        """Reads proc_pid_stat(5), field 22, and the kernel's boot id; raises OSError."""
        stat = Path("/proc/self/stat").read_text()
        return cls(
            kind=kind,
            pid=os.getpid(),
            start=int(stat.rpartition(")")[2].split()[19]),
            boot_id=Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
            workload=environ.get("WATTLEDGER_WORKLOAD", ""),
            job=environ.get("WATTLEDGER_JOB", ""),
        )

    @property
    def source(self) -> str:
        """The name of this process for its lifetime."""
        return f"{self.kind}/{self.pid}/{self.start}"


class LostError(Exception):
    """The daemon did not answer."""


class RefusedError(Exception):
    """The daemon answered INVALID_ARGUMENT."""


class Press:
    """Makes messages of events and counts what it has told."""

    def __init__(self, identity: Identity) -> None:
        from wattledger_proto.v1 import collect_pb2

        self._pb = collect_pb2
        self._identity = identity
        self._model = ""
        self._told = Counts()

    def batch(self, model: str, events: Sequence[Event], dropped: Counts) -> bytes:
        """A batch without its stamp."""
        self._model = model
        batch = self._pb.Batch()
        names: dict[str, int] = {}
        for event in events:
            self._told.count(event)
            if event[0] == "finish":
                _, _, t_ns, name, prompt, cached, decode, aborted = event
                batch.finishes.add(
                    request=names.setdefault(name, len(names)),
                    t_ns=t_ns,
                    prompt_tokens=prompt,
                    cached_tokens=cached,
                    decode_tokens=decode,
                    aborted=aborted,
                )
                continue
            if event[0] == "token":
                _, _, start_ns, end_ns, name, context = event
                parts: tuple[Part, ...] = ((name, 0, 1, context),)
            else:
                _, _, start_ns, end_ns, parts = event
            step = batch.steps.add(sequence=self._told.steps, start_ns=start_ns, end_ns=end_ns)
            for name, prefill, decode, context in parts:
                step.requests.append(names.setdefault(name, len(names)))
                step.prefill_tokens.append(prefill)
                step.decode_tokens.append(decode)
                step.context_tokens.append(context)
        batch.request_ids.extend(_valid(name) for name in names)
        return batch.SerializeToString() + self.empty(dropped)

    def empty(self, dropped: Counts) -> bytes:
        """A batch without events and without its stamp: who we are, and what we counted."""
        identity, told = self._identity, self._told
        return self._pb.Batch(
            source=identity.source,
            boot_id=identity.boot_id,
            engine=self._pb.EngineRegistration(
                engine=f"{identity.kind}-{identity.pid}",
                kind=identity.kind,
                model=_valid(self._model),
                pids=[identity.pid],
                workload=_valid(identity.workload),
                job=_valid(identity.job),
            ),
            totals=self._pb.Totals(
                steps=told.steps + dropped.steps,
                prefill_tokens=told.prefill_tokens + dropped.prefill_tokens,
                decode_tokens=told.decode_tokens + dropped.decode_tokens,
                finishes=told.finishes + dropped.finishes,
            ),
        ).SerializeToString()

    def stamp(self, number: int, sent_ns: int, dropped_events: int) -> bytes:
        """What is known only when a batch is sent; appended to it, as protobuf's encoding allows.

        Serialized messages concatenate to their merger (protobuf.dev, Encoding, "Last One Wins").
        """
        stamp = self._pb.Batch(sequence=number, sent_ns=sent_ns, dropped_events=dropped_events)
        return stamp.SerializeToString()


class Link:
    """The channel; a new one for each attempt, so that no stale address or backoff stays.

    gRPC would silently connect to a restarted daemon. That one must be asked first what it has
    on disk, so the socket is watched: each daemon makes its own.
    """

    def __init__(self) -> None:
        import grpc

        from wattledger_proto.v1 import collect_pb2

        self._grpc = grpc
        service = collect_pb2.DESCRIPTOR.services_by_name["Collector"].full_name
        self._method = f"/{service}/Push"
        self._receipt = collect_pb2.Receipt.FromString
        self._channel: grpc.Channel | None = None

    @property
    def is_current(self) -> bool:
        """Whether it leads to the daemon that it was opened to."""
        if self._channel is None:
            return False
        return _made(self._path) in (self._socket, None)

    def open(self, path: str) -> None:
        """Begins a connection to the socket at `path`; whether anybody is there shows later."""
        self.close()
        self._path, self._socket = path, _made(path)
        options = [("grpc.enable_http_proxy", 0)]
        self._channel = self._grpc.insecure_channel(f"unix:{quote(path)}", options)
        self._call = self._channel.unary_unary(
            self._method, request_serializer=bytes, response_deserializer=self._receipt
        )

    def push(self, payload: bytes, timeout_s: float) -> collect_pb2.Receipt:
        """Sends a serialized Batch; raises RefusedError or LostError."""
        try:
            return self._call(payload, timeout=timeout_s)
        except self._grpc.RpcError as error:
            code = error.code()
            if code is self._grpc.StatusCode.INVALID_ARGUMENT:
                raise RefusedError(error.details()) from None
            raise LostError(f"at {self._path} ({code.name})") from None

    def close(self) -> None:
        """Ends the connection, if there is one."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None


def _made(path: str) -> tuple[int, int] | None:
    """Tells a socket from one made later in its place."""
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _valid(text: str) -> str:
    """Text that protobuf takes: a path from the environment may hold bytes that are not UTF-8."""
    return text.encode(errors="replace").decode()
