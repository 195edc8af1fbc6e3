"""`wattledger top` in a real terminal: what it writes there, and that it gives it back."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from fakes.node_server import FakeNode, serving
from wattledger_cli.top_terminal import ENTER, LEAVE
from wattledger_proto.v1.node_pb2 import DeviceStatus, GroupStatus, Status

PATIENCE_S = 30.0
STATUS = Status(
    host="h1",
    devices=[DeviceStatus(device="gpu0", kind="gpu", power_w=400.0, quality="measured")],
    groups=[GroupStatus(workload="chat", power_w=300.0)],
)


class Screen:
    """`wattledger top` on a pseudo-terminal of 80 by 24."""

    def __init__(self, socket: Path, **environ: str) -> None:
        self._ours, self._theirs = pty.openpty()
        self.resize(80, 24)
        self.modes = termios.tcgetattr(self._theirs)
        self.seen = ""
        env = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
        env |= {"WATTLEDGER_SOCKET": str(socket), "TERM": "xterm-256color", **environ}
        env["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "wattledger_cli", "top", "--period", "0.2"],
            stdin=self._theirs,
            stdout=self._theirs,
            stderr=subprocess.STDOUT,
            env=env,
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._ours)
        os.close(self._theirs)

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def type(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def until(self, text: str) -> None:
        """Wait for `text`, and forget what came before its end."""
        deadline_s = time.monotonic() + PATIENCE_S
        while text not in self.seen:
            ready, _, _ = select.select([self._ours], [], [], 0.1)
            if ready:
                self.seen += os.read(self._ours, 65536).decode(errors="replace")
            assert time.monotonic() < deadline_s, f"no {text!r} in {self.seen[-2000:]!r}"
        self.seen = self.seen.partition(text)[2]

    def ends(self) -> int:
        """Wait for the end, and hold that the terminal is as it was."""
        self.until(LEAVE)
        status = self.process.wait(PATIENCE_S)
        assert termios.tcgetattr(self._theirs) == self.modes
        return status


@pytest.fixture
def node() -> Iterator[FakeNode]:
    with serving(FakeNode(STATUS)) as node:
        yield node


def test_keys_views_help_and_quit(node: FakeNode) -> None:
    with Screen(node.path) as screen:
        screen.until(ENTER)
        screen.until("chat")
        screen.type("d")
        screen.until("view: devices")
        screen.type("h")
        screen.until("this help, and back")
        screen.type("h ")
        screen.until("paused: space goes on")
        screen.type("q")
        assert screen.ends() == 0


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 0), (signal.SIGTERM, -signal.SIGTERM), (signal.SIGHUP, -signal.SIGHUP)],
)
def test_signals_give_the_terminal_back(
    node: FakeNode, number: signal.Signals, status: int
) -> None:
    with Screen(node.path) as screen:
        screen.until("chat")
        screen.process.send_signal(number)
        assert screen.ends() == status


def test_a_stop_gives_the_terminal_back_until_it_goes_on(node: FakeNode) -> None:
    with Screen(node.path) as screen:
        screen.until("chat")
        screen.process.send_signal(signal.SIGTSTP)
        screen.until(LEAVE)
        os.waitid(os.P_PID, screen.process.pid, os.WSTOPPED | os.WNOWAIT)
        screen.process.send_signal(signal.SIGCONT)
        screen.until(ENTER)
        screen.until("chat")
        screen.type("q")
        assert screen.ends() == 0


def test_a_resized_terminal_is_drawn_anew(node: FakeNode) -> None:
    with Screen(node.path) as screen:
        screen.until("chat")
        screen.resize(30, 12)
        screen.process.send_signal(signal.SIGWINCH)
        screen.until("q quit  h help  a d w e view:")
        screen.type("q")
        assert screen.ends() == 0


def test_a_daemon_that_goes_and_comes_back(node: FakeNode) -> None:
    with Screen(node.path) as screen:
        screen.until("chat")
        aside = node.path.with_name("aside")
        node.path.rename(aside)
        screen.until("asking again")
        aside.rename(node.path)
        node.status.groups.add(workload="newcomer", power_w=1.0)
        screen.until("newcomer")
        screen.type("q")
        assert screen.ends() == 0


@pytest.mark.parametrize(("no_color", "coloured"), [("", True), ("1", False)])
def test_colours_are_left_out_when_asked(node: FakeNode, no_color: str, coloured: bool) -> None:
    with Screen(node.path, NO_COLOR=no_color) as screen:
        screen.until("\x1b[1mwattledger h1" if coloured else "\x1b[Kwattledger h1")
        screen.type("q")
        assert screen.ends() == 0
