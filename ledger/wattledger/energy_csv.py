"""Another meter's energy: the Energy CSV of the contract, read into ledger entries.

The whole file is checked before the caller gets a single entry, so that a ledger never holds
half of it.
"""

from __future__ import annotations

import codecs
import csv
import difflib
import io
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from decimal import ROUND_HALF_EVEN, Decimal
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from wattledger.errors import InputError
from wattledger.records import (
    Account,
    Activity,
    Amounts,
    Device,
    DeviceKind,
    Posting,
    Quality,
    StaticBasis,
)
from wattledger.store.protocol import ImportedEntry
from wattledger.timespan import parse_instant

REQUIRED = ("start", "end", "host", "device", "energy_j")
OPTIONAL = (
    "kind",
    "device_model",
    "workload",
    "job",
    "engine",
    "model",
    "activity",
    "prefill_tokens",
    "cached_tokens",
    "decode_tokens",
    "requests",
    "static_j",
    "device_s",
    "quality",
)
NAMES = ("host", "device", "device_model", "workload", "job", "engine", "model")
METHOD = "imported"
# Stores hold and sum signed 64-bit integers, so that one cell must leave room for the others.
LARGEST = 2**60
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d{1,3})?", re.ASCII | re.IGNORECASE)
_ENDLESS = re.compile(r"[+-]?(inf|infinity|s?nan)", re.IGNORECASE)

EnumT = TypeVar("EnumT", bound=StrEnum)


@dataclass(frozen=True, slots=True)
class EnergyFile:
    """What an Energy CSV says: entries in the order of their first rows, and what to tell of it.

    `rows` counts data rows; `notes` are one-line remarks for stderr.
    """

    entries: tuple[ImportedEntry, ...]
    rows: int
    notes: tuple[str, ...] = ()


def read_energy_csv(path: Path) -> EnergyFile:
    """Read and check an Energy CSV (contract.md, Files); UTF-8, with or without a BOM.

    Joules and seconds become microjoules and nanoseconds, each cell rounded half to even.
    Rows with the same host, device, window and account are added together; what overlaps by more
    than its device time is noted. Raises InputError that names the file, the line and the mend.
    """
    text = _text(path)
    rows = _rows(path, text)
    try:
        _, header = next(rows)
    except StopIteration:
        raise InputError(f"{path}, empty file: its first line must be a CSV header") from None
    columns, ignored = _columns(path, header)
    merged: dict[_Key, _Row] = {}
    count = 0
    for line, cells in rows:
        if len(cells) != len(header):
            raise InputError(
                f"{path}, line {line}: {len(cells)} cells under {len(header)} column names:"
                " quote cells that hold commas"
            )
        row = _Cells(f"{path}, line {line}", _named(columns, cells)).row()
        count += 1
        earlier = merged.get(row.key)
        merged[row.key] = row if earlier is None else earlier.plus(row)
    if not count:
        raise InputError(f"{path}: a header and no rows: nothing to import")
    entries = tuple(row.entry() for row in merged.values())
    notes = _notes(path, ignored, count - len(merged))
    return EnergyFile(entries, count, (*notes, *_crowded(path, entries)))


def _crowded(path: Path, entries: Iterable[ImportedEntry]) -> Iterator[str]:
    """A note where rows of one device claim more of its time than they cover."""
    devices: dict[tuple[str, str], list[Posting]] = {}
    for entry in entries:
        devices.setdefault((entry.host, entry.device.device), []).append(entry.posting)
    names = [" ".join(name) for name, postings in devices.items() if _overbooked(postings)]
    if names:
        named = ", ".join(names[:3]) + (" and others" if len(names) > 3 else "")
        yield (
            f"{path}: overlapping rows of {named} have more device time than they cover:"
            " give each its device_s, or embodied carbon counts twice"
        )


def _overbooked(postings: list[Posting]) -> bool:
    start_ns = end_ns = booked_ns = 0
    for posting in sorted(postings, key=lambda one: one.start_ns):
        if posting.start_ns >= end_ns:
            start_ns, end_ns, booked_ns = posting.start_ns, posting.end_ns, 0
        end_ns = max(end_ns, posting.end_ns)
        booked_ns += posting.amounts.device_ns
        if booked_ns > end_ns - start_ns:
            return True
    return False


def _notes(path: Path, ignored: list[str], added: int) -> tuple[str, ...]:
    notes = []
    if ignored:
        notes.append(f"{path}: columns the ledger has no place for, ignored: {', '.join(ignored)}")
    if added:
        notes.append(f"{path}: {added} rows repeat a device, window and account: added together")
    return tuple(notes)


def _text(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror}: name an Energy CSV that you may read"
        ) from error
    body = raw.removeprefix(codecs.BOM_UTF8)
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        line = body.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}, line {line}: not UTF-8: save the file as UTF-8") from error


def _rows(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Each row that is not blank, with the number of its first line."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    line = 1
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise InputError(f"{path}, line {line}: not CSV, {error}: mend its quotes") from error
        if any(cell.strip() for cell in cells):
            yield line, [cell.strip() for cell in cells]
        line = reader.line_num + 1


def _columns(path: Path, header: list[str]) -> tuple[dict[str, int], list[str]]:
    """Where each known column stands, and the names that are ignored."""
    where = f"{path}, line 1"
    known = (*REQUIRED, *OPTIONAL)
    twice = next((name for at, name in enumerate(header) if name in header[:at]), None)
    if twice is not None:
        raise InputError(f"{where}: column {twice!r} twice: keep one")
    missing = [name for name in REQUIRED if name not in header]
    if missing:
        raise InputError(
            f"{where}: missing column {missing[0]!r}: an Energy CSV starts with"
            f" {','.join(REQUIRED)}"
        )
    ignored = [name for name in header if name not in known]
    for name in ignored:
        near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.85)
        if near:
            raise InputError(f"{where}: unknown column {name!r}: did you mean {near[0]!r}?")
    return {name: at for at, name in enumerate(header) if name in known}, ignored


def _named(columns: Mapping[str, int], cells: list[str]) -> dict[str, str]:
    return {name: cells[at] for name, at in columns.items() if cells[at]}


@dataclass(frozen=True, slots=True)
class _Key:
    host: str
    device: Device
    start_ns: int
    end_ns: int
    account: Account


@dataclass(frozen=True, slots=True)
class _Row:
    """`whole` tells that no row said a device time, so that the window is it."""

    key: _Key
    amounts: Amounts
    whole: bool

    def plus(self, other: _Row) -> _Row:
        mine, theirs = self.amounts, other.amounts
        return replace(
            self,
            amounts=Amounts(
                mine.static_uj + theirs.static_uj,
                mine.dynamic_uj + theirs.dynamic_uj,
                mine.device_ns + theirs.device_ns,
                mine.prefill_tokens + theirs.prefill_tokens,
                mine.cached_tokens + theirs.cached_tokens,
                mine.decode_tokens + theirs.decode_tokens,
                mine.requests + theirs.requests,
            ),
            whole=self.whole or other.whole,
        )

    def entry(self) -> ImportedEntry:
        key = self.key
        amounts = self.amounts
        if self.whole:
            # However many rows leave the device time out, the window is there once.
            amounts = replace(amounts, device_ns=key.end_ns - key.start_ns)
        posting = Posting(key.device.device, key.account, key.start_ns, key.end_ns, amounts)
        return ImportedEntry(key.host, key.device, posting)


@dataclass(frozen=True, slots=True)
class _Cells:
    """One row's cells that are not empty, by column; `where` begins every complaint."""

    where: str
    cells: Mapping[str, str]

    def row(self) -> _Row:
        self._check_names()
        start_ns, end_ns = self._time("start"), self._time("end")
        if end_ns <= start_ns:
            raise self._error("end", "is not after start: a window must last")
        energy_uj = self._scaled("energy_j", 6)
        static_uj = self._scaled("static_j", 6)
        if static_uj > energy_uj:
            raise self._error("static_j", "is above energy_j: it is a part of it")
        device_ns = self._scaled("device_s", 9)
        if device_ns > end_ns - start_ns:
            raise self._error(
                "device_s", "is longer than the row's window: name its devices one by one"
            )
        device = Device(
            self._required("device"),
            self._choice("kind", DeviceKind, DeviceKind.GPU),
            self.cells.get("device_model"),
        )
        amounts = Amounts(
            static_uj,
            energy_uj - static_uj,
            device_ns,
            self._count("prefill_tokens"),
            self._count("cached_tokens"),
            self._count("decode_tokens"),
            self._count("requests"),
        )
        key = _Key(self._required("host"), device, start_ns, end_ns, self._account())
        return _Row(key, amounts, whole="device_s" not in self.cells)

    def _check_names(self) -> None:
        for column in NAMES:
            if any(unicodedata.category(char) == "Cc" for char in self.cells.get(column, "")):
                raise self._error(column, "holds a control character: take it out")

    def _account(self) -> Account:
        return Account(
            self._choice("activity", Activity, Activity.PROCESS),
            self._choice("quality", Quality, Quality.IMPORTED),
            METHOD,
            StaticBasis.GIVEN if "static_j" in self.cells else StaticBasis.UNKNOWN,
            self.cells.get("workload"),
            self.cells.get("job"),
            self.cells.get("engine"),
            self.cells.get("model"),
        )

    def _error(self, column: str, fault: str) -> InputError:
        return InputError(f"{self.where}: {column} {self.cells.get(column, '')!r} {fault}")

    def _required(self, column: str) -> str:
        if column not in self.cells:
            raise InputError(f"{self.where}: {column} is empty: every row needs one")
        return self.cells[column]

    def _time(self, column: str) -> int:
        text = self._required(column)
        if text.lower() == "now":
            raise self._error(column, "is no time of a record: write 2026-10-01T12:00:00Z")
        try:
            return parse_instant(text, 0)
        except InputError as error:
            raise InputError(f"{self.where}: {column}: {error}") from error

    def _number(self, column: str, wanted: str) -> Decimal:
        if column in REQUIRED:
            self._required(column)
        text = self.cells.get(column, "0")
        if _ENDLESS.fullmatch(text):
            raise self._error(column, f"is not a finite number: give {wanted}")
        if not _NUMBER.fullmatch(text):
            raise self._error(column, f"is not a number: give {wanted}")
        value = Decimal(text)
        if value < 0:
            raise self._error(column, f"is negative: give {wanted}")
        return value

    def _scaled(self, column: str, digits: int) -> int:
        """A cell in J or s as an integer in units of 10**-digits, rounded half to even."""
        value = self._number(column, "a number that is not negative, such as 12.5")
        if value * 10**digits > LARGEST:
            raise self._error(column, "is too large for a ledger: check its unit")
        return int(value.quantize(Decimal(1).scaleb(-digits), ROUND_HALF_EVEN).scaleb(digits))

    def _count(self, column: str) -> int:
        value = self._number(column, "a whole number")
        if value > LARGEST or value != value.to_integral_value():
            raise self._error(column, "is not a whole number: give one")
        return int(value)

    def _choice(self, column: str, choices: type[EnumT], default: EnumT) -> EnumT:
        text = self.cells.get(column, default.value)
        try:
            return choices(text)
        except ValueError:
            raise self._error(column, f"is unknown: use one of {', '.join(choices)}") from None
