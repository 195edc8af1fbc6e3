"""Steps in columns: 100,000 tokens a second leave no time for an object each."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from operator import add
from typing import NamedTuple

from wattledger.records import RequestTokens, Step


class Sums(NamedTuple):
    """A step's requests, counted, and all their tokens."""

    requests: int
    prefill_tokens: int
    decode_tokens: int
    context_tokens: int


@dataclass(frozen=True, slots=True)
class Stretches:
    """Requests that decode a token in each of several steps of a batch; four lists in parallel.

    `requests` are indices into names; each is in `lengths` steps from its first on, attends to
    `context_tokens` in that and to one more in each further.
    """

    requests: Sequence[int] = ()
    firsts: Sequence[int] = ()
    lengths: Sequence[int] = ()
    context_tokens: Sequence[int] = ()

    def __len__(self) -> int:
        return len(self.requests)

    def __iter__(self) -> Iterator[tuple[int, int, int, int]]:
        """(request, first, length, context) of each."""
        return zip(self.requests, self.firsts, self.lengths, self.context_tokens, strict=True)


NO_STRETCHES = Stretches()


@dataclass(frozen=True, slots=True)
class StepColumns:
    """Steps of one engine as one reporter told them.

    Step i ran in [starts_ns[i], ends_ns[i]) and bears seqs[i]; the lists at i of the next four
    columns run in parallel, one entry per request, and so do `stretches`, which go through several
    steps. `requests` point into `names`, which are all different; none stands twice in a step.
    `source` tells reporters of one engine apart: several may tell of one pass (`passes.py`).
    """

    engine: str
    source: str
    names: Sequence[str]
    seqs: Sequence[int]
    starts_ns: Sequence[int]
    ends_ns: Sequence[int]
    requests: Sequence[Sequence[int]]
    prefill_tokens: Sequence[Sequence[int]]
    decode_tokens: Sequence[Sequence[int]]
    context_tokens: Sequence[Sequence[int]]
    # Of each step, its part of the stretches included.
    sums: Sequence[Sums]
    stretches: Stretches = NO_STRETCHES

    def __len__(self) -> int:
        return len(self.seqs)

    def begins(self) -> dict[str, int]:
        """When the first step of each request began, by name."""
        found: dict[int, int] = {}
        # The earliest last, whose word stays.
        for at in sorted(range(len(self)), key=self.starts_ns.__getitem__, reverse=True):
            found.update(dict.fromkeys(self.requests[at], self.starts_ns[at]))
        for request, first, length, _ in self.stretches:
            start_ns = min(self.starts_ns[first : first + length])
            found[request] = min(start_ns, found.get(request, start_ns))
        return {self.names[request]: start_ns for request, start_ns in found.items()}

    def own(self, at: int) -> Iterator[tuple[int, int, int, int]]:
        """(request, prefill, decode, context) of a step's own lists."""
        columns = (self.prefill_tokens[at], self.decode_tokens[at], self.context_tokens[at])
        return zip(self.requests[at], *columns, strict=True)

    def flat(self) -> StepColumns:
        """The same without stretches: all of a step in its own lists."""
        if not self.stretches:
            return self
        columns = [
            [list(entries) for entries in column]
            for column in (
                self.requests,
                self.prefill_tokens,
                self.decode_tokens,
                self.context_tokens,
            )
        ]
        for request, first, length, context in self.stretches:
            for at in range(first, first + length):
                part = (request, 0, 1, context + at - first)
                for column, value in zip(columns, part, strict=True):
                    column[at].append(value)
        requests, prefill, decode, attended = columns
        return replace(
            self,
            requests=requests,
            prefill_tokens=prefill,
            decode_tokens=decode,
            context_tokens=attended,
            stretches=NO_STRETCHES,
        )

    def moved(self, before_ns: int, to_ns: int) -> StepColumns:
        """The same with steps that begin before a moment stood, without length, at another."""
        early = [start_ns < before_ns for start_ns in self.starts_ns]
        starts, ends = (
            [to_ns if gone else t_ns for gone, t_ns in zip(early, times, strict=True)]
            for times in (self.starts_ns, self.ends_ns)
        )
        return replace(self, starts_ns=starts, ends_ns=ends)

    def steps(self) -> Iterator[Step]:
        """The same as records, one step at a time."""
        names, flat = self.names, self.flat()
        for at, seq in enumerate(self.seqs):
            parts = map(
                RequestTokens,
                [names[index] for index in flat.requests[at]],
                flat.prefill_tokens[at],
                flat.decode_tokens[at],
                flat.context_tokens[at],
            )
            extent = self.starts_ns[at], self.ends_ns[at]
            yield Step(self.engine, seq, *extent, tuple(parts), self.source)


def columns_of(step: Step) -> StepColumns:
    """One step in columns; the parts of a request that stands in it twice are added together."""
    parts = {tokens.request: tokens for tokens in step.requests}
    if len(parts) != len(step.requests):
        parts = _merged(step.requests)
    return StepColumns(
        step.engine,
        step.source,
        list(parts),
        (step.seq,),
        (step.start_ns,),
        (step.end_ns,),
        (list(range(len(parts))),),
        ([tokens.prefill_tokens for tokens in parts.values()],),
        ([tokens.decode_tokens for tokens in parts.values()],),
        ([tokens.context_tokens for tokens in parts.values()],),
        (_summed(parts.values()),),
    )


def _summed(parts: Collection[RequestTokens]) -> Sums:
    prefill = decode = context = 0
    for _, prefills, decodes, attended in parts:
        prefill, decode, context = prefill + prefills, decode + decodes, context + attended
    return Sums(len(parts), prefill, decode, context)


def _merged(parts: Iterable[RequestTokens]) -> dict[str, RequestTokens]:
    found: dict[str, RequestTokens] = {}
    for name, *counts in parts:
        held = found.get(name, RequestTokens(name, 0, 0, 0))
        found[name] = RequestTokens(name, *map(add, held[1:], counts))
    return found
