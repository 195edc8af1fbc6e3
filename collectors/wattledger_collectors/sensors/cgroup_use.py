"""What the control groups that are somebody's spent: their children that died included."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from wattledger_collectors.sensors.cgroup_files import Hierarchy, find_hierarchy, is_gone
from wattledger_collectors.sensors.cgroup_node import Node, settle
from wattledger_collectors.sensors.cgroup_room import LISTED_AT_MOST, Room, tenant_of
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

_KEPT_AT_MOST = 256
_NAMED_AT_MOST = 64
_TOLD_AGAIN_AFTER = 60
_TOLD_CHARACTERS = 120


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
        self._room = Room()
        self._kept = 0
        self._edition = 0
        self._faults: list[str] = []
        # What was cut off, by reason: at which sample last.
        self._cut: dict[str, int] = {}
        self._untold: list[str] = []
        self._samples = 0

    @classmethod
    def of_host(cls, settings: SensorSettings) -> GroupTree | None:
        """The tree of this host; None without control groups."""
        hierarchy = find_hierarchy(settings.sysfs_root)
        if hierarchy is None:
            return None
        return cls(hierarchy, settings.proc_root, settings.rules)

    def sample(self, possible_us: int) -> list[GroupSpent]:
        """What groups spent since the last call; a change above `possible_us` is no news.

        Groups that cannot be read, say what cannot be, or find no room (cgroup_room.py) are left
        out: see `faults`.
        """
        self._samples += 1
        self._dead, self._faults = [], []
        self._kept = sum(node.descriptor is not None for node in self._nodes.values())
        for path in sorted(self._watched):
            # One that was cut off or has ended meanwhile is watched no more.
            if path in self._watched:
                self._list(path)
        for node in list(self._nodes.values()):
            self._read(node)
            if node.change_us is not None and node.change_us > possible_us:
                self._faults.append(f"{node.path}: {node.change_us} us in one interval")
                node.change_us = node.last_us = None
        self._name_again()
        settle(self._nodes.values(), self._dead)
        self._tell_cut()
        return [
            GroupSpent(node.path, node.owner, node.own_us)
            for node in (*self._nodes.values(), *self._dead)
            if node.owner is not None and node.own_us
        ]

    @property
    def faults(self) -> list[str]:
        """What could not be read at the last sample; what was cut off is told once."""
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
        self._homes, self._kept, self._room = {}, 0, Room()
        self._cut, self._untold = {}, []

    # ------------------------------------------------------------------ who is there

    def _list(self, path: str) -> None:
        """List a folder, and those found in it that are to be watched too."""
        # No recursion: whoever owns a group may nest them without end.
        waiting = [path]
        while waiting:
            waiting += self._list_one(waiting.pop())

    def _list_one(self, path: str) -> list[str]:
        """List a folder; returns the folders in it that are to be listed next."""
        try:
            children = self._hierarchy.children(path)
        except OSError:
            self._forget_folder(path)
            return []
        before = self._listed.get(path)
        if children == before:
            return []
        known = before or {}
        if not self._room.list(path, _weight(children) - _weight(before)):
            self._forget_folder(path)
            self._cut_off(path, f"more than {LISTED_AT_MOST} groups in it and its like")
            return []
        self._listed[path] = children
        for name, inode in known.items():
            if children.get(name) != inode:
                self._bury(f"{path}/{name}")
        pure = holder_of(path) is Holder.PURE
        fresh = [name for name, inode in children.items() if known.get(name) != inode]
        born = before is not None
        return [
            f"{path}/{name}"
            for name in fresh
            if self._meet(f"{path}/{name}", children[name], born=born, in_pure=pure)
        ]

    def _meet(self, path: str, inode: int, *, born: bool, in_pure: bool) -> bool:
        """Take up a group where it is somebody's; whether to list what is in it."""
        holder = holder_of(path)
        place = place_of(path)
        kept = place.manager in KEEPERS and place.folder == path
        owned = kept or first_match(self._rules, (path,), None, None) is not None
        if path not in self._nodes and (owned or in_pure or holder is Holder.PURE):
            self._add(path, owned=owned, inode=inode, born=born)
        if holder is None or (holder is Holder.PURE and path not in self._nodes):
            return False
        self._watched.add(path)
        if born and path not in self._listed and self._room.list(path, _weight({})):
            self._listed[path] = {}
        return True

    def _add(self, path: str, *, owned: bool, inode: int | None = None, born: bool = False) -> None:
        refusal = self._room.refusal(path)
        if refusal:
            self._cut_off(path, refusal)
            return
        try:
            node = Node(path, self._hierarchy.inode(path) if inode is None else inode)
        except OSError:
            return
        around = self._nearest(path)
        node.crowded = around is not None and around.crowded
        self._nodes[path] = node
        self._room.take(path)
        self._homes.clear()
        self._edition += 1
        if owned:
            self._name(node)
        if born:
            node.last_us = 0
        else:
            self._read(node)

    def _cut_off(self, path: str, reason: str) -> None:
        """Leave a group out; told once, and again only after a time without."""
        around = self._nodes.get(path) or self._nearest(path)
        if around is not None:
            around.crowded = True
        if reason not in self._cut:
            self._untold.append(f"{path[:_TOLD_CHARACTERS]}: {reason}")
        self._cut[reason] = self._samples

    def _tell_cut(self) -> None:
        self._faults += self._untold
        self._untold = []
        over = self._samples - _TOLD_AGAIN_AFTER
        self._cut = {reason: at for reason, at in self._cut.items() if at > over}

    def _nearest(self, path: str) -> Node | None:
        """The innermost group around `path` that is followed."""
        return next((self._nodes[up] for up in above(path) if up in self._nodes), None)

    def _watch_above(self, folder: str, *, mixed: bool) -> None:
        """Look from now on for more groups where this one lies; outermost folder first."""
        for path in reversed(list(above(folder))):
            nearest = path == folder.rpartition("/")[0]
            if path in self._watched or not (holder_of(path) or (mixed and nearest)):
                continue
            if holder_of(path) is Holder.PURE and path not in self._nodes:
                self._add(path, owned=False)
                if path not in self._nodes:
                    return
            elif refusal := self._room.refusal(path):
                self._cut_off(path, refusal)
                return
            self._watched.add(path)
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
        waiting = [path]
        while waiting:
            ended = waiting.pop()
            waiting += self._unlist(ended)
            node = self._nodes.pop(ended, None)
            if node is None:
                continue
            self._room.take(ended, by=-1)
            node.close()
            node.dead, node.change_us = True, 0
            self._dead.append(node)
            self._homes.clear()
            self._edition += 1

    def _forget_folder(self, path: str) -> None:
        for child in self._unlist(path):
            self._bury(child)

    def _unlist(self, path: str) -> list[str]:
        """Watch a folder no more; returns what was in it."""
        if path:
            self._watched.discard(path)
        listed = self._listed.pop(path, None)
        self._room.list(path, -_weight(listed))
        return [f"{path}/{name}" for name in listed or ()]

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
        if len(unsure) > _NAMED_AT_MOST:
            unsure.sort(key=lambda node: tenant_of(node.path) != "")
        for node in unsure[:_NAMED_AT_MOST]:
            if node.owner == identify_group(self._proc_root, node.path, (), self._rules):
                self._name(node)
            else:
                node.namings_left = 0


def _weight(listed: dict[str, int] | None) -> int:
    """What a folder costs that is listed again and again."""
    return 0 if listed is None else 1 + len(listed)
