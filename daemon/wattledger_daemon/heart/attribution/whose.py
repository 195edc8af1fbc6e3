"""Whose a request of an engine is, and when: an id may come again as another client's."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

from wattledger.records import RequestOwner
from wattledger_daemon.heart.runs import Block, Run

Owner = tuple[str | None, str | None]
"""(workload, job)."""

Key = tuple[str, int]
"""A request, and which of its holders in order of time."""


class Whose:
    """The owners of an engine's requests; what they leave open is the engine's own."""

    def __init__(
        self, workload: str | None, job: str | None, owners: Mapping[str, Sequence[RequestOwner]]
    ) -> None:
        self._engine = workload, job
        self._owners = owners

    def at(self, request: str, t_ns: int) -> Owner:
        """Who has a request at a moment; before its first owner's time that one, too."""
        return self.holder((request, bisect_right(self._turns(request), t_ns)))

    def holder(self, key: Key) -> Owner:
        """One of those who had a request."""
        request, at = key
        held = self._owners.get(request)
        if not held:
            return self._engine
        workload, job = self._engine
        own = held[at]
        return (
            workload if own.workload is None else own.workload,
            job if own.job is None else own.job,
        )

    def cut(self, block: Block, run: Run) -> Iterator[tuple[Key, Run]]:
        """A run, cut where its request changes hands; a step is whose it is when it begins."""
        turns = self._turns(run.request)
        if not turns:
            yield (run.request, 0), run
            return

        def holder_at(index: int) -> int:
            return bisect_right(turns, block.starts_ns[index])

        for holder, group in groupby(range(run.first, run.stop), holder_at):
            steps = list(group)
            attended = run.context_tokens + run.growth * (steps[0] - run.first)
            part = run._replace(first=steps[0], stop=steps[-1] + 1, context_tokens=attended)
            yield (run.request, holder), part

    def _turns(self, request: str) -> list[int]:
        """When each holder but the first took over."""
        held = self._owners.get(request, ())
        return [owner.since_ns for owner in held[1:]] if len(held) > 1 else []
