"""What a step computed, summed over its requests."""

from __future__ import annotations

from typing import NamedTuple


class StepSum(NamedTuple):
    """One step's extent and its sums; `context_tokens` is what decodes attended to."""

    start_ns: int
    end_ns: int
    prefill_tokens: int
    decode_tokens: int
    context_tokens: int
