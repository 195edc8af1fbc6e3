"""What an engine's batch may say, and the evidence it becomes. Pure.

Negative counts cannot be told on the wire; everything else that would harm the books is
refused here, by field, before any of the batch is taken in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate, compress, pairwise
from operator import add, not_

from wattledger.records import NS_PER_S, Engine, Finish, Step
from wattledger_daemon.heart.columns import StepColumns, Stretches, Sums
from wattledger_proto.v1 import collect_pb2

try:
    # The very function, without the OpenSSL (3.4 MB) that `hashlib` loads beside it.
    from _blake2 import blake2b
except ImportError:
    from hashlib import blake2b

MAX_CLOCK_SKEW_NS = 60 * NS_PER_S
MAX_AGE_NS = 24 * 3600 * NS_PER_S
MAX_ENTRIES = 100_000
MAX_COUNT = 2**31
MAX_SEQUENCE = 2**63 - 1
MAX_DROPPED = 2**48
MAX_TEXT = 512
MAX_PIDS = 1024
MAX_PID = 2**22
"""Bounds of one batch; MAX_PID is the kernel's own (proc(5), pid_max)."""

_SEQ_MASK = 2**63 - 1
_COUNTS = ("prefill_tokens", "decode_tokens", "context_tokens")


class BadBatchError(Exception):
    """A batch that is refused; the text names the field and what it must be."""


@dataclass(frozen=True, slots=True)
class Events:
    """What a batch tells of its engine: steps first, then finishes."""

    steps: StepColumns
    finishes: tuple[Finish, ...]

    def __len__(self) -> int:
        return len(self.steps) + len(self.finishes)

    def __iter__(self) -> Iterator[Step | Finish]:
        """The same as records."""
        yield from self.steps.steps()
        yield from self.finishes

    def begins(self) -> dict[str, int]:
        """When each request is first spoken of here, by name: by its first step, or end."""
        found = {finish.request: finish.t_ns - 1 for finish in self.finishes}
        for name, start_ns in self.steps.begins().items():
            found[name] = min(start_ns, found.get(name, start_ns))
        return found

    @property
    def weight(self) -> int:
        """How much it weighs in memory; two requests in a step are as much as one record."""
        steps = self.steps
        return len(self) + 2 * len(steps.stretches) + sum(map(len, steps.requests)) // 2


def check_batch(batch: collect_pb2.Batch, *, boot_id: str, now_ns: int) -> Events:
    """A batch's events; raises BadBatchError where it is malformed. `now_ns` is CLOCK_MONOTONIC.

    `sent_ns` is the sending's own time, however long the events waited, and shows that both
    ends have one clock.
    """
    _check_head(batch, boot_id, now_ns)
    _check_engine(batch.engine)
    entries = len(batch.steps) + len(batch.finishes) + len(batch.request_ids)
    entries += sum(len(step.requests) for step in batch.steps) + sum(batch.runs.lengths)
    _require(entries <= MAX_ENTRIES, "steps", f"hold {entries} entries, at most {MAX_ENTRIES}")
    ids = batch.request_ids
    _check_texts("request_ids", ids)
    _require(len(set(ids)) == len(ids), "request_ids", "name a request twice")
    tenants = batch.request_tenants
    _require(
        not tenants or len(tenants) == len(ids),
        "request_tenants",
        f"has {len(tenants)} entries for {len(ids)} requests",
    )
    _check_texts("request_tenants", tenants)
    span = max(0, now_ns - MAX_AGE_NS), now_ns + MAX_CLOCK_SKEW_NS
    _check_runs(batch.runs, len(ids), len(batch.steps))
    steps = _steps_of(batch)
    for at in range(len(steps)):
        _check_step(f"steps[{at}]", steps, at, span)
    for at, finish in enumerate(batch.finishes):
        _check_finish(f"finishes[{at}]", finish, len(ids), span)
        nobody = not ids[finish.request] or finish.count <= 1
        _require(nobody, f"finishes[{at}].count", 'above 1 is for the request id "" alone')
    _check_once(steps)
    return Events(steps, _finishes_of(batch))


def engine_of(registration: collect_pb2.EngineRegistration) -> Engine:
    """A registration as the engine it describes."""
    model = registration.model or None
    pids = tuple(registration.pids)
    return Engine(registration.engine, registration.kind, model, pids, registration.coarse)


def events_of(batch: collect_pb2.Batch) -> Events:
    """A checked batch's steps and finishes, in its order."""
    return Events(_steps_of(batch), _finishes_of(batch))


def _steps_of(batch: collect_pb2.Batch) -> StepColumns:
    """A batch's steps as they stand there.

    A step's `seq` is made of source, batch and place, so that it is the same whenever the
    batch is read, and another for a restarted engine of the same name.
    """
    name = f"{batch.source}\0{batch.sequence}".encode()
    first_seq = int.from_bytes(blake2b(name, digest_size=8).digest())
    steps = batch.steps
    # A slice of a packed field is a list, and takes half the time that `list` does.
    counts = (
        [step.prefill_tokens[:] for step in steps],
        [step.decode_tokens[:] for step in steps],
        [step.context_tokens[:] for step in steps],
    )
    runs = batch.runs
    stretches = Stretches(
        runs.requests[:], runs.first_steps[:], runs.lengths[:], runs.context_tokens[:]
    )
    told = [
        Sums(len(step.requests), sum(prefill), sum(decode), sum(context))
        for step, prefill, decode, context in zip(steps, *counts, strict=True)
    ]
    return StepColumns(
        batch.engine.engine,
        batch.source,
        batch.request_ids[:],
        [(first_seq + at) & _SEQ_MASK for at in range(len(steps))],
        [step.start_ns for step in steps],
        [step.end_ns for step in steps],
        [step.requests[:] for step in steps],
        *counts,
        _with_stretches(told, stretches),
        stretches,
    )


def _with_stretches(told: list[Sums], stretches: Stretches) -> list[Sums]:
    """The steps' sums and their parts of what goes through several of them."""
    if not stretches:
        return told
    count = len(told)
    # Most go through the whole batch.
    whole = [length == count for length in stretches.lengths]
    alive = [sum(whole)] + [0] * count
    base = [sum(compress(stretches.context_tokens, whole))] + [0] * count
    for _, first, length, context in compress(stretches, map(not_, whole)):
        alive[first] += 1
        alive[first + length] -= 1
        base[first] += context - first
        base[first + length] -= context - first
    return [
        Sums(own + more, prefill, decode + more, context + at_0 + more * at)
        for at, ((own, prefill, decode, context), more, at_0) in enumerate(
            zip(told, accumulate(alive), accumulate(base), strict=False)
        )
    ]


def _finishes_of(batch: collect_pb2.Batch) -> tuple[Finish, ...]:
    engine, ids = batch.engine.engine, batch.request_ids
    return tuple(
        Finish(
            engine,
            ids[finish.request],
            finish.t_ns,
            finish.prompt_tokens,
            finish.cached_tokens,
            finish.decode_tokens,
            max(finish.count, 1),
        )
        for finish in batch.finishes
    )


def _check_head(batch: collect_pb2.Batch, boot_id: str, now_ns: int) -> None:
    _check_text("source", batch.source)
    _require(batch.boot_id == boot_id, "boot_id", f"is not this host's, which is {boot_id}")
    _require(batch.sequence <= MAX_SEQUENCE, "sequence", f"above {MAX_SEQUENCE}")
    _require(batch.dropped_events <= MAX_DROPPED, "dropped_events", f"above {MAX_DROPPED}")
    fresh = abs(batch.sent_ns - now_ns) <= MAX_CLOCK_SKEW_NS
    _require(fresh, "sent_ns", f"is {batch.sent_ns}, this host's CLOCK_MONOTONIC {now_ns}")
    question = not batch.sequence and (batch.steps or batch.finishes)
    _require(not question, "sequence", "is 0 for a batch with events; begin at 1")


def _check_engine(registration: collect_pb2.EngineRegistration) -> None:
    _check_text("engine.engine", registration.engine)
    _check_text("engine.kind", registration.kind)
    for field in ("model", "workload", "job"):
        value: str = getattr(registration, field)
        _check_text(f"engine.{field}", value, empty=True)
    pids = registration.pids
    _require(len(pids) <= MAX_PIDS, "engine.pids", f"name {len(pids)}, at most {MAX_PIDS}")
    _require(all(0 < pid <= MAX_PID for pid in pids), "engine.pids", "name no process")
    _require(len(set(pids)) == len(pids), "engine.pids", "name a process twice")


def _check_step(field: str, steps: StepColumns, at: int, span: tuple[int, int]) -> None:
    start_ns, end_ns = steps.starts_ns[at], steps.ends_ns[at]
    _require(end_ns >= start_ns, f"{field}.end_ns", f"is {end_ns}, before its start {start_ns}")
    _check_time(f"{field}.start_ns", start_ns, span)
    _check_time(f"{field}.end_ns", end_ns, span)
    requests = steps.requests[at]
    if not requests and not steps.prefill_tokens[at] and not steps.decode_tokens[at]:
        return
    _check_indices(f"{field}.requests", requests, len(steps.names))
    if len(set(requests)) != len(requests):
        raise BadBatchError(f"{field}.requests name a request twice in one step")
    columns = (steps.prefill_tokens[at], steps.decode_tokens[at], steps.context_tokens[at])
    for name, counts, total in zip(_COUNTS, columns, steps.sums[at][1:], strict=True):
        if len(counts) != len(requests):
            why = f"has {len(counts)} entries for {len(requests)} requests"
            raise BadBatchError(f"{field}.{name} {why}")
        # Most are so small that their sum tells it.
        if total > MAX_COUNT and max(counts) > MAX_COUNT:
            raise BadBatchError(f"{field}.{name} counts above {MAX_COUNT}")


def _check_runs(runs: collect_pb2.Runs, ids: int, steps: int) -> None:
    requests, firsts, lengths = runs.requests[:], runs.first_steps[:], runs.lengths[:]
    contexts = runs.context_tokens[:]
    for name, column in (
        ("first_steps", firsts),
        ("lengths", lengths),
        ("context_tokens", contexts),
    ):
        why = f"has {len(column)} entries for {len(requests)} requests"
        _require(len(column) == len(requests), f"runs.{name}", why)
    if not requests:
        return
    _check_indices("runs.requests", requests, ids)
    _require(min(lengths) > 0, "runs.lengths", "hold 0, at least 1")
    end = max(map(add, firsts, lengths))
    _require(end <= steps, "runs.lengths", f"lead to step {end} of {steps}")
    _require(max(contexts) + steps <= MAX_COUNT, "runs.context_tokens", f"counts above {MAX_COUNT}")


def _check_once(steps: StepColumns) -> None:
    """Refuse a request that is in a step twice: in two runs, or in one and the step's own lists."""
    runs = steps.stretches
    if not runs:
        return
    own = set[int]().union(*steps.requests)
    suspects = own.intersection(runs.requests)
    if len(set(runs.requests)) < len(runs):
        suspects.update(request for request, n in Counter(runs.requests).items() if n > 1)
    told = compress(runs, map(suspects.__contains__, runs.requests))
    spans = [(request, first, first + length) for request, first, length, _ in told]
    spans += [
        (index, at, at + 1)
        for at, there in enumerate(steps.requests)
        for index in suspects.intersection(there)
    ]
    spans.sort()
    for before, after in pairwise(spans):
        twice = before[0] == after[0] and before[2] > after[1]
        _require(not twice, f"steps[{after[1]}].requests", "name a request twice in one step")


def _check_finish(field: str, finish: collect_pb2.Finish, ids: int, span: tuple[int, int]) -> None:
    _check_indices(f"{field}.request", (finish.request,), ids)
    _check_time(f"{field}.t_ns", finish.t_ns, span)
    for name in ("prompt_tokens", "decode_tokens"):
        count: int = getattr(finish, name)
        _require(count <= MAX_COUNT, f"{field}.{name}", f"is {count}, at most {MAX_COUNT}")
    _require(
        finish.cached_tokens <= finish.prompt_tokens,
        f"{field}.cached_tokens",
        f"is {finish.cached_tokens}, above prompt_tokens {finish.prompt_tokens}",
    )


def _check_indices(field: str, indices: Iterable[int], ids: int) -> None:
    highest = max(indices, default=-1)
    _require(0 <= highest < ids, field, f"point to {highest}, request_ids holds {ids}")


def _check_time(field: str, t_ns: int, span: tuple[int, int]) -> None:
    earliest_ns, latest_ns = span
    _require(
        earliest_ns <= t_ns <= latest_ns,
        field,
        f"is {t_ns}, outside {earliest_ns} to {latest_ns} of CLOCK_MONOTONIC",
    )


def _check_texts(field: str, values: Iterable[str]) -> None:
    longest = max(map(len, values), default=0)
    _require(longest <= MAX_TEXT, field, f"hold one longer than {MAX_TEXT} characters")


def _check_text(field: str, value: str, *, empty: bool = False) -> None:
    _require(bool(value) or empty, field, "is empty")
    _require(len(value) <= MAX_TEXT, field, f"is longer than {MAX_TEXT} characters")


def _require(holds: bool, field: str, why: str) -> None:
    if not holds:
        raise BadBatchError(f"{field} {why}")
