"""Whose requests are that have an owner of their own; forgotten with the last that names them."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import pairwise

from wattledger.records import RequestOwner

LEAST = 1024
"""So many of an engine's latest owners are kept in any case: one comes before its request does."""


class Owners:
    """Owners by engine and request, each from its moment on; for one moment the last word holds."""

    def __init__(self) -> None:
        self._owners: dict[str, dict[str, list[RequestOwner]]] = defaultdict(dict)
        self._count = 0
        self._enough = LEAST

    def __iter__(self) -> Iterator[RequestOwner]:
        """Every owner, in the order in which their requests were first told of."""
        for owners in self._owners.values():
            for held in owners.values():
                yield from held

    def tell(self, owner: RequestOwner) -> None:
        """Take what is said of a request."""
        held = self._owners[owner.engine].setdefault(owner.request, [])
        at = bisect_left(held, owner.since_ns, key=_since_ns)
        if at < len(held) and held[at].since_ns == owner.since_ns:
            held[at] = owner
            return
        held.insert(at, owner)
        self._count += 1

    def of(self, engine: str) -> Mapping[str, Sequence[RequestOwner]]:
        """The owners of an engine's requests, by request; those of one in order of time."""
        return self._owners.get(engine, {})

    def drop(self, engine: str) -> None:
        """Forget an engine that is gone."""
        self._count -= sum(map(len, self._owners.pop(engine, {}).values()))

    def forget(self, named: Callable[[str], Collection[str]], t_ns: int) -> None:
        """Forget owners of requests that no evidence of their engine has `named` any more.

        And those that others followed by `t_ns`, or the same again at any time. Only once there
        are twice as many as last time: to ask takes long.
        """
        if self._count <= self._enough:
            return
        for engine, owners in list(self._owners.items()):
            alive = {*named(engine), *list(owners)[-LEAST:]}
            self._owners[engine] = {
                name: _since(held, t_ns) for name, held in owners.items() if name in alive
            }
        held = (held for owners in self._owners.values() for held in owners.values())
        self._count = sum(map(len, held))
        self._enough = LEAST + 2 * self._count


def _since(held: list[RequestOwner], t_ns: int) -> list[RequestOwner]:
    """Those that hold at a moment or later, each as long as it goes on."""
    before = sum(owner.since_ns <= t_ns for owner in held)
    late = held[max(before - 1, 0) :]
    again = (_names(one) == _names(two) for one, two in pairwise(late))
    return [late[0], *(owner for owner, same in zip(late[1:], again, strict=True) if not same)]


def _since_ns(owner: RequestOwner) -> int:
    return owner.since_ns


def _names(owner: RequestOwner) -> tuple[str | None, str | None]:
    return owner.workload, owner.job
