"""Level 2, further: a step's energy among its requests and phases, by sums over runs.

With u(s) a step's energy per joule of its cost, a run of tokens in the steps [i, j) has
tokens * (U(j) - U(i)), U being the sum of u before a step. The sums are whole numbers (of
2**-64 uJ), so that a run may be cut anywhere and the figures stay what they are.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, compress
from typing import NamedTuple

from wattledger.apportion import between
from wattledger.records import Activity, CostModel
from wattledger_daemon.heart.attribution.cost import (
    WindowSteps,
    prefill_mix,
    prices,
)
from wattledger_daemon.heart.attribution.steps import Parts, Quantities, Weighed
from wattledger_daemon.heart.attribution.whose import Key, Owner, Whose
from wattledger_daemon.heart.runs import Block, Run

_UNIT = 2.0**64


class Phase(NamedTuple):
    """One request's phase; `owner` is (workload, job)."""

    activity: Activity
    owner: Owner
    request: str


class _Line(NamedTuple):
    """A run's tokens of one phase: `tokens` in each step of [first, stop)."""

    phase: int
    first: int
    stop: int
    tokens: int


class _Context(NamedTuple):
    """A run's context: that of a step i is `base` + `growth` * i."""

    phase: int
    first: int
    stop: int
    base: int
    growth: int


class _Mixed(NamedTuple):
    """A request that both prefills and decodes in one step, and by how much it prefills."""

    prefill: int
    decode: int
    step: int
    mix: float


@dataclass(slots=True)
class _Lines:
    """What a block's runs say of a window, by phase."""

    tokens: list[_Line] = field(default_factory=list)
    beside: list[_Line] = field(default_factory=list)
    contexts: list[_Context] = field(default_factory=list)
    mixed: list[_Mixed] = field(default_factory=list)


class Phases:
    """The requests' phases of an engine in a window, in the order of `known`.

    One whose id came again as another client's has one for each. Built once per engine and window,
    then asked by every device.
    """

    def __init__(
        self,
        steps: WindowSteps,
        weighed: Sequence[Weighed],
        cost: CostModel,
        whose: Whose,
    ) -> None:
        self._steps, self._weighed, self._cost = steps, weighed, cost
        self._prices = prices(steps, weighed, cost)
        self._fixed = any(price.per_request for price in self._prices)
        # By block: of each of its steps, the place in the window's order, None outside.
        self._places: list[list[int | None]] = [[None] * len(block) for block in steps.blocks]
        for place, (number, index) in enumerate(steps.places):
            self._places[number][index] = place
        runs = [
            [part for run in _touching(block, places) for part in whose.cut(block, run)]
            for block, places in zip(steps.blocks, self._places, strict=True)
        ]
        phases = _phases(runs, whose)
        self.known = sorted({p for found in phases for p in found.values()}, key=_order)
        places_of = {phase: place for place, phase in enumerate(self.known)}
        decodes, prefills = (
            {key: places_of[phase] for key, phase in found.items()} for found in phases
        )
        self._lines = [self._lines_of(found, decodes, prefills) for found in runs]

    def _lines_of(
        self, runs: Iterable[tuple[Key, Run]], decodes: dict[Key, int], prefills: dict[Key, int]
    ) -> _Lines:
        lines = _Lines()
        context = self._cost.c_j > 0.0
        for name, run in runs:
            _, first, stop, prefill, decode, attended, growth = run
            if prefill:
                lines.tokens.append(_Line(prefills[name], first, stop, prefill))
            if decode:
                lines.tokens.append(_Line(decodes[name], first, stop, decode))
            own = decodes[name] if decode else prefills[name]
            if context:
                lines.contexts.append(_Context(own, first, stop, attended - growth * first, growth))
            if prefill and decode:
                mix = prefill_mix(run, self._cost)
                lines.mixed.append(_Mixed(prefills[name], own, first, mix))
            elif self._fixed:
                lines.beside.append(_Line(own, first, stop, 1))
        return lines

    # -------------------------------------------------------------------- energy

    def split(self, parts: Parts) -> list[tuple[float, float, float]]:
        """Static energy, dynamic energy and time of each phase in `known`."""
        return list(zip(*(self._column(column) for column in parts.columns), strict=True))

    def unknown(self, parts: Parts) -> Quantities:
        """What belongs to steps without a breakdown."""
        nobody = [
            not self._steps.blocks[number].counts[index] for number, index in self._steps.places
        ]
        return Quantities(*(sum(compress(column, nobody)) for column in parts.columns))

    def _column(self, column: Sequence[float]) -> list[float]:
        if not any(column):
            return [0.0] * len(self.known)
        tokens, beside, contexts = ([0] * len(self.known) for _ in range(3))
        for places, lines in zip(self._places, self._lines, strict=True):
            worth = [
                0 if place is None else int(column[place] * self._prices[place].per_j * _UNIT)
                for place in places
            ]
            sums = list(accumulate(worth, initial=0))
            for phase, first, stop, count in lines.tokens:
                tokens[phase] += count * (sums[stop] - sums[first])
            if lines.contexts:
                rising = list(accumulate((i * w for i, w in enumerate(worth)), initial=0))
                for phase, first, stop, base, growth in lines.contexts:
                    contexts[phase] += base * (sums[stop] - sums[first])
                    contexts[phase] += growth * (rising[stop] - rising[first])
            if self._fixed:
                self._add_beside(column, places, lines, beside)
        per_token = {Activity.PREFILL: self._cost.a_j, Activity.DECODE: self._cost.b_j}
        c_j = self._cost.c_j
        return [
            (per_token[phase.activity] * own + c_j * context + fixed) / _UNIT
            for phase, own, context, fixed in zip(self.known, tokens, contexts, beside, strict=True)
        ]

    def _add_beside(
        self,
        column: Sequence[float],
        places: Sequence[int | None],
        lines: _Lines,
        beside: list[int],
    ) -> None:
        """What each request of a step has by being in it."""
        worth = [
            0 if place is None else int(column[place] * self._prices[place].per_request * _UNIT)
            for place in places
        ]
        sums = list(accumulate(worth, initial=0))
        for phase, first, stop, _ in lines.beside:
            beside[phase] += sums[stop] - sums[first]
        for prefill, decode, index, mix in lines.mixed:
            place = places[index]
            if place is not None and self._prices[place].per_j:
                part = int(worth[index] * mix)
                beside[prefill] += part
                beside[decode] += worth[index] - part
            else:
                beside[prefill] += worth[index]
                beside[decode] += worth[index]

    # -------------------------------------------------------------------- tokens

    def tokens(self, start_ns: int, end_ns: int) -> list[int]:
        """Tokens of each phase in `known`: whole steps by sums, those that an edge cuts apart."""
        found = [0] * len(self.known)
        for block, places, lines in zip(self._steps.blocks, self._places, self._lines, strict=True):
            here = [index for index, place in enumerate(places) if place is not None]
            cut = [
                index
                for index in here
                if block.starts_ns[index] < start_ns or block.ends_ns[index] > end_ns
            ]
            whole = [0] * len(places)
            for index in here:
                whole[index] = 1
            for index in cut:
                whole[index] = 0
            sums = list(accumulate(whole, initial=0))
            for phase, first, stop, count in lines.tokens:
                found[phase] += count * (sums[stop] - sums[first])
                for index in cut[bisect_left(cut, first) : bisect_left(cut, stop)] if cut else ():
                    step = block.starts_ns[index], block.ends_ns[index]
                    found[phase] += between(count, *step, start_ns, end_ns)
        return found


def _touching(block: Block, places: Sequence[int | None]) -> Iterator[Run]:
    """Runs that have a step in the window."""
    here = [index for index, place in enumerate(places) if place is not None]
    if not here:
        return
    low, high = here[0], here[-1]
    sums = list(accumulate((place is not None for place in places), initial=0))
    for run in block.runs():
        if run.first <= high and run.stop > low and sums[run.stop] > sums[run.first]:
            yield run


def _phases(
    runs: Iterable[Iterable[tuple[Key, Run]]], whose: Whose
) -> tuple[dict[Key, Phase], dict[Key, Phase]]:
    """Phases that decode, and those that prefill, by request and holder."""
    decodes: dict[Key, Phase] = {}
    prefills: dict[Key, Phase] = {}
    for found in runs:
        for key, run in found:
            if run.decode_tokens and key not in decodes:
                decodes[key] = Phase(Activity.DECODE, whose.holder(key), key[0])
            if (run.prefill_tokens or not run.decode_tokens) and key not in prefills:
                prefills[key] = Phase(Activity.PREFILL, whose.holder(key), key[0])
    return decodes, prefills


def _order(phase: Phase) -> tuple[str, str, str, str]:
    workload, job = phase.owner
    return phase.activity.value, repr(workload), repr(job), phase.request
