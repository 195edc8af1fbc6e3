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
    assert told == Told(1.0, 2.0, 0.5, 0, 3, "measured", "calibrated", False, True)
    (question,) = node.asked
    assert (question.request, question.engine) == ("x", "")
    assert 4.0 < question.wait_s < 5.0


def test_a_daemon_that_is_not_there_is_left_alone_for_a_while() -> None:
    now_s = [0.0]
    opened: list[str] = []

    def socket() -> str:
        opened.append("")
        return "/nowhere/d.sock"

    async def ask() -> None:
        asking = Asking(socket, lambda: now_s[0])
        for _ in range(3):
            assert await asking.about("x", 0, 5.0) is None
        began_s = time.perf_counter()
        assert await asking.about("x", 0, 5.0) is None
        assert time.perf_counter() - began_s < 1.0
        now_s[0] = 6.0
        assert await asking.about("x", 0, 5.0) is None
        asking.close()

    asyncio.run(ask())
    assert len(opened) == 1


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
