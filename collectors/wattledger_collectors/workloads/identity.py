"""Whose a process or a control group is.

In order: what it declares, the rules of the site's config, SLURM, Kubernetes, a container, a
systemd unit, a user's session, the command. Names come from whoever started the process and
may hold anything: they are cut to printable text of bounded length.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from wattledger_collectors.workloads.names import NAME_CHARACTERS, printable, user_name
from wattledger_collectors.workloads.places import (
    NOWHERE,
    Manager,
    Place,
    cgroup_paths,
    place_among,
    place_of,
)
from wattledger_collectors.workloads.rules import Rule, filled, first_match

_ENVIRON_BYTES = 1 << 18
_CGROUP_BYTES = 1 << 16
_ASKED_OF_A_GROUP = 8


@dataclass(frozen=True, slots=True)
class Identity:
    """The workload and the job that a process belongs to; None where nothing tells."""

    workload: str | None
    job: str | None


NOTHING = Identity(None, None)


@dataclass(frozen=True, slots=True)
class Environment:
    """What a process's environment says of it, as of its exec; None where it does not."""

    workload: str | None = None
    job: str | None = None
    slurm_job: str | None = None
    slurm_name: str | None = None
    hostname: str | None = None

    @property
    def declares(self) -> bool:
        """Whether somebody said there whose the process is."""
        return (self.workload or self.job or self.slurm_job) is not None


_SILENT = Environment()
_VARIABLES = {
    b"WATTLEDGER_WORKLOAD": "workload",
    b"WATTLEDGER_JOB": "job",
    b"SLURM_JOB_ID": "slurm_job",
    b"SLURM_JOB_NAME": "slurm_name",
    b"HOSTNAME": "hostname",
}


@dataclass(frozen=True, slots=True)
class Seen:
    """All that names are made of."""

    environment: Environment = _SILENT
    place: Place = NOWHERE
    paths: tuple[str, ...] = ()
    command: str | None = None
    uid: int | None = None


def identify(proc_root: Path, pid: int, rules: Sequence[Rule] = ()) -> Identity:
    """Who a process is; both None for one that is gone.

    Source: /proc/PID/{environ,cgroup,comm}, and the owner of /proc/PID.
    """
    return named(look(proc_root, pid, environment(proc_root, pid)), rules)


def look(proc_root: Path, pid: int, declared: Environment) -> Seen:
    """What tells of a process beside its environment; empty for one that is gone."""
    paths = cgroup_paths(cgroup(proc_root, pid))
    try:
        uid = (proc_root / str(pid)).stat().st_uid
    except OSError:
        uid = None
    command = printable(_head(proc_root, pid, "comm", NAME_CHARACTERS))
    return Seen(declared, place_among(paths), tuple(dict.fromkeys(paths.values())), command, uid)


def identify_group(
    proc_root: Path, path: str, pids: Iterable[int], rules: Sequence[Rule] = ()
) -> Identity:
    """Whose a whole control group is; `pids` are those of processes in it.

    What its oldest process declares is taken to hold for all of it; the names of a SLURM job and
    of a pod's host are taken from the first few processes that tell them. Rules that ask for a
    command or a user are not about groups. Both None for a path that says nothing.
    """
    told = [environment(proc_root, pid) for pid in sorted(pids)[:_ASKED_OF_A_GROUP]]
    place = place_of(path)
    oldest = told[0] if told else _SILENT
    own = [env for env in told if env.slurm_job == place.job] if place.job else []
    known = Environment(
        oldest.workload,
        oldest.job,
        slurm_name=next((env.slurm_name for env in own if env.slurm_name), None),
        hostname=next((env.hostname for env in told if env.hostname), None),
    )
    return named(Seen(known, place, (path,)), [rule for rule in rules if rule.of_groups])


def named(seen: Seen, rules: Sequence[Rule] = ()) -> Identity:
    """The names for what was seen; whichever way tells a name first gives it."""
    env, place = seen.environment, seen.place
    rule = first_match(rules, seen.paths, seen.command, seen.uid) or Rule()
    workload = env.workload or _tamed(filled(rule.workload, place, seen.uid))
    job = env.job or _tamed(filled(rule.job, place, seen.uid))
    slurm_job = place.job or env.slurm_job
    if workload is None and slurm_job is not None:
        # A name from an environment that speaks of another job is not this job's.
        own = place.job is None or env.slurm_job in {None, place.job}
        workload = (env.slurm_name if own else None) or "slurm"
    return Identity(workload or _by_place(seen), job or slurm_job)


def _by_place(seen: Seen) -> str | None:
    place = seen.place
    match place.manager:
        case Manager.KUBERNETES:
            name = seen.environment.hostname
            # A pod on the host's network has the host's name, and so has its neighbour.
            return f"pod/{place.pod if name in {None, os.uname().nodename} else name}"
        case Manager.CONTAINER:
            return f"container/{(place.container or '')[:12]}"
        case Manager.SYSTEMD:
            return place.unit
        case Manager.SESSION:
            return f"user/{user_name(int(place.user or 0))}"
        case _:
            return seen.command


def environment(proc_root: Path, pid: int) -> Environment:
    """What a process's environment declares, among its first 256 KiB; children inherit it.

    One that may not be read says nothing. Source: /proc/PID/environ.
    """
    raw = _head(proc_root, pid, "environ", _ENVIRON_BYTES)
    if not any(name in raw for name in _VARIABLES):
        return _SILENT
    return Environment(**_values(raw))


def _values(raw: bytes) -> Mapping[str, str | None]:
    """The first of two entries counts, as in getenv(3)."""
    values: dict[str, str | None] = {}
    for entry in raw.split(b"\0"):
        name, _, value = entry.partition(b"=")
        field = _VARIABLES.get(name)
        if field is not None and field not in values:
            values[field] = printable(value)
    return values


def cgroup(proc_root: Path, pid: int) -> bytes:
    """The control groups of a process as text, see `cgroup_paths`; empty for one that is gone."""
    return _head(proc_root, pid, "cgroup", _CGROUP_BYTES)


def _tamed(name: str | None) -> str | None:
    return printable(name.encode(errors="replace")) if name is not None else None


def _head(proc_root: Path, pid: int, name: str, size: int) -> bytes:
    try:
        descriptor = os.open(f"{proc_root}/{pid}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(descriptor, size)
    except OSError:
        return b""
    finally:
        os.close(descriptor)
