"""What a step costs each request and phase.

v(S) = f*[S not empty] + sum(a*prefill + b*decode + c*context). Its Shapley value is f/n plus
the request's own cost: exact, closed-form, and only ever a weight, because the total is the
meter's. S are the requests of a forward pass, of which several steps may tell (`passes.py`).
A request's f/n follows its own phase mix; its context belongs to its decode, to its prefill
where it decodes nothing. Source: accounting.md section 3, vectors V2 and V9.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from wattledger.records import CostModel
from wattledger_daemon.heart.attribution.steps import Weighed
from wattledger_daemon.heart.passes import Told, passes
from wattledger_daemon.heart.runs import Block, Run
from wattledger_daemon.heart.step_sums import StepSum

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

    def sums(self) -> Iterator[StepSum]:
        """Each step summed over its requests, by time."""
        told_by = self._told_by()
        for place, (number, index) in enumerate(self.places):
            block = self.blocks[number]
            yield StepSum(
                block.starts_ns[index],
                block.ends_ns[index],
                block.prefill_tokens[index],
                block.decode_tokens[index],
                block.context_tokens[index],
                told_by.get(place, 1.0),
            )

    def weighed(self, cost: CostModel) -> Iterator[Weighed]:
        """Each step's extent and cost v; f + b where its breakdown is unknown.

        A pass has one f, which goes by heads among all that its steps tell of.
        """
        parts = self._parts_of_passes()
        for place, (number, index) in enumerate(self.places):
            block = self.blocks[number]
            of_pass = parts.get(place, 1.0)
            weight_j = of_pass * cost.f_j + (
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
                of_pass,
            )

    def _passes(self) -> list[list[int]]:
        """Places of each pass that is told more than once; a step without a breakdown is none's."""
        known = [at for at, (number, i) in enumerate(self.places) if self.blocks[number].counts[i]]
        told = []
        for number, index in map(self.places.__getitem__, known):
            block = self.blocks[number]
            told.append(Told(block.starts_ns[index], block.ends_ns[index], block.source))
        return [[known[at] for at in group] for group in passes(told)]

    def _parts_of_passes(self) -> dict[int, float]:
        """By place: its requests' part of all in the pass."""
        found: dict[int, float] = {}
        for group in self._passes():
            counts = [self._block(at).counts[self.places[at].at] for at in group]
            requests = sum(counts)
            found |= {at: count / requests for at, count in zip(group, counts, strict=True)}
        return found

    def _told_by(self) -> dict[int, float]:
        """By place: one by how many front ends told of the pass; a prompt in chunks is no teller.

        A front end's own step of the pass is the latest to begin of those it told.
        """
        found: dict[int, float] = {}
        for group in self._passes():
            own = {self._block(at).source: at for at in sorted(group)}
            found |= dict.fromkeys(own.values(), 1.0 / len(own))
        return found

    def _block(self, place: int) -> Block:
        return self.blocks[self.places[place].block]


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
            found.append(
                Price(1.0 / step.weight_j, step.of_pass * cost.f_j / count / step.weight_j)
            )
        else:
            found.append(Price(0.0, 1.0 / step.phases))
    return found


def prefill_mix(run: Run, cost: CostModel) -> float:
    """The part of its own cost that a request which does both in one step has by its prefill."""
    prefill_j = cost.a_j * run.prefill_tokens
    own_j = prefill_j + cost.b_j * run.decode_tokens + cost.c_j * run.context_tokens
    return prefill_j / own_j if own_j > 0.0 else 1.0
