"""One engine's steps, each once, in blocks; found by the window they touch."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from operator import attrgetter

from wattledger_daemon.heart.columns import StepColumns
from wattledger_daemon.heart.runs import BLOCK_NS, BLOCK_STEPS, Block, Writer


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
        marks = list(map(hash, zip(steps.seqs, steps.starts_ns, steps.ends_ns, strict=True)))
        if steps.stretches:
            block = self._block_of(steps)
            if block is not None and self._seen.isdisjoint(marks) and len(marks) == len({*marks}):
                self._seen.update(marks)
                block.batch(steps)
                self._longest_ns = max(self._longest_ns, block.end_ns - block.first_ns)
                return []
            steps = steps.flat()
        return self._add_each(steps, marks)

    def _add_each(self, steps: StepColumns, marks: Sequence[int]) -> list[int]:
        writer: Writer | None = None
        block = self._writing.get(steps.source)
        known = []
        keys = zip(steps.seqs, steps.starts_ns, steps.ends_ns, strict=True)
        for at, (mark, key) in enumerate(zip(marks, keys, strict=True)):
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

    def _block_of(self, steps: StepColumns) -> Block | None:
        """The block that takes a whole batch, a new one if need be; None where none can."""
        early_ns, late_ns = min(steps.starts_ns), max(steps.starts_ns)
        block = self._writing.get(steps.source)
        if block is not None and block.holds(early_ns) and block.holds(late_ns, len(steps)):
            return block
        if late_ns - early_ns >= BLOCK_NS or len(steps) > BLOCK_STEPS:
            return None
        return self._turn_over(steps.source, block, early_ns)

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
        block = self._writing[source] = Block(start_ns, source)
        insort(self._blocks, block, key=_FIRST_NS)
        return block

    def _has(self, seq: int, start_ns: int, end_ns: int) -> bool:
        return any(
            step == (seq, start_ns, end_ns)
            for block in self.touching(start_ns, max(end_ns, start_ns + 1))
            for step in zip(block.seqs, block.starts_ns, block.ends_ns, strict=True)
        )


_FIRST_NS = attrgetter("first_ns")
