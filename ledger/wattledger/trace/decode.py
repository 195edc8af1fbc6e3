"""A line of a trace becomes a record, checked field by field."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass

from wattledger.errors import InputError
from wattledger.records import (
    CostModel,
    CounterReading,
    Device,
    DeviceKind,
    Engine,
    Evidence,
    Finish,
    GroupUse,
    PinnedCost,
    PowerReading,
    Process,
    ProcessUse,
    RequestOwner,
    RequestTokens,
    StaticBasis,
    Step,
    UseRecord,
)

TRACE_VERSION = 1
_INT64 = 2**63 - 1
_INT31 = 2**31 - 1
_MOST = 1e9
"""Watts of idle power, joules per token: what is above is a wrong unit."""


@dataclass(frozen=True, slots=True)
class TraceHeader:
    """Whose trace it is; `epoch_ns` + t_ns is UTC."""

    host: str
    epoch_ns: int
    zone: str | None = None
    boot_id: str = "trace"


class _Fields:
    """A line's object, read field by field; a wrong one is an InputError that names it."""

    def __init__(self, line: object) -> None:
        if not isinstance(line, dict):
            raise InputError("not a JSON object; a trace holds one object per line")
        self._line = line

    def has(self, name: str) -> bool:
        return self._line.get(name) is not None

    def value(self, name: str) -> object:
        if name not in self._line:
            raise InputError(f"field {name!r} is missing; see the trace format")
        return self._line[name]

    def text(self, name: str) -> str:
        value = self.value(name)
        if not isinstance(value, str) or not value:
            raise InputError(f"field {name!r} is {value!r}; give a non-empty text")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise InputError(f"field {name!r} holds half a surrogate pair; give text") from None
        return value

    def maybe_text(self, name: str) -> str | None:
        return self.text(name) if self.has(name) else None

    def integer(self, name: str, low: int = 0) -> int:
        return _integer(name, self.value(name), low)

    def maybe_integer(self, name: str, low: int = 0) -> int | None:
        return self.integer(name, low) if self.has(name) else None

    def number(self, name: str) -> float:
        value = self.value(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputError(f"field {name!r} is {value!r}; give a number")
        if not math.isfinite(value) or value < 0:
            raise InputError(f"field {name!r} is {value}; give a finite number of 0 or more")
        if value > _MOST:
            raise InputError(f"field {name!r} is {value}; give a number up to {_MOST:.0e}")
        return float(value)

    def maybe_number(self, name: str) -> float | None:
        return self.number(name) if self.has(name) else None

    def items(self, name: str) -> list[object]:
        value = self.value(name)
        if not isinstance(value, list):
            raise InputError(f"field {name!r} is {value!r}; give a list")
        return value

    def span(self) -> tuple[int, int]:
        start_ns = self.integer("start_ns", -_INT64)
        end_ns = self.integer("end_ns", -_INT64)
        if end_ns < start_ns:
            raise InputError(f"it ends ({end_ns}) before it starts ({start_ns}); swap the two")
        return start_ns, end_ns


def _integer(name: str, value: object, low: int = 0, most: int = _INT64) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"field {name!r} is {value!r}; give a whole number")
    if not low <= value <= most:
        raise InputError(f"field {name!r} is {value}; give a whole number of {low} to {most}")
    return value


def _device(line: _Fields) -> Device:
    static_w = line.maybe_number("static_w")
    kind = line.text("kind")
    if kind not in set(map(str, DeviceKind)):
        raise InputError(f"field 'kind' is {kind!r}; give one of {', '.join(DeviceKind)}")
    basis = line.maybe_text("static_basis")
    if basis is not None and basis not in set(map(str, StaticBasis)):
        raise InputError(f"field 'static_basis' is {basis!r}; give one of {', '.join(StaticBasis)}")
    known = StaticBasis(basis) if basis else StaticBasis.GIVEN
    return Device(
        device=line.text("device"),
        kind=DeviceKind(kind),
        model=line.maybe_text("model"),
        static_w=static_w,
        static_basis=StaticBasis.UNKNOWN if static_w is None else known,
        wrap_uj=line.maybe_integer("wrap_uj", 1),
        estimated=line.has("estimated") and line.value("estimated") is True,
    )


def _counter(line: _Fields) -> CounterReading:
    return CounterReading(
        line.text("device"), line.integer("t_ns", -_INT64), line.integer("energy_uj")
    )


def _power(line: _Fields) -> PowerReading:
    return PowerReading(
        line.text("device"),
        line.integer("t_ns", -_INT64),
        line.integer("power_uw"),
        line.maybe_integer("carried_half_fj") or 0,
    )


def _use(line: _Fields) -> UseRecord:
    start_ns, end_ns = line.span()
    if end_ns == start_ns:
        raise InputError(f"use of no length at {start_ns}; give an end after the start")
    processes = [_Fields(item) for item in line.items("processes")]
    used = tuple(
        ProcessUse(
            pid=item.integer("pid"),
            sm_percent=item.maybe_number("sm"),
            memory_bytes=item.maybe_integer("memory"),
            ticks=item.maybe_integer("ticks"),
        )
        for item in processes
    )
    if len({item.pid for item in used}) != len(used):
        raise InputError("a pid stands twice in 'processes'; add its uses together")
    return UseRecord(
        line.text("device"),
        start_ns,
        end_ns,
        used,
        total=line.maybe_integer("total"),
        groups=_groups(line),
        capacity=line.maybe_integer("capacity"),
        basis=line.maybe_text("basis") or "",
    )


def _groups(line: _Fields) -> tuple[GroupUse, ...]:
    """The groups of a use record; raises InputError for a process that stands in two of them."""
    items = [_Fields(item) for item in line.items("groups")] if line.has("groups") else []
    groups = tuple(
        GroupUse(
            workload=item.maybe_text("workload"),
            job=item.maybe_text("job"),
            pids=tuple(_integer("pids", pid) for pid in item.items("pids"))
            if item.has("pids")
            else (),
            ticks=item.maybe_integer("ticks"),
            memory_bytes=item.maybe_integer("memory"),
        )
        for item in items
    )
    pids = [pid for group in groups for pid in group.pids]
    if len(set(pids)) != len(pids):
        raise InputError("a pid stands in two of 'groups'; leave it in the inner one")
    return groups


def _process(line: _Fields) -> Process:
    return Process(
        line.integer("pid"),
        line.maybe_integer("start") or 0,
        line.maybe_text("workload"),
        line.maybe_text("job"),
    )


def _engine(line: _Fields) -> Engine:
    pids = tuple(_integer("pids", pid) for pid in line.items("pids"))
    coarse = line.has("coarse") and line.value("coarse") is True
    return Engine(line.text("engine"), line.text("kind"), line.maybe_text("model"), pids, coarse)


def _owner(line: _Fields) -> RequestOwner:
    return RequestOwner(
        line.text("engine"),
        line.text("request"),
        line.maybe_text("workload"),
        line.maybe_text("job"),
        line.maybe_integer("since_ns") or 0,
    )


def _step(line: _Fields) -> Step:
    start_ns, end_ns = line.span()
    rows = line.items("requests") if line.has("requests") else []
    requests = tuple(_request_tokens(row) for row in rows)
    if len({tokens.request for tokens in requests}) != len(requests):
        raise InputError("a request stands twice in 'requests'; add its tokens together")
    source = line.maybe_text("source") or ""
    return Step(line.text("engine"), line.integer("seq"), start_ns, end_ns, requests, source)


def _request_tokens(row: object) -> RequestTokens:
    if not isinstance(row, list) or len(row) != 4 or not isinstance(row[0], str):
        raise InputError(f"request {row!r}; give [id, prefill, decode, context]")
    name = _Fields({"requests": row[0]}).text("requests") if row[0] else ""
    prefill, decode, context = (
        _integer(field, count, most=_INT31)
        for field, count in zip(RequestTokens._fields[1:], row[1:], strict=True)
    )
    return RequestTokens(name, prefill, decode, context)


def _finish(line: _Fields) -> Finish:
    request = line.value("request")
    return Finish(
        line.text("engine"),
        line.text("request") if request else "",
        line.integer("t_ns", -_INT64),
        _integer("prompt_tokens", line.value("prompt_tokens"), most=_INT31),
        _integer("cached_tokens", line.value("cached_tokens"), most=_INT31)
        if line.has("cached_tokens")
        else 0,
        _integer("decode_tokens", line.value("decode_tokens"), most=_INT31),
        line.integer("count", 1) if line.has("count") else 1,
    )


def _cost(line: _Fields) -> PinnedCost:
    f_j, a_j, b_j, c_j = (line.maybe_number(name) or 0.0 for name in ("f_j", "a_j", "b_j", "c_j"))
    method = line.maybe_text("method") or "pinned"
    return PinnedCost(line.text("engine"), CostModel(f_j, a_j, b_j, c_j, method))


_DECODERS: dict[str, Callable[[_Fields], Evidence]] = {
    "device": _device,
    "counter": _counter,
    "power": _power,
    "use": _use,
    "process": _process,
    "engine": _engine,
    "step": _step,
    "finish": _finish,
    "owner": _owner,
    "cost": _cost,
}


def _header(line: _Fields) -> TraceHeader:
    version = line.integer("trace")
    if version != TRACE_VERSION:
        raise InputError(f"trace version {version}, this one reads {TRACE_VERSION}; upgrade it")
    return TraceHeader(
        line.text("host"),
        line.integer("epoch_ns"),
        line.maybe_text("zone"),
        line.maybe_text("boot_id") or "trace",
    )


def decode(line: str) -> Evidence | TraceHeader:
    """One line of a trace as a record.

    Raises InputError on text that is not JSON, an unknown type, or a missing or wrong field.
    """
    try:
        fields = _Fields(json.loads(line))
    except (ValueError, RecursionError):
        raise InputError("not JSON (cut short?); mend or delete the line") from None
    kind = fields.text("type")
    if kind == "header":
        return _header(fields)
    if kind not in _DECODERS:
        raise InputError(f"unknown line type {kind!r}; known: header, {', '.join(_DECODERS)}")
    return _DECODERS[kind](fields)
