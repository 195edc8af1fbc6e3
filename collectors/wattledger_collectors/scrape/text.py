"""Reads the few samples that are wanted off a Prometheus page.

The parser is Prometheus' own (prometheus-client, text format 0.0.4). Its work is in Python, and a
page has a thousand lines of histograms: it is given the lines that matter alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib.util import find_spec

from wattledger_collectors.scrape.protocol import ScrapeError

MEND = "pip install 'wattledger[prometheus]'"
_TOTAL = "_total"
_TOO_MUCH = 2.0**53
"""From here on a float no longer counts by ones."""

_MANY = 10_000


@dataclass(frozen=True, slots=True)
class Sample:
    """One line of a page; `name` without `_total`."""

    name: str
    labels: Mapping[str, str]
    value: float


def require_parser() -> None:
    """Raises ImportError, with the mend, where prometheus-client is not installed."""
    if find_spec("prometheus_client") is None:
        raise ImportError(f"prometheus_client is not installed: run {MEND}")


def samples(body: bytes, names: Collection[str]) -> list[Sample]:
    """The samples of these names, which are told apart with or without `_total`.

    Raises ScrapeError for a page that is cut off or not text, and for a sample that is no count:
    not finite, negative, or beyond 2^53.
    """
    wanted = {name.removesuffix(_TOTAL) for name in names}
    found: list[Sample] = []
    seen: set[tuple[str, frozenset[tuple[str, str]]]] = set()
    for name, labels, value in _parsed(_lines(body, tuple(wanted))):
        plain = name.removesuffix(_TOTAL)
        if plain not in wanted:
            continue
        if not 0.0 <= value < _TOO_MUCH:
            raise ScrapeError(f"{name} is {value}, which is no count")
        key = plain, frozenset(labels.items())
        if key in seen:
            raise ScrapeError(f"{name} is there twice with the same labels")
        seen.add(key)
        found.append(Sample(plain, labels, value))
    return found


def _lines(body: bytes, prefixes: tuple[str, ...]) -> str:
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise ScrapeError(f"the page is not UTF-8 at byte {error.start}") from None
    if text and not text.endswith("\n"):
        raise ScrapeError("the page ends in the middle of a line")
    # Comments are left out, types too: the parser then leaves names as they stand.
    lines = [line for line in text.split("\n") if line.startswith(prefixes)]
    if len(lines) > _MANY:
        raise ScrapeError(f"the page has {len(lines)} series of the engine's counters")
    return "\n".join(lines) + "\n"


def _parsed(text: str) -> list[tuple[str, Mapping[str, str], float]]:
    require_parser()
    from prometheus_client.parser import text_string_to_metric_families

    try:
        return [
            (sample.name, sample.labels, float(sample.value))
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        ]
    except (ValueError, IndexError, KeyError, TypeError) as error:
        raise ScrapeError(f"the page is no Prometheus text: {error}") from error
