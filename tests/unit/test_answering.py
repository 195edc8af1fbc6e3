"""What a request took, asked while it runs, at its end, and once it is booked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import grpc.aio
import pytest

from fakes.daemon_parts import BOOT_ID, EPOCH_NS, FakeTime, FlakyLedger
from fakes.pipeline_world import ALL_TIME, S, World, begin
from fakes.push_client import a_batch
from wattledger.carbon.annual import annual_intensity
from wattledger.errors import UnreachableError
from wattledger_daemon.health import Snapshot
from wattledger_daemon.node_service import NodeIdentity, NodeService
from wattledger_daemon.questions import MOST_OPEN, MOST_WAITING, Answer, BusyError, Questions
from wattledger_daemon.recording import Recorder
from wattledger_proto.v1 import node_pb2, node_pb2_grpc

ENGINE = "fake-1"


class Asked:
    """A world whose pipeline answers questions in simulated time."""

    def __init__(self, tmp_path: Path) -> None:
        self.ledger = FlakyLedger(tmp_path / "ledger.db")
        self.time = FakeTime(1000 * S)
        self.woken = 0
        self.hurried = 0
        self.questions = Questions(lambda: self.time.now_ns, self._wake, self._hurry)
        self.world = begin(tmp_path, self.ledger, self.time, questions=self.questions)
        self._sequence = 0

    def _wake(self) -> None:
        self.woken += 1

    def _hurry(self) -> None:
        self.hurried += 1

    @property
    def now_s(self) -> float:
        return self.time.now_ns / S

    def tell(self, start_s: float, end_s: float, request: str, finish: bool = True) -> None:
        """A step of 100 prefill tokens and one decode token, and the request's end."""
        self._sequence += 1
        start_ns, end_ns = round(start_s * S), round(end_s * S)
        finishes = [(request, end_ns, 100, 0, 1)] if finish else []
        steps = [(start_ns, end_ns, [(request, 100, 1, 7)])]
        batch = a_batch(
            self._sequence,
            steps,
            finishes,
            boot_id=BOOT_ID,
            sent_ns=self.time.now_ns,
            pids=[41],
            job="4711",
        )
        self.world.sources.take(batch, self.time.now_ns)

    def ask(self, request: str, wait_s: float = 0.0, engine: str = "") -> list[Answer]:
        question = self.questions.ask(request, engine, round(wait_s * S))
        self.time.now_ns = max(self.time.now_ns, self.questions.due_ns or 0)
        self.world.pipeline.turn()
        return question.answer.result(0)


@pytest.fixture
def asked(tmp_path: Path) -> Iterator[Asked]:
    world = Asked(tmp_path)
    yield world
    world.world.ledger.close()


def test_a_running_request_is_told_so_far(asked: Asked) -> None:
    asked.world.run(1002)
    asked.tell(1001, 1002, "r", finish=False)
    (found,) = asked.ask("r")
    assert found.provisional
    assert found.request.finished_ns is None
    assert (found.request.prefill_tokens, found.request.decode_tokens) == (100, 1)
    assert found.request.energy_uj == 100_000_000
    assert (found.request.key.engine, found.request.job) == (ENGINE, "4711")
    assert found.gco2e is not None
    asked.world.run(1003)
    asked.tell(1002, 1003, "r")
    (found,) = asked.ask("r")
    assert found.provisional
    assert found.request.finished_ns == EPOCH_NS + 1003 * S
    assert (found.request.prompt_tokens, found.request.decode_tokens) == (100, 1)
    assert found.request.prefill_tokens == 200
    assert found.request.energy_uj == 200_000_000


def test_a_booked_answer_is_what_the_ledger_lists_to_the_microjoule(asked: Asked) -> None:
    asked.world.run(1003)
    asked.tell(1001.3, 1002.9, "r")
    asked.tell(1002.1, 1002.5, "other")
    seen: list[Answer] = []
    while not seen or seen[-1].provisional:
        asked.world.run(asked.now_s + 1)
        (found,) = asked.ask("r")
        seen.append(found)
    # Within 15 s of its end: a window of 5 s, and the watermark of 10 s.
    assert asked.now_s <= 1005 + 10 + 1
    (listed, *_) = (
        item for item in asked.world.ledger.requests(*ALL_TIME) if item.finish.request == "r"
    )
    assert (found.request.prefill_uj, found.request.decode_uj) == (
        listed.prefill_uj,
        listed.decode_uj,
    )
    assert (found.request.method, found.request.quality) == (listed.method, listed.quality)
    assert found.request.finished_ns == listed.finish.finished_ns
    # Nothing came in between: what was told at first held.
    assert {item.request.energy_uj for item in seen} == {listed.energy_uj}


def test_a_request_over_many_windows_is_booked_rows_and_preview_together(asked: Asked) -> None:
    for second in range(1001, 1031):
        asked.world.run(second + 1)
        asked.tell(second, second + 1, "r", finish=False)
    (found,) = asked.ask("r")
    assert asked.world.accountant.booked_until_ns == 1020 * S
    assert (found.request.prefill_tokens, found.request.energy_uj) == (3000, 3_000_000_000)
    assert found.provisional


def test_its_end_is_waited_for(asked: Asked) -> None:
    asked.world.run(1002)
    asked.tell(1001, 1002, "r", finish=False)
    question = asked.questions.ask("r", wait_ns=15 * S)
    asked.world.run(1004)
    assert not question.answer.done()
    assert asked.questions.due_ns is not None
    asked.tell(1002, 1004, "r")
    asked.world.run(1005)
    (found,) = question.answer.result(0)
    assert found.request.finished_ns == EPOCH_NS + 1004 * S
    assert asked.questions.due_ns is None


def test_an_end_that_the_meters_have_not_reached_is_waited_for_too(asked: Asked) -> None:
    asked.world.run(1002)
    asked.tell(1001, 1002.4, "r")
    question = asked.questions.ask("r", wait_ns=15 * S)
    asked.time.now_ns += S // 2
    asked.world.pipeline.turn()
    assert not question.answer.done()
    asked.world.run(1004)
    (found,) = question.answer.result(0)
    assert found.request.energy_uj == 140_000_000


def test_an_end_that_is_not_metered_is_none_yet(asked: Asked) -> None:
    """Its energy would look like all there is, and be too little."""
    asked.world.run(1002)
    asked.tell(1001, 1002.4, "r")
    asked.time.now_ns += S // 2
    (found,) = asked.ask("r")
    assert (found.request.finished_ns, found.provisional) == (None, True)
    assert found.request.energy_uj == 100_000_000


def test_a_wait_ends_with_what_is_known(asked: Asked) -> None:
    asked.world.run(1002)
    asked.tell(1001, 1002, "r", finish=False)
    question = asked.questions.ask("r", wait_ns=2 * S)
    asked.world.run(1003)
    assert not question.answer.done()
    asked.world.run(1005)
    (found,) = question.answer.result(0)
    assert found.request.finished_ns is None


def test_what_nobody_knows_is_an_empty_answer(asked: Asked) -> None:
    asked.world.run(1002)
    assert asked.ask("nobody") == []
    asked.tell(1001, 1002, "cmpl-tenantA-42-0")
    assert asked.ask("tenantA-4") == []


def test_a_client_asks_by_its_own_id(asked: Asked) -> None:
    asked.world.run(1002)
    asked.tell(1001, 1002, "cmpl-tenantA-42-0")
    asked.tell(1001, 1002, "cmpl-tenantA-42-1")
    asked.tell(1001, 1002, "cmpl-tenantA-421-0")
    for name in ("tenantA-42", "cmpl-tenantA-42"):
        found = [item.request.key.request for item in asked.ask(name)]
        assert sorted(found) == ["cmpl-tenantA-42-0", "cmpl-tenantA-42-1"]
    assert asked.ask("tenantA-42", engine="another") == []


def test_a_former_boot_is_found_and_no_more_provisional(asked: Asked, tmp_path: Path) -> None:
    asked.world.run(1002)
    asked.tell(1001, 1002, "r")
    asked.world.pipeline.finish()
    later = FakeTime(5 * S)
    later.epoch_ns += 2000 * S
    questions = Questions(lambda: later.now_ns)
    clock = asked.world.accountant.clock
    world = World(
        asked.world.ledger,
        later,
        tmp_path,
        clock=replace(clock, boot_id="another"),
        questions=questions,
    )
    question = questions.ask("r")
    world.pipeline.turn()
    (found,) = question.answer.result(0)
    assert (found.provisional, found.request.energy_uj) == (False, 100_000_000)


def test_many_share_a_turn_and_no_more_wait_than_may(asked: Asked) -> None:
    asked.world.run(1002)
    asked.tell(1001, 1002, "r")
    waiting = [asked.questions.ask("r") for _ in range(MOST_OPEN)]
    with pytest.raises(BusyError):
        asked.questions.ask("r")
    asked.world.pipeline.turn()
    assert {len(question.answer.result(0)) for question in waiting} == {1}
    # The next must rest for a fifth of a second, whoever asks.
    late = asked.questions.ask("r")
    asked.world.pipeline.turn()
    assert not late.answer.done()
    asked.time.now_ns += S // 4
    asked.world.pipeline.turn()
    assert late.answer.done()
    assert asked.woken == MOST_OPEN + 1
    assert asked.hurried >= asked.woken


def test_those_who_wait_leave_room_for_those_who_do_not(asked: Asked) -> None:
    for _ in range(MOST_WAITING):
        asked.questions.ask("nobody", wait_ns=15 * S)
    asked.world.pipeline.turn()
    # Also while the pipeline holds them, who waits counts.
    with pytest.raises(BusyError, match="16 questions wait already: ask without wait_s"):
        asked.questions.ask("nobody", wait_ns=1)
    asked.time.now_ns += S // 4
    now = asked.questions.ask("r")
    asked.world.pipeline.turn()
    assert now.answer.done()
    taken = asked.questions.take()
    with pytest.raises(BusyError):
        asked.questions.ask("nobody", wait_ns=1)
    assert len(taken) == MOST_WAITING


def test_who_went_away_leaves_room(asked: Asked) -> None:
    for _ in range(MOST_OPEN):
        asked.questions.ask("r", wait_ns=S).answer.cancel()
    assert not asked.questions.ask("r").answer.done()


def test_work_that_took_long_is_followed_by_a_long_rest() -> None:
    now = [0]
    questions = Questions(lambda: now[0])
    questions.ask("r")
    questions.answered(S // 10)
    assert questions.due_ns == S
    questions.answered(100 * S)
    assert questions.due_ns == 5 * S


def test_a_ledger_that_fails_is_told_to_those_who_ask(asked: Asked) -> None:
    asked.ledger.full = "append"
    asked.world.run(1002)
    question = asked.questions.ask("r")
    asked.world.pipeline.turn()
    assert isinstance(question.answer.exception(0), UnreachableError)
    asked.ledger.full = None
    asked.time.now_ns += S
    assert asked.ask("r") == []


# ------------------------------------------------------------------------- over gRPC


@asynccontextmanager
async def served(
    tmp_path: Path, questions: Questions
) -> AsyncIterator[node_pb2_grpc.NodeAsyncStub]:
    server = grpc.aio.server()
    identity = NodeIdentity("0", "d", "h1", "", 0)
    service = NodeService(identity, lambda: Snapshot(0), Recorder(), lambda: 0, questions=questions)
    node_pb2_grpc.add_NodeServicer_to_server(service, server)
    address = f"unix:{tmp_path}/n.sock"
    server.add_insecure_port(address)
    await server.start()
    async with grpc.aio.insecure_channel(address) as channel:
        yield node_pb2_grpc.NodeStub(channel)
    await server.stop(0)


def test_an_answer_over_the_wire(asked: Asked, tmp_path: Path) -> None:
    asked.world.run(1002)
    asked.tell(1001, 1002, "r")

    async def check() -> node_pb2.RequestAnswer:
        async with served(tmp_path, asked.questions) as stub:
            call = stub.GetRequest(node_pb2.RequestQuestion(request="r"))
            while asked.questions.due_ns is None:
                await asyncio.sleep(0.01)
            asked.world.pipeline.turn()
            answer: node_pb2.RequestAnswer = await call
            return answer

    (told,) = asyncio.run(check()).requests
    assert (told.request, told.engine, told.job) == ("r", ENGINE, "4711")
    assert told.prefill_j + told.decode_j == pytest.approx(100.0)
    (point,) = annual_intensity("FRA").segments(told.finished_ns, told.finished_ns + 1)
    assert told.gco2e == pytest.approx(100 / 3.6e6 * point.intensity_gco2e_per_kwh)
    assert (told.provisional, told.prompt_tokens, told.prefill_tokens) == (True, 100, 100)
    assert told.finished_ns == EPOCH_NS + 1002 * S


@pytest.mark.parametrize(
    ("request_id", "code"),
    [("", grpc.StatusCode.INVALID_ARGUMENT), ("x" * 2000, grpc.StatusCode.INVALID_ARGUMENT)],
)
def test_a_malformed_question_is_refused(
    tmp_path: Path, request_id: str, code: grpc.StatusCode
) -> None:
    async def check() -> None:
        async with served(tmp_path, Questions(lambda: 0)) as stub:
            with pytest.raises(grpc.aio.AioRpcError) as told:
                await stub.GetRequest(node_pb2.RequestQuestion(request=request_id))
            assert told.value.code() is code

    asyncio.run(check())


@pytest.mark.parametrize(
    ("wait_s", "until_ns"),
    [(-1e9, 0), (float("nan"), 0), (float("inf"), 15 * S), (1e300, 15 * S), (0.5, S // 2)],
)
def test_any_time_to_wait_is_brought_into_its_bounds(
    tmp_path: Path, wait_s: float, until_ns: int
) -> None:
    async def check() -> None:
        questions = Questions(lambda: 0)
        async with served(tmp_path, questions) as stub:
            call = stub.GetRequest(node_pb2.RequestQuestion(request="r", wait_s=wait_s))
            while not (taken := questions.take()):
                await asyncio.sleep(0.01)
            assert taken[0].until_ns == until_ns
            taken[0].settle([])
            assert (await call).requests == []

    asyncio.run(check())


def test_a_full_box_and_a_client_that_leaves(tmp_path: Path) -> None:
    async def check() -> None:
        questions = Questions(lambda: 0, most=1)
        async with served(tmp_path, questions) as stub:
            asking = node_pb2.RequestQuestion(request="r", wait_s=15)
            gone = stub.GetRequest(asking, timeout=0.3)
            while questions.due_ns is None:
                await asyncio.sleep(0.01)
            with pytest.raises(grpc.aio.AioRpcError) as told:
                await stub.GetRequest(asking)
            assert told.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            with pytest.raises(grpc.aio.AioRpcError):
                await gone
            while questions.take():
                await asyncio.sleep(0.01)

    asyncio.run(check())


def test_a_future_that_is_gone_takes_no_answer() -> None:
    question = Questions(lambda: 0).ask("r")
    assert isinstance(question.answer, Future)
    question.answer.cancel()
    question.settle([])
    question.fail(ValueError())
    assert question.answer.cancelled()
