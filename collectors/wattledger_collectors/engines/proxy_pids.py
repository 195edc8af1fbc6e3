"""Which processes are the engine behind the proxy: who listens there, and all below them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from wattledger_collectors.workloads.listeners import is_this_host, listeners, process_group

_LOOK_NS = 30 * 10**9


class EnginePids:
    """Asked every few seconds, by one thread; the listener itself is looked for more rarely.

    `tell` gets a line where tokens will have no energy, once for each reason.
    """

    def __init__(
        self,
        host: str,
        port: int,
        tell: Callable[[str], None] = lambda _: None,
        *,
        proc_root: Path = Path("/proc"),
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._host = host
        self._port = port
        self._tell = tell
        self._proc_root = proc_root
        self._now_ns = now_ns
        self._roots: tuple[int, ...] = ()
        self._looked_ns: int | None = None
        self._told: set[str] = set()

    def __call__(self) -> tuple[int, ...]:
        """Ascending; () where nobody is found. Ollama starts a process for each model."""
        found = process_group(self._roots, proc_root=self._proc_root)
        now_ns = self._now_ns()
        gone = not set(self._roots) <= set(found)
        if not found or gone or self._looked_ns is None or now_ns - self._looked_ns > _LOOK_NS:
            self._looked_ns = now_ns
            self._roots = self._look()
            found = process_group(self._roots, proc_root=self._proc_root)
        # The proxy may stand below the engine, and is no part of it.
        return tuple(pid for pid in found if pid != os.getpid())

    def _look(self) -> tuple[int, ...]:
        found = listeners(self._host, self._port, self._proc_root)
        if found.pids:
            return found.pids
        where = f"{self._host}:{self._port}"
        if found.forwarder:
            self._tell_once(
                f"{where} is {found.forwarder}'s, which only forwards: give --to itself"
            )
        elif found.sockets:
            self._tell_once(f"cannot see whose {where} is: run as root or as the engine's user")
        elif not is_this_host(self._host):
            self._tell_once(f"{where} is not on this host: tokens are counted, joules are not")
        return ()

    def _tell_once(self, line: str) -> None:
        if line not in self._told:
            self._told.add(line)
            self._tell(line)
