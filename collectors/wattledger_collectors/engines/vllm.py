"""The hook in vLLM: tells each step with its requests' tokens, and each request that ends.

Every output of an EngineCore runs through `OutputProcessor.process_outputs`, in the API servers
and in an offline `vllm.LLM` alike. It is wrapped on the class, as are `add_request` and
`abort_requests` (first arguments equal from 0.11.2 to 0.33.0; read in 0.32.0). A stat logger
(`vllm_stats.py`) adds what the outputs do not tell: the data-parallel rank, and, where the wrap
cannot read the outputs, the sums of the step without its requests. What is told:

- prefill: what `/metrics` counts as `prompt_tokens_by_source_total{source="local_compute"}`;
  cached: `prompt_tokens_cached_total`. An embedding has a prefill alone.
- decode: `generation_tokens_total`, so the tokens that speculative decoding got accepted, not the
  drafts that it rejected, and those too that a stop string cuts off. A token is told with the
  step that computed it out of the one before. The first one comes out of the prefill, so it is
  told when the request ends, in a step of no length: no decoding was spent on it.
- a preempted request computes its context once more. That is work, and is told as prefill in
  addition to what the counters above say, as far as the scheduler tells this process how much.
- a request that vLLM drops because its client has gone is told as aborted, with what it had;
  vLLM counts no such request as finished.

Whatever fails in here stays here. After three faults the wrap takes itself off.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable
from types import ModuleType

from wattledger_collectors.engines import autoload
from wattledger_collectors.engines.events import EventBuffer
from wattledger_collectors.engines.facts import EngineFacts
from wattledger_collectors.engines.vllm_hook import Hook
from wattledger_collectors.engines.vllm_place import Place, engine_pids

KIND = "vllm"
NAME = "wattledger"
OFFLINE = "vllm.v1.engine.llm_engine"


def register() -> None:
    """Called by vLLM in each of its processes, perhaps twice (`vllm.general_plugins`)."""
    try:
        autoload.hook_when_imported(autoload.VLLM_TARGETS)
    except Exception as error:  # noqa: BLE001 - the engine hook's border: a raise ends vLLM
        autoload.tell(f"vLLM is not metered: {error}")


def install(module: ModuleType) -> None:
    """Hooks `OutputProcessor` or `LLMEngine` of this module; a second call changes nothing.

    Raises ImportError where grpc or protobuf is missing in the engine's environment.
    """
    allowed = os.environ.get("VLLM_PLUGINS")
    is_allowed = allowed is None or NAME in allowed.split(",")
    if module.__name__ == OFFLINE:
        if is_allowed:
            hook().attach_offline(module)
        return
    if not is_allowed:
        raise ImportError(f"VLLM_PLUGINS does not name it; add {NAME}")
    from wattledger_collectors.reporter import require_grpc

    require_grpc()
    hook().attach(module)


def hook() -> Hook:
    """This process's."""
    if not _HOOKS:
        from wattledger_collectors.engines import tenancy

        ours = Hook(_report, tell=autoload.tell, tenant_of=tenancy.of)
        _HOOKS.append(ours)
        os.register_at_fork(after_in_child=ours.forget)
    return _HOOKS[0]


_HOOKS: list[Hook] = []


def _report(place: Place, rank: int) -> EventBuffer:
    """A buffer with a reporter of its own: each engine is a source."""
    from multiprocessing.util import Finalize

    from wattledger_collectors.reporter import Reporting

    facts = EngineFacts(
        engine=place.engine(rank),
        part=place.part(rank),
        pids=lambda: engine_pids(place, rank, others=hook().other_cores(place)),
        tenant_of=hook().names.tenant,
    )
    buffer = EventBuffer()
    reporting = Reporting(KIND, buffer, os.environ, facts, _tell_once)
    reporting.ensure_running()
    _GOODBYES.append(reporting.begin_stop)
    # Before the reporter's own farewell: both run last first.
    atexit.register(_begin_goodbye)
    Finalize(None, _say_goodbye, (reporting.stop,), exitpriority=100)
    return buffer


def _tell_once(line: str) -> None:
    """What the reporters of several ranks find at the same time is one piece of news."""
    if _LINES[-1:] != [line]:
        _LINES[:] = [line]
        autoload.tell(line)


_LINES: list[str] = []


def _begin_goodbye() -> None:
    """All ranks' reporters at once: each may take its second, and it is the same second."""
    hook().flush()
    for begin_stop in _GOODBYES:
        begin_stop()


_GOODBYES: list[Callable[[], None]] = []


def _say_goodbye(stop: Callable[[], None]) -> None:
    _begin_goodbye()
    stop()
