"""The llama.cpp hook seen from the engine: the generator protocol is kept, our faults stay ours."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes.llama import FakeLlama, complete
from wattledger_collectors.engines.events import Event, EventBuffer
from wattledger_collectors.engines.llama_cpp import Hook


def hooked(hook: Hook, base: type[FakeLlama] = FakeLlama) -> type[FakeLlama]:
    llama_class = type("HookedLlama", (base,), {})
    hook.attach(llama_class)
    return llama_class


class BrokenBuffer(EventBuffer):
    def add(self, event: Event) -> None:
        raise MemoryError(event)


def fail(*_: object) -> None:
    raise OSError("we are broken")


@pytest.mark.parametrize("begin", [fail, lambda: None])
@pytest.mark.parametrize("buffer", [BrokenBuffer(), EventBuffer()])
@pytest.mark.parametrize("model_path", [None, "/models/tiny.gguf"])
def test_our_faults_stay_ours(
    begin: Callable[[], None], buffer: EventBuffer, model_path: str | None
) -> None:
    llama = FakeLlama()
    llama.__class__ = hooked(Hook(buffer, begin))
    llama.model_path = model_path  # type: ignore[assignment]
    assert complete(llama, range(10, 30), 50) == complete(FakeLlama(), range(10, 30), 50)
    assert llama.embed("hello") == FakeLlama().embed("hello")
    llama.eval([1])
    llama.broken_at = 5
    with pytest.raises(RuntimeError, match="llama_decode"):
        complete(llama, range(40), 5)


class ThrownError(Exception):
    pass


class Sensitive(FakeLlama):
    """Its generator answers some of what is thrown in, as a future engine's may."""

    def generate(
        self,
        tokens: Sequence[int],
        ends: Callable[[list[int]], bool] | None = None,
        reset: bool = True,
    ) -> Generator[Any, Any, Any]:
        received: object = None
        for number in range(6):
            self.eval([number])
            try:
                received = yield (number, received)
            except ThrownError as error:
                received = repr(error)
        return "done"


def play(llama: FakeLlama, moves: Sequence[str]) -> list[object]:
    """What a consumer sees who makes these moves."""
    stream = llama.generate([1, 2, 3])
    seen: list[object] = []
    for move in moves:
        try:
            if move == "next":
                seen.append(next(stream))
            elif move == "send":
                seen.append(stream.send([7]))
            elif move == "close":
                seen.append(stream.close())  # type: ignore[func-returns-value]
            else:
                seen.append(stream.throw({"thrown": ThrownError, "stop": StopIteration}[move]("x")))
        except BaseException as error:  # noqa: BLE001 - what comes out is what is compared
            seen.append((type(error), str(error), getattr(error, "value", None)))
    stream.close()
    return seen


@given(
    st.lists(st.sampled_from(["next", "next", "send", "thrown", "stop", "close"]), max_size=12),
    st.sampled_from([FakeLlama, Sensitive]),
)
def test_the_generator_protocol_is_kept(moves: list[str], base: type[FakeLlama]) -> None:
    buffer = EventBuffer()
    hooked_class = hooked(Hook(buffer, lambda: None), base)
    assert play(hooked_class(), moves) == play(base(), moves)
    events = buffer.take(1_000)
    started = bool(moves) and moves[0] == "next"
    assert sum(event[0] == "finish" for event in events) <= 1
    assert not started or events[-1][0] == "finish"
