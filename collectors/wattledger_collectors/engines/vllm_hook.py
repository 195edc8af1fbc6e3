"""The wraps around vLLM's OutputProcessor, and where they meet the stat loggers.

A step is told when its stat logger has been called, which knows the rank; where none is (offline,
or statistics are off), at once. Whether a step came through the wrap or through its logger's sums
alone, it is told once: the two know each other by vLLM's own IterationStats object of the step.
"""

from __future__ import annotations

import inspect
import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from types import ModuleType
from typing import Any

from wattledger_collectors.engines.events import EventBuffer
from wattledger_collectors.engines.vllm_names import Names
from wattledger_collectors.engines.vllm_place import Place, core_pids_of, place_of
from wattledger_collectors.engines.vllm_requests import NS_PER_S, Requests
from wattledger_collectors.engines.vllm_steps import Draft, Live, Timeline
from wattledger_collectors.engines.vllm_totals import length_ns, tell_totals

_MOST_FAULTS = 3
_MOST_PROCESSORS = 64
_KEPT_STATS = 16
_MINE = "_wattledger"
_MOST_OFF_NS = 5_000_000_000

Outlet = Callable[[Place, int], EventBuffer]
"""Where the events of a rank go."""


class _Processor:
    """What is known of one OutputProcessor: its requests, and the timelines of its ranks."""

    def __init__(self, hook: Hook) -> None:
        self.requests = Requests(hook.names)
        self.pending: Draft | None = None
        self.place: Place | None = None
        self.aborting = False
        self._hook = hook
        self._timelines: dict[int | None, Timeline] = {}

    def timeline(self, rank: int | None = None) -> Timeline:
        """Of a rank; without one, of the lowest that this process has."""
        if rank is None:
            rank = min(self._hook.ranks, default=0)
        found = self._timelines.get(rank)
        if found is None:
            place = self.place or self._hook.place
            found = self._timelines[rank] = Timeline(self._hook.buffer(place, rank), place)
        return found

    def tell(self, draft: Draft, rank: int | None = None, scheduler_stats: Any = None) -> None:
        """The step that waited for its stat logger, or had none to wait for."""
        self.pending = None
        timeline = self._timelines.get(rank) or self.timeline(rank)
        if scheduler_stats is None:
            timeline.tell(draft)
        else:
            timeline.scheduled(scheduler_stats, draft.end_ns)
            in_flight = timeline.place.in_flight
            timeline.tell(draft, length_ns(scheduler_stats) if in_flight == 1 else None)

    def finish(self, ended: list[tuple[Live, bool]], t_ns: int) -> None:
        """Requests that ended between two steps."""
        if self.pending is not None:
            self.pending.ended += ended
            return
        for live, aborted in ended:
            (live.timeline or self.timeline()).finish([(live, aborted)], t_ns)

    def drop_all(self, t_ns: int) -> None:
        """Forgets its requests; what was not told of them yet is told."""
        self.pending = None
        for live in self.requests.drop_all():
            if live.timeline is not None:
                live.timeline.settle([live], t_ns)


class Hook:
    """Wraps the classes, and brings together what the wraps and the stat loggers see.

    `outlet` is asked once per rank, at its first step; `tell` takes one line, once; `tenant_of`
    is asked for each request by vLLM's name for it.
    """

    def __init__(
        self,
        outlet: Outlet,
        tell: Callable[[str], None],
        now_ns: Callable[[], int] = time.monotonic_ns,
        tenant_of: Callable[[str], str] = lambda name: "",
    ) -> None:
        self.names = Names(tenant_of)
        self.place = Place(os.getpid())
        self.offline: list[Place] = []
        self.ranks: set[int] = set()
        self.faults = 0
        self._outlet = outlet
        self._tell = tell
        self._now_ns = now_ns
        self._has_told = False
        self._buffers: dict[tuple[str, int], EventBuffer] = {}
        self._processors: list[_Processor] = []
        self._told: deque[object] = deque(maxlen=_KEPT_STATS)
        self._wrapped: list[tuple[Any, str, Any, Any]] = []

    def buffer(self, place: Place, rank: int) -> EventBuffer:
        """The one of a rank's engine."""
        key = place.engine(rank), rank
        if key not in self._buffers:
            self._buffers[key] = self._outlet(place, rank)
        return self._buffers[key]

    # ------------------------------------------------------------------ the wraps

    def attach(self, module: ModuleType) -> None:
        """Wraps `module.OutputProcessor`; where it has another shape, says so in one line."""
        wanted = {
            "process_outputs": self._wrap_process,
            "add_request": self._wrap_add,
            "abort_requests": self._wrap_abort,
        }
        try:
            owner = module.OutputProcessor
            for name, wrap in wanted.items():
                original = getattr(owner, name)
                if hasattr(original, _MINE):
                    return
                if inspect.iscoroutinefunction(original):
                    raise TypeError(f"{name} is a coroutine")
                self._replace(owner, name, original, wrap(original))
        except Exception as error:  # noqa: BLE001 - the engine hook's border
            self.detach()
            self._say(error)

    def attach_offline(self, module: ModuleType) -> None:
        """Wraps `module.LLMEngine.__init__`, which knows the model."""
        original = module.LLMEngine.__init__
        if hasattr(original, _MINE):
            return

        @wraps(original)
        def init(engine: Any, *args: Any, **kwargs: Any) -> None:
            original(engine, *args, **kwargs)
            try:
                self._of(engine.output_processor).place = self._next_offline(engine)
            except Exception as error:  # noqa: BLE001 - the engine hook's border
                self._say(error)

        self._replace(module.LLMEngine, "__init__", original, init)

    def _next_offline(self, engine: Any) -> Place:
        number, cores = len(self.offline) + 1, core_pids_of(engine)
        place = replace(place_of(engine.vllm_config), number=number, core_pids=cores)
        self.offline.append(place)
        return place

    def other_cores(self, place: Place) -> tuple[int, ...]:
        """The EngineCores of this process's other engines."""
        return tuple(pid for one in self.offline if one != place for pid in one.core_pids)

    def detach(self) -> None:
        """Puts vLLM's own methods back, unless somebody has wrapped ours."""
        for owner, name, original, ours in self._wrapped:
            if getattr(owner, name, None) is ours:
                setattr(owner, name, original)
        self._wrapped.clear()

    def _replace(self, owner: Any, name: str, original: Any, ours: Any) -> None:
        setattr(ours, _MINE, True)
        setattr(owner, name, ours)
        self._wrapped.append((owner, name, original, ours))

    def _wrap_process(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def process_outputs(processor: Any, *args: Any, **kwargs: Any) -> Any:
            seen = self._before(processor, args, kwargs)
            result = original(processor, *args, **kwargs)
            if seen is not None:
                self._after(processor, seen)
            return result

        return process_outputs

    def _wrap_add(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def add_request(processor: Any, *args: Any, **kwargs: Any) -> Any:
            session = ""
            try:
                if not self._is_off:
                    mine, request = self._of(processor), args[0] if args else kwargs["request"]
                    # With statistics on, the scheduler tells the time itself.
                    if not processor.log_stats:
                        mine.requests.added_ns[request.request_id] = self._now_ns()
                    if mine.requests.sessions and request.request_id in mine.requests.sessions:
                        session = request.request_id
            except Exception as error:  # noqa: BLE001 - the engine hook's border
                self._fault(processor, error)
            result = original(processor, *args, **kwargs)
            if session:
                self._added_to(processor, session)
            return result

        return add_request

    def _wrap_abort(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def abort_requests(processor: Any, *args: Any, **kwargs: Any) -> Any:
            known = self._known(processor)
            try:
                return original(processor, *args, **kwargs)
            finally:
                if known is not None:
                    self._aborted(processor, known)

        return abort_requests

    # ----------------------------------------------------------- inside the wraps

    @property
    def _is_off(self) -> bool:
        return self.faults >= _MOST_FAULTS

    def _of(self, processor: Any) -> _Processor:
        mine = processor.__dict__.get(_MINE)
        if mine is None:
            mine = processor.__dict__[_MINE] = _Processor(self)
            self._processors = [*self._processors[1 - _MOST_PROCESSORS :], mine]
        return mine  # type: ignore[no-any-return]

    def _before(
        self, processor: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[_Processor, Draft, dict[str, Any], int] | None:
        if self.faults >= _MOST_FAULTS:
            return None
        try:
            outputs = args[0] if args else kwargs["engine_core_outputs"]
            end_s = args[1] if len(args) > 1 else kwargs.get("engine_core_timestamp")
            stats = args[2] if len(args) > 2 else kwargs.get("iteration_stats")
            mine: _Processor = processor.__dict__.get(_MINE) or self._of(processor)
            end_ns = now_ns = self._now_ns()
            if end_s is not None:
                end_ns = round(end_s * NS_PER_S)
                if mine.requests.behind_ns or not now_ns - _MOST_OFF_NS <= end_ns <= now_ns:
                    end_ns = self._mended_ns(mine, end_ns, now_ns)
            if not outputs:
                mine.timeline().boundary(end_ns)
                return None
            states = processor.request_states
            return mine, mine.requests.read(states, outputs, end_ns, stats), states, len(states)
        except Exception as error:  # noqa: BLE001 - the engine hook's border
            self._fault(processor, error)
            return None

    def _mended_ns(self, mine: _Processor, end_ns: int, now_ns: int) -> int:
        """Where a step's end cannot be by this clock: now.

        Only a rank of several may run on another host, by its clock; the only one may be late.
        """
        if end_ns < 0:
            raise ValueError("a time is negative")
        several = len(self.ranks) > 1 or (mine.place or self.place).ranks > 1
        far = abs(end_ns - now_ns) > _MOST_OFF_NS
        mine.requests.behind_ns = now_ns - end_ns if several and far else 0
        return now_ns if far and several else min(end_ns, now_ns)

    def _added_to(self, processor: Any, session: str) -> None:
        """What vLLM lets go at its client's last word."""
        try:
            if session not in processor.request_states:
                mine = self._of(processor)
                mine.finish(mine.requests.closed(session), self._now_ns())
        except Exception as error:  # noqa: BLE001 - the engine hook's border
            self._fault(processor, error)

    def _after(self, processor: Any, seen: tuple[_Processor, Draft, dict[str, Any], int]) -> None:
        try:
            mine, draft, states, known = seen
            if len(states) != known:
                mine.requests.ended(states, draft)
                draft.ended += mine.requests.left(states)
            if mine.requests.sessions:
                mine.requests.turned(states, draft)
            draft.outputs = []
            pending = mine.pending
            if pending is None:
                mine.pending = draft
            elif pending.stats is draft.stats:
                pending.join(draft)
            else:
                self._flush(mine)
                mine.pending = draft
            if draft.stats is None or not self.ranks:
                self._flush(mine)
        except Exception as error:  # noqa: BLE001 - the engine hook's border
            self._fault(processor, error)

    def _flush(self, mine: _Processor) -> None:
        """Tells a step whose stat logger was not called, or is not there."""
        if mine.pending is not None:
            if mine.pending.stats is not None:
                self._told.append(mine.pending.stats)
            mine.tell(mine.pending)

    def _known(self, processor: Any) -> dict[str, Any] | None:
        """The table before an abort; None inside another one, which vLLM calls for children."""
        try:
            mine = self._of(processor)
            if self._is_off or mine.aborting:
                return None
            mine.aborting = True
            return dict(processor.request_states)
        except Exception as error:  # noqa: BLE001 - the engine hook's border
            self._fault(processor, error)
            return None

    def _aborted(self, processor: Any, known: dict[str, Any]) -> None:
        try:
            mine, states = self._of(processor), processor.request_states
            mine.aborting = False
            gone = {name: state for name, state in known.items() if name not in states}
            mine.finish(mine.requests.aborted(gone), self._now_ns())
        except Exception as error:  # noqa: BLE001 - the engine hook's border
            self._fault(processor, error)

    def _fault(self, processor: Any, error: Exception) -> None:
        """A step that we failed to read is left to its stat logger, as sums."""
        self.faults += 1
        self._say(error)
        try:
            mine = self._of(processor)
            mine.aborting = False
            mine.drop_all(self._now_ns())
            if self._is_off:
                self.detach()
        except Exception:  # noqa: BLE001 - the engine hook's border
            self.faults = _MOST_FAULTS

    def _say(self, error: object) -> None:
        if not self._has_told:
            self._has_told = True
            mend = "requests are not told apart; this vLLM needs a newer wattledger"
            self._tell(f"vLLM's outputs cannot be read ({error!r}): {mend}")

    # ------------------------------------------------------- what stat loggers call

    def add_logger(self, config: Any, rank: int) -> None:
        """A stat logger is made for this rank."""
        self.place = place_of(config)
        self.names.server = self.place.server
        self.ranks.add(rank)

    def record(self, rank: int, scheduler_stats: Any, iteration_stats: Any) -> None:
        """A step's statistics, after its outputs went through the wrap."""
        if iteration_stats is None:
            details = getattr(scheduler_stats, "iteration_details", None)
            if scheduler_stats is not None and not getattr(details, "is_dummy", False):
                for mine in self._processors:
                    mine.timeline(rank).scheduled(scheduler_stats, self._now_ns())
                    mine.timeline(rank).boundary(self._now_ns())
            return
        for mine in self._processors:
            pending = mine.pending
            if pending is not None and pending.stats is iteration_stats:
                self._told.append(iteration_stats)
                mine.tell(pending, rank, scheduler_stats)
                return
        if not any(told is iteration_stats for told in self._told):
            self._told.append(iteration_stats)
            self._say("no outputs seen")
            mine = self._processors[-1] if self._processors else _Processor(self)
            if not self._processors:
                self._processors.append(mine)
            tell_totals(mine.timeline(rank), iteration_stats, self._now_ns())

    # ------------------------------------------------------------------- lifetime

    def flush(self) -> None:
        """Tells what still waits for its stat logger: the process ends."""
        try:
            for mine in self._processors:
                self._flush(mine)
        except Exception:  # noqa: BLE001 - the engine hook's border
            return

    def forget(self) -> None:
        """In a forked child: what is open belongs to the parent, which tells it."""
        for mine in self._processors:
            mine.pending = None
            mine.requests.drop_all()
        self._processors = []
        self._buffers.clear()
        self.offline = []
        self.names.forget_lock()
