"""Runs llama.cpp's own `llama-server`, as a user would, on a port that it keeps over restarts."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import signal
import socket
import subprocess
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

from fakes.ledger_reading import Booked
from fakes.llama_server import ROOT

PATIENCE_S = 60.0


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class CppServer:
    """A running server with `slots` slots; starts at `with`, and is killed at its end."""

    def __init__(self, model: Path, log: Path, port: int, *options: str, slots: int = 4) -> None:
        self.port = port
        self._log = log
        script = [str(ROOT / "scripts" / "engines.sh"), "--path", "llama-server"]
        told = subprocess.run(script, check=True, capture_output=True, text=True)
        binary = Path(told.stdout.strip())
        assert binary.exists(), "no llama-server; run: scripts/engines.sh llama-server"
        command: list[object] = [binary, "-m", model, "--host", "127.0.0.1", "--port", port]
        command += ["-t", 1, "-tb", 1, "-np", slots, "-c", 1024 * slots, "--metrics", *options]
        self._command = [str(word) for word in command]

    def __enter__(self) -> CppServer:
        with self._log.open("ab") as sink:
            self.process = subprocess.Popen(self._command, stdout=sink, stderr=sink)
        deadline = time.monotonic() + PATIENCE_S
        while True:
            with contextlib.suppress(OSError):
                if self.ask("GET", "/health")[0] == 200:
                    return self
            assert self.process.poll() is None, self._log.read_text(errors="replace")
            assert time.monotonic() < deadline, self._log.read_text(errors="replace")
            time.sleep(0.05)

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def restart(self, how: signal.Signals = signal.SIGKILL) -> None:
        """Ends it and starts it anew: its counters begin at 0."""
        self.process.send_signal(how)
        self.process.wait(PATIENCE_S)
        self.__enter__()

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, bytes]:
        """Status and body of a request."""
        caller = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        try:
            caller.request(method, path, json.dumps(body))
            response = caller.getresponse()
            return response.status, response.read()
        finally:
            caller.close()

    def complete(self, prompt: str, tokens: int) -> Any:
        """A completion of exactly `tokens` tokens."""
        body = {"prompt": prompt, "n_predict": tokens, "ignore_eos": True}
        status, text = self.ask("POST", "/completion", body)
        assert status == 200, text
        return json.loads(text)

    def stream(self, prompt: str, tokens: int) -> Generator[Any, None, None]:
        """A streamed completion's chunks; closing the iterator hangs up."""
        caller = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        try:
            body = {"prompt": prompt, "n_predict": tokens, "ignore_eos": True, "stream": True}
            caller.request("POST", "/completion", json.dumps(body))
            for line in caller.getresponse():
                if line.startswith(b"data: {"):
                    yield json.loads(line.removeprefix(b"data: "))
        finally:
            caller.close()

    def quiet(self) -> Booked:
        """Its own counters, once nothing runs any more."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            _, text = self.ask("GET", "/metrics")
            found = dict(re.findall(r"^llamacpp:(\w+) ([0-9.e+]+)$", text.decode(), re.MULTILINE))
            if found["requests_processing"] == found["requests_deferred"] == "0":
                names = ("prompt_tokens_total", "prompt_tokens_cached_total")
                prefill, cached = (int(float(found[name])) for name in names)
                return Booked(prefill, cached, int(float(found["tokens_predicted_total"])))
            assert time.monotonic() < deadline
            time.sleep(0.1)
