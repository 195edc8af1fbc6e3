"""What vLLM's own statistics say of a step, for where its outputs cannot be read.

`SchedulerStats` and `IterationStats` are no stable interfaces (vllm/v1/metrics/loggers.py): every
field is read with a default. Read in 0.32.0; fields since when: see each.
"""

from __future__ import annotations

from typing import Any

from wattledger_collectors.engines.vllm_steps import Timeline

_NS_PER_S = 1_000_000_000
_NS_PER_MS = 1_000_000


def length_ns(scheduler_stats: Any) -> int | None:
    """How long a step took by the engine's own clock (`--enable-logging-iteration-details`)."""
    details = getattr(scheduler_stats, "iteration_details", None)
    elapsed_ms = getattr(details, "elapsed_ms", None)
    if not isinstance(elapsed_ms, (int, float)) or not 0 < elapsed_ms < 1e9:
        return None
    return round(elapsed_ms * _NS_PER_MS)


def tell_totals(timeline: Timeline, stats: Any, now_ns: int) -> None:
    """A step as one part of nobody's, and how many requests ended with it.

    Its end is now; it lasted no longer than since the token before, or since the arrival of its
    first one. Before 0.16 the prompt's cached tokens are not told apart and count as prefill.
    """
    sources = getattr(stats, "prompt_token_stats", None)
    prefill = getattr(sources, "computed", None)
    if isinstance(prefill, int):
        prefill = _count(sources, "computed")
    else:
        prefill = _count(stats, "num_prompt_tokens")
    decode = _count(stats, "num_generation_tokens")
    firsts = _times(stats, "time_to_first_tokens_iter")
    between = _times(stats, "inter_token_latencies_iter")
    owed = min(len(firsts), decode) if prefill else 0
    longest_s = max(between or firsts, default=0.0)
    start_ns = max(timeline.end_ns, now_ns - round(longest_s * _NS_PER_S))
    if prefill or decode:
        timeline.tell_nobody(start_ns, now_ns, prefill, decode - owed, owed)
    finished = getattr(stats, "finished_requests", None)
    if isinstance(finished, list) and finished:
        prompt = sum(_count(one, "num_prompt_tokens") for one in finished)
        cached = sum(_count(one, "num_cached_tokens") for one in finished)
        made = sum(_count(one, "num_generation_tokens") for one in finished)
        model, count = timeline.place.model, len(finished)
        timeline.add(("tally", model, now_ns, count, prompt, min(cached, prompt), made))


def _count(thing: Any, name: str) -> int:
    value = getattr(thing, name, 0)
    return value if isinstance(value, int) and 0 < value < 2**31 else 0


def _times(stats: Any, name: str) -> list[float]:
    found = getattr(stats, name, None)
    if not isinstance(found, list):
        return []
    return [value for value in found if isinstance(value, float) and 0 < value < 1e6]
