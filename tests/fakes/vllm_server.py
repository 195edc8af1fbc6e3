"""Runs the real `vllm serve` of the engine environment, as a user would."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import time
from collections import defaultdict
from collections.abc import Generator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[2]
MODEL = "tiny"
READY_S = 240.0
_SAMPLE = re.compile(r"^(vllm:\w+)\{([^}]*)\} (\S+)$", re.MULTILINE)


def vllm_python() -> Path:
    """The engine environment's python; raises AssertionError where it is not built."""
    script = ROOT / "scripts" / "engines.sh"
    told = subprocess.run([script, "--path", "vllm"], check=True, capture_output=True, text=True)
    python = Path(told.stdout.strip())
    assert python.exists(), "no vllm environment; run: scripts/engines.sh vllm"
    return python


def make_hf_model(folder: Path) -> Path:
    """A tiny random model in a folder of its own."""
    model = folder / MODEL
    script = ROOT / "scripts" / "make_tiny_hf.py"
    subprocess.run([vllm_python(), script, model], check=True, capture_output=True)
    return model


def vllm_environment(folder: Path) -> dict[str, str]:
    """Offline, on loopback, caches in `folder`, and nothing of this test run's own Python."""
    kept = ("PATH", "HOME", "LANG", "TMPDIR")
    return {name: os.environ[name] for name in kept if name in os.environ} | {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "hf"),
        "VLLM_CACHE_ROOT": str(folder / "vllm"),
        "VLLM_CONFIG_ROOT": str(folder / "vllm"),
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_HOST_IP": "127.0.0.1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
    }


@dataclass(frozen=True, slots=True)
class Counters:
    """vLLM's own counts since its start, all engines and API servers together."""

    prefill_tokens: int
    cached_tokens: int
    decode_tokens: int
    finished: int
    finished_prompt_tokens: int
    finished_decode_tokens: int


class VllmServer:
    """A running server, in a session of its own; all of it is dead at the end of `with`."""

    def __init__(self, model: Path, environ: Mapping[str, str], log: Path, *options: str) -> None:
        self.port = free_port()
        self._log = log
        command = [vllm_python().parent / "vllm", "serve", model, "--served-model-name", MODEL]
        command += ["--host", "127.0.0.1", "--port", self.port, "--max-model-len", 2048]
        command += ["--dtype", "float32", "--enforce-eager", *options]
        with log.open("wb") as sink:
            self.process = subprocess.Popen(
                [str(word) for word in command],
                env=dict(environ),
                stdout=sink,
                stderr=sink,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        try:
            self._wait_until_ready()
        except BaseException:
            self._kill()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_S
        while True:
            try:
                self.request("GET", "/health")
            except OSError:
                assert self.process.poll() is None, self.output[-6000:]
                assert time.monotonic() < deadline, self.output[-6000:]
                time.sleep(0.2)
            else:
                return

    def stop(self) -> int:
        """Ask it to end, then end what is left of it; its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(30)
        self._kill()
        return self.process.wait(30)

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)

    @property
    def output(self) -> str:
        """What all its processes wrote to stdout and stderr so far."""
        return self._log.read_text(errors="replace")

    @property
    def warnings(self) -> list[str]:
        """What wattledger said there, vLLM's own prefixes apart."""
        return re.findall(r"wattledger: (.*)", self.output)

    @property
    def complaints(self) -> list[str]:
        """Warnings that are not of a daemon that was away; a busy one may seem to be."""
        return [line for line in self.warnings if not is_of_outage(line)]

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)

    def request(self, method: str, path: str, body: object = None, **headers: str) -> Any:
        """The reply, decoded where it is JSON; AssertionError with it where it is not 200."""
        connection = self.connect()
        try:
            headers = {"Content-Type": "application/json", **headers}
            connection.request(method, path, json.dumps(body), headers)
            response = connection.getresponse()
            text = response.read().decode()
            assert response.status == 200, text
            told = response.headers.get_content_type()
            return json.loads(text) if told == "application/json" else text
        finally:
            connection.close()

    def complete(self, prompt: object, max_tokens: int, **options: object) -> Any:
        """One completion; of exactly `max_tokens` tokens unless an option ends it."""
        body = {"model": MODEL, "prompt": prompt, "max_tokens": max_tokens, "ignore_eos": True}
        return self.request("POST", "/v1/completions", body | options)

    def stream(
        self, path: str, body: Mapping[str, object], **headers: str
    ) -> Generator[Any, None, None]:
        """A streamed reply's chunks; closing the iterator hangs up."""
        connection = self.connect()
        try:
            headers = {"Content-Type": "application/json", **headers}
            asked = {"model": MODEL, "stream": True, **body}
            connection.request("POST", path, json.dumps(asked), headers)
            response = connection.getresponse()
            assert response.status == 200, response.read()
            for line in response:
                if line.startswith(b"data: {"):
                    yield json.loads(line.removeprefix(b"data: "))
        finally:
            connection.close()

    def counters(self) -> Counters:
        """Read from `/metrics`."""
        sums: defaultdict[str, float] = defaultdict(float)
        for name, labels, value in _SAMPLE.findall(self.request("GET", "/metrics")):
            source = re.search(r'source="(\w+)"', labels)
            sums[f"{name} {source[1]}" if source else name] += float(value)
        return Counters(
            prefill_tokens=int(sums["vllm:prompt_tokens_by_source_total local_compute"]),
            cached_tokens=int(sums["vllm:prompt_tokens_by_source_total local_cache_hit"]),
            decode_tokens=int(sums["vllm:generation_tokens_total"]),
            finished=int(sums["vllm:request_success_total"]),
            finished_prompt_tokens=int(sums["vllm:request_prompt_tokens_sum"]),
            finished_decode_tokens=int(sums["vllm:request_generation_tokens_sum"]),
        )


def free_port() -> int:
    """A port of loopback that nobody has right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def is_of_outage(line: str) -> bool:
    """Whether the line tells that the daemon does not answer, or does again."""
    return "tokens are kept for it" in line or "the daemon is back" in line


def told_once_each(lines: list[str], processes: int = 1) -> bool:
    """Whether each of these processes told each outage once, and its end once, and nothing else."""
    away = 0
    for line in lines:
        away += -1 if "the daemon is back" in line else 1
        if not is_of_outage(line) or not 0 <= away <= processes:
            return False
    return True
