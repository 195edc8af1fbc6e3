"""MPS: a server that holds the context for clients whom NVML may not list."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

BY_MPS = "mps"
# The kernel keeps 15 characters of a name, and writes no more to /proc/PID/comm.
_SERVER = b"nvidia-cuda-mps-server"[:15]


class MpsServers:
    """Tells whether a GPU's owners are MPS servers alone, asking /proc once per process."""

    def __init__(self, proc_root: Path) -> None:
        self._proc_root = proc_root
        self._known: dict[int, bool] = {}

    def alone(self, pids: Collection[int]) -> bool:
        """Whether all of these, of which there is one at least, are servers without clients."""
        self._known = {pid: server for pid, server in self._known.items() if pid in pids}
        return bool(pids) and all(map(self._is_server, pids))

    def _is_server(self, pid: int) -> bool:
        if pid not in self._known:
            try:
                name = (self._proc_root / str(pid) / "comm").read_bytes()
            except OSError:
                # Gone, or of a namespace that is not ours to see: not known to be a server.
                name = b""
            self._known[pid] = name.rstrip(b"\n") == _SERVER
        return self._known[pid]
