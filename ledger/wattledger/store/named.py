"""One request by its name, finished or not: what a ledger holds of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from wattledger.records import QUALITY_ORDER, Quality


class NameRule(Protocol):
    """Which names of requests are meant: the plain ones, and those in the ranges that it keeps."""

    @property
    def plain(self) -> Sequence[str]:
        """Names that are meant as they stand."""

    def ranges(self) -> Sequence[tuple[str, str]]:
        """Stretches [low, high) of the order of text in which the others lie."""

    def is_sure(self, name: str) -> bool:
        """Whether a name is meant."""

    def is_likely(self, name: str) -> bool:
        """Whether a name is meant where none is surely."""


@dataclass(frozen=True, slots=True)
class RequestKey:
    """What makes a request itself: ids are an engine's own, and may come again after a boot."""

    host: str
    boot_id: str
    engine: str
    request: str


@dataclass(frozen=True, slots=True)
class NamedRequest:
    """A request's tokens and energy, summed over windows, devices, and finishes of one id.

    `finished_ns` is UTC and None while it runs; prompt, cached and decode tokens are then those
    of its steps, and afterwards the engine's own figures. `last_ns` ends the last window, UTC.
    """

    key: RequestKey
    model: str | None = None
    workload: str | None = None
    job: str | None = None
    finished_ns: int | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    decode_tokens: int = 0
    prefill_tokens: int = 0
    prefill_uj: int = 0
    decode_uj: int = 0
    methods: frozenset[str] = field(default=frozenset())
    qualities: frozenset[Quality] = field(default=frozenset())
    last_ns: int = 0

    @property
    def energy_uj(self) -> int:
        """Prefill and decode together, microjoules."""
        return self.prefill_uj + self.decode_uj

    @property
    def method(self) -> str:
        """How it was found, `none` where no posting names the request."""
        return "+".join(sorted(self.methods)) or "none"

    @property
    def quality(self) -> Quality:
        """The worst of its parts."""
        return max(self.qualities, key=QUALITY_ORDER.index, default=Quality.ESTIMATED)


class RequestLookup(Protocol):
    """A ledger that finds requests by name."""

    def named(self, rule: NameRule) -> list[NamedRequest]:
        """Every request that is meant, the latest first; at most 100."""


def the_meant(rule: NameRule, names: Sequence[str]) -> set[str]:
    """Those of `names` that are meant: the sure ones, else the likely ones."""
    sure = {name for name in names if rule.is_sure(name)}
    return sure or {name for name in names if rule.is_likely(name)}
