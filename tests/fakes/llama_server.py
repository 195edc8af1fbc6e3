"""Runs the real `llama_cpp.server` of the engine environment, as a user would."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
NO_END = {"2": -100}
"""A `logit_bias` without which a random model ends where it likes."""


def engine_python() -> Path:
    """The engine environment's python; raises AssertionError where it is not built."""
    script = ROOT / "scripts" / "engines.sh"
    told = subprocess.run([script, "--path"], check=True, capture_output=True, text=True)
    python = Path(told.stdout.strip())
    assert python.exists(), "no engine environment; run: scripts/engines.sh"
    return python


def make_model(folder: Path) -> Path:
    """A tiny random model."""
    model = folder / "tiny.gguf"
    script = ROOT / "scripts" / "make_tiny_gguf.py"
    subprocess.run([engine_python(), script, model], check=True, capture_output=True)
    return model


def plain_environment() -> dict[str, str]:
    """Nothing of this test run's own Python leaks into the engine's."""
    kept = ("PATH", "HOME", "LANG", "TMPDIR", "XDG_CACHE_HOME")
    return {name: os.environ[name] for name in kept if name in os.environ}


class LlamaServer:
    """A running server; `output` is what it wrote to stdout and stderr so far."""

    def __init__(self, model: Path, environ: Mapping[str, str], log: Path, *options: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._log = log
        command = [engine_python(), "-m", "llama_cpp.server", "--model", model]
        command += ["--host", "127.0.0.1", "--port", self.port, "--n_threads", 1]
        command += ["--n_threads_batch", 1, "--verbose", "false", *options]
        with log.open("wb") as sink:
            self.process = subprocess.Popen(
                [str(word) for word in command], env=dict(environ), stdout=sink, stderr=sink
            )
        self._wait_until_ready()

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + 120
        while True:
            try:
                self.request("GET", "/v1/models")
            except OSError:
                assert self.process.poll() is None, self.output
                assert time.monotonic() < deadline, self.output
                time.sleep(0.05)
            else:
                return

    @property
    def output(self) -> str:
        return self._log.read_text(errors="replace")

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)

    def request(self, method: str, path: str, body: object = None, **headers: str) -> Any:
        """The decoded JSON reply; raises AssertionError with the reply where it is not 200."""
        connection = self.connect()
        try:
            headers = {"Content-Type": "application/json", **headers}
            connection.request(method, path, json.dumps(body), headers)
            response = connection.getresponse()
            text = response.read().decode()
            assert response.status == 200, text
            return json.loads(text)
        finally:
            connection.close()

    def complete(self, prompt: str, max_tokens: int, **options: object) -> Any:
        """One completion of exactly `max_tokens` tokens."""
        body = {"prompt": prompt, "max_tokens": max_tokens, "logit_bias": NO_END, **options}
        return self.request("POST", "/v1/completions", body)

    def stream(
        self, prompt: str, max_tokens: int, logit_bias: object = None, **headers: str
    ) -> Generator[Any, None, None]:
        """A streamed completion's chunks; closing the iterator hangs up."""
        body = {"prompt": prompt, "max_tokens": max_tokens, "stream": True}
        body["logit_bias"] = logit_bias or NO_END
        connection = self.connect()
        try:
            headers = {"Content-Type": "application/json", **headers}
            connection.request("POST", "/v1/completions", json.dumps(body), headers)
            for line in connection.getresponse():
                if line.startswith(b"data: {"):
                    yield json.loads(line.removeprefix(b"data: "))
        finally:
            connection.close()

    def stop(self, how: signal.Signals = signal.SIGINT) -> int:
        """Its exit status."""
        self.process.send_signal(how)
        return self.process.wait(30)
