"""Binds a TOML document to frozen dataclasses, and says which key is wrong and how to mend it.

A field is annotated `Annotated[T, reader]`: the reader turns the raw TOML value into a T or
raises ValueError saying what the value must be. A field whose type is another such dataclass
is a table.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar, get_args, get_type_hints

from wattledger.errors import InputError

T = TypeVar("T")
_USER_INFO = re.compile(r"^([^@]*?://|['\"])?.*@")


def parse(cls: type[T], text: str, where: str) -> T:
    """Bind a whole TOML document.

    Raises InputError naming `where`, the key path and the mend for bad TOML, an unknown key, a
    value of the wrong type or out of range.
    """
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{where}: not TOML: {error}: mend that line") from error
    return bind(cls, raw, where, "")


def load(cls: type[T], path: Path) -> T:
    """Bind a TOML file; raises InputError as `parse` does, and for a file that cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"{path}: cannot read the config: {error.strerror}: mend the path or its permissions"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}: save it as UTF-8") from error
    return parse(cls, text, str(path))


def bind(cls: type[T], raw: Mapping[str, object], where: str, path: str) -> T:
    """Bind one table whose key path starts with `path` ("" or "ledger.").

    Raises InputError for the first key that is unknown or wrong.
    """
    hints = get_type_hints(cls, include_extras=True)
    values: dict[str, object] = {}
    for key, value in raw.items():
        if key not in hints:
            raise InputError(f"{where}: {path}{key}: unknown key, {_nearest(key, hints)}")
        values[key] = _value(hints[key], value, where, f"{path}{key}")
    return cls(**values)


def changed(before: object, after: object, path: str = "") -> list[str]:
    """Key paths whose values differ between two settings of one class, in field order."""
    paths: list[str] = []
    for field in dataclasses.fields(before):  # type: ignore[arg-type]
        old, new = getattr(before, field.name), getattr(after, field.name)
        if dataclasses.is_dataclass(old):
            paths += changed(old, new, f"{path}{field.name}.")
        elif old != new:
            paths.append(path + field.name)
    return paths


def _value(hint: object, value: object, where: str, path: str) -> object:
    if isinstance(hint, type):
        if not isinstance(value, dict):
            raise InputError(f"{where}: {path}: must be a table, written [{path}]")
        return bind(hint, value, where, f"{path}.")
    read: Callable[[object], object] = get_args(hint)[1]
    try:
        return read(value)
    except ValueError as error:
        raise InputError(f"{where}: {path}: {error}, not {_shown(value)}") from error


def _nearest(key: str, known: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"


def _shown(value: object) -> str:
    """A value as an error shows it, without what may be a user and password before an `@`."""
    text = _USER_INFO.sub(r"\1***@", repr(value))
    return text if len(text) <= 60 else f"{text[:57]}..."


def number(low: float, high: float) -> Callable[[object], float]:
    """Reader of a number in [low, high]; NaN is refused with the rest."""

    def read(value: object) -> float:
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not low <= value <= high
        ):
            raise ValueError(f"must be a number from {low:g} to {high:g}")
        return float(value)

    return read


def one_of(*choices: T) -> Callable[[object], T]:
    """Reader of one of a few values."""

    def read(value: object) -> T:
        for choice in choices:
            if type(value) is type(choice) and value == choice:
                return choice
        raise ValueError(f"must be one of {', '.join(map(repr, choices))}")

    return read


def text(value: object) -> str:
    """Reader of a string that says something, on one line."""
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise ValueError("must be a non-empty line of text")
    return value


def absolute_path(value: object) -> Path:
    """Reader of an absolute path: a daemon's working directory is nobody's choice."""
    if not isinstance(value, str) or "\0" in value or not Path(value).is_absolute():
        raise ValueError("must be an absolute path")
    return Path(value)


def named(read: Callable[[object], T]) -> Callable[[object], Mapping[str, T]]:
    """Reader of a table whose keys are the user's own names."""

    def read_all(value: object) -> Mapping[str, T]:
        if not isinstance(value, dict):
            raise ValueError("must be a table of NAME = VALUE")
        values: dict[str, T] = {}
        for name, item in value.items():
            try:
                values[name] = read(item)
            except ValueError as error:
                raise ValueError(f"{name} {error}") from error
        return values

    return read_all
