"""An ASGI middleware for vLLM that tells clients the energy of their requests; opt-in.

    vllm serve ... --middleware wattledger_collectors.engines.vllm_middleware.EnergyMiddleware

It works on the inference endpoints and does three things:

- a request without an `X-Request-Id` gets one, so that it has a name that the daemon knows;
- where `WATTLEDGER_TENANT_HEADER` names a header, what it says is noted as the request's tenant,
  of other endpoints' POSTs as well: else one of them would get what another said with its id;
- a JSON response gets the energy known so far, as headers `x-wattledger-...` (the default), as a
  member `wattledger` of its `usage`, or both: `WATTLEDGER_RESPONSE=headers|usage|both|off`.

The daemon is given `WATTLEDGER_RESPONSE_WAIT_S` (0.3) to answer, by which that response is later.
What it says then is provisional: `wattledger requests --request ID` tells the rest. A stream's
headers are gone before its energy is known: with `usage` or `both` its last event gets the member
where the client asked for one by `stream_options.include_usage`; else nothing is told.

Figures are left out rather than wrong: where the end of the request is not told or not metered in
time (a meter that is read once a second needs a longer wait), where the id has come more than
once, and where the daemon counts more tokens of the answer, or others of the prompt, than the
response itself: it speaks of another request, or of one that was preempted and computed anew.
Nothing else is altered, and no fault of ours reaches a client: then the engine's own bytes go out.
Bodies above 4 MiB pass as they are.
"""

from __future__ import annotations

import math
import os
import sys
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextlib import suppress
from typing import Any, Protocol

from wattledger_collectors.engines import tenancy
from wattledger_collectors.engines.responses import Document, Energy, final_usage, headers_of
from wattledger_collectors.socket_path import default_socket_path

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MOST_BYTES = 4 * 2**20
MODES = ("headers", "usage", "both", "off")
_WAIT_S = 0.3
_MOST_WAIT_S = 10.0
_CLOCK_SLACK_NS = 1_000_000_000
PATHS = frozenset(
    {
        "/v1/completions",
        "/v1/chat/completions",
        "/v1/chat/completions/batch",
        "/v1/messages",
        "/v1/embeddings",
        "/v2/embed",
        "/pooling",
        "/classify",
        "/score",
        "/v1/score",
        "/rerank",
        "/v1/rerank",
        "/v2/rerank",
        "/inference/v1/generate",
        "/generative_scoring",
        "/invocations",
    }
)


class Asker(Protocol):
    """Who knows what a request took; `wattledger_collectors.asking.Asking`."""

    def warm(self) -> None:
        """Make ready on another thread; never raises."""

    async def about(self, request: str, since_ns: int, wait_s: float) -> Energy | None:
        """What a request took since `since_ns`, UTC; never raises."""


class EnergyMiddleware:
    """Pure ASGI, as vLLM adds it: by its class, with the app alone."""

    def __init__(
        self,
        app: App,
        *,
        asker: Asker | None = None,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self._app = app
        self._mode = environ.get("WATTLEDGER_RESPONSE", MODES[0]).strip().lower()
        if self._mode not in MODES:
            _warn(f"WATTLEDGER_RESPONSE={self._mode!r} is none of {', '.join(MODES)}: headers")
            self._mode = MODES[0]
        self._wait_s = _seconds(environ.get("WATTLEDGER_RESPONSE_WAIT_S"))
        header = environ.get("WATTLEDGER_TENANT_HEADER", "").strip().lower()
        self._tenant_header = header.encode("latin-1", "replace")
        self._asker = asker if asker is not None else self._default(environ)

    def _default(self, environ: Mapping[str, str]) -> Asker | None:
        if self._mode == "off":
            return None
        from wattledger_collectors.asking import Asking

        return Asking(lambda: default_socket_path(environ))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request through the app."""
        if scope.get("type") == "lifespan" and self._asker is not None:
            self._asker.warm()
        if scope.get("type") != "http" or scope.get("method") != "POST":
            await self._app(scope, receive, send)
            return
        is_inference = _is_inference(scope)
        scope, request = _named(scope) if is_inference else (scope, _id_of(scope))
        noted = self._note(scope, request)
        try:
            if self._asker is None or not is_inference:
                await self._app(scope, receive, send)
                return
            response = _Response(send, self._asker, request, self._mode, self._wait_s)
            try:
                await self._app(scope, receive, response.send)
            finally:
                # Whatever became of the app: what it sent goes out.
                await response.flush()
        finally:
            if noted:
                tenancy.over(request)

    def _note(self, scope: Scope, request: str) -> bool:
        """Tell the hook whose it is; "" too, where several are named or none is."""
        if not (self._tenant_header and request):
            return False
        with suppress(Exception):
            told = {value for name, value in scope["headers"] if name == self._tenant_header}
            tenancy.note(request, told.pop() if len(told) == 1 else b"")
            return True
        return False


class _Response:
    """One response on its way: held back where its energy can still be put into it."""

    def __init__(self, send: Send, asker: Asker, request: str, mode: str, wait_s: float) -> None:
        self._send = send
        self._asker = asker
        self._request = request
        self._in_headers = mode in ("headers", "both")
        self._in_usage = mode in ("usage", "both")
        self._wait_s = wait_s
        self._since_ns = time.time_ns() - _CLOCK_SLACK_NS
        self._held: list[Message] = []
        self._size = 0
        self._streams = False

    async def send(self, message: Message) -> None:
        """As the app sends; what is held goes out with the end of the body."""
        kind = message.get("type")
        if kind == "http.response.start":
            self._streams = self._in_usage and _is(message, b"text/event-stream")
            if _is(message, b"application/json"):
                self._held.append(message)
                return
        elif kind == "http.response.body" and self._held:
            self._held.append(message)
            self._size += len(message.get("body") or b"")
            if self._size <= MOST_BYTES and message.get("more_body"):
                return
            if self._size <= MOST_BYTES:
                await self._tell()
        elif kind == "http.response.body" and self._streams:
            message = await self._with_usage(message)
        if self._held:
            await self.flush()
            if kind == "http.response.body":
                return
        await self._send(message)

    async def flush(self) -> None:
        """Send what is held; the rest of the response passes as it comes."""
        held, self._held = self._held, []
        for message in held:
            await self._send(message)

    async def _tell(self) -> None:
        """Put the energy into what is held; on any fault of ours leave it as it is."""
        start, *bodies = self._held
        with suppress(Exception):
            body = b"".join(message.get("body") or b"" for message in bodies)
            document = Document(body.decode())
            energy = await self._energy(document)
            if energy is None:
                return
            headers = list(start["headers"])
            if self._in_usage and document.usage is not None:
                body = document.with_energy(energy).encode()
                headers = _with_length(headers, len(body))
            if self._in_headers:
                headers += headers_of(energy)
            self._held = [
                {**start, "headers": headers},
                {"type": "http.response.body", "body": body, "more_body": False},
            ]

    async def _energy(self, document: Document) -> Energy | None:
        """What the daemon says, if it is of all of this very response."""
        energy = await self._asker.about(self._request, self._since_ns, self._wait_s)
        if energy is None or not energy.finished:
            return None
        answer, prompt = document.answer_tokens, document.prompt_tokens
        if answer is not None and energy.decode_tokens > answer:
            return None
        if prompt is not None and energy.prompt_tokens is not None:
            return energy if energy.prompt_tokens == prompt else None
        return energy

    async def _with_usage(self, message: Message) -> Message:
        """An event of a stream, with the energy where it is the one that tells of usage."""
        with suppress(Exception):
            body: bytes = message.get("body") or b""
            if b'"usage"' not in body:
                return message
            lines = body.decode().split("\n")
            for at, line in enumerate(lines):
                document = final_usage(line[6:]) if line.startswith("data: ") else None
                energy = await self._energy(document) if document is not None else None
                if document is not None and energy is not None:
                    lines[at] = f"data: {document.with_energy(energy)}"
            return {**message, "body": "\n".join(lines).encode()}
        return message


def _is_inference(scope: Scope) -> bool:
    path, root = scope.get("path"), scope.get("root_path")
    return (
        isinstance(path, str) and path.removeprefix(root if isinstance(root, str) else "") in PATHS
    )


def _named(scope: Scope) -> tuple[Scope, str]:
    """The scope with an X-Request-Id, and the id as vLLM reads it: the first header's."""
    headers = list(scope.get("headers") or ())
    if any(name.lower() == b"x-request-id" for name, _ in headers):
        return scope, _id_of(scope)
    request = uuid.uuid4().hex
    return {**scope, "headers": [*headers, (b"x-request-id", request.encode())]}, request


def _id_of(scope: Scope) -> str:
    told = (value for name, value in scope.get("headers") or () if name.lower() == b"x-request-id")
    value: bytes = next(told, b"")
    return value.decode("latin-1")


def _is(start: Message, content: bytes) -> bool:
    """Whether a response that went well bears this type, and nothing that hides its bytes."""
    status = start.get("status")
    if not isinstance(status, int) or not 200 <= status < 300:
        return False
    headers = {name.lower(): value for name, value in start.get("headers") or ()}
    if headers.get(b"content-encoding", b"identity") != b"identity":
        return False
    length = headers.get(b"content-length", b"0")
    small = length.isdigit() and int(length) <= MOST_BYTES
    return small and headers.get(b"content-type", b"").lower().startswith(content)


def _with_length(headers: list[tuple[bytes, bytes]], size: int) -> list[tuple[bytes, bytes]]:
    return [
        (name, str(size).encode() if name.lower() == b"content-length" else value)
        for name, value in headers
    ]


def _seconds(text: str | None) -> float:
    if text is None:
        return _WAIT_S
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= _MOST_WAIT_S:
        _warn(f"WATTLEDGER_RESPONSE_WAIT_S={text!r}: give seconds up to 10; {_WAIT_S} it is")
        return _WAIT_S
    return seconds


def _warn(line: str) -> None:
    with suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(f"wattledger: {line}\n")
