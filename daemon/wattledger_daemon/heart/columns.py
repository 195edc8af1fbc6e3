"""Steps in columns: 100,000 tokens a second leave no time for an object each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from operator import add

from wattledger.records import RequestTokens, Step


@dataclass(frozen=True, slots=True)
class StepColumns:
    """Steps of one engine as one reporter told them.

    Step i ran in [starts_ns[i], ends_ns[i]) and bears seqs[i]; the lists at i of the last four
    columns run in parallel, one entry per request. `requests` point into `names`, which are all
    different, and none stands twice in a step. `source` tells reporters of one engine apart, and
    changes no figure.
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
    # Of each step: all its prefill, decode and context tokens.
    sums: Sequence[tuple[int, int, int]]

    def __len__(self) -> int:
        return len(self.seqs)

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
        names = self.names
        for at, seq in enumerate(self.seqs):
            parts = map(
                RequestTokens,
                [names[index] for index in self.requests[at]],
                self.prefill_tokens[at],
                self.decode_tokens[at],
                self.context_tokens[at],
            )
            yield Step(self.engine, seq, self.starts_ns[at], self.ends_ns[at], tuple(parts))


def columns_of(step: Step) -> StepColumns:
    """One step in columns; the parts of a request that stands in it twice are added together."""
    parts = {tokens.request: tokens for tokens in step.requests}
    if len(parts) != len(step.requests):
        parts = _merged(step.requests)
    return StepColumns(
        step.engine,
        "",
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


def _summed(parts: Iterable[RequestTokens]) -> tuple[int, int, int]:
    prefill = decode = context = 0
    for _, prefills, decodes, attended in parts:
        prefill, decode, context = prefill + prefills, decode + decodes, context + attended
    return prefill, decode, context


def _merged(parts: Iterable[RequestTokens]) -> dict[str, RequestTokens]:
    found: dict[str, RequestTokens] = {}
    for name, *counts in parts:
        held = found.get(name, RequestTokens(name, 0, 0, 0))
        found[name] = RequestTokens(name, *map(add, held[1:], counts))
    return found
