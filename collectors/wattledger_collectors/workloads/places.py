"""What the path of a control group says of the processes in it.

Paths are as /proc/PID/cgroup writes them, from the root of a hierarchy. Sources: the cgroup
drivers of SLURM (cgroup/v1, cgroup/v2), the kubelet (systemd, cgroupfs), containerd, CRI-O,
Docker and Podman; systemd.slice(5).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from wattledger_collectors.workloads.names import printable

_PATH_CHARACTERS = 4096
_DELETED = " (deleted)"
_HEX = r"[0-9a-f]{64}"


class Manager(StrEnum):
    """Who made a control group and knows whose it is, the one that knows most first."""

    SLURM = "slurm"
    KUBERNETES = "kubernetes"
    CONTAINER = "container"
    SYSTEMD = "systemd"
    SESSION = "session"
    NOBODY = "nobody"


_RANK = {manager: rank for rank, manager in enumerate(Manager)}
KEEPERS = frozenset({Manager.SLURM, Manager.KUBERNETES, Manager.CONTAINER})
"""Managers whose every group is somebody's; units and sessions are many, and mostly idle."""


@dataclass(frozen=True, slots=True)
class Place:
    """Whose a control group is, as far as its path tells; None where it does not.

    `user` is a uid in decimal. `folder` is the path of what belongs together: the whole SLURM
    job, pod, container, unit or session; empty where it cannot be seen from here.
    """

    manager: Manager = Manager.NOBODY
    job: str | None = None
    step: str | None = None
    pod: str | None = None
    container: str | None = None
    unit: str | None = None
    user: str | None = None
    folder: str = ""


NOWHERE = Place()

# What a part of the path is, its pattern, and what must stand above it.
_SIGNS = (
    ("slurm", re.compile(r"slurm|slurm_.+|(?:.+_)?slurmstepd\.scope"), None),
    ("job", re.compile(r"job_(\d{1,20})"), "slurm"),
    ("step", re.compile(r"step_(\w{1,64})"), "job"),
    ("kube", re.compile(r"(?:.+-)?kubepods(?:-[a-z]+)?(?:\.slice)?"), None),
    ("pod", re.compile(r"(?:.+-)?kubepods(?:-[a-z]+)?-pod(\w{1,64})\.slice"), None),
    ("pod", re.compile(r"pod([0-9A-Za-z_-]{1,64})"), "kube"),
    ("container", re.compile(rf"(?:(?:cri-containerd|crio|docker|libpod)-)?({_HEX})"), None),
    (
        "container",
        re.compile(rf"(?:cri-containerd|crio|docker|libpod)-({_HEX})\.scope"),
        None,
    ),
    ("user", re.compile(r"user-(\d{1,20})\.slice|user@(\d{1,20})\.service"), None),
    ("session", re.compile(r"session-.+\.scope"), "user"),
    ("unit", re.compile(r"(?!session-|init\.scope|user@\d+\.service).+\.(?:service|scope)"), None),
)
# containerd under the systemd driver, given a cgroupfs path: SLICE:PREFIX:ID as one folder.
_JOINED = re.compile(rf"([^:]*kubepods[^:]*\.slice):([\w-]+):({_HEX})")


@lru_cache(maxsize=512)
def place_of(path: str) -> Place:
    """Read a control group's path; anything may stand in it, and most says nothing."""
    clean = path[:_PATH_CHARACTERS].removesuffix(_DELETED)
    parts = [part for part in clean.split("/") if part]
    seen: dict[str, tuple[str, int]] = {}
    for depth, part in enumerate(parts, 1):
        joined = _JOINED.fullmatch(part)
        for piece in (joined[1], joined[3]) if joined else (part,):
            _read(piece, depth, seen)
    manager, depth = _manager(seen)
    # From inside a cgroup namespace, what lies outside it cannot be opened.
    seen_from_here = depth and ".." not in parts and len(path) <= _PATH_CHARACTERS
    pod = _value(seen, "pod")
    return Place(
        manager,
        job=_value(seen, "job"),
        step=_value(seen, "step"),
        pod=pod.replace("_", "-") if pod else None,
        container=_value(seen, "container"),
        unit=printable(os.fsencode(_value(seen, "unit") or "")),
        user=_value(seen, "user"),
        folder="/" + "/".join(parts[:depth]) if seen_from_here else "",
    )


def _read(part: str, depth: int, seen: dict[str, tuple[str, int]]) -> None:
    """Note what a part is; the outermost job and its step count, the innermost of all else."""
    for sign, pattern, needs in _SIGNS:
        if (needs is not None and needs not in seen) or (sign in {"job", "step"} and sign in seen):
            continue
        match = pattern.fullmatch(part)
        if match is not None:
            seen[sign] = (next((g for g in match.groups() if g), match[0]), depth)


def _manager(seen: Mapping[str, tuple[str, int]]) -> tuple[Manager, int]:
    """Who manages the group, and how many parts of the path name what belongs together."""
    ways = (
        ("job", Manager.SLURM),
        ("pod", Manager.KUBERNETES),
        ("container", Manager.CONTAINER),
        ("unit", Manager.SYSTEMD),
        ("session", Manager.SESSION),
        ("user", Manager.SESSION),
    )
    for sign, manager in ways:
        if sign in seen:
            return manager, seen[sign][1]
    return Manager.NOBODY, 0


def _value(seen: Mapping[str, tuple[str, int]], sign: str) -> str | None:
    return seen[sign][0] if sign in seen else None


def cgroup_paths(cgroup: bytes) -> dict[str, str]:
    """Paths by hierarchy, as /proc/PID/cgroup has them: "" is version 2, else the controllers.

    Bytes that are not UTF-8 are kept as surrogates, so that the folder can be opened.
    """
    paths: dict[str, str] = {}
    for line in cgroup.splitlines():
        _, colon, rest = line.partition(b":")
        controllers, second, path = rest.partition(b":")
        if colon and second and path.startswith(b"/"):
            paths.setdefault(os.fsdecode(controllers), os.fsdecode(path))
    return paths


def place_among(paths: Mapping[str, str]) -> Place:
    """The place of a process that stands in several hierarchies: the one that knows most.

    Among equals version 2 goes first, then systemd's own. Only of those two is a unit taken:
    the other hierarchies need not follow systemd.
    """
    own = [paths[name] for name in ("", "name=systemd") if name in paths]
    places = [place_of(path) for path in own]
    others = (place_of(path) for name, path in paths.items() if name not in {"", "name=systemd"})
    places += [place for place in others if place.manager in KEEPERS]
    return min(places, key=lambda place: _RANK[place.manager], default=NOWHERE)


class Holder(StrEnum):
    """What lies in a folder: only what managers put there, or all sorts of groups."""

    PURE = "pure"
    MIXED = "mixed"


_PURE = re.compile(
    r".*/(?:slurm|slurm_[^/]+|(?:[^/]+_)?slurmstepd\.scope|"
    r"(?:slurm|slurm_[^/]+)/uid_\d+|"
    r"(?:[^/]+-)?kubepods(?:-[a-z]+)?(?:\.slice)?|kubepods/(?:burstable|besteffort|guaranteed))"
    r"|/docker|/libpod_parent"
)
_MIXED = frozenset({"", "/system.slice", "/machine.slice", "/kubelet", "/kubelet.slice"})


def holder_of(path: str) -> Holder | None:
    """Whether groups that are somebody's are to be looked for in this folder."""
    if path in _MIXED:
        return Holder.MIXED
    return Holder.PURE if _PURE.fullmatch(path) else None


def above(path: str) -> Iterable[str]:
    """The folders above a path, innermost first, without the root."""
    while path := path.rpartition("/")[0]:
        yield path
