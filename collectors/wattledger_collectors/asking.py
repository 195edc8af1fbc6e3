"""Asks the host's daemon what a request took, from an engine's event loop.

Beside the reporter the only module on the engine's side that knows gRPC, which is imported at the
first question, on another thread. The loop never waits for more than a question's own time; a
daemon that is not there, or does not answer, is left alone for a while.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

from wattledger_collectors.engines.request_names import are_one, request_of

if TYPE_CHECKING:
    import grpc

    from wattledger_proto.v1 import node_pb2, node_pb2_grpc

_MOST_AT_ONCE = 16
_PATIENCE = 3
_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 30.0
_FOR_THE_WAY_S = 0.1


@dataclass(frozen=True, slots=True)
class Told:
    """What the daemon knows of all that one HTTP request became; joules and tokens are sums.

    `finished` is False while the end of any of it is not told; `prompt_tokens` are computed and
    cached ones, once for all choices.
    """

    prefill_j: float
    decode_j: float
    gco2e: float | None
    prefill_tokens: int
    decode_tokens: int
    quality: str
    method: str
    finished: bool
    provisional: bool
    prompt_tokens: int | None = None

    @property
    def energy_j(self) -> float:
        """Prefill and decode together."""
        return self.prefill_j + self.decode_j


class Asking:
    """One process's questions; every method belongs to the event loop's thread."""

    def __init__(
        self, socket: Callable[[], str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._socket = socket
        self._clock = clock
        self._stub: node_pb2_grpc.NodeStub | None = None
        self._channel: grpc.Channel | None = None
        self._opening: asyncio.Future[None] | None = None
        self._at_once = 0
        self._failed = 0
        self._not_before_s = 0.0
        self._pause_s = _PAUSE_S

    def warm(self) -> None:
        """Open the channel on another thread, before the first question."""
        with suppress(RuntimeError):
            self._begin()

    async def about(self, request: str, since_ns: int, wait_s: float) -> Told | None:
        """What `request` took since `since_ns` (UTC), its end awaited for at most `wait_s`.

        None where nobody knows in time, or several HTTP requests bear the id; at once where too
        many ask or the daemon is left alone. Raises nothing but CancelledError.
        """
        if self._at_once >= _MOST_AT_ONCE or self._clock() < self._not_before_s:
            return None
        self._at_once += 1
        try:
            answer = await asyncio.wait_for(self._ask(request, wait_s), wait_s)
        except Exception:  # noqa: BLE001 - the engine hook's border: its response goes out without
            self._missed()
            return None
        finally:
            self._at_once -= 1
        self._failed, self._pause_s = 0, _PAUSE_S
        found = [item for item in answer.requests if _is_of(item, since_ns)]
        return _sum(found) if are_one(request, [item.request for item in found]) else None

    async def _ask(self, request: str, wait_s: float) -> node_pb2.RequestAnswer:
        stub = await self._opened()
        from wattledger_proto.v1 import node_pb2

        question = node_pb2.RequestQuestion(
            request=request, wait_s=max(0.0, wait_s - _FOR_THE_WAY_S)
        )
        call = stub.GetRequest.future(question, timeout=wait_s)
        loop = asyncio.get_running_loop()
        over: asyncio.Future[None] = loop.create_future()

        def tell() -> None:
            if not over.done():
                over.set_result(None)

        def done(_: object) -> None:
            # The loop may be closed by the time an answer comes.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(tell)

        call.add_done_callback(done)
        try:
            await over
        finally:
            call.cancel()
        answer: node_pb2.RequestAnswer = call.result()
        return answer

    async def _opened(self) -> node_pb2_grpc.NodeStub:
        """The channel, opened once; whoever is cancelled meanwhile leaves the work to others."""
        if self._stub is None:
            await asyncio.shield(self._begin())
        assert self._stub is not None
        return self._stub

    def _begin(self) -> asyncio.Future[None]:
        if self._opening is None or (self._opening.done() and self._stub is None):
            loop = asyncio.get_running_loop()
            self._opening = loop.run_in_executor(None, self._open)
            # Its fault is told to whoever waits for it, which may be nobody.
            self._opening.add_done_callback(lambda done: done.cancelled() or done.exception())
        return self._opening

    def _open(self) -> None:
        import grpc

        from wattledger_proto.v1 import node_pb2_grpc

        self._channel = grpc.insecure_channel(
            f"unix:{quote(self._socket())}", options=[("grpc.max_reconnect_backoff_ms", 2000)]
        )
        self._stub = node_pb2_grpc.NodeStub(self._channel)

    def _missed(self) -> None:
        self._failed += 1
        if self._failed >= _PATIENCE:
            self._failed = 0
            self._not_before_s = self._clock() + self._pause_s
            self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)

    def close(self) -> None:
        """Release the channel."""
        if self._channel is not None:
            self._channel.close()


def _is_of(item: node_pb2.RequestStatus, since_ns: int) -> bool:
    """Not one that bore the same id before."""
    return not item.HasField("finished_ns") or item.finished_ns >= since_ns


def _sum(items: Sequence[node_pb2.RequestStatus]) -> Told | None:
    if not items:
        return None
    grams = [item.gco2e for item in items if item.HasField("gco2e")]
    return Told(
        sum(item.prefill_j for item in items),
        sum(item.decode_j for item in items),
        sum(grams) if len(grams) == len(items) else None,
        sum(item.prefill_tokens for item in items),
        sum(item.decode_tokens for item in items),
        "+".join(sorted({item.quality for item in items})),
        "+".join(sorted({item.method for item in items})),
        all(item.HasField("finished_ns") for item in items),
        any(item.provisional for item in items),
        _prompt_tokens(items),
    )


def _prompt_tokens(items: Sequence[node_pb2.RequestStatus]) -> int:
    prompts: dict[str, int] = {}
    for item in items:
        name = request_of(item.request)
        prompts[name] = max(prompts.get(name, 0), item.prefill_tokens + item.cached_tokens)
    return sum(prompts.values())
