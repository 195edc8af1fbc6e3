"""A fake tree of control groups below /sys, of version 2, or of version 1."""

from __future__ import annotations

from pathlib import Path


class FakeCgroups:
    """Groups with CPU time and memory; what a group spends, those around it have spent too."""

    def __init__(self, sysfs_root: Path, *, version: int = 2) -> None:
        base = sysfs_root / "fs" / "cgroup"
        self._version = version
        self._cpu = base if version == 2 else base / "cpu,cpuacct"
        self._memory = base if version == 2 else base / "memory"
        self._cpu.mkdir(parents=True)
        self._memory.mkdir(exist_ok=True)
        self._graves = sysfs_root / "graves"
        self._graves.mkdir()
        self._usage_us: dict[str, int] = {}
        if version == 2:
            (base / "cgroup.controllers").write_text("cpu memory\n")
        self._write("")

    def make(self, path: str, *, pids: tuple[int, ...] = (), memory_bytes: int = 0) -> None:
        """Make a group, and those around it that are not there."""
        for folder in _prefixes(path):
            if folder not in self._usage_us:
                self._folder(folder).mkdir()
                (self._memory / folder[1:]).mkdir(exist_ok=True)
                self._write(folder)
        self._file(path, "cgroup.procs").write_text("".join(f"{pid}\n" for pid in pids))
        name = "memory.current" if self._version == 2 else "memory.usage_in_bytes"
        (self._memory / path[1:] / name).write_text(f"{memory_bytes}\n")

    def spend(self, path: str, spent_us: int) -> None:
        """Have a process of this very group use CPU time."""
        for folder in ("", *_prefixes(path)):
            self._write(folder, spent_us)

    def garble(self, path: str, text: str) -> None:
        """Put anything in place of the CPU time; the next `spend` mends it."""
        self._file(path, self._usage_file).write_text(text)

    def forget_memory(self, path: str) -> None:
        """Have no memory counted for a group, as where that controller is off."""
        name = "memory.current" if self._version == 2 else "memory.usage_in_bytes"
        (self._memory / path[1:] / name).unlink()

    def remove(self, path: str) -> None:
        """Remove a group without groups in it; what it spent stays counted above it."""
        # Moved aside, so that a next folder of this name is another inode.
        self._folder(path).rename(self._graves / f"{len(list(self._graves.iterdir()))}")
        del self._usage_us[path]
        if self._version == 1:
            for file in (self._memory / path[1:]).iterdir():
                file.unlink()
            (self._memory / path[1:]).rmdir()

    def line(self, path: str) -> bytes:
        """What /proc/PID/cgroup says of a process in this group."""
        if self._version == 2:
            return f"0::{path}\n".encode()
        return f"7:memory:{path}\n4:cpu,cpuacct:{path}\n1:name=systemd:/x\n0::/\n".encode()

    @property
    def _usage_file(self) -> str:
        return "cpu.stat" if self._version == 2 else "cpuacct.usage"

    def _folder(self, path: str) -> Path:
        return self._cpu / path[1:]

    def _file(self, path: str, name: str) -> Path:
        return self._folder(path) / name

    def _write(self, path: str, spent_us: int = 0) -> None:
        usage = self._usage_us[path] = self._usage_us.get(path, 0) + spent_us
        text = f"usage_usec {usage}\nuser_usec 1\nsystem_usec 2\n"
        self._file(path, self._usage_file).write_text(
            text if self._version == 2 else f"{usage * 1000}\n"
        )


def _prefixes(path: str) -> list[str]:
    parts = path.split("/")[1:]
    return ["/" + "/".join(parts[: depth + 1]) for depth in range(len(parts))]
