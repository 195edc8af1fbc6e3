"""What an engine computed in a stretch of time: passes, tokens and context, cut steps in part."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from wattledger_daemon.heart.passes import AGREE_NS
from wattledger_daemon.heart.step_sums import StepSum

_MANY = 2 - 1e-9
"""Whole passes that end within a prefill from which on it was computed in chunks beside them."""


class StepSums(NamedTuple):
    """Sums over a stretch; `steps` counts forward passes, a cut one in part."""

    steps: float = 0.0
    prefill_tokens: float = 0.0
    decode_tokens: float = 0.0
    context_tokens: float = 0.0


def step_sums(steps: Sequence[StepSum], start_ns: int, end_ns: int) -> StepSums:
    """Sums of what the steps computed in [start_ns, end_ns), each spread evenly over its time.

    A prefill that ran in chunks beside whole other steps made no passes of its own while those
    were under way: it counts as a pass only by the part of it that no other step covers.
    """
    passes = prefill = decode = context = 0.0
    chunked = _chunked(steps, start_ns, end_ns)
    for at, (low_ns, high_ns, prefilled, decoded, attended, once) in enumerate(steps):
        if high_ns > low_ns:
            part = max(min(high_ns, end_ns) - max(low_ns, start_ns), 0) / (high_ns - low_ns)
        else:
            part = 1.0 if start_ns <= low_ns < end_ns else 0.0
        passes += chunked.get(at, part * once)
        prefill += part * prefilled
        decode += part * decoded
        context += part * attended
    return StepSums(passes, prefill, decode, context)


def _chunked(steps: Sequence[StepSum], start_ns: int, end_ns: int) -> dict[int, float]:
    """How many passes each chunked prefill made alone in the stretch, by index."""
    if not any(one.end_ns > two.start_ns for one, two in pairwise(steps)):
        return {}
    others = sorted((s for s in steps if s.decode_tokens or not s.prefill_tokens), key=_end_ns)
    ends_ns = [step.end_ns for step in others]
    found: dict[int, float] = {}
    for at, step in enumerate(steps):
        low_ns, high_ns = max(step.start_ns, start_ns), min(step.end_ns, end_ns)
        if not step.prefill_tokens or step.decode_tokens or high_ns <= low_ns:
            continue
        # The pass before may be told by another front end, and a little later.
        first = bisect_right(ends_ns, low_ns + AGREE_NS)
        last = bisect_right(ends_ns, high_ns)
        beside = sum(other.passes for other in others[first:last])
        if beside + step.passes % 1.0 >= _MANY:
            alone_ns = high_ns - low_ns - _covered_ns(others[first : last + 1], low_ns, high_ns)
            found[at] = alone_ns / (step.end_ns - step.start_ns)
    return found


def _covered_ns(steps: Sequence[StepSum], low_ns: int, high_ns: int) -> int:
    """How much of a stretch the steps cover together."""
    covered_ns, reached_ns = 0, low_ns
    for step in sorted(steps):
        edge_ns = min(step.end_ns, high_ns)
        covered_ns += max(edge_ns - max(step.start_ns, reached_ns), 0)
        reached_ns = max(reached_ns, edge_ns)
    return covered_ns


def _end_ns(step: StepSum) -> int:
    return step.end_ns
