"""Fake processes that hold GPUs: `/proc/PID/fd` and `/proc/PID/fdinfo` as DRM fills them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from wattledger_collectors.sensors.drm_holders import open_files


class FakeHolders:
    """A `/proc` of processes with open files; links may point at devices that are not there."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir()
        self.refused: set[int] = set()
        self.looks: list[int] = []

    def process(self, pid: int, **targets: str) -> None:
        """A process with one descriptor per keyword, `fd3="/dev/kfd"`."""
        for name in ("fd", "fdinfo"):
            (self.root / str(pid) / name).mkdir(parents=True, exist_ok=True)
        for name, target in targets.items():
            link = self.root / str(pid) / "fd" / name.removeprefix("fd")
            link.symlink_to(target)

    def client(self, pid: int, descriptor: int, *lines: str, node: int = 128) -> None:
        """Let a process hold a render node, or change what its fdinfo says."""
        self.process(pid)
        link = self.root / str(pid) / "fd" / str(descriptor)
        if not link.is_symlink():
            link.symlink_to(f"/dev/dri/renderD{node}")
        text = "".join(f"{line}\n" for line in ("pos:\t0", "flags:\t02100002", "ino:\t7", *lines))
        (self.root / str(pid) / "fdinfo" / str(descriptor)).write_text(text)

    def end(self, pid: int) -> None:
        """End a process; a later one of its number is another inode."""
        ended = self.root / f"ended-{pid}-{len(list(self.root.iterdir()))}"
        (self.root / str(pid)).rename(ended)

    def look(self, folder: Path) -> Iterable[tuple[str, str]]:
        """As the kernel does: refuse what belongs to somebody else."""
        pid = int(folder.parent.name)
        self.looks.append(pid)
        if pid in self.refused:
            raise PermissionError(13, "Permission denied", str(folder))
        return open_files(folder)
