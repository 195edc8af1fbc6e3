"""Where a process stands in its vLLM: what its engines are called and which processes they are.

An engine is one scheduler, that is one EngineCore: a data-parallel rank. `vllm serve` (the root)
starts them and, where there are several, the API servers beside them (read in 0.32.0,
vllm/v1/utils.py and vllm/v1/engine/core.py):

    root ─┬─ VLLM::EngineCore[_DPn] ─── VLLM::Worker[_TPn] ...
          ├─ VLLM::APIServer_n
          └─ VLLM::DPCoordinator

Every API server reports for every rank; they name an engine alike, after the root. Several
`vllm.LLM`s of one process are numbered: its first is `vllm-PID`, its second `vllm-PID-2`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wattledger_collectors.workloads.tree import children, descendants

_CORE = re.compile(rb"::EngineCore(?:_DP(\d+))?\b")
_SERVER = re.compile(rb"::APIServer_(\d+)\b")
_NO_ENGINE = (b"::DPCoordinator", b"multiprocessing.resource_tracker")


@dataclass(frozen=True, slots=True)
class Place:
    """The root's pid, how many ranks the whole vLLM has, and which model it serves.

    `in_flight` says how many steps may be scheduled and not ended, 1 without asynchronous
    scheduling; `recomputes_all` that a preempted request finds nothing in a prefix cache.
    `server` numbers the API servers, None where there is one; `number` the engines of a process,
    from 1 on, of which `core_pids` are the EngineCores.
    """

    root_pid: int
    ranks: int = 1
    model: str = ""
    in_flight: int = 2
    recomputes_all: bool = False
    server: int | None = None
    number: int = 1
    core_pids: tuple[int, ...] = ()

    def engine(self, rank: int) -> str:
        """The name of a rank's engine, unique on the host."""
        name = f"vllm-{self.root_pid}{f'-{self.number}' if self.number > 1 else ''}"
        return f"{name}.{rank}" if self.ranks > 1 else name

    def part(self, rank: int) -> str:
        """What tells a rank's reporter from the others of this process."""
        return f"{self.number}.{rank}" if self.number > 1 else str(rank)


def place_of(config: Any, pid: int | None = None, parent_pid: int | None = None) -> Place:
    """What a `VllmConfig` says; what it does not say is as in a vLLM of one process.

    Nothing in it is a stable interface. Fields read in 0.32.0; `_api_process_count` since 0.11.
    """
    parallel, model = _get(config, "parallel_config"), _get(config, "model_config")
    schedule = _get(config, "scheduler_config")
    several = _number(_get(parallel, "_api_process_count"), 1) > 1
    mine = os.getpid() if pid is None else pid
    stages = _number(_get(parallel, "pipeline_parallel_size"), 1)
    ahead = 2 if _get(schedule, "async_scheduling") is not False else 1
    return Place(
        root_pid=(os.getppid() if parent_pid is None else parent_pid) if several else mine,
        ranks=_number(_get(parallel, "data_parallel_size"), 1),
        model=_served(model),
        in_flight=max(ahead, stages),
        recomputes_all=_get(_get(config, "cache_config"), "enable_prefix_caching") is False,
        server=max(0, _number(_get(parallel, "_api_process_rank"), 0)) if several else None,
    )


def core_pids_of(engine: Any) -> tuple[int, ...]:
    """An LLMEngine's EngineCores; none where it computes in this process, or cannot be read.

    Read in 0.32.0, vllm/v1/engine/core_client.py and utils.py; no stable interface.
    """
    manager = _get(_get(_get(engine, "engine_core"), "resources"), "engine_manager")
    processes = _get(manager, "processes")
    found = processes if isinstance(processes, (list, tuple)) else ()
    pids = [_get(process, "pid") for process in found]
    return tuple(pid for pid in pids if isinstance(pid, int) and pid > 0)


def engine_pids(
    place: Place, rank: int, proc_root: Path = Path("/proc"), others: Iterable[int] = ()
) -> tuple[int, ...]:
    """The processes of one rank: its EngineCore with its workers, and a share of the servers.

    The root and what else it has started belong to rank 0, API server i to rank i mod ranks.
    Without titles (setproctitle is not installed) the ranks are taken to have started in order.
    Of several engines in one process each has its own EngineCores, and the first all the rest:
    `others` are the EngineCores that are not its own. What an engine computes in this process
    itself is the first's as well, since nobody can tell it apart.
    """
    if place.number > 1:
        own = place.core_pids if place.ranks <= 1 else place.core_pids[rank : rank + 1]
        return tuple(sorted({pid for core in own for pid in _tree(core, proc_root)}))
    not_its = {pid for core in others for pid in _tree(core, proc_root)}
    return tuple(pid for pid in _first_pids(place, rank, proc_root) if pid not in not_its)


def _first_pids(place: Place, rank: int, proc_root: Path) -> tuple[int, ...]:
    if place.ranks <= 1:
        return descendants(place.root_pid, proc_root)
    below = sorted(children(place.root_pid, proc_root))
    titles = {pid: _title(pid, proc_root) for pid in below}
    owners = _owners(titles, place.ranks)
    found = {pid for child in below if owners[child] == rank for pid in _tree(child, proc_root)}
    if rank == 0:
        found.add(place.root_pid)
    return tuple(sorted(found))


def _owners(titles: dict[int, bytes], ranks: int) -> dict[int, int]:
    """Each child of the root, and the rank it belongs to."""
    titled = any(_CORE.search(title) for title in titles.values())
    owners: dict[int, int] = {}
    started = 0
    for pid, title in titles.items():
        core, server = _CORE.search(title), _SERVER.search(title)
        owner = 0
        if core:
            owner = int(core[1] or 0)
        elif server:
            owner = int(server[1]) % ranks
        elif not titled and started < ranks and not any(word in title for word in _NO_ENGINE):
            owner, started = started, started + 1
        owners[pid] = owner
    return owners


def _tree(pid: int, proc_root: Path) -> tuple[int, ...]:
    return descendants(pid, proc_root) or (pid,)


def _title(pid: int, proc_root: Path) -> bytes:
    try:
        return (proc_root / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ")
    except OSError:
        return b""


def _get(thing: Any, name: str) -> Any:
    return getattr(thing, name, None)


def _number(value: Any, otherwise: int) -> int:
    return value if isinstance(value, int) and value > 0 else otherwise


def _served(model_config: Any) -> str:
    """The name that `/metrics` has in its `model_name` label."""
    served = _get(model_config, "served_model_name")
    if isinstance(served, (list, tuple)) and served:
        served = served[0]
    if not served:
        served = _get(model_config, "model")
    return served if isinstance(served, str) else ""
