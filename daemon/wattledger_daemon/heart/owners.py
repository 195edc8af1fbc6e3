"""Whose requests are that have an owner of their own; forgotten with the last that names them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping

from wattledger.records import RequestOwner

LEAST = 1024
"""So many of an engine's latest owners are kept in any case: one comes before its request does."""


class Owners:
    """Owners by engine and request; the last word about a request holds."""

    def __init__(self) -> None:
        self._owners: dict[str, dict[str, RequestOwner]] = defaultdict(dict)
        self._enough = LEAST

    def __iter__(self) -> Iterator[RequestOwner]:
        """Every owner, in the order in which they were first told of."""
        for owners in self._owners.values():
            yield from owners.values()

    def tell(self, owner: RequestOwner) -> None:
        """Take what is said of a request."""
        self._owners[owner.engine][owner.request] = owner

    def of(self, engine: str) -> Mapping[str, RequestOwner]:
        """The owners of an engine's requests, by request."""
        return self._owners.get(engine, {})

    def drop(self, engine: str) -> None:
        """Forget an engine that is gone."""
        self._owners.pop(engine, None)

    def forget(self, named: Callable[[str], Collection[str]]) -> None:
        """Forget owners of requests that no evidence of their engine has `named` any more.

        Only once there are twice as many as last time: to ask takes long.
        """
        if sum(map(len, self._owners.values())) <= self._enough:
            return
        for engine, owners in list(self._owners.items()):
            alive = {*named(engine), *list(owners)[-LEAST:]}
            self._owners[engine] = {name: who for name, who in owners.items() if name in alive}
        self._enough = LEAST + 2 * sum(map(len, self._owners.values()))
