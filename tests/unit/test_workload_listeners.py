"""Who listens on a port, on a fake /proc and on this very machine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from wattledger_collectors.workloads.listeners import (
    Listeners,
    is_this_host,
    listeners,
    process_group,
)

_HEAD = "  sl  local_address rem_address   st ...\n"


def line(local: str, inode: int, state: str = "0A") -> str:
    rest = "00000000:00000000 00:00000000 00000000  1000        0"
    return f"   0: {local} 00000000:0000 {state} {rest} {inode} 1 0 100 0 0 10 0\n"


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "tcp").write_text(
        _HEAD
        + line("0100007F:1F90", 11)  # 127.0.0.1:8080
        + line("00000000:1F91", 12)  # 0.0.0.0:8081
        + line("0100007F:1F91", 13)  # 127.0.0.1:8081
        + line("0100007F:1F92", 14, state="01")  # a connection, no listener
        + line("00000000:1F93", 15)
        + line("00000000:1F95", 17)
    )
    (tmp_path / "net" / "tcp6").write_text(
        _HEAD
        + line("0000000000000000FFFF00000100007F:1F94", 16)  # ::ffff:127.0.0.1:8084
        + line("00000000000000000000000001000000:1F90", 18)  # [::1]:8080
    )
    return tmp_path


def process(proc: Path, pid: int, *inodes: int, command: str = "engine", above: int = 1) -> None:
    home = proc / str(pid)
    (home / "fd").mkdir(parents=True)
    for at, inode in enumerate(inodes):
        (home / "fd" / str(at)).symlink_to(f"socket:[{inode}]")
    (home / "cmdline").write_bytes(f"/opt/x/{command}\0--port\0".encode())
    (home / "stat").write_text(f"{pid} (a) b) S {above} 1 1 0\n")
    (home / "task" / str(pid)).mkdir(parents=True)
    (home / "task" / str(pid) / "children").write_text("")
    if (proc / str(above)).exists():
        children = proc / str(above) / "task" / str(above) / "children"
        children.write_text(f"{children.read_text()}{pid} ")


def test_whoever_holds_the_socket_listens(proc: Path) -> None:
    process(proc, 40, 11)
    process(proc, 41, 99, 11)
    process(proc, 42, 99)
    assert listeners("127.0.0.1", 0x1F90, proc) == Listeners((40, 41), 1)
    assert listeners("::1", 0x1F90, proc) == Listeners((), 1)


def test_the_very_address_comes_before_all_addresses(proc: Path) -> None:
    process(proc, 40, 12)
    process(proc, 41, 13)
    assert listeners("127.0.0.1", 0x1F91, proc).pids == (41,)
    assert listeners("127.0.0.2", 0x1F91, proc).pids == (40,)


def test_an_ipv4_address_in_ipv6_clothes_is_the_same(proc: Path) -> None:
    process(proc, 40, 16)
    assert listeners("127.0.0.1", 0x1F94, proc).pids == (40,)


def test_a_connection_is_no_listener(proc: Path) -> None:
    process(proc, 40, 14)
    assert listeners("127.0.0.1", 0x1F92, proc) == Listeners()


def test_another_host_has_no_listener_here(proc: Path) -> None:
    process(proc, 40, 12)
    # TEST-NET-1 (RFC 5737): nobody's address.
    assert listeners("192.0.2.7", 0x1F91, proc) == Listeners()
    assert listeners("no-such-host.invalid", 0x1F91, proc) == Listeners()


def test_init_and_what_only_hands_on_are_nobody(proc: Path) -> None:
    process(proc, 1, 15, command="systemd", above=0)
    process(proc, 40, 17, command="docker-proxy")
    assert listeners("127.0.0.1", 0x1F93, proc) == Listeners((), 1)
    assert listeners("127.0.0.1", 0x1F95, proc) == Listeners((), 1, "docker-proxy")


def test_a_group_is_all_that_stands_below(proc: Path) -> None:
    process(proc, 1, command="init", above=0)
    process(proc, 30, command="launcher", above=1)
    process(proc, 31, 11, command="router", above=30)
    process(proc, 32, command="shard", above=30)
    process(proc, 33, command="worker", above=31)
    assert process_group((31,), (), proc) == (31, 33)
    assert process_group((31,), ("launcher",), proc) == (30, 31, 32, 33)
    # init is never climbed to, whatever its name.
    assert process_group((31,), ("launcher", "init"), proc) == (30, 31, 32, 33)
    assert process_group((99,), (), proc) == ()


def test_a_process_that_may_not_be_looked_into_is_not_found(proc: Path) -> None:
    (proc / "40").mkdir()
    assert listeners("127.0.0.1", 0x1F90, proc) == Listeners((), 1)


@pytest.fixture(params=["127.0.0.1", "::1"])
def bound(request: pytest.FixtureRequest) -> Iterator[tuple[str, int]]:
    family = socket.AF_INET6 if ":" in request.param else socket.AF_INET
    with closing(socket.socket(family, socket.SOCK_STREAM)) as server:
        server.bind((request.param, 0))
        server.listen()
        yield request.param, server.getsockname()[1]


def test_this_very_process_is_found(bound: tuple[str, int]) -> None:
    assert os.getpid() in listeners(*bound).pids


def test_a_child_that_was_handed_the_socket_is_found() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        server.set_inheritable(True)
        child = subprocess.Popen(
            [sys.executable, "-c", "import sys; sys.stdin.read()"],
            stdin=subprocess.PIPE,
            pass_fds=[server.fileno()],
        )
        try:
            found = listeners("localhost", server.getsockname()[1])
            assert {os.getpid(), child.pid} <= set(found.pids)
        finally:
            child.communicate()


def test_which_names_lead_here() -> None:
    assert is_this_host("127.0.0.1")
    assert is_this_host("::1")
    assert is_this_host("localhost")
    assert not is_this_host("192.0.2.7")
