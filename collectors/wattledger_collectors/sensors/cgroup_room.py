"""How many control groups are followed, and whose: nobody may crowd out the others.

Whoever owns a delegated group may make any number in it, to any depth, by any name. So the host's
own jobs, pods and containers go first; what lies in a user's slice, or inside what is somebody's,
gets a part of the room, and each such tenant a part of that.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache

from wattledger_collectors.workloads.places import KEEPERS, Manager, above, holder_of, place_of

DEEPEST = 32
LISTED_AT_MOST = 1024
"""Folders of one tenant, and groups in them, that are listed again and again."""

_NODES_AT_MOST = 4096
_CLASS_AT_MOST = 1024
_TENANT_AT_MOST = 512
_USER = re.compile(r"(/user\.slice(?:/user-\d+\.slice)?)(?:/.*)?", re.DOTALL)


def tenant_of(path: str) -> str:
    """The group around `path` whose user may have made it; empty for what managers made."""
    user = _USER.fullmatch(path)
    if user is not None:
        return user[1]
    inside = (folder for folder in reversed(list(above(path))) if _is_somebodys(folder))
    return next(inside, "")


@lru_cache(maxsize=512)
def _is_somebodys(folder: str) -> bool:
    if holder_of(folder) is not None:
        return False
    place = place_of(folder)
    return place.folder == folder and place.manager in (*KEEPERS, Manager.SYSTEMD)


class Room:
    """The places that are left."""

    def __init__(self) -> None:
        self._taken = 0
        # By tenant, and by class: users' slices and all the others.
        self._tenants: Counter[str] = Counter()
        self._classes: Counter[bool] = Counter()
        self._listed: Counter[str] = Counter()

    def refusal(self, path: str) -> str:
        """Why there is no place for this group; empty where there is one."""
        if path.count("/") > DEEPEST:
            return f"deeper than {DEEPEST} levels"
        tenant = tenant_of(path)
        if self._taken >= _NODES_AT_MOST:
            return f"more than {_NODES_AT_MOST} groups"
        if tenant and self._tenants[tenant] >= _TENANT_AT_MOST:
            return f"more than {_TENANT_AT_MOST} groups of one tenant"
        if tenant and self._classes[_is_users(tenant)] >= _CLASS_AT_MOST:
            return f"more than {_CLASS_AT_MOST} groups of tenants"
        return ""

    def take(self, path: str, by: int = 1) -> None:
        """Give a group its place; by -1, take it back."""
        self._taken += by
        tenant = tenant_of(path)
        if tenant:
            self._tenants[tenant] += by
            self._classes[_is_users(tenant)] += by
            if not self._tenants[tenant]:
                del self._tenants[tenant]

    def list(self, folder: str, by: int) -> bool:
        """Count so much more as listed in a folder; False, and not counted, if it is too much."""
        tenant = tenant_of(f"{folder}/")
        if not tenant:
            return True
        if by > 0 and self._listed[tenant] + by > LISTED_AT_MOST:
            return False
        self._listed[tenant] += by
        if not self._listed[tenant]:
            del self._listed[tenant]
        return True


def _is_users(tenant: str) -> bool:
    return tenant.startswith("/user.slice")
