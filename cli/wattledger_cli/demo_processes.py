"""The demo's processes: a daemon and two engines that never outlive it."""

from __future__ import annotations

import http.client
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from wattledger.errors import UnreachableError

STOP_S = 10.0


@dataclass(frozen=True, slots=True)
class Child:
    """A process that was started here, and where it writes what it has to say."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def check(self) -> None:
        """Raise UnreachableError where the process has ended by itself."""
        status = self.process.poll()
        if status is not None:
            lines = self.log.read_text(errors="replace").split("\n")
            last = next((line for line in reversed(lines) if line.strip()), "it said nothing")
            raise UnreachableError(f"{self.name} ended with {status}, {last!r}: see {self.log}")

    def stop(self) -> None:
        """End the process: gently, then not."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()


def start(stack: ExitStack, name: str, command: Sequence[str], folder: Path) -> Child:
    """Start a process that ends with `stack`, its output in `folder`/`name`.log.

    It leads a session of its own, so that Ctrl-C reaches this program alone, which then stops
    everything in the right order.
    """
    log = folder / f"{name}.log"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    child = Child(name, process, log)
    stack.callback(child.stop)
    return child


def wait_until(child: Child, ready: Callable[[], bool], limit_s: float) -> None:
    """Wait until `ready`; raises UnreachableError where the child ends first or is too slow."""
    deadline_s = time.monotonic() + limit_s
    while not ready():
        child.check()
        if time.monotonic() > deadline_s:
            raise UnreachableError(
                f"{child.name} is not ready after {limit_s:.0f} s: see {child.log}"
            )
        time.sleep(0.1)


def free_port() -> int:
    """A loopback port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def serves(port: int) -> bool:
    """Whether an OpenAI-compatible server answers on a loopback port."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/v1/models")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
