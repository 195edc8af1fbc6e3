"""The llama.cpp hook: what it tells, and that the engine does not notice it."""

from __future__ import annotations

import itertools
import subprocess
import sys
import types

import pytest

from fakes.llama import EOS, FakeLlama, complete
from fakes.llama_hook import World, parts
from wattledger_collectors.engines.events import Counts
from wattledger_collectors.engines.llama_cpp import Hook
from wattledger_collectors.engines.llama_cpp_request import PAUSE_NS


def test_tells_a_prefill_and_every_token() -> None:
    world = World()
    tokens = complete(world.llama, range(10, 30), 5)
    told = world.told()
    assert len(tokens) == 5
    assert parts(told) == [(20, 0, 0), (0, 1, 20), (0, 1, 21), (0, 1, 22), (0, 1, 23), (0, 1, 0)]
    (finish,) = told.finishes
    assert finish[4:] == (20, 0, 5, False)
    assert {step[4][0][0] for step in told.steps} == {finish[3]}
    assert world.begun == 1


def test_steps_follow_each_other_and_the_last_token_takes_no_time() -> None:
    world = World()
    complete(world.llama, range(10, 30), 5)
    told = world.told()
    assert all(a[3] == b[2] for a, b in itertools.pairwise(told.steps))
    *evaluated, last = told.steps
    assert all(step[2] < step[3] for step in evaluated)
    assert last[2] == last[3] <= told.finishes[0][2]


def test_thousands_of_tokens_come_through_unchanged() -> None:
    world = World()
    expected = complete(FakeLlama(), range(10, 300), 5_000)
    assert complete(world.llama, range(10, 300), 5_000) == expected
    assert world.told().counts == Counts(5_001, 290, 5_000, 1)


def test_a_common_prefix_is_cached_tokens() -> None:
    world = World()
    complete(world.llama, [*range(10, 60)], 3)
    world.told()
    complete(world.llama, [*range(10, 50), 7, 8, 9], 3)
    told = world.told()
    assert parts(told)[0] == (3, 0, 0)
    assert told.finishes[0][4:] == (43, 40, 3, False)


def test_a_prompt_whose_logits_are_there_computes_nothing() -> None:
    world = World()
    complete(world.llama, [10, 11, 12], 1)
    world.told()
    start_ns = world.clock.ns
    assert len(complete(world.llama, [10, 11, 12], 2)) == 2
    told = world.told()
    assert parts(told) == [(0, 1, 3), (0, 1, 0)]
    assert told.finishes[0][4:] == (3, 3, 2, False)
    assert start_ns < told.steps[0][2]


def test_one_token_on_a_cached_prompt_takes_the_whole_time() -> None:
    world = World()
    complete(world.llama, [10, 11, 12], 1)
    world.told()
    complete(world.llama, [10, 11, 12], 1)
    told = world.told()
    assert parts(told) == [(0, 1, 0)]
    assert told.steps[0][2] < told.steps[0][3]


class EndingLlama(FakeLlama):
    """Says end-of-generation as its fourth token."""

    def sample(self) -> int:
        return EOS if self.n_tokens == 13 else 5


def test_the_end_token_is_evaluated_for_but_not_counted() -> None:
    llama = EndingLlama()
    world = World()
    llama_class = type("Hooked", (EndingLlama,), {})
    Hook(world.buffer, lambda: None).attach(llama_class)
    llama.__class__ = llama_class
    completion = complete(llama, range(10), 50)
    told = world.told()
    assert completion == [5, 5, 5]
    assert told.counts.decode_tokens == told.finishes[0][6] == len(completion)
    assert llama.evaluated == 10 + len(completion)


def test_a_generator_that_returns_has_evaluated_its_last_token() -> None:
    world = World()
    tokens = list(world.llama.generate(range(10), ends=lambda ids: len(ids) == 14))
    told = world.told()
    assert len(tokens) == 4
    assert told.counts == Counts(5, 10, 4, 1)
    assert not told.finishes[0][7]


def test_a_prefill_that_fails_counts_what_was_computed() -> None:
    world = World(FakeLlama(n_batch=8, broken_at=20))
    with pytest.raises(RuntimeError, match="llama_decode returned 1"):
        complete(world.llama, range(10, 40), 5)
    told = world.told()
    assert parts(told) == [(8, 0, 0), (8, 0, 0)]
    assert told.finishes[0][4:] == (30, 0, 0, True)
    world.llama.broken_at = None
    assert complete(world.llama, range(50, 80), 1)
    assert parts(world.told()) == [(8, 0, 0)] * 3 + [(6, 0, 0), (0, 1, 0)]


def test_a_long_prefill_is_told_while_it_runs() -> None:
    world = World(FakeLlama(n_batch=8))
    stream = world.llama.generate(range(10, 40))
    next(stream)
    told = world.told()
    assert parts(told) == [(8, 0, 0), (8, 0, 0), (8, 0, 0), (6, 0, 0)]
    assert all(a[3] == b[2] for a, b in itertools.pairwise(told.steps))
    assert "decode" not in vars(world.llama._ctx)


def test_a_decode_that_fails_is_told_as_aborted_and_the_next_request_is_whole() -> None:
    world = World(FakeLlama(broken_at=22))
    with pytest.raises(RuntimeError, match="llama_decode returned 1"):
        complete(world.llama, range(10, 30), 5)
    told = world.told()
    assert told.finishes[0][4:] == (20, 0, 3, True)
    assert told.counts == Counts(4, 20, 3, 1)
    world.llama.broken_at = None
    complete(world.llama, range(50, 60), 5)
    assert world.told().counts == Counts(6, 10, 5, 1)


def test_a_client_that_goes_away_leaves_a_whole_record() -> None:
    world = World()
    stream = world.llama.generate(range(10))
    list(itertools.islice(stream, 7))
    assert not world.told().finishes
    stream.close()
    told = world.told()
    assert told.finishes[0][4:] == (10, 0, 7, False)
    assert parts(told) == [(0, 1, 0)]


def test_a_generator_never_started_tells_nothing() -> None:
    world = World()
    world.llama.generate(range(10)).close()
    assert not world.buffer


def test_wrong_arguments_fail_at_the_call_as_before() -> None:
    world = World()
    with pytest.raises(TypeError):
        world.llama.generate()  # type: ignore[call-arg]
    assert complete(world.llama, [4, 5], 1) == complete(FakeLlama(), [4, 5], 1)
    assert list(world.llama.generate(tokens=[6, 7], ends=lambda ids: len(ids) > 3))
    assert world.told().counts.prefill_tokens == 4


def test_a_pause_of_the_client_is_not_the_engines_work() -> None:
    world = World()
    stream = world.llama.generate(range(10))
    next(stream)
    next(stream)
    world.clock.ns += PAUSE_NS + 5_000
    next(stream)
    prefill, first, second = world.told().steps
    assert prefill[3] == first[2]
    assert second[2] > first[3] + PAUSE_NS
    assert second[3] - second[2] < PAUSE_NS


def test_a_forgotten_generator_ends_when_the_next_begins() -> None:
    world = World()
    forgotten = world.llama.generate(range(10))
    list(itertools.islice(forgotten, 3))
    complete(world.llama, range(50, 70), 2)
    told = world.told()
    assert [finish[4:] for finish in told.finishes] == [(10, 0, 3, True), (20, 0, 2, False)]
    assert told.counts == Counts(7, 30, 5, 2)
    next(forgotten)
    forgotten.close()
    told = world.told()
    assert told.counts.prefill_tokens == 1
    assert not told.finishes


def test_a_forgotten_generator_ends_at_the_latest_with_the_process() -> None:
    world = World()
    forgotten = world.llama.generate(range(10))
    list(itertools.islice(forgotten, 3))
    world.hook.end_all()
    assert [finish[4:] for finish in world.told().finishes] == [(10, 0, 3, True)]
    world.hook.end_all()
    forgotten.close()
    assert not world.buffer


def test_a_forked_child_tells_nothing_of_its_parents_requests() -> None:
    world = World()
    inherited = world.llama.generate(range(10))
    list(itertools.islice(inherited, 3))
    world.told()
    world.hook.forget_all()
    complete(world.llama, range(50, 70), 2)
    inherited.close()
    world.hook.end_all()
    assert world.told().counts == Counts(3, 20, 2, 1)


def test_the_model_is_the_files_name_or_what_the_user_said() -> None:
    for model, expected in ((None, "tiny.gguf"), ("llama-3-8b", "llama-3-8b")):
        world = World(model=model)
        complete(world.llama, [1, 2], 1)
        told = world.told()
        assert {event[1] for event in (*told.steps, *told.finishes)} == {expected}


def test_requests_bear_the_servers_id_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    server = types.SimpleNamespace(context={"X-Request-ID": "aa11"})
    monkeypatch.setitem(sys.modules, "starlette_context", server)
    world = World()
    for _ in range(3):
        complete(world.llama, [1, 2], 1)
    server.context = {}
    complete(world.llama, [1, 2], 1)
    names = [finish[3] for finish in world.told().finishes]
    assert names[:3] == ["aa11", "aa11#r2", "aa11#r3"]
    assert names[3].endswith("-4")
    assert len(set(names)) == 4


def test_the_memory_of_ids_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    server = types.SimpleNamespace(context={"X-Request-ID": ""})
    monkeypatch.setitem(sys.modules, "starlette_context", server)
    hook = World()
    names = Hook(hook.buffer, lambda: None)
    for number in range(5_000):
        server.context["X-Request-ID"] = str(number)
        assert names.name_request() == str(number)
    assert len(names._recent) <= 1024


def test_the_hook_loads_nothing_but_the_standard_library() -> None:
    code = (
        "import sys; known = set(sys.modules);"
        "import wattledger_collectors.engines.llama_cpp, wattledger_collectors.engines.autoload;"
        "print(*{name.partition('.')[0] for name in set(sys.modules) - known})"
    )
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert set(told.stdout.split()) - sys.stdlib_module_names == {"wattledger_collectors"}
