"""The reporter: one daemon thread in an engine's process, from the hook's buffer to the daemon.

Every 100 ms it takes what the hook has told, packs batches of at most 512 events and sends them
by unary `Collector.Push`. A batch is kept until the daemon has it on disk (`outbox.py`). The
engine's own threads never wait for this one. An engine that exits hands over its last events; one
that a signal kills takes those of its last 100 ms with it.

The only module on the engine's side that knows gRPC, which it imports in its thread.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from wattledger_collectors.engines.events import Counts, Event, EventBuffer
from wattledger_collectors.outbox import Bounds, Outbox
from wattledger_collectors.socket_path import default_socket_path

if TYPE_CHECKING:
    from wattledger_proto.v1 import collect_pb2

NS_PER_S = 1_000_000_000
MEND = "pip install 'wattledger[collector]'"


@dataclass(frozen=True, slots=True)
class Pace:
    """How often the reporter does what; `poll_s` holds while batches are uncommitted."""

    flush_s: float = 0.1
    batch_events: int = 512
    deadline_s: float = 1.0
    poll_s: float = 1.0
    heartbeat_s: float = 5.0
    least_backoff_s: float = 0.2
    most_backoff_s: float = 2.0
    farewell_s: float = 1.0


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


class Reporting:
    """Starts the reporter of a hook's buffer at the first request, anew in a forked child.

    Raises ImportError where grpc or protobuf is missing.
    """

    def __init__(self, kind: str, buffer: EventBuffer, environ: Mapping[str, str]) -> None:
        for name in ("grpc", "google", "google.protobuf"):
            if find_spec(name) is None:
                raise ImportError(f"{name} is not installed here; run: {MEND}")
        self._kind = kind
        self._buffer = buffer
        self._environ = environ
        self._reporters: dict[int, Reporter | None] = {}
        os.register_at_fork(after_in_child=buffer.clear)
        atexit.register(self._stop)

    def ensure_running(self) -> None:
        """Cheap when it runs; several threads may ask at once."""
        pid = os.getpid()
        if pid in self._reporters:
            return
        try:
            identity = Identity.of_this_process(self._kind, self._environ)
            ours = Reporter(self._buffer, identity, lambda: default_socket_path(self._environ))
            if self._reporters.setdefault(pid, ours) is ours:
                ours.start()
        except (OSError, RuntimeError) as error:
            self._reporters[pid] = None
            warn(f"tokens are not metered: {error}")
            self._buffer.close()

    def _stop(self) -> None:
        reporter = self._reporters.get(os.getpid())
        if reporter is not None:
            reporter.stop()


def warn(line: str) -> None:
    """One line on stderr, which may be closed."""
    with suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(f"wattledger: {line}\n")


class Reporter:
    """The thread. `socket` is asked at each attempt to connect: the daemon may come up anywhere."""

    def __init__(
        self,
        buffer: EventBuffer,
        identity: Identity,
        socket: Callable[[], str],
        *,
        pace: Pace | None = None,
        bounds: Bounds | None = None,
        tell: Callable[[str], None] = warn,
    ) -> None:
        self.outbox = Outbox(bounds or Bounds())
        self._buffer = buffer
        self._identity = identity
        self._socket = socket
        self._pace = pace or Pace()
        self._tell = tell
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="wattledger-reporter", daemon=True)
        self._press: _Press
        self._link: _Link
        self._daemon_id: str | None = None
        self._called_ns = self._retry_ns = 0
        self._backoff_s = 0.0
        self._told: set[str] = set()

    def start(self) -> None:
        """Starts the thread; raises RuntimeError where the interpreter is shutting down."""
        self._thread.start()

    def stop(self) -> None:
        """Hands over what is there if the daemon takes it in time; returns within `farewell_s`."""
        self._stopping.set()
        self._thread.join(self._pace.farewell_s)

    def _run(self) -> None:
        try:
            self._press, self._link = _Press(self._identity), _Link()
        except Exception as error:  # noqa: BLE001 - the engine hook's border: a protobuf that does not fit
            self._tell(f"tokens are not metered: {error}; run: {MEND}")
            self._buffer.close()
            return
        while not self._stopping.wait(self._pace.flush_s):
            self._turn(self._pace.flush_s)
        self._retry_ns = 0
        self._turn(self._pace.farewell_s)
        self._link.close()

    def _turn(self, allowed_s: float) -> None:
        try:
            self._collect()
            now_ns = time.monotonic_ns()
            if now_ns >= self._retry_ns:
                self._deliver(now_ns + round(allowed_s * NS_PER_S))
        except _LostError as error:
            self._back_off()
            self._tell_once("lost", f"no daemon {error}: tokens are kept for it; run: wattledgerd")
        except Exception as error:  # noqa: BLE001 - the engine hook's border
            self._back_off()
            self._tell_once("fault", f"tokens are not reported: {error}")

    def _collect(self) -> None:
        while events := self._buffer.take(self._pace.batch_events):
            for model, run in groupby(events, key=lambda event: event[1]):
                batch = list(run)
                self.outbox.add(self._press.batch(model, batch, self._buffer.dropped), len(batch))

    def _deliver(self, until_ns: int) -> None:
        if not self._link.is_open:
            self._link.open(self._socket())
            self._poll()
        while time.monotonic_ns() < until_ns and (parcel := self.outbox.next()):
            self._push(*parcel)
        quiet_s = self._pace.poll_s if self.outbox.uncommitted else self._pace.heartbeat_s
        if time.monotonic_ns() - self._called_ns >= quiet_s * NS_PER_S:
            self._poll()

    def _push(self, number: int, payload: bytes) -> None:
        try:
            self._send(number, payload or self._press.empty(self._buffer.dropped))
        except _RefusedError as error:
            self.outbox.refuse(number)
            self._tell_refused(error)

    def _poll(self) -> None:
        try:
            self._send(0, self._press.empty(self._buffer.dropped))
        except _RefusedError as error:
            self._tell_refused(error)

    def _send(self, number: int, body: bytes) -> None:
        dropped_events = self._buffer.dropped.events + self.outbox.dropped_events
        self._called_ns = time.monotonic_ns()
        stamp = self._press.stamp(number, self._called_ns, dropped_events)
        receipt = self._link.push(body + stamp, self._pace.deadline_s)
        self._backoff_s = 0.0
        if "lost" in self._told:
            self._told.remove("lost")
            self._tell("the daemon is back")
        self.outbox.delivered(number)
        if receipt.daemon_id == self._daemon_id:
            self.outbox.commit(receipt.committed_sequence)
        else:
            self._daemon_id = receipt.daemon_id
            self.outbox.rewind(receipt.committed_sequence)

    def _back_off(self) -> None:
        self._link.close()
        pace = self._pace
        self._backoff_s = min(pace.most_backoff_s, max(pace.least_backoff_s, self._backoff_s * 2))
        self._retry_ns = time.monotonic_ns() + round(self._backoff_s * NS_PER_S)

    def _tell_refused(self, error: _RefusedError) -> None:
        self._tell_once("refused", f"the daemon refuses events ({error}): dropped and counted")

    def _tell_once(self, state: str, line: str) -> None:
        if state not in self._told:
            self._told.add(state)
            self._tell(line)


class _LostError(Exception):
    """The daemon did not answer."""


class _RefusedError(Exception):
    """The daemon answered INVALID_ARGUMENT."""


class _Press:
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


class _Link:
    """The channel; a new one for each attempt, so that no stale address or backoff stays."""

    def __init__(self) -> None:
        import grpc

        from wattledger_proto.v1 import collect_pb2

        self._grpc = grpc
        service = collect_pb2.DESCRIPTOR.services_by_name["Collector"].full_name
        self._method = f"/{service}/Push"
        self._receipt = collect_pb2.Receipt.FromString
        self._channel: grpc.Channel | None = None

    @property
    def is_open(self) -> bool:
        return self._channel is not None

    def open(self, path: str) -> None:
        self._path = path
        options = [("grpc.enable_http_proxy", 0)]
        self._channel = self._grpc.insecure_channel(f"unix:{quote(path)}", options)
        self._call = self._channel.unary_unary(
            self._method, request_serializer=bytes, response_deserializer=self._receipt
        )

    def push(self, payload: bytes, timeout_s: float) -> collect_pb2.Receipt:
        try:
            return self._call(payload, timeout=timeout_s)
        except self._grpc.RpcError as error:
            code = error.code()
            if code is self._grpc.StatusCode.INVALID_ARGUMENT:
                raise _RefusedError(error.details()) from None
            raise _LostError(f"at {self._path} ({code.name})") from None

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None


def _valid(text: str) -> str:
    """Text that protobuf takes: a path from the environment may hold bytes that are not UTF-8."""
    return text.encode(errors="replace").decode()
