"""Finds what goes on alike in a batch's steps: requests that decode a token a step.

Told as runs a busy engine's batch is a tenth as long. Everything done for every request of a step
is done by the interpreter's own loops over lists.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import compress, repeat
from operator import ne, sub
from typing import NamedTuple

_NEVER = -(1 << 40)
"""No context, however many steps may follow."""


class Run(NamedTuple):
    """A request in so many steps from the first on, with the context of its first token."""

    request: int
    first: int
    length: int
    context: int


class Runs:
    """The runs of one batch, step by step; requests are numbers from 0 on."""

    def __init__(self) -> None:
        self.found: list[Run] = []
        self._steps = 0
        self._open: set[int] = set()
        # By number of request: where its open run began, what it would attend to at step 0.
        self._first: dict[int, int] = {}
        self._base: list[int] = []

    def step(
        self,
        requests: Sequence[int],
        prefill: Sequence[int],
        decode: Sequence[int],
        context: Sequence[int],
    ) -> Sequence[int]:
        """Take a step's requests and their tokens; returns the places that are in no run."""
        at, places, there = self._steps, range(len(requests)), set(requests)
        self._steps += 1
        if len(there) != len(requests):
            self._end(list(self._open), at)
            return places
        self._base += repeat(_NEVER, max(requests, default=-1) + 1 - len(self._base))
        bases = map(self._base.__getitem__, requests)
        odd = list(compress(places, map(ne, bases, map(sub, context, repeat(at)))))
        if decode.count(1) != len(decode):
            odd += [place for place in places if decode[place] != 1]
        if any(prefill):
            odd += compress(places, prefill)
        self._end(self._open - there, at)
        own = []
        for place in dict.fromkeys(odd):
            request = requests[place]
            if request in self._open:
                self._end((request,), at)
            if decode[place] == 1 and not prefill[place]:
                self._open.add(request)
                self._first[request], self._base[request] = at, context[place] - at
            else:
                own.append(place)
        return own

    def close(self) -> list[Run]:
        """Every run, those that went on to the end included."""
        self._end(list(self._open), self._steps)
        return self.found

    def _end(self, requests: Iterable[int], at: int) -> None:
        """End runs with the step before."""
        for request in requests:
            first, base = self._first[request], self._base[request]
            self._base[request] = _NEVER
            self._open.discard(request)
            self.found.append(Run(request, first, at - first, base + first))
