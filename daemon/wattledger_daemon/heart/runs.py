"""What an engine's steps computed, kept as runs instead of one row per request and step.

A request that decodes one token in each of many steps side by side is one row. Rows are cut
wherever that is convenient: sums over them are exact, so that no figure depends on it.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from itertools import compress, repeat
from operator import add, and_, ne, not_
from typing import NamedTuple

from wattledger.records import NS_PER_S
from wattledger_daemon.heart.columns import StepColumns, Stretches

BLOCK_NS = 5 * NS_PER_S
BLOCK_STEPS = 1024
"""Steps that begin further apart than this, or are more, go to another block."""

_OPEN = -1
_NEVER = -(1 << 40)
"""No context, however many steps may follow."""


class Run(NamedTuple):
    """A request's like parts in the steps [first, stop) of a block.

    Each computes `prefill_tokens` and `decode_tokens`; the first attends to `context_tokens`, each
    further one to `growth` more.
    """

    request: str
    first: int
    stop: int
    prefill_tokens: int
    decode_tokens: int
    context_tokens: int
    growth: int


class Block:
    """Steps of one reporter that begin within 5 s, in order of arrival, and the runs in them.

    Per step: its extent and `seqs`, how many requests it had (`counts`), how many of them both
    prefilled and decoded (`mixed`), and its sums over requests.
    """

    def __init__(self, first_ns: int, source: str = "") -> None:
        self.source = source
        self.first_ns = self.start_ns = self.end_ns = first_ns
        self.starts_ns = array("q")
        self.ends_ns = array("q")
        self.seqs = array("q")
        self.counts = array("l")
        self.mixed = array("l")
        self.prefill_tokens = array("q")
        self.decode_tokens = array("q")
        self.context_tokens = array("q")
        self._requests: list[str] = []
        self._first = array("l")
        self._stop = array("l")
        self._prefill = array("q")
        self._decode = array("q")
        self._context = array("q")
        self._growth = array("q")
        # Of requests whose run goes on: its row, and what it would have attended to at step 0.
        self._open: dict[str, int] = {}
        self._base: dict[str, int] = {}
        # Runs that grow by anything but one.
        self._bent: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self.seqs)

    @property
    def rows(self) -> int:
        """How much it weighs: its steps and its runs."""
        return len(self.seqs) + len(self._requests)

    def holds(self, start_ns: int, count: int = 1) -> bool:
        """Whether a step that begins then, one of so many, belongs here."""
        return abs(start_ns - self.first_ns) < BLOCK_NS and len(self) + count <= BLOCK_STEPS

    def runs(self) -> Iterator[Run]:
        """Every run, in no particular order."""
        count = len(self)
        stops = (count if at == _OPEN else at for at in self._stop)
        counts = (self._prefill, self._decode, self._context, self._growth)
        return map(Run._make, zip(self._requests, self._first, stops, *counts, strict=True))

    def requests(self) -> Sequence[str]:
        """Who is in any of its steps; most stand here more than once."""
        return self._requests

    def close(self) -> None:
        """End every run here; the next step of the same requests goes elsewhere."""
        for name in list(self._open):
            self._end(name, len(self))

    def next_contexts(self, names: Sequence[str]) -> tuple[list[int], list[int]]:
        """By name: the context that goes on its open run in the next step, and the run's growth.

        Below 0 where there is none. Runs of requests that `names` lack end here.
        """
        count = len(self)
        for name in self._open.keys() - set(names):
            self._end(name, count)
        growth = [1] * len(names)
        after = [base + count for base in map(self._base.get, names, repeat(_NEVER))]
        for name, grows in self._bent.items():
            index = names.index(name)
            growth[index] = grows
            after[index] += (grows - 1) * count
        return after, growth

    def step(self, steps: StepColumns, at: int) -> None:
        """Take a step's extent and sums; its parts follow."""
        start_ns, end_ns = steps.starts_ns[at], steps.ends_ns[at]
        self.start_ns = min(self.start_ns, start_ns)
        # One of no length still stands somewhere.
        if end_ns > self.end_ns or start_ns >= self.end_ns:
            self.end_ns = max(end_ns, start_ns + 1)
        self.starts_ns.append(start_ns)
        self.ends_ns.append(end_ns)
        self.seqs.append(steps.seqs[at])
        count, prefill, decode, context = steps.sums[at]
        self.counts.append(count)
        self.mixed.append(0)
        self.prefill_tokens.append(prefill)
        self.decode_tokens.append(decode)
        self.context_tokens.append(context)

    def part(self, request: str, prefill: int, decode: int, context: int) -> bool:
        """Take a part of the latest step that goes on no run; True where it opens one."""
        at = len(self) - 1
        plain = decode == 1 and not prefill
        if plain:
            self._begin(request, at, _OPEN, context)
        else:
            self._single(request, at, (prefill, decode, context))
        return plain

    def batch(self, steps: StepColumns) -> None:
        """Take a whole batch with its stretches, all of whose steps belong here."""
        before, count = len(self), len(steps)
        names = [steps.names[index] for index in steps.stretches.requests]
        goes_on = self._go_on(names, steps.stretches)
        for name in self._open.keys() - set(compress(names, goes_on)):
            self._end(name, before)
        for at in range(count):
            self.step(steps, at)
        ends = [length < count for length in steps.stretches.lengths]
        stretches = list(zip(names, steps.stretches.firsts, steps.stretches.lengths, strict=True))
        for name, _, length in compress(stretches, map(and_, goes_on, ends)):
            self._end(name, before + length)
        contexts = steps.stretches.context_tokens
        fresh = compress(zip(stretches, contexts, strict=True), map(not_, goes_on))
        for (name, first, length), context in fresh:
            stop = before + first + length
            self._begin(name, before + first, _OPEN if stop == len(self) else stop, context)
        for at in range(count):
            for index, *part in steps.own(at):
                self._own(steps.names[index], before + at, part)

    def _go_on(self, names: Sequence[str], stretches: Stretches) -> list[bool]:
        """Which of a batch's stretches go on an open run."""
        before = len(self)
        bases = map(self._base.get, names, repeat(_NEVER))
        found = [
            base == context - before and not first
            for base, context, first in zip(
                bases, stretches.context_tokens, stretches.firsts, strict=True
            )
        ]
        if self._bent:
            found = [on and n not in self._bent for on, n in zip(found, names, strict=True)]
        return found

    def _own(self, request: str, at: int, part: Sequence[int]) -> None:
        prefill, decode, context = part
        if at == len(self) - 1 and decode == 1 and not prefill:
            self._begin(request, at, _OPEN, context)
        else:
            self._single(request, at, (prefill, decode, context))

    def _begin(self, request: str, first: int, stop: int, context: int) -> None:
        """A run of single decoded tokens; one that is open goes on with the next step."""
        if stop == _OPEN:
            self._open[request] = len(self._requests)
            self._base[request] = context - first
        self._row(request, first, stop, (0, 1, context, 1))

    def _single(self, request: str, at: int, part: tuple[int, int, int]) -> None:
        if part[0] and part[1]:
            self.mixed[at] += 1
        self._row(request, at, at + 1, (*part, 0))

    def _row(self, request: str, first: int, stop: int, part: tuple[int, int, int, int]) -> None:
        prefill, decode, context, growth = part
        self._requests.append(request)
        self._first.append(first)
        self._stop.append(stop)
        self._prefill.append(prefill)
        self._decode.append(decode)
        self._context.append(context)
        self._growth.append(growth)

    def bend(self, request: str, context: int) -> int | None:
        """Learn a run's growth from its second step, the latest; None where it is not that."""
        row, at = self._open[request], len(self) - 1
        grown = context - self._context[row]
        if self._first[row] != at - 1 or grown < 0:
            return None
        self._growth[row] = self._bent[request] = grown
        self._base[request] = context - grown * at
        return grown

    def end(self, request: str) -> None:
        """End a run with the step before the latest."""
        self._end(request, len(self) - 1)

    def _end(self, request: str, stop: int) -> None:
        self._stop[self._open.pop(request)] = stop
        del self._base[request]
        self._bent.pop(request, None)


class Writer:
    """Puts steps of one batch into a block; the batch's names are looked up once.

    Everything done for every part of a step is done by the interpreter's own loops over lists.
    """

    def __init__(self, block: Block, steps: StepColumns) -> None:
        self._block = block
        self._steps = steps
        # By index of name: the context that goes on an open run in the next step.
        self._after, self._growth = block.next_contexts(steps.names)
        self._open = {index for index, context in enumerate(self._after) if context >= 0}

    def write(self, at: int) -> None:
        """Put the batch's step `at` in."""
        steps, block = self._steps, self._block
        block.step(steps, at)
        for index in self._open.difference(steps.requests[at]):
            self._end(index)
        for place in self._odd(at):
            self._odd_part(at, place)
        self._after = list(map(add, self._after, self._growth))

    def _odd(self, at: int) -> list[int]:
        """Places of parts in a step that are not the next token of a run."""
        steps = self._steps
        context, decode = steps.context_tokens[at], steps.decode_tokens[at]
        places = range(len(context))
        expected = list(map(self._after.__getitem__, steps.requests[at]))
        odd: list[int] = []
        if expected != context:
            odd += compress(places, map(ne, expected, context))
        if decode.count(1) != len(decode):
            odd += [place for place in places if decode[place] != 1]
        if self._block.prefill_tokens[-1]:
            odd += compress(places, steps.prefill_tokens[at])
        return odd if len(odd) < 2 else list(dict.fromkeys(odd))

    def _odd_part(self, at: int, place: int) -> None:
        steps, block = self._steps, self._block
        index = steps.requests[at][place]
        name = steps.names[index]
        prefill, decode = steps.prefill_tokens[at][place], steps.decode_tokens[at][place]
        context = steps.context_tokens[at][place]
        if index in self._open:
            grown = block.bend(name, context) if decode == 1 and not prefill else None
            if grown is not None:
                self._after[index], self._growth[index] = context, grown
                return
            self._end(index)
        if block.part(name, prefill, decode, context):
            self._open.add(index)
            self._after[index], self._growth[index] = context, 1

    def _end(self, index: int) -> None:
        self._block.end(self._steps.names[index])
        self._open.discard(index)
        self._after[index], self._growth[index] = _NEVER, 1
