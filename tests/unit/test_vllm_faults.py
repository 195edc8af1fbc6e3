"""The vLLM hook never harms: junk, renamed insides, faults of ours; and no step told twice."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes import vllm
from fakes.vllm import first
from fakes.vllm_rig import Rig, finishes, one, steps, sums
from wattledger_collectors.engines.events import Event, EventBuffer
from wattledger_collectors.engines.vllm_hook import Hook
from wattledger_collectors.engines.vllm_place import place_of

JUNK: list[Any] = [
    None, 0, -1, 2.5, float("nan"), float("inf"), "text", b"", [], [None], {}, {"a": 1},
    object(), SimpleNamespace(), SimpleNamespace(request_id="a"),
    SimpleNamespace(request_id=[], new_token_ids=3), vllm.Output("a", [1]), vllm.first("a", 3),
]  # fmt: skip
junk = st.sampled_from(JUNK)


class Careless:
    """Its insides are whatever; it answers what it is asked."""

    def __init__(self, states: object = None, log_stats: object = None) -> None:
        if states is not None:
            self.request_states = states
        self.log_stats = log_stats

    def process_outputs(self, *args: object, **kwargs: object) -> object:
        return "processed", args, kwargs

    def add_request(self, *args: object, **kwargs: object) -> object:
        return "added", args, kwargs

    def abort_requests(self, *args: object, **kwargs: object) -> object:
        return "aborted", args, kwargs


def careless() -> ModuleType:
    return vllm.a_module(Careless)


@settings(deadline=None)
@given(junk, st.lists(st.tuples(junk, junk, junk), max_size=8), st.booleans())
def test_no_junk_makes_it_raise_or_change_an_answer(
    states: object, calls: list[tuple[Any, Any, Any]], by_name: bool
) -> None:
    module = careless()
    rig = Rig(module, stats=True)
    processor = module.OutputProcessor(states)
    plain = Careless(states)
    for call in calls:
        args, kwargs = (call, {}) if not by_name else ((), {"engine_core_outputs": call[0]})
        for name in ("process_outputs", "add_request", "abort_requests"):
            expected = getattr(plain, name)(*args, **kwargs)
            assert getattr(processor, name)(*args, **kwargs) == expected
        rig.hook.record(0, None, None)
    rig.hook.flush()
    assert len(rig.lines) <= 1


@given(junk, junk, junk)
def test_a_config_of_any_shape_is_a_place(parallel: Any, model: Any, other: Any) -> None:
    config = SimpleNamespace(parallel_config=parallel, model_config=model, scheduler_config=other)
    place = place_of(config, 10, 9)
    assert place.engine(3).startswith("vllm-")
    assert place_of(other).ranks >= 1


def test_an_error_of_vllms_own_passes_unchanged() -> None:
    rig = Rig()
    rig.add("a")
    rig.processor.broken = broken = KeyError("theirs")
    with pytest.raises(KeyError) as caught:
        rig.step(1.1, first("a", 10))
    assert caught.value is broken
    assert rig.lines == []


class BrokenBuffer(EventBuffer):
    """Fails so many times."""

    def __init__(self, faults: int) -> None:
        super().__init__()
        self.faults = faults

    def add(self, event: Event) -> None:
        if self.faults:
            self.faults -= 1
            raise MemoryError("ours")
        super().add(event)


def play(rig: Rig, requests: int) -> None:
    """Each request takes two steps, and ends by the engine's word."""
    for number in range(requests):
        name = f"r{number}"
        rig.add(name)
        rig.step(1.0 + number, first(name, 10, at_s=0.9 + number))
        rig.step(1.5 + number, one(name, 2, finish_reason=vllm.FinishReason.LENGTH))


class Forgetful(dict[str, object]):
    """A table of requests that fails whoever asks it the way our hook does, so many times."""

    faults = 1

    def __len__(self) -> int:
        if self.faults:
            self.faults -= 1
            raise RuntimeError("renamed")
        return super().__len__()


@pytest.mark.parametrize("faults", [1, 2, 3])
def test_a_step_that_cannot_be_read_is_told_by_its_sums_and_none_twice(faults: int) -> None:
    rig = Rig()
    rig.processor.request_states = table = Forgetful()
    table.faults = faults
    play(rig, 5)
    events = rig.take()
    assert sums(events) == (50, 15)
    nobodys = [event for event in events if event[0] == "tally"]
    named = finishes(events)
    assert len(named) + sum(event[3] for event in nobodys) == 5
    assert sum(event[6] for event in named) + sum(event[6] for event in nobodys) <= 15
    assert len(rig.lines) == 1
    assert "RuntimeError('renamed')" in rig.lines[0]
    wrapped = hasattr(rig.module.OutputProcessor.process_outputs, "_wattledger")
    assert wrapped is (faults < 3)


@pytest.mark.parametrize("faults", [1, 3])
def test_a_fault_in_the_middle_leaves_no_token_owed(faults: int) -> None:
    rig = Rig()
    for name in "ab":
        rig.add(name)
    rig.step(1.1, first("a", 10), first("b", 10))
    rig.processor.request_states = table = Forgetful(rig.processor.request_states)
    table.faults = faults
    for number in range(3):
        rig.step(1.2 + number / 100, one("a"), one("b"))
    rig.step(1.3, one("a", finish_reason=vllm.FinishReason.STOP), one("b"))
    rig.processor.abort_requests(["b"], True)
    events = rig.take()
    assert sums(events) == (20, 10)
    assert rig.processor.counters.num_generation_tokens == 10


@pytest.mark.parametrize("missing", ["process_outputs", "abort_requests", "OutputProcessor"])
def test_a_vllm_of_another_shape_is_metered_by_its_statistics(missing: str) -> None:
    module = vllm.a_module()
    owner = module.OutputProcessor
    if missing == "OutputProcessor":
        del module.OutputProcessor
    else:
        renamed = type(
            "Renamed",
            (),
            {
                name: getattr(owner, name)
                for name in dir(owner)
                if name[0] != "_" or name == "_count"
            }
            | {"__init__": owner.__init__, "_finish": owner._finish, "go": owner.process_outputs},
        )
        delattr(renamed, missing)
        module.OutputProcessor = renamed  # type: ignore[attr-defined]
    buffer = EventBuffer()
    lines: list[str] = []
    hook = Hook(lambda place, rank: buffer, lines.append)
    hook.attach(module)
    hook.add_logger(None, 0)
    stats = vllm.IterationStats(3, vllm.PromptTokenStats(10, 0), [vllm.Finished("a", 10, 0, 3)])
    stats.time_to_first_tokens_iter = [0.02]
    hook.record(0, None, stats)
    hook.record(0, None, stats)
    events = buffer.take(10)
    assert sums(events) == (10, 3)
    assert [told.parts for told in steps(events)] == [{"": (10, 2, 0)}, {"": (0, 1, 0)}]
    assert [event[3:] for event in events if event[0] == "tally"] == [(1, 10, 0, 3)]
    assert len(lines) == 1


def test_older_statistics_have_the_prompt_alone() -> None:
    rig = Rig()
    old = SimpleNamespace(num_prompt_tokens=12, num_generation_tokens=1, finished_requests=None)
    rig.hook.record(0, None, old)
    assert sums(rig.take()) == (12, 1)


@settings(deadline=None)
@given(st.lists(st.tuples(junk, junk, junk), max_size=6))
def test_statistics_of_any_shape_are_survived(calls: list[tuple[Any, Any, Any]]) -> None:
    hook = Hook(lambda place, rank: EventBuffer(), lambda line: None)
    for config, scheduler_stats, iteration_stats in calls:
        hook.add_logger(config, 0)
        hook.record(0, scheduler_stats, iteration_stats)


def test_a_broken_buffer_harms_nobody() -> None:
    module = vllm.a_module()
    lines: list[str] = []
    hook = Hook(lambda place, rank: BrokenBuffer(10), lines.append)
    hook.attach(module)
    processor = module.OutputProcessor()
    processor.add_request(vllm.Request("a", "a", 10), None)
    for number in range(5):
        assert processor.process_outputs([one("a")], 1.0 + number, None) == ["a"]
    assert len(lines) == 1


def test_hooking_twice_wraps_once() -> None:
    rig = Rig()
    wrapped = rig.module.OutputProcessor.process_outputs
    rig.hook.attach(rig.module)
    Hook(lambda place, rank: EventBuffer(), rig.lines.append).attach(rig.module)
    assert rig.module.OutputProcessor.process_outputs is wrapped


def test_the_offline_engine_knows_its_model() -> None:
    rig = Rig(stats=False)
    module = ModuleType("vllm.v1.engine.llm_engine")
    module.LLMEngine = type("LLMEngine", (vllm.LLMEngine,), {})  # type: ignore[attr-defined]
    rig.hook.attach_offline(module)
    rig.hook.attach_offline(module)
    config = SimpleNamespace(model_config=SimpleNamespace(served_model_name=["tiny", "other"]))
    engine = module.LLMEngine(config)
    rig.module.OutputProcessor.add_request(
        engine.output_processor, vllm.Request("a", "a", 10), None
    )
    rig.module.OutputProcessor.process_outputs(engine.output_processor, [first("a", 10)], 1.1)
    assert {event[1] for event in rig.take()} == {"tiny"}


def test_a_forked_child_tells_nothing_of_its_parents_requests() -> None:
    rig = Rig()
    rig.add("a")
    rig.processor.process_outputs([first("a", 10)], 1.1, vllm.IterationStats())
    rig.hook.forget()
    rig.hook.flush()
    assert rig.take() == []
