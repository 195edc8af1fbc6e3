"""What an engine computed in a stretch of time, summed over its steps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class StepSums:
    """Sums over the parts of an engine's steps that lie in a stretch; cut steps count in part.

    A step cut by an edge counts linearly in time, a step of no length counts whole where it
    stands. `context_tokens` is what decodes attended to; `busy_ns` the length of the steps' union.
    """

    steps: float = 0.0
    prefill_tokens: float = 0.0
    decode_tokens: float = 0.0
    context_tokens: float = 0.0
    busy_ns: int = 0


class StepSum(NamedTuple):
    """One step's extent and its sums over requests."""

    start_ns: int
    end_ns: int
    prefill_tokens: int
    decode_tokens: int
    context_tokens: int


def step_sums(steps: Iterable[StepSum], start_ns: int, end_ns: int) -> StepSums:
    """The sums of `steps`, which ascend by start and touch [start_ns, end_ns)."""
    count = prefill = decode = context = 0.0
    busy_ns = 0
    reached_ns = start_ns
    for step in steps:
        low_ns, high_ns = max(step.start_ns, start_ns), min(step.end_ns, end_ns)
        length_ns = step.end_ns - step.start_ns
        share = (high_ns - low_ns) / length_ns if length_ns else 1.0
        count += share
        prefill += step.prefill_tokens * share
        decode += step.decode_tokens * share
        context += step.context_tokens * share
        if high_ns > reached_ns:
            busy_ns += high_ns - max(low_ns, reached_ns)
            reached_ns = high_ns
    return StepSums(count, prefill, decode, context, busy_ns)
