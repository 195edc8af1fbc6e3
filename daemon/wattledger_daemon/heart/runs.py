"""What an engine's steps computed, kept as runs instead of one row per request and step.

A request that decodes one token in each of many steps side by side is one row. Rows are cut
wherever that is convenient: sums over them are exact, so that no figure depends on it.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from itertools import compress, repeat
from operator import add, attrgetter, ne
from typing import NamedTuple

from wattledger.records import NS_PER_S
from wattledger_daemon.heart.columns import StepColumns

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

    def __init__(self, first_ns: int) -> None:
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

    def holds(self, start_ns: int) -> bool:
        """Whether a step that begins then belongs here."""
        return abs(start_ns - self.first_ns) < BLOCK_NS and len(self) < BLOCK_STEPS

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
        self.counts.append(len(steps.requests[at]))
        self.mixed.append(0)
        prefill, decode, context = steps.sums[at]
        self.prefill_tokens.append(prefill)
        self.decode_tokens.append(decode)
        self.context_tokens.append(context)

    def part(self, request: str, prefill: int, decode: int, context: int) -> bool:
        """Take a part of the latest step that goes on no run; True where it opens one."""
        at = len(self) - 1
        plain = decode == 1 and not prefill
        if plain:
            self._open[request] = len(self._requests)
            self._base[request] = context - at
        elif prefill and decode:
            self.mixed[at] += 1
        self._requests.append(request)
        self._first.append(at)
        self._stop.append(_OPEN if plain else at + 1)
        self._prefill.append(prefill)
        self._decode.append(decode)
        self._context.append(context)
        self._growth.append(1 if plain else 0)
        return plain

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


class EngineSteps:
    """One engine's steps, each once, by whoever reported them.

    `rows` tells how much they weigh, in steps and runs.
    """

    def __init__(self) -> None:
        # By `first_ns`; a step begins within `BLOCK_NS` of its block's.
        self._blocks: list[Block] = []
        self._longest_ns = 0
        self._writing: dict[str, Block] = {}
        # Hashes, to spare three numbers and a tuple each; `_has` looks at what one points to.
        self._seen: set[int] = set()

    def __bool__(self) -> bool:
        return bool(self._blocks)

    @property
    def rows(self) -> int:
        """Steps and runs kept."""
        return sum(block.rows for block in self._blocks)

    @property
    def first_ns(self) -> int:
        """Start of the earliest step; ValueError without any."""
        return min(block.start_ns for block in self._blocks)

    def add(self, steps: StepColumns) -> list[int]:
        """Take steps, in any order; returns which of them were there already.

        An engine that starts anew counts from 1 again: a step is itself by number and extent.
        """
        writer: Writer | None = None
        block = self._writing.get(steps.source)
        known = []
        for at, key in enumerate(zip(steps.seqs, steps.starts_ns, steps.ends_ns, strict=True)):
            mark = hash(key)
            if mark in self._seen and self._has(*key):
                known.append(at)
                continue
            self._seen.add(mark)
            if block is None or not block.holds(key[1]):
                block, writer = self._turn_over(steps.source, block, key[1]), None
            if writer is None:
                writer = Writer(block, steps)
            writer.write(at)
            self._longest_ns = max(self._longest_ns, block.end_ns - block.first_ns)
        return known

    def touching(self, start_ns: int, end_ns: int) -> list[Block]:
        """Blocks that hold steps which may overlap [start_ns, end_ns), in order of time."""
        low = bisect_left(self._blocks, start_ns - self._longest_ns, key=_FIRST_NS)
        high = bisect_left(self._blocks, end_ns + BLOCK_NS, key=_FIRST_NS)
        return [
            block
            for block in self._blocks[low:high]
            if block.start_ns < end_ns and block.end_ns > start_ns
        ]

    def forget_before(self, t_ns: int) -> bool:
        """Forget blocks all of whose steps ended by `t_ns`; whether there were any."""
        gone = [block for block in self._blocks if block.end_ns <= t_ns]
        for block in gone:
            keys = zip(block.seqs, block.starts_ns, block.ends_ns, strict=True)
            self._seen.difference_update(map(hash, keys))
        if gone:
            self._blocks = [block for block in self._blocks if block.end_ns > t_ns]
            self._writing = {s: b for s, b in self._writing.items() if b.end_ns > t_ns}
        return bool(gone)

    def requests(self) -> set[str]:
        """Every request in any step."""
        return set().union(*(block.requests() for block in self._blocks))

    def _turn_over(self, source: str, before: Block | None, start_ns: int) -> Block:
        """A new block for a source's steps from `start_ns` on."""
        if before is not None:
            before.close()
        block = self._writing[source] = Block(start_ns)
        insort(self._blocks, block, key=_FIRST_NS)
        return block

    def _has(self, seq: int, start_ns: int, end_ns: int) -> bool:
        return any(
            step == (seq, start_ns, end_ns)
            for block in self.touching(start_ns, max(end_ns, start_ns + 1))
            for step in zip(block.seqs, block.starts_ns, block.ends_ns, strict=True)
        )


_FIRST_NS = attrgetter("first_ns")
