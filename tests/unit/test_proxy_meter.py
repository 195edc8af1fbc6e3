"""What the proxy tells of a request: its steps, its finish, and what it does not know."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from wattledger_collectors.engines.events import Event, EventBuffer
from wattledger_collectors.engines.proxy_http import Head, request_head, response_head
from wattledger_collectors.engines.proxy_meter import SEVERAL, Exchange, Meter
from wattledger_collectors.engines.proxy_pids import EnginePids

DATA = Path(__file__).resolve().parents[1] / "data" / "scrape"
MS = 10**6
S = 10**9
CHAT = "/v1/chat/completions"


class World:
    """A meter with a clock of its own, in milliseconds."""

    def __init__(self, model: str | None = None, tenant_header: str | None = None) -> None:
        self.now_ms = 1_000
        self.buffer = EventBuffer()
        self.lines: list[str] = []
        self.meter = Meter(
            self.buffer,
            model=model,
            tenant_header=tenant_header,
            now_ns=lambda: self.now_ms * MS,
            tell=self.lines.append,
        )

    def begin(
        self, path: str = CHAT, headers: str = "X-Request-Id: r1", body: str = ""
    ) -> Exchange:
        exchange = self.meter.begin(asked(path, headers))
        exchange.asked([body.encode()])
        exchange.sent()
        return exchange

    def answer(self, exchange: Exchange, kind: str, *pieces: tuple[int, bytes]) -> None:
        """Pieces of an answer, each at its millisecond."""
        exchange.answered(replied(kind))
        for self.now_ms, piece in pieces:
            exchange.content([piece])

    def events(self) -> list[Event]:
        return self.buffer.take(1000)


def asked(path: str, headers: str = "", method: str = "POST") -> Head:
    return request_head(f"{method} {path} HTTP/1.1\r\nHost: x\r\n{headers}".strip().encode())


def replied(kind: str, status: int = 200) -> Head:
    return response_head(f"HTTP/1.1 {status} Y\r\nContent-Type: {kind}".encode())


def step(start_ms: int, end_ms: int, *parts: tuple[str, int, int], model: str = "") -> Event:
    full = tuple((name, prefill, decode, 0) for name, prefill, decode in parts)
    return ("step", model, start_ms * MS, end_ms * MS, full)


def data(document: object) -> bytes:
    return b"data: %s\n\n" % json.dumps(document).encode()


TOKEN = data({"choices": [{"index": 0, "delta": {"content": "a"}}]})
USAGE = data({"choices": [], "usage": {"prompt_tokens": 30, "completion_tokens": 5}})
DONE = b"data: [DONE]\n\n"


def test_ollamas_durations_end_with_the_answer() -> None:
    world = World()
    exchange = world.begin("/api/generate")
    lines = (DATA / "ollama" / "generate.jsonl").read_bytes().splitlines(keepends=True)
    world.answer(
        exchange, "application/x-ndjson", (1_700, lines[0]), (1_720, lines[1]), (1_742, lines[2])
    )
    exchange.complete()
    # 500 ms went into loading the model: no step. Decode began with the first token.
    assert world.events() == [
        step(1_570, 1_700, ("r1", 26, 0), model="tiny:1b"),
        step(1_700, 1_740, ("r1", 0, 3), model="tiny:1b"),
        ("finish", "tiny:1b", 1_742 * MS, "r1", 26, 0, 3, False),
    ]
    assert (world.meter.counted, world.meter.untold, world.lines) == (1, 0, [])


def test_a_client_that_reads_slowly_does_not_move_the_work() -> None:
    world = World()
    exchange = world.begin("/api/generate")
    lines = (DATA / "ollama" / "generate.jsonl").read_bytes().splitlines(keepends=True)
    world.answer(exchange, "application/x-ndjson", (1_700, lines[0]), (60_000, lines[2]))
    exchange.complete()
    first, second, _ = world.events()
    assert (first[2:4], second[2:4]) == ((1_570 * MS, 1_700 * MS), (1_700 * MS, 1_740 * MS))


def test_durations_longer_than_the_request_are_cut_to_it() -> None:
    world = World()
    exchange = world.begin("/api/chat")
    content = (DATA / "ollama" / "chat.json").read_bytes()
    world.answer(exchange, "application/json", (1_060, content))
    exchange.complete()
    assert world.events()[:2] == [
        step(1_000, 1_010, ("r1", 40, 0), model="tiny:1b"),
        step(1_010, 1_060, ("r1", 0, 5), model="tiny:1b"),
    ]


def test_cached_tokens_are_not_computed() -> None:
    world = World()
    exchange = world.begin("/api/chat")
    content = (DATA / "ollama" / "chat_cached.jsonl").read_bytes()
    world.answer(exchange, "application/x-ndjson", (1_500, content))
    exchange.complete()
    prefill, decode, finish = world.events()
    assert prefill == step(1_476, 1_480, ("r1", 5, 0), model="tiny:1b")
    assert decode == step(1_480, 1_500, ("r1", 0, 2), model="tiny:1b")
    assert finish[4:] == (50, 45, 2, False)


def test_a_stream_that_tells_counts_alone_is_parted_at_its_first_token() -> None:
    world = World()
    exchange = world.begin()
    world.answer(exchange, "text/event-stream", (1_100, TOKEN), (1_200, TOKEN), (1_300, USAGE))
    exchange.complete()
    assert world.events() == [
        step(1_000, 1_100, ("r1", 30, 0)),
        step(1_100, 1_300, ("r1", 0, 5)),
        ("finish", "", 1_300 * MS, "r1", 30, 0, 5, False),
    ]


def test_a_whole_answer_that_tells_counts_alone_is_one_step() -> None:
    world = World()
    exchange = world.begin()
    body = b'{"model":"m","usage":{"prompt_tokens":30,"completion_tokens":5}}'
    world.answer(exchange, "application/json", (1_400, body))
    exchange.complete()
    assert world.events() == [
        step(1_000, 1_400, ("r1", 30, 5), model="m"),
        ("finish", "m", 1_400 * MS, "r1", 30, 0, 5, False),
    ]


def test_choices_of_one_prompt_are_steps_of_one_request() -> None:
    content = (DATA / "llama_server" / "answer_chat_two.sse").read_bytes()
    for body, untold in [('{"n": 2}', 0), ("x" * 2_000_000, 1)]:
        world = World()
        exchange = world.begin(body=body)
        world.answer(exchange, "text/event-stream", (1_400, content))
        exchange.complete()
        finish = world.events()[-1]
        assert finish[3:] == ("r1", 18, 6, 6, False)
        assert world.meter.untold == untold


def test_several_prompts_each_cost_their_own() -> None:
    world = World()
    exchange = world.begin("/v1/completions", body='{"prompt": ["a", "b"]}')
    content = (DATA / "llama_server" / "answer_chat_two.sse").read_bytes()
    world.answer(exchange, "text/event-stream", (1_400, content))
    exchange.complete()
    assert world.events()[-1][4:7] == (36, 12, 6)


def test_what_is_not_told_is_work_of_nobodys() -> None:
    world = World()
    for finish in (Exchange.complete, Exchange.broken):
        world.now_ms = 1_000
        exchange = world.begin()
        world.answer(exchange, "text/event-stream", (1_100, TOKEN), (1_200, TOKEN))
        world.now_ms = 1_300
        finish(exchange)
        assert world.events() == [step(1_000, 1_300)]
    left = world.begin()
    world.now_ms = 1_500
    left.broken()
    assert world.events() == [step(1_300, 1_500)]
    assert (world.meter.counted, world.meter.untold) == (0, 3)
    assert len(world.lines) == 1
    assert "unattributed" in world.lines[0]


def test_an_aborted_stream_has_what_was_counted_so_far() -> None:
    world = World()
    exchange = world.begin()
    timings = {"prompt_n": 8, "cache_n": 2, "predicted_n": 3, "prompt_ms": 20, "predicted_ms": 60}
    chunk = {"choices": [{"index": 0, "delta": {"content": "a"}}], "timings": timings}
    world.answer(exchange, "text/event-stream", (1_100, TOKEN), (1_160, data(chunk)))
    world.now_ms = 9_000
    exchange.broken()
    assert world.events() == [
        step(1_080, 1_100, ("r1", 8, 0)),
        step(1_100, 1_160, ("r1", 0, 3)),
        ("finish", "", 1_160 * MS, "r1", 10, 2, 3, True),
    ]


def test_decode_alone_may_be_known() -> None:
    world = World()
    exchange = world.begin("/completion")
    chunk = {"index": 0, "content": "a", "tokens_predicted": 4, "tokens_evaluated": 9}
    world.answer(exchange, "text/event-stream", (1_100, data({**chunk, "tokens_predicted": 1})),
                 (1_300, data(chunk)))  # fmt: skip
    exchange.broken()
    assert world.events() == [
        step(1_000, 1_300),
        step(1_100, 1_300, ("r1", 0, 4)),
        ("finish", "", 1_300 * MS, "r1", 0, 0, 4, True),
    ]
    assert world.meter.untold == 1


def test_a_client_that_leaves_after_the_end_has_not_aborted() -> None:
    world = World()
    exchange = world.begin()
    world.answer(exchange, "text/event-stream", (1_100, TOKEN), (1_200, USAGE + DONE))
    exchange.broken()
    assert world.events()[-1][-1] is False


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/tags"),
        ("GET", CHAT),
        ("POST", "/api/pull"),
        ("POST", "/v1/messages/count_tokens"),
        ("POST", "/tokenize"),
    ],
)
def test_what_computes_nothing_is_not_followed(method: str, path: str) -> None:
    world = World()
    exchange = world.meter.begin(asked(path, method=method))
    world.answer(exchange, "application/json", (1_100, b'{"usage":{"prompt_tokens":5}}'))
    exchange.complete()
    assert world.events() == []
    assert world.meter.untold == 0


def test_errors_loads_and_lost_engines_compute_nothing() -> None:
    world = World()
    refused = world.begin()
    refused.answered(replied("application/json", 500))
    refused.complete()
    loaded = world.begin("/api/generate")
    world.answer(loaded, "application/json", (1_100, (DATA / "ollama" / "load.json").read_bytes()))
    loaded.complete()
    unreached = world.begin()
    unreached.dropped()
    unreached.broken()
    assert world.events() == []
    assert world.meter.untold == 0


def test_names_are_the_clients_and_each_stands_for_one_request() -> None:
    world = World(tenant_header="X-Tenant")
    names = [
        world.begin(headers=headers).name
        for headers in (
            "X-Request-Id: a\r\nx-tenant: blue",
            "x-request-id: a",
            "",
            "X-Request-Id: " + "z" * 900,
        )
    ]
    assert names[:2] == ["a", "a#r2"]
    assert re.fullmatch(rf"{os.getpid()}-[0-9a-f]{{8}}-3", names[2])
    # A proxy that restarts in a container has the pid of the one before.
    assert World().begin(headers="").name != World().begin(headers="").name
    assert names[3] == "z" * 200
    assert [world.meter.tenant_of(name) for name in names] == ["blue", "", "", ""]
    assert World().meter.tenant_of("a") == ""


def test_several_models_in_turn_are_not_booked_to_the_last() -> None:
    world = World()
    labels = []
    for now_ms, model in [(0, "a"), (1_000, "a"), (2_000, "b"), (3_000, "a"), (200_000, "a")]:
        world.now_ms = now_ms
        labels.append(world.meter.label(model))
    assert labels == ["a", "a", SEVERAL, SEVERAL, "a"]
    assert len(world.lines) == 1
    assert World(model="m").meter.label("a") == "m"


def test_a_fault_of_ours_loses_the_count_and_nothing_else() -> None:
    world = World()
    exchange = world.begin(body='{"n": 1}')
    huge = {"prompt_n": 2**29 - 1, "cache_n": 2**29 - 1, "predicted_n": 1}
    lines = [data({"choices": [{"index": i}], "timings": huge}) for i in range(3)]
    world.answer(exchange, "text/event-stream", (1_100, b"".join(lines)))
    exchange.complete()
    exchange.broken()
    assert [event for event in world.events() if event[0] == "finish"] == []
    assert world.meter.faults == 1
    assert "not metered" in world.lines[-1]


class _Broken(EventBuffer):
    def add(self, event: Event) -> None:
        raise RuntimeError("no room")


def test_a_buffer_that_fails_is_not_the_clients_matter() -> None:
    meter = Meter(_Broken())
    exchange = meter.begin(asked(CHAT))
    exchange.answered(replied("application/json"))
    exchange.content([b'{"usage":{"prompt_tokens":5}}'])
    exchange.complete()
    assert meter.faults == 1


def test_who_the_engine_is(tmp_path: Path) -> None:
    lines: list[str] = []
    nobody = EnginePids("127.0.0.1", 9, lines.append, proc_root=tmp_path)
    assert nobody() == ()
    far = EnginePids("192.0.2.1", 9, lines.append, proc_root=tmp_path)
    assert (far(), far()) == ((), ())
    assert len(lines) == 1
    assert "not on this host" in lines[0]


LISTENER = """
import socket, sys
link = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print(link.getsockname()[1], flush=True)
sys.stdin.read()
"""


def test_an_engine_that_restarts_is_found_again() -> None:
    def listen(port: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", LISTENER, str(port)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    with listen(0) as first:
        assert first.stdout
        port = int(first.stdout.readline())
        pids = EnginePids("127.0.0.1", port, now_ns=lambda: 0)
        assert pids() == (first.pid,)
        first.kill()
        first.wait()
    assert pids() == ()
    with listen(port) as second:
        assert second.stdout
        second.stdout.readline()
        assert pids() == (second.pid,)
        second.kill()
