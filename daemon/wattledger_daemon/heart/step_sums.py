"""What a step computed, summed over its requests."""

from __future__ import annotations

from typing import NamedTuple


class StepSum(NamedTuple):
    """One step's extent and its sums; `context_tokens` is what decodes attended to.

    `passes` is below 1 where several front ends told of one forward pass: together they are one.
    """

    start_ns: int
    end_ns: int
    prefill_tokens: int
    decode_tokens: int
    context_tokens: int
    passes: float = 1.0
