"""The reporter's end of the wire: who it is, its messages, and its channel to the daemon.

gRPC and the stubs are imported by the thread that uses them: an engine's start stays as it was.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from wattledger_collectors.engines.events import (
    ColumnsEvent,
    Counts,
    Event,
    FinishEvent,
    Part,
    StepEvent,
    TallyEvent,
    TokenEvent,
)
from wattledger_collectors.engines.facts import EngineFacts
from wattledger_collectors.runs import Run, Runs

if TYPE_CHECKING:
    import grpc

    from wattledger_proto.v1 import collect_pb2


MOST_PIDS = 1024
"""As many as the daemon takes of one engine."""

_MOST_TENANT = 256
_MOST_TEXT = 512
"""As long as the daemon takes a text."""

_LEAST_STEPS = 3
LEAST_REQUESTS = 64
"""With fewer in a step it takes the engine's process longer to find runs than to tell all."""
_NO_FACTS = EngineFacts()


@dataclass(frozen=True, slots=True)
class Identity:
    """Who reports: a process, by pid and start time (clock ticks since boot), and its labels."""

    kind: str
    pid: int
    start: int
    boot_id: str
    workload: str = ""
    job: str = ""
    facts: EngineFacts = _NO_FACTS

    @classmethod
    def of_this_process(
        cls, kind: str, environ: Mapping[str, str], facts: EngineFacts | None = None
    ) -> Identity:
        """Reads proc_pid_stat(5), field 22, and the kernel's boot id; raises OSError."""
        stat = Path("/proc/self/stat").read_text()
        return cls(
            kind=kind,
            pid=os.getpid(),
            start=int(stat.rpartition(")")[2].split()[19]),
            boot_id=Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
            workload=environ.get("WATTLEDGER_WORKLOAD", ""),
            job=environ.get("WATTLEDGER_JOB", ""),
            facts=facts or _NO_FACTS,
        )

    @property
    def source(self) -> str:
        """The name of this process, or of its part, for its lifetime."""
        name = f"{self.kind}/{self.pid}/{self.start}"
        return f"{name}/{self.facts.part}" if self.facts.part else name

    @property
    def engine(self) -> str:
        """The engine's name, the same from every process that reports for it."""
        return self.facts.engine or f"{self.kind}-{self.pid}"


class LostError(Exception):
    """The daemon did not answer, or did not in time."""

    def __init__(self, line: str, late: bool = False) -> None:
        super().__init__(line)
        self.late = late


class RefusedError(Exception):
    """The daemon answered INVALID_ARGUMENT."""


class Press:
    """Makes messages of events and counts what it has told.

    Steps of `least_requests` on average are told by runs, to a daemon that takes them.
    """

    def __init__(self, identity: Identity, *, least_requests: int = LEAST_REQUESTS) -> None:
        from wattledger_proto.v1 import collect_pb2

        self._pb = collect_pb2
        self._identity = identity
        self._model = ""
        self._told = Counts()
        # Who looks its engine's processes up is not one of them until found (the proxy never is).
        self._pids = [] if identity.facts.pids else [identity.pid]
        self._tenants: dict[str, str] = {}
        self._least_requests = least_requests
        # Whether the daemon takes them.
        self.tells_runs = False

    def look_up_pids(self) -> None:
        """Asks again which processes the engine is; where that fails it stays as it was."""
        look_up = self._identity.facts.pids
        if look_up is None:
            return
        with suppress(Exception):
            self._pids = sorted({*look_up()})[:MOST_PIDS] or self._pids

    def batch(self, model: str, events: Sequence[Event], dropped: Counts) -> bytes:
        """A batch without its stamp; what cannot be made into one was never told."""
        before = replace(self._told)
        try:
            return self._batch(model, events) + self.empty(dropped)
        except Exception:
            self._told = before
            raise

    def _batch(self, model: str, events: Sequence[Event]) -> bytes:
        self._model = model
        batch = self._pb.Batch()
        names = _Names()
        runs = Runs() if self.tells_runs and _are_many(events, self._least_requests) else None
        for event in events:
            self._told.count(event)
            if event[0] == "columns":
                self._add_columns(batch.steps.add(sequence=self._told.steps), event, names, runs)
            elif event[0] in {"finish", "tally"}:
                self._add_finish(batch.finishes.add(), event, names)
            elif event[0] in {"step", "token"}:
                self._add_step(batch.steps.add(sequence=self._told.steps), event, names)
        if runs is not None:
            _add_runs(batch, runs.close())
        self._name_requests(batch, list(names.numbers))
        return batch.SerializeToString()

    def _add_columns(
        self, step: collect_pb2.Step, event: ColumnsEvent, names: _Names, runs: Runs | None
    ) -> None:
        _, _, step.start_ns, step.end_ns, told, *counts = event
        requests = names.indices(told)
        columns: list[Sequence[int]] = [requests, *counts]
        if names.has_twice:
            # No hook tells such a step; if one did, the daemon would refuse the whole batch.
            columns = [*_merged(columns)]
        if runs is not None:
            own = runs.step(*columns)
            columns = [[column[place] for place in own] for column in columns]
        step.requests.extend(columns[0])
        step.prefill_tokens.extend(columns[1])
        step.decode_tokens.extend(columns[2])
        step.context_tokens.extend(columns[3])

    def _add_finish(
        self, finish: collect_pb2.Finish, event: FinishEvent | TallyEvent, names: _Names
    ) -> None:
        name = ""
        if event[0] == "finish":
            _, _, t_ns, name, prompt, cached, decode, finish.aborted = event
        else:
            _, _, t_ns, finish.count, prompt, cached, decode = event
        finish.request = names.index(name)
        finish.t_ns, finish.prompt_tokens = t_ns, prompt
        finish.cached_tokens, finish.decode_tokens = cached, decode

    def _add_step(
        self, step: collect_pb2.Step, event: StepEvent | TokenEvent, names: _Names
    ) -> None:
        parts: tuple[Part, ...]
        if event[0] == "token":
            _, _, step.start_ns, step.end_ns, name, context = event
            parts = ((name, 0, 1, context),)
        else:
            _, _, step.start_ns, step.end_ns, parts = event
        if len(parts) > 1 and len({part[0] for part in parts}) < len(parts):
            merged = _merged(list(zip(*parts, strict=True)))
            parts = tuple(zip(*merged, strict=True))
        for name, prefill, decode, context in parts:
            step.requests.append(names.index(name))
            step.prefill_tokens.append(prefill)
            step.decode_tokens.append(decode)
            step.context_tokens.append(context)

    def _name_requests(self, batch: collect_pb2.Batch, names: list[str]) -> None:
        batch.request_ids.extend(map(_valid, names))
        tenant_of = self._identity.facts.tenant_of
        if tenant_of is None:
            return
        # A request keeps the tenant that it had in the batch before.
        known = self._tenants
        self._tenants = {name: known.get(name) or _asked(tenant_of, name) for name in names}
        if any(self._tenants.values()):
            batch.request_tenants.extend(self._tenants.values())

    def empty(self, dropped: Counts) -> bytes:
        """A batch without events and without its stamp: who we are, and what we counted."""
        identity, told = self._identity, self._told
        return self._pb.Batch(
            source=identity.source,
            boot_id=identity.boot_id,
            engine=self._pb.EngineRegistration(
                engine=identity.engine,
                kind=identity.kind,
                model=_valid(self._model)[:_MOST_TEXT],
                pids=self._pids,
                workload=_valid(identity.workload)[:_MOST_TEXT],
                job=_valid(identity.job)[:_MOST_TEXT],
                coarse=identity.facts.coarse,
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


def _are_many(events: Sequence[Event], least_requests: int) -> bool:
    """Whether steps are told in columns, none otherwise, and hold so much that runs are cheaper."""
    kinds = {event[0] for event in events}
    requests = [len(event[4]) for event in events if event[0] == "columns"]
    busy = len(requests) >= _LEAST_STEPS and sum(requests) >= least_requests * len(requests)
    return busy and not kinds & {"step", "token"}


def _add_runs(batch: collect_pb2.Batch, found: Sequence[Run]) -> None:
    """Tell runs; one of a single step is shorter told by the step."""
    for run in found:
        if run.length == 1:
            step = batch.steps[run.first]
            step.requests.append(run.request)
            step.prefill_tokens.append(0)
            step.decode_tokens.append(1)
            step.context_tokens.append(run.context)
    longer = [run for run in found if run.length > 1]
    if longer:
        requests, firsts, lengths, contexts = zip(*longer, strict=True)
        batch.runs.requests.extend(requests)
        batch.runs.first_steps.extend(firsts)
        batch.runs.lengths.extend(lengths)
        batch.runs.context_tokens.extend(contexts)


def _merged(columns: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """A step's columns with each request once: its tokens are added, its context is the larger."""
    found: dict[Any, list[Any]] = {}
    for request, prefill, decode, context in zip(*columns, strict=True):
        row = found.setdefault(request, [request, 0, 0, 0])
        row[1:] = row[1] + prefill, row[2] + decode, max(row[3], context)
    return [list(column) for column in zip(*found.values(), strict=True)]


class _Names:
    """The requests of one batch, numbered as they come."""

    def __init__(self) -> None:
        # Whether the step that was looked up last names a request twice.
        self.has_twice = False
        self.numbers: dict[str, int] = {}
        self._last: Sequence[str] | None = None
        self._last_indices: list[int] = []

    def index(self, name: str) -> int:
        return self.numbers.setdefault(name, len(self.numbers))

    def indices(self, names: Sequence[str]) -> list[int]:
        """Of a step's requests; the list told before is not looked up again."""
        if names is not self._last:
            self._last, index = names, self.index
            known = list(map(self.numbers.get, names))
            self._last_indices = [
                index(name) if number is None else number
                for name, number in zip(names, known, strict=True)
            ]
            self.has_twice = len(set(self._last_indices)) < len(self._last_indices)
        return self._last_indices


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
            late = code is self._grpc.StatusCode.DEADLINE_EXCEEDED
            raise LostError(f"at {self._path} ({code.name})", late) from None

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


def _asked(tenant_of: Callable[[str], str], name: str) -> str:
    try:
        return _valid(tenant_of(name))[:_MOST_TENANT]
    except Exception:  # noqa: BLE001 - the engine hook's border
        return ""


def _valid(text: str) -> str:
    """Text that protobuf takes: a path from the environment may hold bytes that are not UTF-8."""
    return text.encode(errors="replace").decode()
