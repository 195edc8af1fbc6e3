"""What the requests of a vLLM process are called, no two of them alike, and whose each is.

A name is vLLM's own (see `request_names.py`), made by a client's id. Behind it stand, in this
order, `#0`, `#1` for the samples of one request (n > 1); `#s3` for the API server of that number,
where there are several, since each of them makes names without knowing the others'; and `#r7`
where a client sends an id again.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

REMEMBERED = 65_536
_MOST_CHARACTERS = 400
_KEPT_TENANTS = 16_384


class Names:
    """The names of one process, of all its engines; unique among the living and the latest `most`.

    Of those the hashes are kept: two that agree cost a `#r` at worst. The tenant is asked for when
    a request is met, as its id may be another's a moment later.
    """

    def __init__(
        self, tenant_of: Callable[[str], str] = lambda name: "", most: int = REMEMBERED
    ) -> None:
        self.server: int | None = None
        self._tenant_of = tenant_of
        self._lock = threading.Lock()
        self._live: set[str] = set()
        self._recent: set[int] = set()
        self._order: deque[int] = deque()
        self._most = most
        self._repeats = 0
        self._tenants: dict[str, str] = {}
        self._ended: deque[str] = deque()

    def give(self, state: Any) -> str:
        """A new one for a request of vLLM's."""
        parent = getattr(state, "parent_req", None)
        told = getattr(state, "external_req_id", None)
        if not isinstance(told, str):
            told = str(getattr(parent or state, "request_id", ""))
        name = told
        if len(name) > _MOST_CHARACTERS or not name.isascii():
            name = name[:_MOST_CHARACTERS].encode(errors="replace").decode()
        is_marked = "#s" in name
        if parent is not None:
            name = f"{name}#{getattr(state, 'request_index', 0)}"
        # The first server marks only what looks like the name of another.
        if self.server or (is_marked and self.server == 0):
            name = f"{name}#s{self.server}"
        with self._lock:
            return self._free(name, self._tenant_of(told))

    def _free(self, wanted: str, tenant: str) -> str:
        name = wanted
        while not name or name in self._live or hash(name) in self._recent:
            self._repeats += 1
            name = f"{wanted}#r{self._repeats}"
        self._live.add(name)
        self._recent.add(hash(name))
        self._order.append(hash(name))
        if len(self._order) > self._most:
            self._recent.discard(self._order.popleft())
        if tenant:
            self._tenants[name] = tenant
        return name

    def forget_lock(self) -> None:
        """In a forked child, where another thread's hold on it would last for ever."""
        self._lock = threading.Lock()

    def over(self, name: str) -> None:
        """Its request has ended; the tenant stays known until the reporter must have asked."""
        self._live.discard(name)
        if name in self._tenants:
            self._ended.append(name)
            if len(self._ended) > _KEPT_TENANTS:
                self._tenants.pop(self._ended.popleft(), None)

    def tenant(self, name: str) -> str:
        """Whose it was when it was met, "" where nobody said; any thread may ask."""
        return self._tenants.get(name, "")
