"""What the control groups that are somebody's spent: their children that died included."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from wattledger_collectors.sensors.cgroup_files import Hierarchy, find_hierarchy, is_gone
from wattledger_collectors.sensors.cgroup_node import Node, settle
from wattledger_collectors.sensors.protocol import SensorSettings
from wattledger_collectors.workloads.identity import NOTHING, Identity, identify_group
from wattledger_collectors.workloads.places import (
    KEEPERS,
    Holder,
    Manager,
    above,
    cgroup_paths,
    holder_of,
    place_of,
)
from wattledger_collectors.workloads.rules import Rule, first_match

_NODES_AT_MOST = 4096
_KEPT_AT_MOST = 256
_NAMED_AT_MOST = 64


class GroupSpent(NamedTuple):
    """CPU time of a group in the last interval, microseconds, without that of groups inside."""

    path: str
    owner: Identity
    spent_us: int


class GroupMemory(NamedTuple):
    """Memory charged to a group, bytes, without that of groups inside."""

    path: str
    owner: Identity
    memory_bytes: int


class GroupTree:
    """The groups that are somebody's: every SLURM job, pod and container, and what is held.

    Folders where such groups come and go are listed at each sample, so that a job that lives
    for a moment is met. A group first met in a folder that was listed before is counted from its
    birth; any other from when it was met. Source: cgroup_files.py.
    """

    def __init__(self, hierarchy: Hierarchy, proc_root: Path, rules: Sequence[Rule]) -> None:
        self._hierarchy = hierarchy
        self._proc_root = proc_root
        self._rules = tuple(rule for rule in rules if rule.of_groups)
        self._nodes: dict[str, Node] = {}
        self._dead: list[Node] = []
        # Groups as last listed, by folder: names and inode numbers.
        self._listed: dict[str, dict[str, int]] = {}
        self._watched = {""}
        self._homes: dict[str, Node | None] = {}
        self._kept = 0
        self._crowded = False
        self._edition = 0
        self._faults: list[str] = []

    @classmethod
    def of_host(cls, settings: SensorSettings) -> GroupTree | None:
        """The tree of this host; None without control groups."""
        hierarchy = find_hierarchy(settings.sysfs_root)
        if hierarchy is None:
            return None
        return cls(hierarchy, settings.proc_root, settings.rules)

    def sample(self, possible_us: int) -> list[GroupSpent]:
        """What groups spent since the last call; a change above `possible_us` is no news.

        Groups that cannot be read, or say what cannot be, are left out: see `faults`.
        """
        self._dead, self._faults = [], []
        self._kept = sum(node.descriptor is not None for node in self._nodes.values())
        for path in sorted(self._watched):
            self._list(path)
        for node in list(self._nodes.values()):
            self._read(node)
            if node.change_us is not None and node.change_us > possible_us:
                self._faults.append(f"{node.path}: {node.change_us} us in one interval")
                node.change_us = node.last_us = None
        self._name_again()
        settle(self._nodes.values(), self._dead, sure=not self._crowded)
        return [
            GroupSpent(node.path, node.owner, node.own_us)
            for node in (*self._nodes.values(), *self._dead)
            if node.owner is not None and node.own_us
        ]

    @property
    def faults(self) -> list[str]:
        """What could not be read at the last sample."""
        return self._faults

    @property
    def edition(self) -> int:
        """Another number whenever a group came or went."""
        return self._edition

    @property
    def ended(self) -> list[str]:
        """Paths of the groups that ended before the last sample."""
        return [node.path for node in self._dead]

    def speaks_for(self, path: str, owner: Identity, *, of_memory: bool) -> bool:
        """Whether the innermost known group around `path` is this owner's, and can be read."""
        node = self._home(path)
        if node is None or node.owner != owner or node.last_us is None:
            return False
        try:
            return not of_memory or self._hierarchy.memory_bytes(node.path) >= 0
        except (OSError, ValueError):
            return False

    def home_of(self, path: str) -> str | None:
        """The path of the innermost group that is somebody's and holds `path`."""
        node = self._home(path)
        return node.path if node is not None else None

    def path_of(self, cgroup: bytes) -> str | None:
        """Where a process stands in this tree, from its /proc/PID/cgroup."""
        return self._hierarchy.path_of(cgroup_paths(cgroup))

    def hold(self, path: str, *, always: bool) -> None:
        """Follow the groups around `path` that are somebody's; units and sessions if `always`."""
        place = place_of(path)
        folders = {self._ruled(path)}
        if place.manager in KEEPERS or (always and holder_of(place.folder) is None):
            folders.add(place.folder)
        if place.manager in KEEPERS and place.folder:
            self._watch_above(place.folder, mixed=place.manager is Manager.CONTAINER)
        for folder in sorted(folder for folder in folders if folder):
            if folder not in self._nodes:
                self._add(folder, owned=True)

    def memory(self) -> list[GroupMemory]:
        """Memory of each group that is somebody's, now."""
        held: dict[str, int] = {}
        owned = {path: node for path, node in self._nodes.items() if node.owner is not None}
        for path in sorted(owned, key=len, reverse=True):
            try:
                whole = self._hierarchy.memory_bytes(path)
            except (OSError, ValueError):
                # No memory controller here: the processes alone tell.
                continue
            held[path] = held.get(path, 0) + whole
            outer = self.home_of(path.rpartition("/")[0])
            if outer is not None:
                held[outer] = held.get(outer, 0) - whole
        return [
            GroupMemory(path, owned[path].owner or NOTHING, memory_bytes)
            for path, memory_bytes in held.items()
            if memory_bytes > 0
        ]

    def close(self) -> None:
        """Close every kept file."""
        for node in self._nodes.values():
            node.close()
        self._nodes, self._listed, self._watched = {}, {}, {""}
        self._homes, self._kept, self._crowded = {}, 0, False

    # ------------------------------------------------------------------ who is there

    def _list(self, path: str) -> None:
        try:
            children = self._hierarchy.children(path)
        except OSError:
            self._forget_folder(path)
            return
        before = self._listed.get(path)
        self._listed[path] = children
        if children == before:
            return
        known = before or {}
        for name, inode in known.items():
            if children.get(name) != inode:
                self._bury(f"{path}/{name}")
        pure = holder_of(path) is Holder.PURE
        for name, inode in children.items():
            if known.get(name) != inode:
                self._meet(f"{path}/{name}", inode, born=before is not None, in_pure=pure)

    def _meet(self, path: str, inode: int, *, born: bool, in_pure: bool) -> None:
        holder = holder_of(path)
        place = place_of(path)
        kept = place.manager in KEEPERS and place.folder == path
        owned = kept or first_match(self._rules, (path,), None, None) is not None
        if path not in self._nodes and (owned or in_pure or holder is Holder.PURE):
            self._add(path, owned=owned, inode=inode, born=born)
        if holder is not None:
            self._watched.add(path)
            if born:
                self._listed.setdefault(path, {})
            self._list(path)

    def _add(self, path: str, *, owned: bool, inode: int | None = None, born: bool = False) -> None:
        if len(self._nodes) >= _NODES_AT_MOST:
            self._crowded = True
            return
        try:
            node = Node(path, self._hierarchy.inode(path) if inode is None else inode)
        except OSError:
            return
        self._nodes[path] = node
        self._homes.clear()
        self._edition += 1
        if owned:
            self._name(node)
        if born:
            node.last_us = 0
        else:
            self._read(node)

    def _watch_above(self, folder: str, *, mixed: bool) -> None:
        """Look from now on for more groups where this one lies; outermost folder first."""
        for path in reversed(list(above(folder))):
            nearest = path == folder.rpartition("/")[0]
            if path in self._watched or not (holder_of(path) or (mixed and nearest)):
                continue
            self._watched.add(path)
            if holder_of(path) is Holder.PURE and path not in self._nodes:
                self._add(path, owned=False)
            self._list(path)

    def _ruled(self, path: str) -> str:
        """The outermost group around `path` that a rule is about; empty for none."""
        if not self._rules:
            return ""
        for folder in reversed((path, *above(path))):
            if folder and first_match(self._rules, (folder,), None, None) is not None:
                return folder
        return ""

    def _bury(self, path: str) -> None:
        """A group has ended, and every one inside it before."""
        self._forget_folder(path)
        node = self._nodes.pop(path, None)
        if node is None:
            return
        node.close()
        node.dead, node.change_us = True, 0
        self._dead.append(node)
        self._homes.clear()
        self._edition += 1

    def _forget_folder(self, path: str) -> None:
        if path:
            self._watched.discard(path)
        for name in self._listed.pop(path, {}):
            self._bury(f"{path}/{name}")

    def _home(self, path: str) -> Node | None:
        if path not in self._homes:
            around = (self._nodes.get(folder) for folder in (path, *above(path)))
            owned = (node for node in around if node is not None and node.owner is not None)
            self._homes[path] = next(owned, None)
        return self._homes[path]

    # ------------------------------------------------------------------ what they say

    def _read(self, node: Node) -> None:
        held = node.descriptor is not None
        try:
            node.read(self._hierarchy, keep=self._kept < _KEPT_AT_MOST)
        except OSError as error:
            if is_gone(error):
                self._bury(node.path)
            else:
                self._faults.append(f"{node.path}: {error.strerror}")
        except ValueError as error:
            self._faults.append(f"{node.path}: {error}")
        self._kept += not held and node.descriptor is not None

    def _name(self, node: Node) -> None:
        node.namings_left -= 1
        pids = self._hierarchy.pids(node.path)
        owner = identify_group(self._proc_root, node.path, pids, self._rules)
        node.owner = None if owner == NOTHING else owner

    def _name_again(self) -> None:
        """Ask young groups anew whose path was all that told: their processes come after them."""
        unsure = [n for n in self._nodes.values() if n.owner is not None and n.namings_left > 0]
        for node in unsure[:_NAMED_AT_MOST]:
            if node.owner == identify_group(self._proc_root, node.path, (), self._rules):
                self._name(node)
            else:
                node.namings_left = 0
