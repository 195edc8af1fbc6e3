from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fakes.cli import Cli
from wattledger.errors import UnreachableError
from wattledger_cli.demo_processes import free_port, serves, start, wait_until
from wattledger_cli.demo_traffic import Mix, Tally, drive


class FakeEngine(BaseHTTPRequestHandler):
    """Answers as an OpenAI-compatible server does: a token per word, and as many as asked."""

    def do_GET(self) -> None:
        self._answer({"data": []})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if body["max_tokens"] == 13:
            self._answer({"error": "unlucky"})
            return
        words = len(body["prompt"].split())
        usage = {"prompt_tokens": words, "completion_tokens": body["max_tokens"]}
        self._answer({"usage": usage})

    def _answer(self, document: object) -> None:
        body = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
        pass


@pytest.fixture
def engine() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeEngine)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


def test_clients_are_dealt_over_the_mixes_and_counted(engine: int) -> None:
    told: list[int] = []
    mixes = [Mix("chat", engine, 3, 20), Mix("summarize", engine, 50, 2)]
    tally = drive(mixes, 4, 0.2, lambda _, so_far: told.append(so_far.requests))
    chat = (tally.answer_tokens - 2 * tally.requests) // 18
    assert tally.failures == []
    assert 0 < chat < tally.requests
    assert tally.prompt_tokens == 3 * chat + 50 * (tally.requests - chat)
    assert told


def test_a_failing_engine_ends_the_traffic_at_once(engine: int) -> None:
    tally = drive([Mix("chat", engine, 3, 13)], 2, 60.0, lambda *_: None)
    assert tally.requests == 0
    assert tally.failures[0].startswith("chat: KeyError")


def test_an_engine_that_is_gone_is_told() -> None:
    tally = drive([Mix("chat", free_port(), 3, 20)], 2, 60.0, lambda *_: None)
    assert "ConnectionRefusedError" in tally.failures[0]


def test_serves(engine: int) -> None:
    assert serves(engine)
    assert not serves(free_port())


def test_a_child_ends_with_its_stack(tmp_path: Path) -> None:
    sleeper = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]
    with ExitStack() as stack:
        child = start(stack, "sleeper", sleeper, tmp_path)
        wait_until(child, lambda: "up" in child.log.read_text(), 30.0)
        assert child.process.poll() is None
    assert child.process.poll() is not None


def test_a_child_that_ends_by_itself_is_told_with_its_last_line(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; print('no model'); sys.exit(3)"]
    with ExitStack() as stack:
        child = start(stack, "engine-chat", command, tmp_path)
        with pytest.raises(UnreachableError, match="engine-chat ended with 3, 'no model'"):
            wait_until(child, lambda: False, 30.0)


def test_a_child_that_is_never_ready_is_told(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    with ExitStack() as stack:
        child = start(stack, "slow", command, tmp_path)
        with pytest.raises(UnreachableError, match=r"slow is not ready after 0 s: see .*slow.log"):
            wait_until(child, lambda: False, 0.0)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--engine-python", "nowhere"), "nowhere is not there: scripts/engines.sh builds one"),
        (("--engine-python", sys.executable, "--model", "no.gguf"), "no.gguf is not there"),
        (("--engine-python", sys.executable, "--zone", "Atlantis"), "'Atlantis'"),
        ((), "missing option '--engine-python'"),
    ],
)
def test_what_is_wrong_is_told_before_anything_starts(
    tmp_path: Path, flags: tuple[str, ...], told: str
) -> None:
    workdir = tmp_path / "run"
    ran = Cli(tmp_path).run("demo", *flags, "--workdir", str(workdir))
    assert (ran.status, ran.out) == (2, "")
    assert told in ran.err
    assert not workdir.exists()


def test_a_model_that_cannot_be_made_is_told_in_one_line(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho no gguf >&2\nexit 3\n")
    python.chmod(0o755)
    workdir = tmp_path / "run"
    arguments = ("--engine-python", str(python), "--workdir", str(workdir), "--quiet")
    ran = Cli(tmp_path).run("demo", *arguments)
    assert ran.status == 2
    assert "make_tiny_gguf.py failed, 'no gguf'" in ran.err
    assert ran.err.count("\n") == 1
    assert list(workdir.iterdir()) == []


def test_a_tally_counts_from_many_threads() -> None:
    tally = Tally()

    def count() -> None:
        for _ in range(1000):
            tally.add(1, 2)

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tally.requests, tally.prompt_tokens, tally.answer_tokens) == (8000, 8000, 16000)
