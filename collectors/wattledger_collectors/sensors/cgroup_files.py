"""The files of control groups that sensors read, of version 1 and version 2.

Sources: the kernel's cgroup-v2.rst (cpu.stat, memory.current), cgroup-v1/cpuacct.rst and
cgroup-v1/memory.rst.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_BYTES = 512
_V1_CPU = ("cpu,cpuacct", "cpuacct,cpu", "cpuacct")
_V2_USAGE = b"usage_usec "
_GONE = frozenset({errno.ENODEV, errno.ENOENT, errno.ENOTDIR, errno.ESTALE})


def is_gone(error: OSError) -> bool:
    """Whether the group itself was removed; a kept file of it answers ENODEV from then on."""
    return error.errno in _GONE


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """The tree of control groups that counts CPU time.

    `controllers` are the names that /proc/PID/cgroup may give it. Version 2 has both files in
    one folder; version 1 has memory in a tree of its own.
    """

    root: str
    controllers: tuple[str, ...]
    usage_file: str
    memory_root: str
    memory_file: str

    def path_of(self, paths: Mapping[str, str]) -> str | None:
        """Where in this tree a process stands; None for outside or unknown."""
        path = next((paths[name] for name in self.controllers if name in paths), None)
        return None if path is None or ".." in path.split("/") else path.rstrip("/")

    def open_usage(self, path: str) -> int:
        """Open a group's CPU time for `usage_us`; raises OSError."""
        return os.open(f"{self.root}{path}/{self.usage_file}", os.O_RDONLY | os.O_CLOEXEC)

    def memory_bytes(self, path: str) -> int:
        """Memory charged to a group, page cache included; raises OSError or ValueError."""
        name = f"{self.memory_root}{path}/{self.memory_file}"
        descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return _amount(os.read(descriptor, _BYTES))
        finally:
            os.close(descriptor)

    def children(self, path: str) -> dict[str, int]:
        """Groups right below a group, with inode numbers; raises OSError."""
        with os.scandir(f"{self.root}{path}") as entries:
            return {e.name: e.inode() for e in entries if e.is_dir(follow_symlinks=False)}

    def inode(self, path: str) -> int:
        """The number by which a group differs from one made anew by its name; raises OSError."""
        return os.stat(f"{self.root}{path}").st_ino  # noqa: PTH116 - a Path costs more than this

    def pids(self, path: str, folders_at_most: int = 16) -> list[int]:
        """Processes in a group and in the first few below it; what cannot be read is left out."""
        found: list[int] = []
        waiting = [path]
        for _ in range(folders_at_most):
            if not waiting:
                break
            folder = waiting.pop()
            # A threaded group refuses to list processes, and has groups in it all the same.
            with suppress(OSError):
                waiting += [f"{folder}/{name}" for name in self.children(folder)]
            with suppress(OSError):
                raw = Path(f"{self.root}{folder}/cgroup.procs").read_bytes()
                # 0 is a process of another pid namespace.
                found += [int(line) for line in raw.split() if line.isdigit() and line != b"0"]
        return found


def find_hierarchy(sysfs_root: Path) -> Hierarchy | None:
    """The hierarchy of this host; None without one. On a hybrid host version 1 counts CPU time."""
    base = sysfs_root / "fs/cgroup"
    if (base / "cgroup.controllers").exists():
        return Hierarchy(str(base), ("",), "cpu.stat", str(base), "memory.current")
    for name in _V1_CPU:
        if (base / name / "cpuacct.usage").exists():
            memory = str(base / "memory")
            return Hierarchy(
                str(base / name), _V1_CPU, "cpuacct.usage", memory, "memory.usage_in_bytes"
            )
    unified = base / "unified"
    if (unified / "cgroup.controllers").exists():
        memory = str(base / "memory")
        return Hierarchy(str(unified), ("",), "cpu.stat", memory, "memory.usage_in_bytes")
    return None


def usage_us(descriptor: int) -> int:
    """A group's CPU time since it was made, microseconds; raises OSError or ValueError.

    `usage_usec N` first in cpu.stat, or nanoseconds alone in cpuacct.usage.
    """
    raw = os.pread(descriptor, _BYTES, 0)
    if raw.startswith(_V2_USAGE):
        return _amount(raw[len(_V2_USAGE) :].partition(b"\n")[0])
    return _amount(raw) // 1000


def _amount(raw: bytes) -> int:
    amount = raw.strip()
    if not amount.isdigit():
        raise ValueError(f"not a number: {amount[:40]!r}")
    return int(amount)
