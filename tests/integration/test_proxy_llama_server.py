"""The real llama-server behind the real proxy: tokens booked are tokens told, and counted."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from fakes.daemon_process import DaemonProcess
from fakes.ledger_reading import FOREVER_NS, Booked, assert_balanced, finishes, posted_tokens
from fakes.llama_server import NO_END, ROOT, make_model
from fakes.proxy_process import ProxyProcess
from wattledger.store.sqlite import SqliteLedger

pytestmark = pytest.mark.engine

PATIENCE_S = 60.0
CHAT = "/v1/chat/completions"
LONG = 700


class Server:
    """`llama-server` with four slots; its own counters since its start."""

    def __init__(self, folder: Path) -> None:
        script = [str(ROOT / "scripts" / "engines.sh"), "--path", "llama-server"]
        told = subprocess.run(script, check=True, capture_output=True, text=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._log = folder / "llama-server.log"
        command: list[object] = [told.stdout.strip(), "-m", make_model(folder)]
        command += ["--host", "127.0.0.1"]
        command += ["--port", self.port, "-t", 1, "-tb", 1, "-np", 4, "-c", 4096, "--metrics"]
        with self._log.open("wb") as sink:
            self.process = subprocess.Popen(list(map(str, command)), stdout=sink, stderr=sink)
        deadline = time.monotonic() + PATIENCE_S
        while True:
            with contextlib.suppress(OSError):
                if ask(self.port, "GET", "/health")[0] == 200:
                    return
            assert self.process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.05)

    def counters(self) -> Booked:
        """Once nothing runs any more."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            _, text = ask(self.port, "GET", "/metrics")
            found = dict(re.findall(r"^llamacpp:(\w+) ([0-9.e+]+)$", text.decode(), re.MULTILINE))
            if found["requests_processing"] == "0":
                names = ("prompt_tokens_total", "prompt_tokens_cached_total")
                prefill, cached = (int(float(found[name])) for name in names)
                return Booked(prefill, cached, int(float(found["tokens_predicted_total"])))
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(PATIENCE_S)


def ask(
    port: int, method: str, path: str, body: object = None, **headers: str
) -> tuple[int, bytes]:
    caller = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    try:
        caller.request(method, path, json.dumps(body), headers)
        response = caller.getresponse()
        return response.status, response.read()
    finally:
        caller.close()


class Clients:
    """What the answers told their clients, summed."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._lock = threading.Lock()
        self.requests = 0
        self.told = [0, 0, 0]

    def chat(self, number: int, **options: object) -> None:
        message = {"role": "user", "content": f"client {number % 5} asks " * (1 + number % 7)}
        body = {"messages": [message], "max_tokens": 3 + number % 9, "logit_bias": NO_END}
        status, text = ask(
            self._port, "POST", CHAT, {**body, **options}, **{"X-Request-Id": f"req-{number}"}
        )
        assert status == 200, text
        self._count(text)

    def complete(self, number: int, **options: object) -> None:
        body = {"prompt": f"again {number} " * 5, "n_predict": 4, "logit_bias": NO_END}
        status, text = ask(self._port, "POST", "/completion", {**body, **options})
        assert status == 200, text
        self._count(text)

    def abort(self, number: int) -> None:
        """Leaves after a few chunks; no count ever came."""
        caller = http.client.HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE_S)
        message = {"role": "user", "content": f"abort {number}"}
        body = {"messages": [message], "max_tokens": 800, "logit_bias": NO_END, "stream": True}
        caller.request("POST", CHAT, json.dumps(body))
        response = caller.getresponse()
        response.read(600)
        response.close()
        caller.close()

    def _count(self, text: bytes) -> None:
        """`timings` of the last document that has them."""
        documents: list[Any] = [
            json.loads(line.removeprefix(b"data: "))
            for line in text.splitlines()
            if b'"timings"' in line
        ]
        timings = documents[-1]["timings"]
        with self._lock:
            self.requests += 1
            for at, name in enumerate(("prompt_n", "cache_n", "predicted_n")):
                self.told[at] += timings[name]


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="wl") as name:
        yield Path(name)


def wait_until_booked(daemon: DaemonProcess, requests: int) -> None:
    """Stops the daemon once it has heard of them; it books what is left."""
    deadline = time.monotonic() + PATIENCE_S
    while len(finishes(daemon.ledger)) < requests and time.monotonic() < deadline:
        time.sleep(0.5)
    daemon.signal(signal.SIGTERM)
    assert daemon.exit_status() == 0


def assert_long_requests_have_energy(ledger: Path) -> None:
    """The server's, found by its port; told as coarsely split. Estimated, where nothing meters."""
    with SqliteLedger(ledger, writable=False, create=False) as store:
        found = store.requests(0, FOREVER_NS)
    spent = [energy for energy in found if energy.finish.decode_tokens >= LONG]
    assert sum(bool(energy.decode_uj) for energy in spent) >= 3
    assert {energy.method.partition("-")[0] for energy in found} == {"coarse"}


def test_booked_tokens_are_those_of_the_answers_and_of_the_server(folder: Path) -> None:
    with ExitStack() as stack:
        server = Server(folder)
        stack.callback(server.stop)
        daemon = stack.enter_context(DaemonProcess(folder))
        daemon.wait_for("event=ready")
        options = ("--job", "night", "--tenant-header", "X-Tenant")
        proxy = stack.enter_context(
            ProxyProcess("llama-server", server.port, daemon.socket, *options)
        )
        clients = Clients(proxy.port)
        with ThreadPoolExecutor(16) as pool:
            for number in range(24):
                pool.submit(clients.chat, number, stream=bool(number % 2))
                pool.submit(clients.complete, number, stream=bool(number % 3))
            pool.submit(clients.chat, 100, stream=True, stream_options={"include_usage": True})
            pool.submit(clients.chat, 101, stream=True, timings_per_token=True)
        assert clients.requests == 50
        booked_by_clients = Booked(*clients.told)
        assert server.counters() == booked_by_clients
        # Two answers to one prompt: `timings` of both repeat the prompt, the server counts it once.
        clients.chat(102, stream=True, n=2)
        # Long enough for the daemon to see whose CPU time it is, twice in 2 s.
        until, enough = time.monotonic() + 8.0, clients.requests + 6
        while time.monotonic() < until or clients.requests < enough:
            clients.chat(200 + clients.requests, stream=True, max_tokens=LONG)
        wanted = server.counters()
        assert proxy.stop() == 0
        counted = f"wattledger: {clients.requests} requests counted, 0 not or not wholly"
        assert proxy.lines[-1] == counted
        wait_until_booked(daemon, clients.requests)
        assert posted_tokens(daemon.ledger) == wanted
        done = finishes(daemon.ledger)
        assert {f"req-{number}" for number in range(24)} <= {finish.request for finish in done}
        assert {finish.engine for finish in done} == {f"llama_server-{server.port}"}
        assert {finish.model for finish in done} == {"tiny.gguf"}
        assert {finish.job for finish in done} == {"night"}
        assert sum(finish.cached_tokens for finish in done) == wanted.cached_tokens
        assert_long_requests_have_energy(daemon.ledger)
        assert_balanced(daemon.ledger)


def test_aborted_streams_and_a_daemon_that_comes_late(folder: Path) -> None:
    with ExitStack() as stack:
        server = Server(folder)
        stack.callback(server.stop)
        socket_path = folder / "w.sock"
        proxy = stack.enter_context(ProxyProcess("llama-server", server.port, socket_path))
        clients = Clients(proxy.port)
        with ThreadPoolExecutor(8) as pool:
            for number in range(8):
                pool.submit(clients.abort, number)
                pool.submit(clients.chat, number, stream=True)
        assert clients.requests == 8
        # A client that leaves takes its request with it: far fewer than were asked for.
        assert server.counters().decode_tokens < 8 * 800
        daemon = stack.enter_context(DaemonProcess(folder))
        daemon.wait_for("event=ready")
        clients.chat(50)
        deadline = time.monotonic() + PATIENCE_S
        while "wattledger: the daemon is back" not in proxy.lines:
            assert time.monotonic() < deadline, proxy.lines
            time.sleep(0.1)
        assert proxy.stop() == 0
        assert proxy.lines[-1] == "wattledger: 9 requests counted, 8 not or not wholly"
        wait_until_booked(daemon, 9)
        prefill, cached, decode = clients.told
        assert posted_tokens(daemon.ledger) == Booked(prefill, cached, decode)
        assert_balanced(daemon.ledger)
