"""How many files and connections the daemon may hold."""

from __future__ import annotations

import resource

_WANTED = 65_536


def raise_limit(wanted: int = _WANTED) -> int:
    """Raise the soft limit to the hard one, or to `wanted`; returns it, never lower than before.

    Every local process may connect: at the usual 1,024 it takes few of them to keep a sensor
    from its files. Source: getrlimit(2).
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return soft
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted
