"""Reads `[scrape]`: which engines are read by their Prometheus pages."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path

from wattledger_daemon.export.addresses import http_url
from wattledger_daemon.settings import absolute_path, named, number, text

_LONGEST_NAME = 200


@dataclass(frozen=True, slots=True)
class ScrapeTarget:
    """One engine: which scraper reads it where, how often, and whose it is.

    `model` None takes what the engine says. A period is below 10 s, in which a window closes.
    """

    engine: str
    url: str
    period_s: float = 1.0
    model: str | None = None
    workload: str | None = None
    job: str | None = None
    headers_file: Path | None = None


def _short_text(value: object) -> str:
    if len(read := text(value)) > _LONGEST_NAME:
        raise ValueError(f"must be at most {_LONGEST_NAME} characters")
    return read


_READERS: Mapping[str, Callable[[object], object]] = {
    "engine": text,
    "url": http_url,
    "period_s": number(0.2, 5.0),
    "model": _short_text,
    "workload": _short_text,
    "job": _short_text,
    "headers_file": absolute_path,
}
_NEEDED = tuple(field.name for field in fields(ScrapeTarget) if field.default is MISSING)


def scrape_targets(value: object) -> Mapping[str, ScrapeTarget]:
    """Reader of the whole table, by the names that the engines get in the ledger."""
    targets = named(_target)(value)
    by_url: dict[str, str] = {}
    for name, target in targets.items():
        if not name.isprintable() or not name.strip() or len(name) > _LONGEST_NAME:
            raise ValueError(f"must have names of at most {_LONGEST_NAME} printable characters")
        other = by_url.setdefault(target.url, name)
        if other != name:
            raise ValueError(f"must not read one url twice, as {other} and {name} do")
    return targets


def _target(value: object) -> ScrapeTarget:
    if not isinstance(value, dict) or not all(key in value for key in _NEEDED):
        raise ValueError(f"must be a table with at least {' and '.join(_NEEDED)}")
    read: dict[str, object] = {}
    for key, item in value.items():
        if key not in _READERS:
            near = difflib.get_close_matches(key, _READERS, n=1, cutoff=0.5)
            mend = f"did you mean {near[0]}?" if near else f"known here: {', '.join(_READERS)}"
            raise ValueError(f"must have no key {key!r} ({mend})")
        try:
            read[key] = _READERS[key](item)
        except ValueError as error:
            raise ValueError(f"{key} {error}") from error
    return ScrapeTarget(**read)  # type: ignore[arg-type]
