"""Which processes listen on an address of this host. Standard library alone.

Source: /proc/net/tcp and /proc/net/tcp6 (proc_net_tcp(5)) name the inode of a listening socket,
/proc/PID/fd (proc_pid_fd(5)) who holds it. Only this process's own network namespace is seen.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from wattledger_collectors.workloads.tree import descendants

_LISTEN = "0A"
_INIT = 1
FORWARDERS = frozenset(
    {"docker-proxy", "rootlessport", "slirp4netns", "pasta", "ssh", "sshd", "socat", "kubectl"}
)
"""Commands that only hand connections on: what they lead to lies elsewhere."""

Address = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class Listeners:
    """Who listens; `pids` ascending.

    `sockets` counts listening sockets: where there are any and no pids, their owners may not be
    looked into (another user's), or only hand on, as `forwarder` then says.
    """

    pids: tuple[int, ...] = ()
    sockets: int = 0
    forwarder: str = ""


def listeners(host: str, port: int, proc_root: Path = Path("/proc")) -> Listeners:
    """Who listens on `port` of this host's address `host`; nobody for another host's.

    A socket of the very address comes before one of all addresses. Asks the resolver for a name,
    which may take seconds. init, which holds sockets for others, is nobody.
    """
    inodes = _sockets(_addresses(host), port, proc_root)
    pids: list[int] = []
    forwarder = ""
    for pid in _holders(inodes, proc_root) if inodes else ():
        command = command_name(pid, proc_root)
        if command in FORWARDERS:
            forwarder = command
        elif pid != _INIT:
            pids.append(pid)
    return Listeners(tuple(sorted(pids)), len(inodes), "" if pids else forwarder)


def process_group(
    pids: Collection[int], launchers: Collection[str] = (), proc_root: Path = Path("/proc")
) -> tuple[int, ...]:
    """These processes and all below them, ascending.

    One whose parent is a command of the name of a launcher counts from that parent on: some
    engines' workers stand beside the process that listens.
    """
    found: set[int] = set()
    for pid in pids:
        root, above = pid, parent(pid, proc_root)
        while above > _INIT and command_name(above, proc_root) in launchers:
            root, above = above, parent(above, proc_root)
        found.update(descendants(root, proc_root))
    return tuple(sorted(found))


def command_name(pid: int, proc_root: Path = Path("/proc")) -> str:
    """The file name of a process's first argument; "" for one that is gone or has none."""
    try:
        first = (proc_root / str(pid) / "cmdline").read_bytes().split(b"\0", 1)[0]
    except OSError:
        return ""
    return os.path.basename(first).decode(errors="replace")  # noqa: PTH119 - bytes, not a path


def parent(pid: int, proc_root: Path = Path("/proc")) -> int:
    """The parent of a process; 0 for one that has none or is gone."""
    try:
        stat = (proc_root / str(pid) / "stat").read_text(errors="replace")
        return int(stat.rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return 0


def is_this_host(host: str) -> bool:
    """Whether an address or name leads to this very host."""
    return bool(_addresses(host))


# ------------------------------------------------------------------------- inside


def _addresses(host: str) -> frozenset[Address]:
    """The addresses of `host` that are this host's own."""
    try:
        infos = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return frozenset()
    found = {ip_address(str(info[4][0]).partition("%")[0]) for info in infos}
    return frozenset(address for address in found if _is_own(address))


def _is_own(address: Address) -> bool:
    """A packet to an own address would come from that same address; none is sent."""
    if address.is_loopback or address.is_unspecified:
        return True
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((str(address), 9))
        return ip_address(str(probe.getsockname()[0]).partition("%")[0]) == address
    return False


def _sockets(addresses: frozenset[Address], port: int, proc_root: Path) -> frozenset[str]:
    """Inodes of the sockets that a connection to one of the addresses would reach."""
    if not addresses:
        return frozenset()
    exact: set[str] = set()
    wildcard: set[str] = set()
    for address, inode in _listening(port, proc_root):
        plain = address.ipv4_mapped if isinstance(address, IPv6Address) else None
        if (plain or address) in addresses:
            exact.add(inode)
        elif address.is_unspecified or (plain is not None and plain.is_unspecified):
            wildcard.add(inode)
    return frozenset(exact or wildcard)


def _listening(port: int, proc_root: Path) -> Iterator[tuple[Address, str]]:
    for name in ("tcp", "tcp6"):
        try:
            lines = (proc_root / "net" / name).read_text().splitlines()[1:]
        except OSError:
            # No IPv6, say.
            continue
        for line in lines:
            fields = line.split()
            local, _, hex_port = fields[1].rpartition(":")
            if fields[3] == _LISTEN and int(hex_port, 16) == port:
                yield _address(local), fields[9]


def _address(text: str) -> Address:
    """An address as the kernel writes it: 32-bit words in the byte order of the machine."""
    words = [int(text[at : at + 8], 16) for at in range(0, len(text), 8)]
    order = "<" if sys.byteorder == "little" else ">"
    raw = struct.pack(f"{order}{len(words)}I", *words)
    return IPv4Address(raw) if len(raw) == 4 else IPv6Address(raw)


def _holders(inodes: frozenset[str], proc_root: Path) -> Iterator[int]:
    """Processes that hold one of the sockets open; those that may not be looked into do not."""
    wanted = {f"socket:[{inode}]" for inode in inodes}
    with os.scandir(proc_root) as entries:
        pids = [int(entry.name) for entry in entries if entry.name.isdecimal()]
    for pid in pids:
        with suppress(OSError), os.scandir(proc_root / str(pid) / "fd") as entries:
            if any(_target(entry) in wanted for entry in entries):
                yield pid


def _target(entry: os.DirEntry[str]) -> str:
    try:
        return os.readlink(entry.path)  # noqa: PTH115 - hot: thousands of them, a Path each
    except OSError:
        # Closed between two looks.
        return ""
