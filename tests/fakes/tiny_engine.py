"""An engine without a model, a process of its own: its hook, reporter and wire are the real ones.

It serves a stream of requests from one thread, as fast as it is told to and never faster, and
tells what it computed. What it costs the engine to have a meter shows here as with a real one.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from fakes.llama import FakeLlama

FOLDER = Path(__file__).parent
PROMPT_TOKENS = 30
DECODE_TOKENS = 20
BETWEEN_S = 0.01


@dataclass(frozen=True, slots=True)
class Served:
    """What the engine has computed so far, and how big its process is."""

    requests: int
    prompt_tokens: int
    decode_tokens: int
    rss_bytes: int


class TinyEngine:
    """The process; `log` gets its stderr. `before` stands before the command (`setpriv ...`)."""

    def __init__(self, environ: Mapping[str, str], log: Path, before: Sequence[str] = ()) -> None:
        self._log = log
        paths = [environ.get("PYTHONPATH", ""), str(FOLDER / "engine_package"), str(FOLDER.parent)]
        with log.open("wb") as sink:
            self._process = subprocess.Popen(
                [*before, sys.executable, "-m", "fakes.tiny_engine"],
                env={**environ, "PYTHONPATH": ":".join(filter(None, paths))},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=sink,
                text=True,
            )

    def __enter__(self) -> Self:
        self.tell()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self.end()

    @property
    def lines(self) -> list[str]:
        """What it wrote to stderr."""
        return self._log.read_text().splitlines()

    def start(self) -> Served:
        """Serve from now on."""
        return self._ask("start")

    def stop(self) -> Served:
        """Finish the request at hand and serve no more."""
        return self._ask("stop")

    def flood(self, requests: int) -> Served:
        """Serve so many at once, without a pause."""
        return self._ask(f"flood {requests}")

    def tell(self) -> Served:
        """What it has served so far."""
        return self._ask("tell")

    def served_in(self, seconds: float) -> int:
        """Requests answered in the next `seconds`."""
        before = self.tell().requests
        time.sleep(seconds)
        return self.tell().requests - before

    def end(self) -> int:
        """Let it exit as a program does; its status."""
        if self._process.stdin and not self._process.stdin.closed:
            self._process.stdin.close()
        status = self._process.wait(60)
        if self._process.stdout:
            self._process.stdout.close()
        return status

    def _ask(self, command: str) -> Served:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()
        told = self._process.stdout.readline()
        assert told, self.lines
        return Served(**json.loads(told))


class Server:
    """The serving side, in the engine's process."""

    def __init__(self, llama: FakeLlama) -> None:
        self._llama = llama
        self._requests = self._decode_tokens = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def obey(self, command: str) -> None:
        word, _, count = command.partition(" ")
        if word == "start":
            self._stop.clear()
            self._thread = threading.Thread(target=self._serve)
            self._thread.start()
        elif word == "stop" and self._thread is not None:
            self._stop.set()
            self._thread.join()
        elif word == "flood":
            for _ in range(int(count)):
                self._complete()

    def _serve(self) -> None:
        while not self._stop.wait(BETWEEN_S):
            self._complete()

    def _complete(self) -> None:
        prompt = [3 + (self._requests * 7 + at) % 400 for at in range(PROMPT_TOKENS)]
        tokens = self._llama.generate(prompt)
        for _ in range(DECODE_TOKENS):
            next(tokens)
        tokens.close()
        self._requests += 1
        self._decode_tokens += DECODE_TOKENS

    def told(self) -> Served:
        requests = self._requests
        return Served(requests, requests * PROMPT_TOKENS, requests * DECODE_TOKENS, rss_bytes())


def rss_bytes() -> int:
    """Of this process, from proc_pid_statm(5)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def main() -> None:
    """Obeys a line of stdin at a time; answers each with one of JSON."""
    from llama_cpp.llama import Llama

    server = Server(Llama())
    for line in sys.stdin:
        server.obey(line.strip())
        sys.stdout.write(json.dumps(asdict(server.told())) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
