"""What a scraper is: pages in, cumulative counters out. Pure.

A scraper is found by its name among the entry points of the group `wattledger.scrapers`, each a
callable without arguments that makes one scraper per engine. Most are a table of names
(`names.py`); one that has to join several pages writes the three methods itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import EntryPoint, entry_points
from typing import NamedTuple, Protocol

SCRAPERS = "wattledger.scrapers"


class ScrapeError(Exception):
    """A page that cannot be used; the text says why and, where one is known, the mend."""


class NoAnswerError(ScrapeError):
    """Nobody answered, or not in time."""


class NoPageError(ScrapeError):
    """Somebody answered, and has no such page."""


class Kind(StrEnum):
    """What a series counts. PROMPT is the whole prompt, cached tokens included."""

    PREFILL = "prefill_tokens"
    PROMPT = "prompt_tokens"
    CACHED = "cached_tokens"
    DECODE = "decode_tokens"
    FINISHED = "finished_requests"


class Series(NamedTuple):
    """One counter of one label set.

    Tier 0 is the best source of tokens, the others stand in as long as it was never seen.
    `labels` tell series apart that add up, `replica` those that count the same again (the
    highest counts), `epoch` those whose counters start anew without the others' doing so.
    """

    kind: Kind
    tier: int = 0
    labels: tuple[tuple[str, str], ...] = ()
    replica: str = ""
    epoch: str = ""


@dataclass(frozen=True, slots=True)
class Reading:
    """What an engine's pages said at one time: cumulative counts, all of them 0 or more.

    `tier` is the best one that the pages have counters of, None for none yet. `running` is how
    many requests the engine works on, None where it does not say; `model` what it serves, ""
    where that is not told or not one; `started_s` when its process began, UTC, 0 where untold;
    `fell` whether the scraper saw something fall that `counters` do not show.
    """

    counters: Mapping[Series, float]
    tier: int | None = 0
    running: int | None = None
    model: str = ""
    started_s: float = 0.0
    fell: bool = False


class Scraper(Protocol):
    """Reads one engine's pages.

    `kind` names the engine's kind in the ledger; `mend` says how its metrics are switched on.
    `launchers` are commands whose other children are the engine's workers, too.
    """

    @property
    def kind(self) -> str:
        """The engine's kind, "sglang" say."""

    @property
    def mend(self) -> str:
        """How the engine is made to tell, for a fault's one line."""

    @property
    def launchers(self) -> tuple[str, ...]:
        """File names of commands that start the engine's processes beside each other."""

    def pages(self, url: str) -> tuple[str, ...]:
        """The URLs to ask now, in order, for the one in the config; asked before each scrape."""

    def read(self, bodies: tuple[bytes, ...]) -> Reading:
        """The bodies of those pages as counters; raises ScrapeError.

        The first page was there; any other one that could not be had is empty.
        """


def find_scrapers() -> Mapping[str, Callable[[], Scraper]]:
    """Makers of scrapers by name, unloaded until called; raises ImportError then."""

    def maker(entry: EntryPoint) -> Callable[[], Scraper]:
        def make() -> Scraper:
            found: Callable[[], Scraper] = entry.load()
            return found()

        return make

    return {entry.name: maker(entry) for entry in entry_points(group=SCRAPERS)}


def model_of(values: Iterable[str]) -> str:
    """The one model that labels name; "" for none or several."""
    names = set(values) - {""}
    return names.pop() if len(names) == 1 else ""
