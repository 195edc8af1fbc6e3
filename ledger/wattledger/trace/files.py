"""Whole trace files, checked before anything is made of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from wattledger.errors import InputError
from wattledger.records import (
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


@dataclass(frozen=True, slots=True)
class Trace:
    """A checked trace; `evidence` in file order, `lines` counts the objects read."""

    header: TraceHeader
    evidence: tuple[Evidence, ...]
    lines: int


def read_trace(path: Path) -> Trace:
    """A whole trace file, checked.

    Raises InputError naming file, line and field: unreadable file, bad line, no header or two,
    a reading of a device or a step of an engine that no line describes.
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
