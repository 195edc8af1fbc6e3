"""Whole trace files, checked before anything is made of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from wattledger.errors import InputError
from wattledger.records import (
    NS_PER_S,
    CounterReading,
    Device,
    Engine,
    Evidence,
    Finish,
    PinnedCost,
    PowerReading,
    Step,
    UseRecord,
)
from wattledger.trace.decode import TraceHeader, decode

LONGEST_DAYS = 400
_LONGEST_NS = LONGEST_DAYS * 86_400 * NS_PER_S
# Stores hold signed 64-bit nanoseconds; the window of a minute that holds a time must fit too.
_LATEST_NS = 2**63 - 60 * NS_PER_S


@dataclass(frozen=True, slots=True)
class Trace:
    """A checked trace; `evidence` in file order, `lines` counts the objects read."""

    header: TraceHeader
    evidence: tuple[Evidence, ...]
    lines: int


def read_trace(path: Path) -> Trace:
    """A whole trace file, checked.

    Raises InputError naming file, line and field: unreadable file, bad line, no header or two,
    a reading of a device or a step of an engine that no line describes, times that lie more
    than `LONGEST_DAYS` apart or outside the years that a ledger can hold.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}; give a readable trace file") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8 text; give a trace as JSON lines") from None
    numbered = [(i, line) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
    header: TraceHeader | None = None
    evidence: list[tuple[int, Evidence]] = []
    for number, line in numbered:
        try:
            record = decode(line)
            if isinstance(record, TraceHeader):
                if header is not None:
                    raise InputError("a second header; split the traces into two files")
                header = record
            else:
                evidence.append((number, record))
        except InputError as error:
            raise InputError(f"{path} line {number}: {error}") from None
    if header is None:
        raise InputError(f"{path}: no header line; begin with {{'type':'header','trace':1,...}}")
    _check_names(path, evidence)
    _check_times(path, header, evidence)
    return Trace(header, tuple(record for _, record in evidence), len(numbered))


def _check_names(path: Path, evidence: Iterable[tuple[int, Evidence]]) -> None:
    """Every device and engine that a line speaks of must be described by a line."""
    numbered = list(evidence)
    devices = {record.device for _, record in numbered if isinstance(record, Device)}
    engines = {record.engine for _, record in numbered if isinstance(record, Engine)}
    for number, record in numbered:
        match record:
            case CounterReading(device=name) | PowerReading(device=name) | UseRecord(device=name):
                if name not in devices:
                    raise InputError(
                        f"{path} line {number}: device {name!r} has no device line; add one"
                    )
            case Step(engine=name) | Finish(engine=name) | PinnedCost(engine=name):
                if name not in engines:
                    raise InputError(
                        f"{path} line {number}: engine {name!r} has no engine line; add one"
                    )


def _check_times(path: Path, header: TraceHeader, evidence: Iterable[tuple[int, Evidence]]) -> None:
    """A wrong unit must not make windows for centuries."""
    times = [(t_ns, number) for number, record in evidence for t_ns in _times_ns(record)]
    if not times:
        return
    (first_ns, first), (last_ns, last) = min(times), max(times)
    for t_ns, number in ((first_ns, first), (last_ns, last)):
        if abs(header.epoch_ns + t_ns) > _LATEST_NS:
            raise InputError(
                f"{path} line {number}: epoch_ns {header.epoch_ns} + {t_ns} is no time that a"
                " ledger can hold; check the unit of both, nanoseconds"
            )
    if last_ns - first_ns > _LONGEST_NS:
        raise InputError(
            f"{path} lines {first} and {last}: {first_ns} and {last_ns} ns lie more than"
            f" {LONGEST_DAYS} days apart; check the unit of t_ns, nanoseconds"
        )


def _times_ns(record: Evidence) -> tuple[int, ...]:
    match record:
        case CounterReading(t_ns=t_ns) | PowerReading(t_ns=t_ns) | Finish(t_ns=t_ns):
            return (t_ns,)
        case Step(start_ns=start_ns, end_ns=end_ns) | UseRecord(start_ns=start_ns, end_ns=end_ns):
            return (start_ns, end_ns)
        case _:
            return ()
