"""Whose a request is, from the HTTP side of an engine's process to its hook.

The HTTP side notes the tenant of each request before the engine sees it; the hook asks by the
engine's own name for it when it meets the request. Both run in one process. What is noted is a
client's word: bounded, printable, and withdrawn where two clients with one id at the same time say
different things.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

from wattledger_collectors.engines.request_names import client_ids
from wattledger_collectors.workloads.names import printable

MOST_REQUESTS = 16_384
MOST_ID_CHARACTERS = 1_024


@dataclass(slots=True)
class _Noted:
    tenant: str
    live: int


class Tenancy:
    """Tenants of the latest requests; any thread may ask or tell. Above `most` the oldest go."""

    def __init__(self, most: int = MOST_REQUESTS) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._noted: OrderedDict[str, _Noted] = OrderedDict()
        self.contradictions = 0

    def note(self, http_id: str, tenant: str | bytes) -> None:
        """A request begins; "" where its client names no tenant: that is to be known as well."""
        if len(http_id) > MOST_ID_CHARACTERS:
            return
        raw = tenant if isinstance(tenant, bytes) else tenant.encode(errors="replace")
        name = printable(raw) or ""
        with self._lock:
            noted = self._noted.get(http_id)
            if noted is None or not noted.live:
                noted = self._noted[http_id] = _Noted(name, 0)
            elif noted.tenant != name:
                self.contradictions += 1
                noted.tenant = ""
            noted.live += 1
            self._noted.move_to_end(http_id)
            if len(self._noted) > self._most:
                self._noted.popitem(last=False)

    def over(self, http_id: str) -> None:
        """A noted request's response is out; its tenant stays known until others need the room."""
        with self._lock:
            noted = self._noted.get(http_id)
            if noted is not None and noted.live:
                noted.live -= 1

    def of(self, request_name: str) -> str:
        """The tenant of an engine's request by the engine's name for it, "" where unknown.

        Where several ids make that name, those in the house count; they have to agree.
        """
        if not self._noted:
            return ""
        with self._lock:
            found = [self._noted.get(http_id) for http_id in client_ids(request_name)]
            noted = [item for item in found if item is not None]
            told = {item.tenant for item in noted if item.live} or {item.tenant for item in noted}
        return told.pop() if len(told) == 1 else ""


TENANCY = Tenancy()
"""This process's."""


def note(http_id: str, tenant: str | bytes) -> None:
    """`Tenancy.note` of this process."""
    TENANCY.note(http_id, tenant)


def over(http_id: str) -> None:
    """`Tenancy.over` of this process."""
    TENANCY.over(http_id)


def of(request_name: str) -> str:
    """`Tenancy.of` of this process; cheap where nothing was noted."""
    return TENANCY.of(request_name)
