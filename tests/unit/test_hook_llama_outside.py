"""What the llama.cpp hook tells of evaluations outside of `generate`, embeddings and aborts."""

from __future__ import annotations

import itertools
from collections.abc import Generator

import pytest

from fakes.llama import FakeLlama, complete
from fakes.llama_hook import World, parts
from wattledger_collectors.engines import llama_cpp_outside
from wattledger_collectors.engines.events import Counts


def test_an_evaluation_by_hand_is_a_request_of_its_own() -> None:
    world = World()
    world.llama.eval(range(10, 30))
    for token in (4, 5, 6):
        world.llama.eval([token])
    told = world.told()
    assert parts(told) == [(20, 0, 0), (0, 1, 20), (0, 1, 21), (0, 1, 22)]
    assert not told.finishes
    world.llama.reset()
    world.llama.eval([1, 2])
    told = world.told()
    assert [finish[4:] for finish in told.finishes] == [(20, 0, 3, False)]
    assert parts(told) == [(2, 0, 0)]
    world.hook.end_all()
    assert [finish[4:] for finish in world.told().finishes] == [(2, 0, 0, False)]


def test_an_evaluation_by_hand_that_fails_counts_what_was_computed() -> None:
    world = World(FakeLlama(n_batch=8, broken_at=20))
    with pytest.raises(RuntimeError, match="llama_decode returned 1"):
        world.llama.eval(range(30))
    assert parts(world.told()) == [(16, 0, 0)]


def test_a_prompt_with_an_image_is_one_request_with_its_completion() -> None:
    world = World()
    llama = world.llama
    llama.reset()
    llama.eval(range(10))
    # As the C helper for an image leaves it: computed, and `n_tokens` moved on.
    llama.input_ids += [0] * 64
    llama.n_tokens += 64
    llama.eval([7])
    tokens = complete(llama, llama.input_ids[: llama.n_tokens], 4)
    told = world.told()
    assert len(tokens) == 4
    assert parts(told)[:3] == [(10, 0, 0), (64, 0, 0), (1, 0, 0)]
    assert told.counts == Counts(3 + 4, 75, 4, 1)
    assert told.finishes[0][4:] == (75, 0, 4, False)
    assert {step[4][0][0] for step in told.steps} == {told.finishes[0][3]}


@pytest.mark.parametrize("text_after", [0, 5])
def test_an_image_that_comes_first_is_told_from_the_reset_on(text_after: int) -> None:
    world = World()
    llama = world.llama
    complete(llama, range(50, 80), 3)
    world.told()
    llama.reset()
    llama.input_ids = [0] * 64
    llama.n_tokens = 64
    if text_after:
        llama.eval(range(text_after))
    complete(llama, llama.input_ids[: llama.n_tokens], 2)
    told = world.told()
    assert parts(told)[0] == (64, 0, 0)
    assert told.finishes[0][4:] == (64 + text_after, 0, 2, False)


def test_another_prompt_does_not_go_on_with_what_was_evaluated_by_hand() -> None:
    world = World()
    world.llama.eval(range(10))
    complete(world.llama, [*range(5), 99, 98, 97, 96, 95, 94, 93], 2)
    told = world.told()
    by_hand, completed = told.finishes
    assert by_hand[4:] == (10, 0, 0, False)
    assert completed[4:] == (12, 5, 2, False)
    assert by_hand[3] != completed[3]


def test_a_loaded_state_is_cached_and_not_computed() -> None:
    world = World()
    world.llama.reset()
    world.llama.load_state([*range(10)])
    complete(world.llama, range(12), 2)
    told = world.told()
    assert told.finishes[0][4:] == (12, 10, 2, False)
    assert told.counts.prefill_tokens == 2


def test_a_reset_ends_a_completion_that_was_left_open() -> None:
    world = World()
    left = world.llama.generate(range(10))
    list(itertools.islice(left, 3))
    world.llama.reset()
    world.llama.eval(range(20, 26))
    told = world.told()
    assert told.finishes[0][4:] == (10, 0, 3, True)
    assert parts(told)[-1] == (6, 0, 0)
    left.close()
    assert not world.told().finishes


def test_an_engine_that_rolls_back_by_itself_goes_on() -> None:
    class RollingBack(FakeLlama):
        def sample(self) -> int:
            if self.n_tokens == 12:
                self.load_state(self.input_ids[: self.n_tokens])
            return super().sample()

    world = World(RollingBack())
    complete(world.llama, range(10), 5)
    assert world.told().counts == Counts(6, 10, 5, 1)


def test_an_evaluation_between_two_tokens_of_a_stream_changes_nothing_for_the_engine() -> None:
    world = World()
    stream = world.llama.generate(range(10))
    first = next(stream)
    world.llama.eval([first])
    assert len(list(itertools.islice(stream, 3))) == 3
    stream.close()
    assert "eval" not in vars(world.llama)


def test_a_class_that_overrides_eval_keeps_its_own() -> None:
    world = World()
    seen: list[int] = []

    class Own(type(world.llama)):  # type: ignore[misc]
        def eval(self, tokens: list[int]) -> None:
            seen.append(len(tokens))
            super().eval(tokens)

    llama = Own()
    complete(llama, range(10), 4)
    assert seen == [10, 1, 1, 1]
    assert world.told().counts == Counts(5, 10, 4, 1)


def test_embeddings_are_prefill_batch_by_batch() -> None:
    world = World(FakeLlama(n_batch=4))
    plain = FakeLlama()
    assert world.llama.embed("hello") == plain.embed("hello")
    assert world.llama.embed("hello", True, True) == plain.embed("hello", True, True)
    assert world.llama.embed(text="hi", return_count=True) == ([0.0, 2.0], 2)
    told = world.told()
    assert parts(told) == [(4, 0, 0), (1, 0, 0), (4, 0, 0), (1, 0, 0), (2, 0, 0)]
    assert [finish[4:] for finish in told.finishes] == [(n, 0, 0, False) for n in (5, 5, 2)]
    assert "decode" not in vars(world.llama._ctx)


def test_an_embedding_that_fails_counts_what_was_computed() -> None:
    class Failing(FakeLlama):
        def embed(self, *args: object, **kwargs: object) -> list[float]:
            super().embed("hello")
            self._ctx.failing = True
            super().embed("more")
            return []

    world = World(Failing())
    with pytest.raises(RuntimeError, match="llama_decode returned 1"):
        world.llama.embed()  # type: ignore[call-arg]
    told = world.told()
    assert parts(told) == [(5, 0, 0)]
    assert [finish[4:] for finish in told.finishes] == [(5, 0, 0, True)]


def test_an_embedding_that_never_got_to_the_model_is_not_told() -> None:
    world = World()
    with pytest.raises(RuntimeError, match="nothing to embed"):
        world.llama.embed("")
    with pytest.raises(TypeError):
        world.llama.embed()  # type: ignore[call-arg]
    assert not world.buffer


def test_a_completion_left_before_its_end_is_aborted() -> None:
    world = World()
    stream = world.llama._create_completion(range(10), 100)
    assert len(list(itertools.islice(stream, 5))) == 5
    stream.close()
    assert [finish[4:] for finish in world.told().finishes] == [(10, 0, 5, True)]


def test_a_completion_read_to_its_end_is_not() -> None:
    world = World()
    plain = list(FakeLlama()._create_completion(range(10), 6))
    assert list(world.llama._create_completion(range(10), 6)) == plain
    stream = world.llama._create_completion(range(20, 30), 3)
    assert list(itertools.islice(stream, 4))[-1] == "."
    stream.close()
    assert [finish[4:] for finish in world.told().finishes] == [
        (10, 0, 6, False),
        (10, 0, 3, False),
    ]


def test_what_a_consumer_throws_into_a_completion_comes_back_and_aborts() -> None:
    world = World()
    stream = world.llama._create_completion(range(10), 100)
    next(stream)
    with pytest.raises(KeyError):
        stream.throw(KeyError("x"))
    assert world.told().finishes[0][-1] is True


class BrokenError(Exception):
    """What nobody expects."""


def _broken(*_: object) -> None:
    raise BrokenError


@pytest.mark.parametrize("part", ["add", "append", "begin", "model_of", "name_request"])
def test_a_hook_that_throws_inside_changes_nothing_for_the_engine(part: str) -> None:
    def run(llama: FakeLlama) -> list[object]:
        done: list[object] = [complete(llama, range(10, 40), 70)]
        llama.eval([1, 2, 3])
        llama.reset()
        llama.load_state([*range(10)])
        done += [*llama._create_completion(range(12), 5), llama.embed("hello"), llama.input_ids]
        stream = llama.generate(range(30))
        done += itertools.islice(stream, 3)
        stream.close()
        return done

    world = World()
    setattr(world.hook, part, _broken)
    assert run(world.llama) == run(FakeLlama())
    assert not {"eval", "decode"} & {*vars(world.llama), *vars(world.llama._ctx)}
    world.hook.end_all()
    world.hook.forget_all()


def test_an_engine_of_another_version_runs_on() -> None:
    """No context to watch, no batch size, and no state that we know of."""

    class Bare:
        model_path = "/models/tiny.gguf"

        def eval(self, tokens: list[int]) -> None:
            self.seen = tokens

        def generate(self, tokens: list[int]) -> Generator[int, None, None]:
            self.eval(tokens)
            for token in range(5):
                yield token
                self.eval([token])

        def token_eos(self) -> int:
            return -1

    world = World()
    world.hook.attach(Bare)
    llama = Bare()
    assert list(llama.generate([1, 2, 3])) == [*range(5)]
    llama.eval([1])


def test_a_fault_of_the_hook_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    llama_cpp_outside._FAULTS.clear()
    world = World()
    world.hook.model_of = _broken  # type: ignore[assignment]
    for _ in range(3):
        complete(world.llama, range(10), 4)
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert told[0].startswith("wattledger: some tokens of llama.cpp are not metered: BrokenError()")
