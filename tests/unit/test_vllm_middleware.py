"""The middleware before a tiny app: figures where they can be, the app's own bytes else."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from fakes.node_server import FakeNode, serving
from wattledger_collectors.asking import Told
from wattledger_collectors.engines import tenancy
from wattledger_collectors.engines.responses import Energy
from wattledger_collectors.engines.vllm_middleware import MOST_BYTES, EnergyMiddleware, Message
from wattledger_proto.v1.node_pb2 import RequestAnswer, RequestStatus

TOLD = Told(1.0, 2.0, None, 10, 3, "measured", "calibrated", True, True)
BODY = b'{"id":"cmpl-x","choices":[{"text":"\\u00e4 "}],"usage":{"completion_tokens":3}}'
JSON_TYPE = (b"content-type", b"application/json")
ENERGY_HEADER = (b"x-wattledger-energy-j", b"3.000000")


@dataclass
class Asker:
    """Says `told`, or raises it; remembers what it was asked."""

    told: Energy | Exception | None = None
    asked: list[str] = field(default_factory=list)
    warmed: int = 0

    def warm(self) -> None:
        self.warmed += 1

    async def about(self, request: str, since_ns: int, wait_s: float) -> Energy | None:
        self.asked.append(request)
        assert 0 < time.time_ns() - since_ns < 60_000_000_000
        assert wait_s == 0.3
        if isinstance(self.told, Exception):
            raise self.told
        return self.told


@dataclass
class App:
    """Sends its script; remembers the scopes that it was given."""

    script: Sequence[Message]
    scopes: list[Mapping[str, Any]] = field(default_factory=list)
    fault: BaseException | None = None
    during: Callable[[], None] = lambda: None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        self.during()
        for message in self.script:
            await send(message)
        if self.fault is not None:
            raise self.fault


def start(*headers: tuple[bytes, bytes], status: int = 200) -> Message:
    return {"type": "http.response.start", "status": status, "headers": list(headers)}


def body(content: bytes, more: bool = False) -> Message:
    return {"type": "http.response.body", "body": content, "more_body": more}


def plain(content: bytes = BODY) -> list[Message]:
    length = (b"content-length", str(len(content)).encode())
    return [start(JSON_TYPE, length), body(content)]


def scope_of(
    path: str = "/v1/completions", *headers: tuple[bytes, bytes], **more: object
) -> dict[str, object]:
    return {"type": "http", "method": "POST", "path": path, "headers": list(headers), **more}


async def serve(
    app: App,
    asker: Asker | None = None,
    scope: dict[str, object] | None = None,
    **environ: str,
) -> list[Message]:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.request"}

    middleware = EnergyMiddleware(app, asker=asker or Asker(), environ=environ)
    await middleware(scope if scope is not None else scope_of(), receive, send)
    return sent


def run(work: Coroutine[Any, Any, list[Message]]) -> list[Message]:
    return asyncio.run(work)


def content(sent: Sequence[Message]) -> bytes:
    return b"".join(message["body"] for message in sent if "body" in message)


# ----------------------------------------------------------------------------- headers


def test_headers_by_default_and_the_body_as_it_was() -> None:
    asker = Asker(TOLD)
    scope = scope_of("/v1/completions", (b"x-request-id", b"red-1"))
    first, last = run(serve(App(plain()), asker, scope))
    assert asker.asked == ["red-1"]
    assert ENERGY_HEADER in first["headers"]
    assert (b"x-wattledger-provisional", b"true") in first["headers"]
    assert first["headers"][:2] == plain()[0]["headers"]
    assert (first["status"], last["body"], last["more_body"]) == (200, BODY, False)


def test_usage_gets_the_member_and_the_length_is_right() -> None:
    first, last = run(serve(App(plain()), Asker(TOLD), WATTLEDGER_RESPONSE="usage"))
    told = json.loads(last["body"])
    assert told["usage"]["wattledger"]["energy_j"] == 3.0
    assert (b"content-length", str(len(last["body"])).encode()) in first["headers"]
    assert ENERGY_HEADER not in first["headers"]


def test_both_and_off() -> None:
    first, last = run(serve(App(plain()), Asker(TOLD), WATTLEDGER_RESPONSE="Both"))
    assert ENERGY_HEADER in first["headers"]
    assert b"wattledger" in last["body"]
    app = App(plain())
    middleware = EnergyMiddleware(app, environ={"WATTLEDGER_RESPONSE": "off"})
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(middleware(scope_of(), send, send))  # type: ignore[arg-type]
    assert sent == plain()


def test_a_body_in_parts_is_one() -> None:
    script = [start(JSON_TYPE), body(BODY[:9], True), body(BODY[9:], True), body(b"")]
    sent = run(serve(App(script), Asker(TOLD)))
    assert ENERGY_HEADER in sent[0]["headers"]
    assert content(sent) == BODY


def test_the_app_hears_of_the_lifespan_and_the_asker_is_warmed() -> None:
    asker = Asker()
    app = App([])
    assert run(serve(app, asker, {"type": "lifespan"})) == []
    assert (len(app.scopes), asker.warmed) == (1, 1)


# ------------------------------------------------------------------- what passes as it is

LARGE = b"[" + b" " * MOST_BYTES + b"]"
AS_THEY_ARE = {
    "not found": [start(JSON_TYPE, status=404), body(BODY)],
    "plain text": [start((b"content-type", b"text/plain")), body(BODY)],
    "compressed": [start(JSON_TYPE, (b"content-encoding", b"gzip")), body(BODY)],
    "no JSON": [start(JSON_TYPE), body(b"{oops")],
    "no UTF-8": [start(JSON_TYPE), body(b'{"a":"\xff"}')],
    "long by its header": [start(JSON_TYPE, (b"content-length", b"99999999")), body(BODY)],
    "long": [start(JSON_TYPE), body(LARGE, True), body(BODY)],
    "cut short": [start(JSON_TYPE), body(BODY, True)],
    "a file": [start(JSON_TYPE), {"type": "http.response.pathsend", "path": "/x"}],
    "no headers": [{"type": "http.response.start", "status": 200}, body(BODY)],
    "no status": [{"type": "http.response.start"}, body(BODY)],
    "empty": [start(JSON_TYPE), {"type": "http.response.body"}],
}


@pytest.mark.parametrize("script", AS_THEY_ARE.values(), ids=AS_THEY_ARE)
def test_what_cannot_be_told_in_goes_out_as_it_is(script: list[Message]) -> None:
    assert run(serve(App(script), Asker(TOLD), WATTLEDGER_RESPONSE="both")) == script


@pytest.mark.parametrize("told", [None, ValueError("broken"), OSError(), RecursionError()])
def test_no_fault_and_no_silence_reaches_a_client(told: Exception | None) -> None:
    for script in (plain(), stream(CHUNK, USAGE, DONE)):
        assert run(serve(App(script), Asker(told), WATTLEDGER_RESPONSE="both")) == script


@pytest.mark.parametrize(
    "scope",
    [
        scope_of("/v1/models"),
        scope_of("/v1/completions/render"),
        scope_of(method="GET"),
        {"type": "websocket", "path": "/v1/completions"},
        {"type": "http", "method": "POST"},
    ],
)
def test_other_endpoints_are_left_alone(scope: dict[str, object]) -> None:
    asker, app = Asker(TOLD), App(plain())
    assert run(serve(app, asker, scope)) == plain()
    assert (asker.asked, app.scopes[0]) == ([], scope)


def test_a_root_path_is_no_part_of_the_endpoint() -> None:
    asker = Asker(TOLD)
    run(serve(App(plain()), asker, scope_of("/api/v1/completions", root_path="/api")))
    assert len(asker.asked) == 1


def test_figures_of_another_request_with_the_same_id_are_left_out() -> None:
    """The daemon counts 4 tokens of the answer, the response itself 3."""
    other = Told(1.0, 2.0, None, 10, 4, "measured", "calibrated", True, True)
    assert run(serve(App(plain()), Asker(other))) == plain()


def test_a_request_whose_end_is_not_metered_is_told_nothing_of() -> None:
    early = Told(0.0, 0.0, None, 10, 3, "measured", "calibrated", False, True)
    assert run(serve(App(plain()), Asker(early))) == plain()


def test_an_app_that_fails_fails_as_it_did() -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    app = App([start(JSON_TYPE), body(BODY, True)], fault=KeyError("theirs"))
    middleware = EnergyMiddleware(app, asker=Asker(TOLD), environ={})
    with pytest.raises(KeyError, match="theirs"):
        asyncio.run(middleware(scope_of(), send, send))  # type: ignore[arg-type]
    assert sent == app.script


def test_a_client_that_leaves_ends_the_app() -> None:
    async def leave(message: Message) -> None:
        raise ConnectionResetError

    middleware = EnergyMiddleware(App(plain()), asker=Asker(TOLD), environ={})
    with pytest.raises(ConnectionResetError):
        asyncio.run(middleware(scope_of(), leave, leave))  # type: ignore[arg-type]


# ----------------------------------------------------------------------------- streams

CHUNK = b'data: {"choices":[{"text":"a"}],"usage":null}\n\n'
USAGE = b'data: {"choices":[],"usage":{"completion_tokens":3}}\n\n'
DONE = b"data: [DONE]\n\n"


def stream(*events: bytes) -> list[Message]:
    bodies = [body(event, True) for event in events]
    return [start((b"content-type", b"text/event-stream; charset=utf-8")), *bodies, body(b"")]


def test_the_last_event_of_a_stream_gets_the_member() -> None:
    script = stream(CHUNK, USAGE, DONE)
    sent = run(serve(App(script), Asker(TOLD), WATTLEDGER_RESPONSE="usage"))
    assert [sent[0], sent[1], *sent[3:]] == [script[0], script[1], *script[3:]]
    told = sent[2]["body"]
    assert told.startswith(b'data: {"choices":[],"usage":{"completion_tokens":3, "wattledger": {')
    assert told.endswith(b"}}\n\n")
    assert json.loads(told[6:])["usage"]["wattledger"]["decode_j"] == 2.0


def test_events_that_come_together_are_told_apart() -> None:
    sent = run(serve(App(stream(CHUNK + USAGE + DONE)), Asker(TOLD), WATTLEDGER_RESPONSE="both"))
    first, last, done = sent[1]["body"].strip().split(b"\n\n")
    assert first + b"\n\n" == CHUNK
    assert b'"wattledger"' in last
    assert done + b"\n\n" == DONE


@pytest.mark.parametrize("mode", ["headers", "usage"])
def test_a_stream_whose_client_did_not_ask_for_usage_is_left_alone(mode: str) -> None:
    asker, script = Asker(TOLD), stream(CHUNK, DONE)
    assert run(serve(App(script), asker, WATTLEDGER_RESPONSE=mode)) == script
    assert asker.asked == []


@pytest.mark.parametrize(("prompt_tokens", "told"), [(10, True), (9, False), (None, True)])
def test_figures_of_another_prompt_are_left_out(prompt_tokens: int | None, told: bool) -> None:
    script = plain(b'{"usage":{"prompt_tokens":10,"completion_tokens":3}}')
    known = replace(TOLD, prompt_tokens=prompt_tokens)
    sent = run(serve(App(script), Asker(known)))
    assert (ENERGY_HEADER in sent[0]["headers"]) is told


# ----------------------------------------------------------------------------- tenants


def test_another_endpoints_request_does_not_take_the_tenant_of_a_chats_id() -> None:
    seen: list[str] = []
    audio = App([], during=lambda: seen.append(tenancy.of("transcribe-middleware-9")))
    for path, app, headers in (
        ("/v1/chat/completions", App(plain()), [(b"x-tenant", b"red")]),
        ("/v1/audio/transcriptions", audio, []),
        ("/v1/audio/transcriptions", audio, [(b"x-tenant", b"blue")]),
    ):
        scope = scope_of(path, (b"x-request-id", b"middleware-9"), *headers)
        run(serve(app, Asker(), scope, WATTLEDGER_TENANT_HEADER="X-Tenant"))
    assert seen == ["", "blue"]


def test_an_id_is_given_to_a_request_that_has_none() -> None:
    app, asker = App(plain()), Asker(TOLD)
    run(serve(app, asker))
    (given,) = (value for name, value in app.scopes[0]["headers"] if name == b"x-request-id")
    assert asker.asked == [given.decode()]
    assert len(given) == 32


@pytest.mark.parametrize(
    ("headers", "tenant"),
    [
        ([(b"x-tenant", b"red")], "red"),
        ([], ""),
        ([(b"x-tenant", b"red"), (b"x-tenant", b"blue")], ""),
        ([(b"x-tenant", b"r\x00\xffd")], "r??d"),
    ],
)
def test_the_tenant_is_noted_while_the_request_lives(
    headers: list[tuple[bytes, bytes]], tenant: str
) -> None:
    seen: list[str] = []
    app = App(plain(), during=lambda: seen.append(tenancy.of("cmpl-middleware-7-0")))
    scope = scope_of("/v1/completions", (b"x-request-id", b"middleware-7"), *headers)
    run(serve(app, Asker(), scope, WATTLEDGER_TENANT_HEADER="X-Tenant"))
    assert seen == [tenant]
    # Over: the id may be another's now.
    tenancy.note("middleware-7", "blue")
    assert tenancy.of("cmpl-middleware-7-0") == "blue"
    tenancy.over("middleware-7")


def test_no_header_named_no_tenant_noted() -> None:
    scope = scope_of("/v1/completions", (b"x-request-id", b"middleware-8"), (b"x-tenant", b"red"))
    run(serve(App(plain()), Asker(), scope))
    assert tenancy.of("cmpl-middleware-8-0") == ""


def test_settings_that_mean_nothing_are_told_and_the_defaults_hold(
    capsys: pytest.CaptureFixture[str],
) -> None:
    asker = Asker(TOLD)
    sent = run(
        serve(App(plain()), asker, WATTLEDGER_RESPONSE="loud", WATTLEDGER_RESPONSE_WAIT_S="soon")
    )
    assert ENERGY_HEADER in sent[0]["headers"]
    told = capsys.readouterr().err.splitlines()
    assert [line.startswith("wattledger: WATTLEDGER_RESPONSE") for line in told] == [True, True]


def test_the_whole_way() -> None:
    status = RequestStatus(
        request="cmpl-red-1-0",
        finished_ns=time.time_ns() + 10**9,
        prefill_j=1.0,
        decode_j=2.0,
        gco2e=0.5,
    )
    node = FakeNode(answer=RequestAnswer(requests=[status]))
    scope = scope_of("/v1/completions", (b"x-request-id", b"red-1"))
    with serving(node):
        environ = {"WATTLEDGER_SOCKET": str(node.path), "WATTLEDGER_RESPONSE_WAIT_S": "5"}
        sent: list[Message] = []

        async def send(message: Message) -> None:
            sent.append(message)

        middleware = EnergyMiddleware(App(plain()), environ=environ)
        asyncio.run(middleware(scope, send, send))  # type: ignore[arg-type]
    assert ENERGY_HEADER in sent[0]["headers"]
    assert (b"x-wattledger-gco2e", b"0.500000000") in sent[0]["headers"]
