"""Which steps are one forward pass: an engine may tell of a pass more than once.

Several front ends of one engine (vLLM's API servers) each tell of their own requests in a pass.
And a prompt that was computed in chunks is told as a step of its own, which ends with the pass
that computed its last chunk. A pass costs its f once, however often it is told. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from wattledger.records import NS_PER_S

AGREE_NS = NS_PER_S // 1000
"""Ends of one pass lie no further apart: each front end reads the engine's stamp as a float."""


class Told(NamedTuple):
    """A step's extent, and who told it."""

    start_ns: int
    end_ns: int
    source: str


@dataclass(slots=True)
class _Pass:
    end_ns: int
    steps: list[int] = field(default_factory=list)
    ends_ns: dict[str, int] = field(default_factory=dict)

    def has(self, step: Told) -> bool:
        """Whether a step that ends no earlier than any here is of this pass."""
        own_ns = self.ends_ns.get(step.source)
        if own_ns is not None:
            return own_ns == step.end_ns
        # Passes of less than a millisecond follow each other within one.
        return step.end_ns - self.end_ns <= AGREE_NS and step.start_ns < self.end_ns


def passes(steps: Sequence[Told]) -> list[list[int]]:
    """Indices of the steps of each pass of one engine that is told more than once.

    Steps of different sources are one pass where they overlap and end within 1 ms of each other,
    those of one source where they end at the same nanosecond. One of no length is in no pass.
    """
    order = sorted((step.end_ns, step.start_ns, step.source, at) for at, step in enumerate(steps))
    found: list[_Pass] = []
    live: list[_Pass] = []
    for end_ns, start_ns, _, at in order:
        if end_ns == start_ns:
            continue
        step = steps[at]
        live = [item for item in live if end_ns - item.end_ns <= AGREE_NS]
        # The latest first: its end is the nearest.
        mine = next((item for item in reversed(live) if item.has(step)), None)
        if mine is None:
            mine = _Pass(end_ns)
            live.append(mine)
            found.append(mine)
        mine.steps.append(at)
        mine.ends_ns[step.source] = end_ns
    return [item.steps for item in found if len(item.steps) > 1]
