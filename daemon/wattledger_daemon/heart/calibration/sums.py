"""What an engine computed in a stretch of time: passes, tokens and context, cut steps in part."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import NamedTuple

_MANY = 2
"""Whole steps that end within a prefill from which on it was computed in chunks beside them."""


class StepTotals(NamedTuple):
    """One step in [start_ns, end_ns), its tokens summed over its requests."""

    start_ns: int
    end_ns: int
    prefill_tokens: int
    decode_tokens: int
    context_tokens: int


class StepSums(NamedTuple):
    """Sums over a stretch; `steps` counts forward passes, a cut one in part."""

    steps: float = 0.0
    prefill_tokens: float = 0.0
    decode_tokens: float = 0.0
    context_tokens: float = 0.0


def step_sums(steps: Sequence[StepTotals], start_ns: int, end_ns: int) -> StepSums:
    """Sums of what the steps computed in [start_ns, end_ns), each spread evenly over its time.

    A prefill that ran in chunks beside whole other steps made no passes of its own while those
    were under way: it counts as a pass only by the part of it that no other step covers.
    """
    passes = prefill = decode = context = 0.0
    chunked = _chunked(steps)
    for at, (low_ns, high_ns, prefilled, decoded, attended) in enumerate(steps):
        length_ns = high_ns - low_ns
        if length_ns > 0:
            part = (min(high_ns, end_ns) - max(low_ns, start_ns)) / length_ns
            part = max(part, 0.0)
        else:
            part = 1.0 if start_ns <= low_ns < end_ns else 0.0
        passes += part * chunked.get(at, 1.0)
        prefill += part * prefilled
        decode += part * decoded
        context += part * attended
    return StepSums(passes, prefill, decode, context)


def _chunked(steps: Sequence[StepTotals]) -> dict[int, float]:
    """How much of a pass each chunked prefill was, by index."""
    if not any(one.end_ns > two.start_ns for one, two in zip(steps, steps[1:], strict=False)):
        return {}
    suspects = [at for at, step in enumerate(steps) if step[2] and not step[3]]
    others = sorted((step for step in steps if step[3] or not step[2]), key=lambda s: s.end_ns)
    ends_ns = [step.end_ns for step in others]
    found: dict[int, float] = {}
    for at in suspects:
        low_ns, high_ns = steps[at].start_ns, steps[at].end_ns
        inside = bisect_right(ends_ns, high_ns) - bisect_right(ends_ns, low_ns)
        if inside < _MANY:
            continue
        beside = others[bisect_right(ends_ns, low_ns) : bisect_left(ends_ns, high_ns) + 1]
        covered_ns, reached_ns = 0, low_ns
        for step in sorted(beside):
            edge_ns = min(step.end_ns, high_ns)
            covered_ns += max(edge_ns - max(step.start_ns, reached_ns), 0)
            reached_ns = max(reached_ns, edge_ns)
        found[at] = 1.0 - covered_ns / (high_ns - low_ns)
    return found
