"""Questions from an engine's event loop to a real gRPC server: answered in time, or not at all."""

from __future__ import annotations

import asyncio
import time

from fakes.node_server import FakeNode, serving
from wattledger_collectors.asking import Asking, Told
from wattledger_proto.v1.node_pb2 import RequestAnswer, RequestStatus


def status(request: str, finished_ns: int | None = None) -> RequestStatus:
    return RequestStatus(
        request=request,
        finished_ns=finished_ns,
        decode_tokens=3,
        prefill_j=1.0,
        decode_j=2.0,
        gco2e=0.5,
        quality="measured",
        method="calibrated",
        provisional=True,
    )


def test_the_daemon_is_asked_over_grpc() -> None:
    now_ns = time.time_ns()
    before = status("cmpl-x-0", now_ns - 3_600_000_000_000)
    node = FakeNode(answer=RequestAnswer(requests=[status("cmpl-x-1"), before]))

    async def ask(asking: Asking) -> Told | None:
        asking.warm()
        return await asking.about("x", now_ns, 5.0)

    with serving(node):
        asking = Asking(lambda: str(node.path))
        told = asyncio.run(ask(asking))
        asking.close()
    # What bore the id an hour ago is not counted in.
    assert told == Told(1.0, 2.0, 0.5, 0, 3, "measured", "calibrated", False, True, 0)
    (question,) = node.asked
    assert (question.request, question.engine) == ("x", "")
    assert 4.0 < question.wait_s < 5.0


def test_a_daemon_that_fails_is_left_alone_for_longer_each_time() -> None:
    now_s = [0.0]
    node = FakeNode(abort_request=True)

    async def ask() -> list[int]:
        asking, told = Asking(lambda: str(node.path), lambda: now_s[0]), []
        for now_s[0] in (0.0, 0.9, 1.1, 2.9, 3.2, 3.3):
            for _ in range(5):
                assert await asking.about("x", 0, 5.0) is None
            told.append(len(node.asked))
        node.abort_request = False
        now_s[0] = 60.0
        assert await asking.about("x", 0, 5.0) is None
        node.abort_request = True
        for now_s[0] in (60.0, 61.1):
            for _ in range(5):
                assert await asking.about("x", 0, 5.0) is None
            told.append(len(node.asked))
        asking.close()
        return told

    with serving(node):
        # Three faults, then a pause of 1 s, 2 s, 4 s; an answer, and it begins at 1 s again.
        assert asyncio.run(ask()) == [3, 3, 6, 6, 9, 9, 13, 16]


def test_nobody_there_costs_nothing() -> None:
    async def ask() -> None:
        asking = Asking(lambda: "/nowhere/d.sock")
        for _ in range(5):
            assert await asking.about("x", 0, 5.0) is None
        asking.close()

    began_s = time.perf_counter()
    asyncio.run(ask())
    assert time.perf_counter() - began_s < 5.0


def test_a_daemon_that_hangs_costs_no_more_than_the_wait() -> None:
    async def ask(asking: Asking) -> list[Told | None]:
        return await asyncio.gather(*(asking.about("x", 0, 0.2) for _ in range(40)))

    with serving(FakeNode(silent_s=1.0)) as node:
        asking = Asking(lambda: str(node.path))
        assert asyncio.run(ask(asking)) == [None] * 40
        # So many at once, and no more: the others were not even asked about.
        assert len(node.asked) <= 16
        asking.close()


def test_a_socket_that_cannot_be_named_is_no_fault() -> None:
    def socket() -> str:
        raise OSError("no home")

    async def ask() -> Told | None:
        asking = Asking(socket)
        asking.warm()
        return await asking.about("x", 0, 5.0)

    assert asyncio.run(ask()) is None


def test_of_an_id_that_came_twice_nothing_is_told() -> None:
    items = [status("embd-x-0"), status("embd-x-0#r1")]
    node = FakeNode(answer=RequestAnswer(requests=items))
    with serving(node):
        asking = Asking(lambda: str(node.path))
        assert asyncio.run(asking.about("x", 0, 5.0)) is None
        asking.close()


def test_choices_share_a_prompt_and_prompts_add_up() -> None:
    items = [status(name) for name in ("cmpl-x-0#0", "cmpl-x-0#1", "cmpl-x-1#0")]
    for item, prefill, cached in zip(items, (10, 1, 7), (0, 9, 0), strict=True):
        item.prefill_tokens, item.cached_tokens = prefill, cached
    node = FakeNode(answer=RequestAnswer(requests=items))
    with serving(node):
        asking = Asking(lambda: str(node.path))
        told = asyncio.run(asking.about("x", 0, 5.0))
        asking.close()
    assert told is not None
    assert told.prompt_tokens == 17
