"""The real llama-cpp-python server, attached from an environment that has no wattledger."""

from __future__ import annotations

import itertools
import subprocess
import tempfile
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from fakes.collector_server import Disk, FakeCollector, Mode
from fakes.llama_server import LlamaServer, engine_python, make_model, plain_environment
from wattledger_collectors.engines.attach import attach_environment

pytestmark = pytest.mark.engine

COMMON = "hello world token energy model " * 8
ONE_WORD = {"2": -100, "259": 100}
"""Makes the random model say the one whole word `the`: each token is text and goes out at once."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


class Site:
    """A server, attached or not, and the daemon's stand-in."""

    def __init__(self, folder: Path, model: Path, stack: ExitStack) -> None:
        self.socket = folder / "w.sock"
        self.disk = Disk()
        self._folder = folder
        self._model = model
        self._stack = stack

    def collector(self, mode: Mode = Mode.ACK, daemon_id: str = "d1") -> FakeCollector:
        collector = FakeCollector(self.socket, mode, self.disk, daemon_id)
        self._stack.callback(collector.stop)
        return collector

    def server(self, *options: str, attached: bool = True, **environment: str) -> LlamaServer:
        environ = plain_environment() | environment
        if attached:
            environ = attach_environment(
                environ, socket=str(self.socket), job="j1", workload="w1", model="tiny"
            )
        server = LlamaServer(self._model, environ, self._folder / "log", *options)
        self._stack.callback(server.process.wait)
        self._stack.callback(server.process.kill)
        return server


@pytest.fixture
def site(model: Path) -> Iterator[Site]:
    with tempfile.TemporaryDirectory(prefix="wl") as folder, ExitStack() as stack:
        yield Site(Path(folder), model, stack)


def test_the_engine_environment_has_no_wattledger() -> None:
    code = "import importlib.util as u; print(u.find_spec('wattledger_collectors'))"
    command = [str(engine_python()), "-c", code]
    told = subprocess.run(
        command, env=plain_environment(), check=True, capture_output=True, text=True
    )
    assert told.stdout == "None\n"


def test_tokens_of_concurrent_clients_equal_the_servers_usage(site: Site) -> None:
    collector, server = site.collector(), site.server()

    def client(number: int) -> tuple[str, dict[str, int], str]:
        name = uuid.uuid4().hex
        headers = {"X-Request-ID": name}
        prompt, most = f"{COMMON}client {number % 3}", 5 + number
        if number % 4 == 3:
            chunks = list(server.stream(prompt, most, **headers))
            ended = chunks[-1]["choices"][0]["finish_reason"]
            return name, {"completion_tokens": most} if ended == "length" else {}, ended
        bias = {} if number % 4 == 0 else {"2": -100}
        body = {"prompt": prompt, "max_tokens": most, "logit_bias": bias, "stop": ["zq"]}
        reply = server.request("POST", "/v1/completions", body, **headers)
        return name, reply["usage"], reply["choices"][0]["finish_reason"]

    with ThreadPoolExecutor(4) as clients:
        replies = list(clients.map(client, range(24)))
    assert server.stop() == 0
    told, finishes = collector.told(), collector.finishes()
    assert set(told) == set(finishes) == {name for name, _, _ in replies}
    for name, usage, ended in replies:
        assert told[name].decode == finishes[name].decode_tokens
        assert told[name].prefill + told[name].cached == finishes[name].prompt_tokens
        expected = usage.get("prompt_tokens", finishes[name].prompt_tokens)
        assert finishes[name].prompt_tokens == expected
        expected = usage.get("completion_tokens", finishes[name].decode_tokens)
        assert finishes[name].decode_tokens == expected
        assert ended is None or not finishes[name].aborted
    assert sum(finish.cached_tokens for finish in finishes.values()) > 10 * len(COMMON) // 5
    engine = collector.batches[-1].engine
    assert (engine.kind, engine.model, engine.workload, engine.job) == (
        "llama_cpp",
        "tiny",
        "w1",
        "j1",
    )
    assert list(engine.pids) == [server.process.pid]


def test_ends_stops_and_multibyte_text_count_as_the_server_counts(site: Site) -> None:
    collector, server = site.collector(), site.server()
    usages, reasons = [], []
    for seed in range(40):
        body = {"prompt": f"{seed} to", "max_tokens": 40, "seed": seed, "temperature": 1.8}
        body |= {"stop": ["a", "e"]} if seed % 2 else {"logit_bias": {"2": 3}}
        reply = server.request("POST", "/v1/completions", body)
        usages.append(reply["usage"])
        reasons.append(reply["choices"][0]["finish_reason"])
    chat = {"messages": [{"role": "user", "content": "hello world"}], "max_tokens": 7}
    usages.append(server.request("POST", "/v1/chat/completions", chat)["usage"])
    assert server.stop() == 0
    assert reasons.count("stop") > 10
    finishes = list(collector.finishes().values())
    assert [(finish.prompt_tokens, finish.decode_tokens) for finish in finishes] == [
        (usage["prompt_tokens"], usage["completion_tokens"]) for usage in usages
    ]
    totals = collector.batches[-1].totals
    assert totals.decode_tokens == sum(usage["completion_tokens"] for usage in usages)


def test_steps_do_not_overlap_and_lie_within_the_request(site: Site) -> None:
    collector, server = site.collector(), site.server()
    for number in range(3):
        server.complete(f"{COMMON}{number}", 30)
    server.stop()
    steps = [step for batch in collector.batches for step in batch.steps]
    assert [step.sequence for step in steps] == list(range(1, len(steps) + 1))
    assert all(a.end_ns <= b.start_ns for a, b in itertools.pairwise(steps))
    assert all(step.start_ns <= step.end_ns for step in steps)
    unevaluated = [step for step in steps if step.start_ns == step.end_ns]
    assert len(unevaluated) == 3


def test_a_client_that_hangs_up_leaves_what_was_computed(site: Site) -> None:
    collector, server = site.collector(), site.server()
    name = uuid.uuid4().hex
    stream = server.stream("the", 1_000, logit_bias=ONE_WORD, **{"X-Request-ID": name})
    for _ in range(20):
        next(stream)
    stream.close()
    usage = server.complete("hello", 5)["usage"]
    server.stop()
    finishes = collector.finishes()
    aborted = finishes.pop(name)
    assert 20 <= aborted.decode_tokens < 1_000
    assert aborted.aborted
    assert collector.told()[name].decode == aborted.decode_tokens
    (whole,) = finishes.values()
    assert not whole.aborted
    assert whole.decode_tokens == usage["completion_tokens"]


def test_tenants_are_told_by_a_header(site: Site) -> None:
    collector = site.collector()
    server = site.server(WATTLEDGER_TENANT_HEADER="X-Tenant")
    named, unnamed = uuid.uuid4().hex, uuid.uuid4().hex
    tenant = {"X-Request-ID": named, "X-Tenant": "acme"}
    chunks = list(server.stream("hello", 6, None, **tenant))
    body = {"prompt": "hello", "max_tokens": 4}
    server.request("POST", "/v1/completions", body, **tenant)
    server.request("POST", "/v1/completions", body, **{"X-Request-ID": unnamed})
    server.request("POST", "/v1/completions", body, **{"X-Tenant": "blue\x07\xff"})
    server.stop()
    assert chunks
    told = {
        name: tenant
        for batch in collector.batches
        for name, tenant in zip(
            batch.request_ids, batch.request_tenants or [""] * len(batch.request_ids), strict=True
        )
    }
    assert told.pop(named) == told.pop(f"{named}#r2") == "acme"
    assert told.pop(unnamed) == ""
    (odd,) = told.values()
    assert odd.startswith("blue") and odd.isprintable()


def test_with_a_draft_model_accepted_tokens_count(site: Site) -> None:
    collector = site.collector()
    server = site.server("--draft_model", "prompt-lookup-decoding")
    usages = [
        server.complete(COMMON, 60, logit_bias=bias, temperature=0.0)["usage"]
        for bias in (ONE_WORD, {"2": -100})
    ]
    server.stop()
    finishes = list(collector.finishes().values())
    assert [finish.decode_tokens for finish in finishes] == [
        usage["completion_tokens"] for usage in usages
    ]
    assert [finish.prompt_tokens for finish in finishes] == [
        usage["prompt_tokens"] for usage in usages
    ]
    assert sum(told.decode for told in collector.told().values()) == sum(
        usage["completion_tokens"] for usage in usages
    )


def test_embeddings_are_told_as_prefill(site: Site) -> None:
    collector, server = site.collector(), site.server("--embedding", "true")
    body = {"input": ["hello world", "the token"]}
    usage = server.request("POST", "/v1/embeddings", body)["usage"]
    server.stop()
    (finish,) = collector.finishes().values()
    assert finish.prompt_tokens == usage["prompt_tokens"] > 0
    assert sum(told.prefill for told in collector.told().values()) == usage["prompt_tokens"]


def test_answers_are_the_same_attached_or_not_daemon_or_not(site: Site) -> None:
    def answers(server: LlamaServer) -> list[object]:
        replies = [
            server.complete(f"{COMMON}{number}", 20, seed=number, temperature=0.8)["choices"]
            for number in range(4)
        ]
        streamed = [chunk["choices"] for chunk in server.stream(COMMON, 10)]
        assert server.stop() == 0
        return [*replies, "".join(choices[0]["text"] for choices in streamed) != ""]

    plain = answers(site.server(attached=False))
    without_daemon = site.server()
    assert answers(without_daemon) == plain
    assert without_daemon.output.count("wattledger:") == 1
    assert f"no daemon at {site.socket} (UNAVAILABLE)" in without_daemon.output
    site.collector(Mode.HOLD)
    assert answers(site.server()) == plain


def test_a_daemon_that_restarts_loses_and_doubles_nothing(site: Site) -> None:
    first, server = site.collector(Mode.HOLD), site.server()
    usages: list[dict[str, int]] = []
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            usages.append(server.complete(COMMON, 10)["usage"])

    loader = threading.Thread(target=load)
    loader.start()
    assert first.wait(lambda: len(first.deliveries()) >= 2)
    first.commit()
    assert first.wait(lambda: len(first.deliveries()) >= 4)
    first.stop()
    second = site.collector(daemon_id="d2")
    assert second.wait(lambda: len(second.deliveries()) >= 4)
    stop.set()
    loader.join()
    assert server.stop() == 0
    expected = sum(usage["completion_tokens"] for usage in usages)
    assert sum(told.decode for told in second.told().values()) == expected
    assert second.batches[-1].totals.decode_tokens == expected
    assert second.batches[-1].dropped_events == 0
    assert len(second.finishes()) == len(usages)
