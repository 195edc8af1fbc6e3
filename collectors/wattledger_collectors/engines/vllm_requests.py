"""What the outputs of a step say of its requests, read before vLLM's own processing of them.

Only requests that vLLM itself still knows count, as in its own counters: an output of one that was
aborted is passed over. Read in 0.32.0, vllm/v1/engine/output_processor.py and metrics/stats.py.
"""

from __future__ import annotations

from typing import Any

from wattledger_collectors.engines.vllm_names import Names
from wattledger_collectors.engines.vllm_steps import Draft, Live, Prefill

NS_PER_S = 1_000_000_000
_MOST_S = 9e9
_MOST_COUNT = 2**31
_SLACK = 256
_SCHEDULED, _PREEMPTED = 2, 3
_BROKEN_OFF = ("abort", "error")


class Requests:
    """The requests of one OutputProcessor, by vLLM's internal id.

    A step that brings a token to every request, as most do, moves one clock instead of each count;
    one of the same requests as the step before, as most are, looks none of them up.

    A session is a request whose client sends its prompt piece by piece: after each piece comes a
    turn of the answer. `sessions` says by id whether the last turn is over.
    """

    def __init__(self, names: Names) -> None:
        self.live: dict[str, Live] = {}
        self.added_ns: dict[str, int] = {}
        self.sessions: dict[str, bool] = {}
        # What its EngineCore's clock is behind this process's.
        self.behind_ns = 0
        self._names = names
        self._dropped: dict[str, str] = {}
        self._clock = 0
        self._ids: list[str] = []
        self._lives: list[Any] = []

    def read(self, states: dict[str, Any], outputs: list[Any], end_ns: int, stats: object) -> Draft:
        """A step of these outputs; `states` is the OutputProcessor's own table, by request id."""
        ids = [output.request_id for output in outputs]
        prefills: list[Prefill] = []
        if ids == self._ids:
            lives = self._lives
        else:
            lives = list(map(self.live.get, ids))
            if not all(lives) and self._meet_all(states, outputs, lives, prefills):
                # Outputs of requests that vLLM has forgotten, as it forgets them in `live` too.
                seen = zip(outputs, lives, strict=True)
                outputs = [output for output, live in seen if live is not None]
                lives = [live for live in lives if live is not None]
                ids = [output.request_id for output in outputs]
            self._ids, self._lives = ids, lives
        if self.sessions:
            self._begin_turns(states, outputs, lives, prefills)
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

    def turned(self, states: dict[str, Any], draft: Draft) -> None:
        """After vLLM's own processing: which sessions of the step have come to a turn's end."""
        for request_id, live in zip(draft.ids, draft.lives, strict=True):
            if self.sessions.get(request_id) is False:
                state = states.get(request_id)
                waits = getattr(state, "input_chunk_queue", ()) is None
                if waits or getattr(state, "is_prefilling", False):
                    self.sessions[request_id] = True
                    draft.turned.append(live)

    def closed(self, request_id: str) -> list[tuple[Live, bool]]:
        """A session that vLLM let go between two steps, as its client has said all."""
        live = self.live.get(request_id)
        if live is None:
            return []
        self._forget(request_id, live)
        return [(live, False)]

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
                live = Live(self._name(request_id, state), _count(state, "prompt_len"), 0)
            ended.append((live, True))
            self._forget(request_id, live)
        return ended

    def drop_all(self) -> list[Live]:
        """Forgets all but the names; what comes of them later is met as if seen in the middle."""
        self._dropped |= {request_id: live.name for request_id, live in self.live.items()}
        dropped = list(self.live.values())
        self.live.clear()
        self.sessions.clear()
        self._ids = []
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
        name = self._name(request_id, state)
        if getattr(state, "streaming_input", False):
            self.sessions[request_id] = False
        if getattr(state, "is_prefilling", True):
            computed, cached = _prefill_of(output, prompt)
            live = Live(name, prompt, cached)
            scheduled_ns, preempted = self._scheduling(output.events or ())
            prefills.append(Prefill(live, computed, scheduled_ns, known_ns, preempted=preempted))
        else:
            cached = _count(state, "num_cached_tokens")
            decoded = _count(getattr(state, "stats", None), "num_generation_tokens")
            live = Live(name, prompt, cached, decoded)
        live.shift = live.context - self._clock
        self.live[request_id] = live
        return live

    def _begin_turns(
        self,
        states: dict[str, Any],
        outputs: list[Any],
        lives: list[Any],
        prefills: list[Prefill],
    ) -> None:
        """Sessions that answer once more: vLLM counts no prefill of it, but computes what came."""
        for output, live in zip(outputs, lives, strict=True):
            request_id = output.request_id
            if self.sessions.get(request_id):
                self.sessions[request_id] = False
                grown = max(0, _count(states.get(request_id), "prompt_len") - live.prompt)
                live.prompt += grown
                live.shift += grown
                scheduled_ns, _ = self._scheduling(output.events or ())
                known_ns = self.added_ns.pop(request_id, 0)
                prefills.append(Prefill(live, grown, scheduled_ns, known_ns))

    def _read_again(self, told: Any, first: set[Live], prefills: list[Prefill]) -> None:
        """Those that were not running in the step before: preempted, or waiting for input."""
        for live, events in told:
            if events and live not in first:
                scheduled_ns, preempted = self._scheduling(events)
                if scheduled_ns is not None:
                    lost = live.shift + self._clock if preempted else 0
                    prefills.append(
                        Prefill(live, lost, scheduled_ns, again=True, preempted=preempted)
                    )

    def _forget(self, request_id: str, live: Live) -> None:
        if self.live.pop(request_id, None) is not None:
            live.context = live.shift + self._clock
        self.added_ns.pop(request_id, None)
        self.sessions.pop(request_id, None)
        self._ids = []
        self._names.over(live.name)

    def _scheduling(self, events: Any) -> tuple[int | None, bool]:
        """When a request was last scheduled, and whether it had been preempted."""
        scheduled_ns, preempted = None, False
        for event in events:
            kind = int(event.type)
            if kind == _SCHEDULED:
                scheduled_ns = to_ns(event.timestamp) + self.behind_ns
            elif kind == _PREEMPTED:
                preempted = True
        return scheduled_ns, preempted

    def _name(self, request_id: str, state: Any) -> str:
        return self._dropped.pop(request_id, "") or self._names.give(state)


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


def _count(thing: Any, name: str) -> int:
    value = getattr(thing, name, 0)
    return value if isinstance(value, int) and 0 < value < _MOST_COUNT else 0
