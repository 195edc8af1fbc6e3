"""Fake kernel trees in a temporary folder: powercap below /sys, and /proc."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

RANGE_UJ = 262143328850


class FakePowercap:
    """`ROOT/class/powercap` as the kernel lays it out: every zone, children too, side by side."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._folder = root / "class" / "powercap"
        self._folder.mkdir(parents=True)
        (self._folder / "intel-rapl").mkdir()

    def zone(self, zone: str, name: str, energy_uj: int, range_uj: int = RANGE_UJ) -> None:
        """Add a zone, e.g. `intel-rapl:0:1` named `dram`."""
        folder = self._folder / zone
        folder.mkdir()
        (folder / "name").write_text(f"{name}\n")
        (folder / "max_energy_range_uj").write_text(f"{range_uj}\n")
        self.set(zone, energy_uj)

    def set(self, zone: str, energy_uj: int) -> None:
        self.write(zone, f"{energy_uj}\n")

    def write(self, zone: str, text: str) -> None:
        self.energy_file(zone).write_text(text)

    def energy_file(self, zone: str) -> Path:
        return self._folder / zone / "energy_uj"


class Opener:
    """Opens files as sensors do, and can refuse them or make them vanish under open readers."""

    def __init__(self, refused: tuple[Path, ...] = ()) -> None:
        self.refused = refused
        self.opened: list[Path] = []
        self._descriptors: dict[Path, int] = {}
        self._gone: set[Path] = set()

    def __call__(self, path: Path) -> int:
        self.opened.append(path)
        if path in self.refused:
            raise PermissionError(13, "Permission denied", str(path))
        if path in self._gone:
            raise FileNotFoundError(2, "No such file or directory", str(path))
        descriptor = self._descriptors[path] = os.open(path, os.O_RDONLY)
        return descriptor

    def vanish(self, path: Path) -> None:
        """From now on reads of `path` fail, through kept descriptors too."""
        # A folder in its place: the kernel itself refuses to read it.
        folder = os.open(path.parent, os.O_RDONLY)
        os.dup2(folder, self._descriptors[path])
        os.close(folder)
        self._gone.add(path)

    def bring_back(self, path: Path) -> None:
        self._gone.discard(path)


class FakeProc:
    """A `/proc` with what the sensors read of it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir()
        self.cpu_ticks(busy=0, idle=0)
        (root / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Fake CPU  @ 2.00GHz\n")
        (root / "meminfo").write_text("MemTotal:       1024 kB\nMemFree:         512 kB\n")

    def cpu_ticks(self, busy: int, idle: int) -> None:
        """The machine's ticks; busy ones are user, nice, system, irq, softirq and steal."""
        shares = [busy // 6] * 5 + [busy - 5 * (busy // 6)]
        user, nice, system, irq, softirq, steal = shares
        iowait = idle // 2
        line = (user, nice, system, idle - iowait, iowait, irq, softirq, steal, user, nice)
        text = f"cpu  {' '.join(map(str, line))}\ncpu0 1 2 3 4 5 6 7 8 9 10\nintr 1 2 3\n"
        (self.root / "stat").write_text(text)

    def process(
        self,
        pid: int,
        *,
        start: int = 100,
        comm: bytes = b"python3",
        environ: Mapping[str, str] | None = None,
        cgroup: bytes = b"0::/\n",
        rss_pages: int = 0,
    ) -> None:
        """Start a process that has used no CPU yet; the kernel keeps 15 bytes of its name."""
        folder = self.root / str(pid)
        folder.mkdir()
        (folder / "comm").write_bytes(comm[:15] + b"\n")
        (folder / "cgroup").write_bytes(cgroup)
        environment = "".join(f"{name}={value}\0" for name, value in (environ or {}).items())
        (folder / "environ").write_text(environment)
        (folder / "statm").write_text(f"9999 {rss_pages} 0 0 0 0 0\n")
        self.spend(pid, 0, start=start, comm=comm)

    def spend(self, pid: int, ticks: int, *, start: int = 100, comm: bytes = b"python3") -> None:
        """Set the CPU time a process has used since its start."""
        middle = b" ".join([b"0"] * 10)
        times = f"{ticks - ticks // 3} {ticks // 3} 7 7 20 0 1 0 {start} 0 0\n".encode()
        stat = f"{pid} (".encode() + comm[:15] + b") S " + middle + b" " + times
        (self.root / str(pid) / "stat").write_bytes(stat)

    def end(self, pid: int) -> None:
        """End a process: its kept files answer nothing more."""
        folder = self.root / str(pid)
        (folder / "stat").write_bytes(b"")
        # Moved aside first, so that a next folder of this name is another inode.
        ended = folder.rename(self.root / f"ended-{pid}-{len(list(self.root.iterdir()))}")
        for path in ended.iterdir():
            path.unlink()
