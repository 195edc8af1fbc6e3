"""What the outputs of a step say of its requests, read before vLLM's own processing of them.

Only requests that vLLM itself still knows count, as in its own counters: an output of one that was
aborted is passed over. Read in 0.32.0, vllm/v1/engine/output_processor.py and metrics/stats.py.
"""

from __future__ import annotations

from typing import Any

from wattledger_collectors.engines.vllm_steps import Draft, Live, Prefill

NS_PER_S = 1_000_000_000
_REMEMBERED_NAMES = 16_384
_MOST_CHARACTERS = 400
_MOST_S = 9e9
_MOST_COUNT = 2**31
_SLACK = 256
_SCHEDULED, _PREEMPTED = 2, 3
_BROKEN_OFF = ("abort", "error")


class Requests:
    """The requests of one OutputProcessor, by vLLM's internal id.

    A name is unique among those that live or lately did: `#0`, `#1` for the samples of one request
    (n > 1), `#r7` where a client sends an id again.

    A step that brings a token to every request, as most do, moves one clock instead of each count.
    """

    def __init__(self) -> None:
        self.live: dict[str, Live] = {}
        self.added_ns: dict[str, int] = {}
        self._recent: dict[str, None] = {}
        self._live_names: set[str] = set()
        self._repeats = 0
        self._clock = 0

    def read(self, states: dict[str, Any], outputs: list[Any], end_ns: int, stats: object) -> Draft:
        """A step of these outputs; `states` is the OutputProcessor's own table, by request id."""
        ids = [output.request_id for output in outputs]
        lives: list[Any] = list(map(self.live.get, ids))
        prefills: list[Prefill] = []
        if not all(lives) and self._meet_all(states, outputs, lives, prefills):
            # Outputs of requests that vLLM has forgotten, as it forgets them in `live` too.
            outputs = [one for one, live in zip(outputs, lives, strict=True) if live is not None]
            lives = [live for live in lives if live is not None]
            ids = [output.request_id for output in outputs]
        events = [output.events for output in outputs]
        if len(events) - events.count(None) > len(prefills):
            first = {prefill.live for prefill in prefills}
            self._read_again(zip(lives, events, strict=True), first, prefills)
        tokens = [len(output.new_token_ids) for output in outputs]
        clock = self._clock
        contexts = [live.shift + clock for live in lives]
        if tokens.count(1) == len(self.live):
            # A token for everybody, as in most steps.
            self._clock = clock + 1
        else:
            for live, count in zip(lives, tokens):  # noqa: B905 - equal, and this is per token
                live.shift += count
        return Draft(stats, end_ns, ids, outputs, lives, tokens, contexts, prefills)

    def ended(self, states: dict[str, Any], draft: Draft) -> None:
        """After vLLM's own processing: who of the step has left its table."""
        for request_id in sorted(set(draft.ids).difference(states), key=draft.ids.index):
            at = draft.ids.index(request_id)
            reason = str(getattr(draft.outputs[at], "finish_reason", None))
            draft.ended.append((draft.lives[at], reason in _BROKEN_OFF))
            self._forget(request_id, draft.lives[at])

    def left(self, states: dict[str, Any]) -> list[tuple[Live, bool]]:
        """Requests that vLLM dropped out of our sight: looked for where there are too many."""
        if len(self.added_ns) > len(states) + _SLACK:
            self.added_ns = {name: ns for name, ns in self.added_ns.items() if name in states}
        if len(self.live) <= len(states) + _SLACK:
            return []
        gone = [(name, live) for name, live in self.live.items() if name not in states]
        for request_id, live in gone:
            self._forget(request_id, live)
        return [(live, False) for _, live in gone]

    def aborted(self, gone: dict[str, Any]) -> list[tuple[Live, bool]]:
        """Requests that vLLM was told to abort, by id with their states; output or not."""
        ended = []
        for request_id, state in gone.items():
            live = self.live.get(request_id)
            if live is None:
                live = Live(self._name(state), _count(state, "prompt_len"), 0)
            ended.append((live, True))
            self._forget(request_id, live)
        return ended

    def drop_all(self) -> list[Live]:
        """Forgets every request; what comes of them later is met as if seen in the middle."""
        dropped = list(self.live.values())
        for live in dropped:
            self._recent.pop(live.name, None)
        self.live.clear()
        self._live_names.clear()
        return dropped

    def _meet_all(
        self,
        states: dict[str, Any],
        outputs: list[Any],
        lives: list[Live | None],
        prefills: list[Prefill],
    ) -> bool:
        """Fills the holes in `lives`; whether some stay."""
        holes, at = False, -1
        for _ in range(lives.count(None)):
            at = lives.index(None, at + 1)
            state = states.get(outputs[at].request_id)
            if state is None:
                holes = True
            else:
                lives[at] = self._meet(state, outputs[at], prefills)
        return holes

    def _meet(self, state: Any, output: Any, prefills: list[Prefill]) -> Live:
        """A request's first output, or the first that we see of it."""
        request_id = output.request_id
        prompt = _count(state, "prompt_len")
        known_ns = self.added_ns.pop(request_id, 0)
        name = self._name(state)
        if getattr(state, "is_prefilling", True):
            computed, cached = _prefill_of(output, prompt)
            live = Live(name, prompt, cached)
            scheduled_ns, _ = _scheduling(output.events or ())
            prefills.append(Prefill(live, computed, scheduled_ns, known_ns))
        else:
            cached = _count(state, "num_cached_tokens")
            decoded = _count(getattr(state, "stats", None), "num_generation_tokens")
            live = Live(name, prompt, cached, decoded)
        live.shift = live.context - self._clock
        self.live[request_id] = live
        self._live_names.add(name)
        return live

    def _read_again(self, told: Any, first: set[Live], prefills: list[Prefill]) -> None:
        """Those that were not running in the step before: preempted, or waiting for input."""
        for live, events in told:
            if events and live not in first:
                scheduled_ns, preempted = _scheduling(events)
                if scheduled_ns is not None:
                    lost = live.shift + self._clock if preempted else 0
                    prefills.append(Prefill(live, lost, scheduled_ns, again=True))

    def _forget(self, request_id: str, live: Live) -> None:
        if self.live.pop(request_id, None) is not None:
            live.context = live.shift + self._clock
        self.added_ns.pop(request_id, None)
        self._live_names.discard(live.name)

    def _name(self, state: Any) -> str:
        parent = getattr(state, "parent_req", None)
        name = getattr(state, "external_req_id", None)
        if not isinstance(name, str):
            name = str(getattr(parent or state, "request_id", ""))
        if len(name) > _MOST_CHARACTERS or not name.isascii():
            name = name[:_MOST_CHARACTERS].encode(errors="replace").decode()
        if parent is not None:
            name = f"{name}#{getattr(state, 'request_index', 0)}"
        if name in self._recent or name in self._live_names or not name:
            self._repeats += 1
            name = f"{name}#r{self._repeats}"
        self._recent[name] = None
        if len(self._recent) > _REMEMBERED_NAMES:
            del self._recent[next(iter(self._recent))]
        return name


def to_ns(time_s: Any) -> int:
    """A `time.monotonic()` of vLLM's; raises ValueError for what is none."""
    if not isinstance(time_s, (float, int)) or not 0 <= time_s < _MOST_S:
        raise ValueError(f"a time is {type(time_s).__name__}")
    return round(time_s * NS_PER_S)


def _prefill_of(output: Any, prompt: int) -> tuple[int, int]:
    """Tokens computed and found in a cache, as `/metrics` counts them.

    `prefill_stats` since about 0.22; before it the output has the cached tokens alone.
    """
    stats = getattr(output, "prefill_stats", output)
    if stats is None:
        return 0, 0
    cached = _count(stats, "num_cached_tokens")
    if hasattr(stats, "num_computed_tokens"):
        return _count(stats, "num_computed_tokens"), cached
    return max(0, prompt - cached), cached


def _scheduling(events: Any) -> tuple[int | None, bool]:
    """When a request was last scheduled, and whether it had been preempted."""
    scheduled_ns, preempted = None, False
    for event in events:
        kind = int(event.type)
        if kind == _SCHEDULED:
            scheduled_ns = to_ns(event.timestamp)
        elif kind == _PREEMPTED:
            preempted = True
    return scheduled_ns, preempted


def _count(thing: Any, name: str) -> int:
    value = getattr(thing, name, 0)
    return value if isinstance(value, int) and 0 < value < _MOST_COUNT else 0
