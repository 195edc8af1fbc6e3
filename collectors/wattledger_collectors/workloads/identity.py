"""Whose a process is: what its environment declares, else its systemd unit, else its command.

Names come from whoever started the process and may hold anything: they are cut to
printable text of bounded length.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

NAME_CHARACTERS = 200
_ENVIRON_BYTES = 1 << 18
_CGROUP_BYTES = 1 << 16
_WORKLOAD = b"WATTLEDGER_WORKLOAD"
_JOB = b"WATTLEDGER_JOB"
_SLURM_JOB = b"SLURM_JOB_ID"


@dataclass(frozen=True, slots=True)
class Identity:
    """The workload and the job that a process belongs to; None where nothing tells."""

    workload: str | None
    job: str | None


def declared(proc_root: Path, pid: int) -> Identity:
    """What the environment of a process says of it; children inherit it.

    WATTLEDGER_WORKLOAD, and WATTLEDGER_JOB or else SLURM_JOB_ID, among the first 256 KiB. An
    environment that may not be read says nothing. Source: /proc/PID/environ, as of the exec.
    """
    values: dict[bytes, bytes] = {}
    for entry in _head(proc_root, pid, "environ", _ENVIRON_BYTES).split(b"\0"):
        name, _, value = entry.partition(b"=")
        if name in {_WORKLOAD, _JOB, _SLURM_JOB}:
            values.setdefault(name, value)
    return Identity(
        workload=printable(values.get(_WORKLOAD, b"")),
        job=printable(values.get(_JOB, b"")) or printable(values.get(_SLURM_JOB, b"")),
    )


def identify(proc_root: Path, pid: int) -> Identity:
    """Who a process is; both None for one that is gone.

    Workload: declared, else the innermost systemd service or scope of its cgroup path, else its
    command name. Job: declared. Source: /proc/PID/{environ,cgroup,comm}.
    """
    identity = declared(proc_root, pid)
    if identity.workload is not None:
        return identity
    workload = _unit(_head(proc_root, pid, "cgroup", _CGROUP_BYTES)) or printable(
        _head(proc_root, pid, "comm", NAME_CHARACTERS)
    )
    return Identity(workload, identity.job)


def printable(raw: bytes) -> str | None:
    """`raw` as at most 200 printable characters, all else turned to `?`; None for nothing."""
    text = raw[: 4 * NAME_CHARACTERS].decode(errors="replace").strip()
    clean = "".join(
        c if c.isprintable() and c != "\N{REPLACEMENT CHARACTER}" else "?" for c in text
    )
    return clean[:NAME_CHARACTERS] or None


def _unit(cgroup: bytes) -> str | None:
    """The innermost `.service` or `.scope`, from the v2 line or systemd's own v1 line."""
    for line in cgroup.splitlines():
        _, _, rest = line.partition(b":")
        controllers, _, path = rest.partition(b":")
        if controllers not in {b"", b"name=systemd"}:
            continue
        for part in reversed(path.split(b"/")):
            if part.endswith((b".service", b".scope")):
                return printable(part)
    return None


def _head(proc_root: Path, pid: int, name: str, size: int) -> bytes:
    try:
        descriptor = os.open(proc_root / str(pid) / name, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(descriptor, size)
    except OSError:
        return b""
    finally:
        os.close(descriptor)
