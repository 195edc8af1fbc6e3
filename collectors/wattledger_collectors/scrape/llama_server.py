"""llama.cpp's own `llama-server --metrics`; names read and run in the build of 0.3.36's sdist.

The counter of generated tokens moves at a request's end alone. What the running requests have
generated so far stands in `/slots`, and is added to it. The two pages are not of one moment: a
request that ends between them is missing from both until the next look, so this scraper holds
the highest sum that it has told, and never tells a token twice.

- Prompt tokens are those computed, cached ones apart; they move with the batch that first yields
  a token, so a prompt of many batches shows at its end. Embeddings are prompts.
- Nothing counts requests: none are told as finished, and cached tokens, which are booked with
  those, are not booked.
- Counters are printed with six digits: from a million on they move in tens, from ten million in
  hundreds. What is told lags or leads by less than that, and it does not add up.
- Each look at `/metrics` ends the window over which the server averages its own gauges
  `prompt_tokens_seconds` and `predicted_tokens_seconds`, whoever looks.
- `/slots` wakes a server that `--sleep-idle-seconds` put to sleep, `/metrics` does not: so it is
  asked at the first look and while requests run. `--no-slots`: tokens come at a request's end.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from urllib.parse import urlsplit, urlunsplit

from wattledger_collectors.scrape.protocol import Kind, Reading, ScrapeError, Series
from wattledger_collectors.scrape.text import samples

_COMPUTED = "llamacpp:prompt_tokens"
_CACHED = "llamacpp:prompt_tokens_cached"
_GENERATED = "llamacpp:tokens_predicted"
_DECODES = "llamacpp:n_decode"
_RUNNING = "llamacpp:requests_processing"
_COUNTERS = (_COMPUTED, _CACHED, _GENERATED, _DECODES)
_MOST_TOKENS = 2**31


class LlamaServerScraper:
    """Reads one server; it remembers the last look, so each server needs its own."""

    kind = "llama_server"
    mend = "start llama-server with --metrics"
    launchers: tuple[str, ...] = ()

    def __init__(self) -> None:
        self._last: Mapping[str, float] = {}
        self._generated = 0.0
        self._idle = False

    def pages(self, url: str) -> tuple[str, ...]:
        """The page of the config, then `/slots` beside it unless the server was idle."""
        parts = urlsplit(url)
        folder, found, _ = parts.path.rpartition("/metrics")
        if self._idle or not found:
            return (url,)
        return url, urlunsplit(parts._replace(path=f"{folder}/slots"))

    def read(self, bodies: tuple[bytes, ...]) -> Reading:
        """The pages as counters; raises ScrapeError. Without `/slots` only `/metrics` counts."""
        found = {
            s.name: s.value for s in samples(bodies[0], (*_COUNTERS, _RUNNING)) if not s.labels
        }
        running = found.pop(_RUNNING, None)
        self._idle = running == 0
        live = _live_tokens(bodies[1]) if len(bodies) > 1 and bodies[1] else 0
        generated = found.get(_GENERATED, 0.0) + live
        fell = any(value < self._last.get(name, 0.0) for name, value in found.items())
        self._last = found
        self._generated = generated if fell else max(self._generated, generated)
        counters = {
            Series(kind): found[name]
            for kind, name in ((Kind.PREFILL, _COMPUTED), (Kind.CACHED, _CACHED))
            if name in found
        }
        if _GENERATED in found:
            counters[Series(Kind.DECODE)] = self._generated
        at_work = None if running is None else int(running)
        return Reading(counters, 0 if counters else None, at_work, fell=fell)


def scraper() -> LlamaServerScraper:
    """A scraper of one llama-server."""
    return LlamaServerScraper()


def _live_tokens(body: bytes) -> int:
    """What the running requests have generated that `/metrics` does not count yet."""
    try:
        slots = json.loads(body)
    except (ValueError, RecursionError):
        raise ScrapeError("/slots is no JSON") from None
    if not isinstance(slots, list):
        raise ScrapeError("/slots is no list")
    return sum(_generated(slot) for slot in slots if isinstance(slot, dict))


def _generated(slot: dict[str, object]) -> int:
    # One that is done is in /metrics, whatever older builds leave standing here.
    if slot.get("is_processing") is not True:
        return 0
    token = slot.get("next_token")
    if isinstance(token, list):
        token = token[0] if token else None
    count = token.get("n_decoded") if isinstance(token, dict) else None
    if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count < _MOST_TOKENS:
        raise ScrapeError("/slots has a running slot without n_decoded")
    return count
