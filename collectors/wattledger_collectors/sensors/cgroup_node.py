"""One control group and its CPU time, and how what was spent is laid on a tree of them."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable

from wattledger_collectors.sensors.cgroup_files import Hierarchy, usage_us
from wattledger_collectors.workloads.identity import Identity
from wattledger_collectors.workloads.places import above


class Node:
    """A control group whose CPU time is followed.

    `owner` is None for one that nobody is charged for: a folder of groups, or a stranger among
    them. `change_us` is what the whole group spent in the last interval, `own_us` that without
    the groups of others in it; None where it is not known. `crowded` is one with groups in it
    that are not followed.
    """

    __slots__ = (
        "change_us",
        "crowded",
        "dead",
        "descriptor",
        "inode",
        "last_us",
        "namings_left",
        "own_us",
        "owner",
        "path",
    )

    def __init__(self, path: str, inode: int) -> None:
        self.path = path
        self.inode = inode
        self.owner: Identity | None = None
        self.namings_left = 3
        self.descriptor: int | None = None
        self.last_us: int | None = None
        self.change_us: int | None = None
        self.own_us: int | None = None
        self.crowded = False
        self.dead = False

    def read(self, hierarchy: Hierarchy, keep: bool) -> None:
        """Take the change since the last read; raises OSError or ValueError.

        A counter that fell belongs to a group made anew, or is not to be believed: it counts
        from now on.
        """
        last, self.last_us, self.change_us = self.last_us, None, None
        usage = self._usage_us(hierarchy, keep)
        self.last_us = usage
        if last is not None and usage >= last:
            self.change_us = usage - last

    def _usage_us(self, hierarchy: Hierarchy, keep: bool) -> int:
        if self.descriptor is not None:
            return usage_us(self.descriptor)
        descriptor = hierarchy.open_usage(self.path)
        if keep:
            self.descriptor = descriptor
            return usage_us(descriptor)
        try:
            return usage_us(descriptor)
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Close the kept file."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None


def settle(living: Iterable[Node], dead: Iterable[Node]) -> None:
    """Tell each node's own part of the last interval, from the whole and what lies inside.

    What a group spent between its last read and its end is left over in the folder it lay in,
    which counts its dead. Where all else in that folder is known (it is not `crowded`) and just
    one group died, that is whose it was; where several did nobody can say. A group that was
    born and died between two samples was never seen: if just one other died in that interval, that
    one is charged for both.
    """
    nodes = sorted((*living, *dead), key=lambda node: len(node.path))
    by_path = {node.path: node for node in nodes if node.dead}
    by_path.update((node.path, node) for node in nodes if not node.dead)
    inside: dict[Node, list[Node]] = defaultdict(list)
    for node in nodes:
        parent = next((by_path[path] for path in above(node.path) if path in by_path), None)
        if parent is not None:
            inside[parent].append(node)
    for node in nodes:
        within = inside[node]
        node.own_us = None
        if node.change_us is None:
            continue
        left_us = max(node.change_us - sum(n.change_us or 0 for n in within), 0)
        if node.owner is not None:
            node.own_us = left_us
            continue
        ended = [n for n in within if n.dead]
        if not node.crowded and len(ended) == 1 and all(n.change_us is not None for n in within):
            ended[0].change_us = left_us
