"""What a step costs each request and phase.

v(S) = f*[S not empty] + sum(a*prefill + b*decode + c*context). Its Shapley value is f/n plus
the request's own cost: exact, closed-form, and only ever a weight, because the total is the
meter's. A request's f/n follows its own phase mix; its context belongs to its decode, to its
prefill where it decodes nothing. Source: accounting.md section 3, vectors V2 and V9.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from wattledger.records import CostModel
from wattledger_daemon.heart.attribution.steps import Weighed
from wattledger_daemon.heart.runs import Block, Run

_LEAST_J = 1e-200
"""A weight below it is none: energy over it would overflow."""


class Place(NamedTuple):
    """Where a step of a window stands: which block, and where in it."""

    block: int
    at: int


@dataclass(frozen=True, slots=True)
class WindowSteps:
    """An engine's steps that touch a window, in order of time: the blocks they are in, and where.

    A step is named by its place in `places` from here on.
    """

    blocks: Sequence[Block]
    places: Sequence[Place]

    @classmethod
    def of(cls, blocks: Sequence[Block], start_ns: int, end_ns: int) -> WindowSteps:
        """Steps that overlap [start_ns, end_ns), and those of no length that lie in it."""
        found = [
            (start, end, block.seqs[index], number, index)
            for number, block in enumerate(blocks)
            for index, (start, end) in enumerate(zip(block.starts_ns, block.ends_ns, strict=True))
            if start < end_ns and (end > start_ns or start >= start_ns)
        ]
        return cls(blocks, [Place(*key[3:]) for key in sorted(found)])

    def sums(self) -> Iterator[tuple[int, int, int, int, int]]:
        """Each step's extent, and its prefill, decode and context tokens."""
        for number, index in self.places:
            block = self.blocks[number]
            yield (
                block.starts_ns[index],
                block.ends_ns[index],
                block.prefill_tokens[index],
                block.decode_tokens[index],
                block.context_tokens[index],
            )

    def weighed(self, cost: CostModel) -> Iterator[Weighed]:
        """Each step's extent and cost v; f + b where its breakdown is unknown."""
        for number, index in self.places:
            block = self.blocks[number]
            weight_j = cost.f_j + (
                cost.a_j * block.prefill_tokens[index]
                + cost.b_j * block.decode_tokens[index]
                + cost.c_j * block.context_tokens[index]
            )
            count = block.counts[index]
            yield Weighed(
                block.starts_ns[index],
                block.ends_ns[index],
                weight_j if count else cost.f_j + cost.b_j,
                max(count + block.mixed[index], 1),
            )


class Price(NamedTuple):
    """What a microjoule of a step is worth: per joule of cost, and per request beside it.

    All-zero weights share equally. Without a breakdown nobody has a share.
    """

    per_j: float
    per_request: float


def prices(steps: WindowSteps, weighed: Sequence[Weighed], cost: CostModel) -> list[Price]:
    """Each step's price, in the steps' order."""
    found = []
    for (number, index), step in zip(steps.places, weighed, strict=True):
        count = steps.blocks[number].counts[index]
        if not count:
            found.append(Price(0.0, 0.0))
        elif step.weight_j > _LEAST_J:
            found.append(Price(1.0 / step.weight_j, cost.f_j / count / step.weight_j))
        else:
            found.append(Price(0.0, 1.0 / step.phases))
    return found


def prefill_mix(run: Run, cost: CostModel) -> float:
    """The part of its own cost that a request which does both in one step has by its prefill."""
    prefill_j = cost.a_j * run.prefill_tokens
    own_j = prefill_j + cost.b_j * run.decode_tokens + cost.c_j * run.context_tokens
    return prefill_j / own_j if own_j > 0.0 else 1.0
