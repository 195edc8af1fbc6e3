"""A question about a request over gRPC: put into the box, awaited, and told."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio

from wattledger.errors import WattledgerError
from wattledger.records import NS_PER_S, UJ_PER_J
from wattledger_daemon.questions import Answer, BusyError, Questions
from wattledger_proto.v1 import node_pb2

MOST_WAIT_S = 15.0
_TURN_S = 10.0
_MOST_ID_CHARACTERS = 1024


async def answer(
    questions: Questions,
    asked: node_pb2.RequestQuestion,
    context: grpc.aio.ServicerContext[Any, Any],
) -> node_pb2.RequestAnswer:
    """What is known of a request.

    Ends the call with INVALID_ARGUMENT for no id, RESOURCE_EXHAUSTED where too many ask, and
    UNAVAILABLE where the ledger or the pipeline does not answer.
    """
    if not 0 < len(asked.request) <= _MOST_ID_CHARACTERS:
        what = f"an id has 1 to {_MOST_ID_CHARACTERS} characters"
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, what)
    # max() of a NaN and a number is its first argument.
    wait_s = min(max(0.0, asked.wait_s), MOST_WAIT_S)
    try:
        question = questions.ask(asked.request, asked.engine, round(wait_s * NS_PER_S))
    except BusyError as error:
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
    try:
        # Whoever goes away cancels this, and with it the future: then nobody is answered.
        waiting = asyncio.wrap_future(question.answer)
        answers = await asyncio.wait_for(waiting, wait_s + _TURN_S)
    except TimeoutError:
        what = f"the pipeline took more than {_TURN_S:.0f} s: see the daemon's log"
        await context.abort(grpc.StatusCode.UNAVAILABLE, what)
    except WattledgerError as error:
        await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
    return node_pb2.RequestAnswer(requests=map(_told, answers))


def _told(answer: Answer) -> node_pb2.RequestStatus:
    item = answer.request
    return node_pb2.RequestStatus(
        host=item.key.host,
        request=item.key.request,
        engine=item.key.engine,
        model=item.model,
        workload=item.workload,
        job=item.job,
        finished_ns=item.finished_ns,
        prompt_tokens=item.prompt_tokens,
        cached_tokens=item.cached_tokens,
        decode_tokens=item.decode_tokens,
        prefill_tokens=item.prefill_tokens,
        prefill_j=item.prefill_uj / UJ_PER_J,
        decode_j=item.decode_uj / UJ_PER_J,
        gco2e=answer.gco2e,
        method=item.method,
        quality=item.quality.value,
        provisional=answer.provisional,
    )
