"""`wattledger proxy`: what it takes for addresses, and what it says of wrong ones."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from fakes.cli import Cli
from fakes.collector_server import FakeCollector
from fakes.http_engine import HttpEngine, plain
from fakes.proxy_process import ProxyProcess
from wattledger.errors import InputError
from wattledger_cli.proxy import Address, engine_address, leads_to, listen_address

ANSWER = b'{"model":"m","usage":{"prompt_tokens":7,"completion_tokens":2}}'


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="wl") as name:
        yield Path(name)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://127.0.0.1:11434", Address("127.0.0.1", 11434)),
        ("http://localhost:8080/", Address("localhost", 8080)),
        ("http://[::1]:9", Address("::1", 9)),
        ("HTTP://Box", Address("box", 80)),
    ],
)
def test_addresses_of_engines(text: str, expected: Address) -> None:
    assert engine_address(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "127.0.0.1:11434",
        "https://127.0.0.1:1",
        "http://",
        "http://a:b",
        "http://a:70000",
        "http://a:0",
        "http://a/v1",
        "http://a:1?x=1",
        "http://me:secret@a:1",
    ],
)
def test_what_is_no_engines_address(text: str) -> None:
    with pytest.raises(InputError, match="give http://HOST:PORT"):
        engine_address(text)


@pytest.mark.parametrize("text", ["11435", "a", "a:", ":1", "a:1/x", "a:99999"])
def test_what_is_no_address_to_listen_on(text: str) -> None:
    with pytest.raises(InputError, match="give HOST:PORT"):
        listen_address(text)


def test_addresses_that_only_this_host_reaches() -> None:
    near = ["127.0.0.1", "127.8.8.8", "localhost", "::1"]
    assert all(Address(host, 1).is_loopback for host in near)
    assert not any(Address(host, 1).is_loopback for host in ["0.0.0.0", "::", "10.0.0.1", "box"])
    assert str(Address("::1", 5)) == "[::1]:5"


def test_wrong_addresses_are_one_line(tmp_path: Path) -> None:
    cli = Cli(tmp_path)
    start = ("proxy", "--engine", "ollama", "--to")
    same = cli.run(*start, "http://127.0.0.1:9", "--listen", "127.0.0.1:9")
    assert (same.status, same.err.count("\n")) == (2, 1)
    last = cli.run(*start, "http://127.0.0.1:65535")
    assert (last.status, "give --listen" in last.err) == (2, True)
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        busy = cli.run(*start, "http://127.0.0.1:9", "--listen", f"127.0.0.1:{port}")
    assert busy.status == 2
    assert busy.err.startswith("wattledger: cannot listen on")
    assert busy.err.count("\n") == 1


@pytest.mark.parametrize(
    ("here", "there", "expected"),
    [
        (("localhost", 9), ("127.0.0.1", 9), True),
        (("0.0.0.0", 9), ("127.0.0.1", 9), True),
        (("::", 9), ("127.0.0.1", 9), True),
        (("127.0.0.1", 9), ("0.0.0.0", 9), True),
        (("::ffff:127.0.0.1", 9), ("127.0.0.1", 9), True),
        (("127.0.0.1", 9), ("127.0.0.1", 8), False),
        (("127.0.0.2", 9), ("127.0.0.1", 9), False),
        (("0.0.0.0", 9), ("192.0.2.1", 9), False),
        (("no.such.host.invalid", 9), ("127.0.0.1", 9), False),
    ],
)
def test_it_does_not_pass_on_to_itself(
    here: tuple[str, int], there: tuple[str, int], expected: bool
) -> None:
    assert leads_to(Address(*here), Address(*there)) is expected


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--tenant-header", "X-Tenant:"),
        ("--tenant-header", "X Tenant"),
        ("--tenant-header", ""),
        ("--job", "a\nb"),
        ("--workload", ""),
        ("--model", "m" * 201),
    ],
)
def test_names_that_nobody_would_take(tmp_path: Path, option: str, value: str) -> None:
    start = ("proxy", "--engine", "ollama", "--to", "http://127.0.0.1:9")
    ran = Cli(tmp_path).run(*start, option, value)
    assert (ran.status, ran.err.count("\n")) == (2, 1)
    assert ran.err.startswith(f"wattledger: {option} ")


def test_what_it_tells_the_daemon_of_the_engine(folder: Path) -> None:
    collector = FakeCollector(folder / "w.sock")
    engine = HttpEngine(lambda asked: asked.say(plain(ANSWER)))
    options = ("--job", "j", "--workload", "w", "--tenant-header", "X-Tenant")
    with ProxyProcess("openai", engine.port, folder / "w.sock", *options) as proxy:
        with socket.create_connection(("127.0.0.1", proxy.port), 30) as link:
            link.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
                b"X-Request-Id: r1\r\nX-Tenant: blue\r\nContent-Length: 2\r\n\r\n{}"
            )
            while link.recv(65536):
                pass
        assert proxy.stop() == 0
        pid = proxy.process.pid
    engine.close()
    collector.stop()
    (batch,) = collector.batches
    told = batch.engine
    assert (told.engine, told.kind, told.model) == (f"openai-{engine.port}", "openai", "m")
    assert (told.workload, told.job, told.coarse) == ("w", "j", True)
    # The engine is who listens there: this test's own process and its children, not the proxy.
    assert os.getpid() in told.pids
    assert pid not in told.pids
    assert batch.source.startswith(f"openai/{pid}/")
    assert list(batch.request_ids) == ["r1"]
    assert list(batch.request_tenants) == ["blue"]
    (finish,) = batch.finishes
    assert (finish.prompt_tokens, finish.decode_tokens) == (7, 2)


def test_ctrl_c_ends_it_as_asked(folder: Path) -> None:
    with ProxyProcess("ollama", 9, folder / "w.sock") as proxy:
        proxy.process.send_signal(signal.SIGINT)
        assert proxy.process.wait(30) == 0
