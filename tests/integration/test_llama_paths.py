"""Every path of the real llama-cpp-python: what is told equals the engine's own counters."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fakes.collector_server import FakeCollector
from fakes.llama_server import ROOT, engine_python, make_model, plain_environment
from wattledger_collectors.engines.attach import attach_environment
from wattledger_proto.v1 import collect_pb2

pytestmark = pytest.mark.engine

EXACT = (
    "completion", "chat", "streams", "grammar", "logprobs", "generate", "by_hand", "image",
    "ram_cache", "disk_cache", "states", "embeddings", "overflow", "left", "closed", "empty",
    "side_a", "side_b",
)  # fmt: skip


@dataclass
class Told:
    """What the hook told of one model file."""

    prefill: int = 0
    decode: int = 0
    prompt: int = 0
    cached: int = 0
    finished_decode: int = 0
    finishes: int = 0
    aborted: int = 0

    def add(self, batch: collect_pb2.Batch) -> None:
        """Counts a batch."""
        self.prefill += sum(sum(step.prefill_tokens) for step in batch.steps)
        self.decode += sum(sum(step.decode_tokens) for step in batch.steps)
        for finish in batch.finishes:
            self.finishes += 1
            self.prompt += finish.prompt_tokens
            self.cached += finish.cached_tokens
            self.finished_decode += finish.decode_tokens
            self.aborted += finish.aborted


@dataclass
class Run:
    """One run of the script: what the engine said, what was told, by path."""

    said: dict[str, dict[str, Any]]
    told: dict[str, Told]
    steps: list[collect_pb2.Step]


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    with tempfile.TemporaryDirectory(prefix="wl") as name:
        folder = Path(name)
        collector = FakeCollector(folder / "w.sock")
        try:
            environ = attach_environment(plain_environment(), socket=str(folder / "w.sock"))
            script = ROOT / "tests" / "fakes" / "llama_paths.py"
            command = [engine_python(), script, make_model(folder), folder]
            done = subprocess.run(
                [str(word) for word in command],
                env=environ,
                check=False,
                capture_output=True,
                text=True,
                timeout=300,
            )
            assert done.returncode == 0, done.stderr
            told: dict[str, Told] = {}
            for batch in collector.batches:
                path = batch.engine.model.removesuffix(".gguf")
                told.setdefault(path, Told()).add(batch)
            steps = [step for batch in collector.batches for step in batch.steps]
            yield Run(json.loads((folder / "said.json").read_text()), told, steps)
        finally:
            collector.stop()


def test_every_path_is_told(run: Run) -> None:
    assert set(run.told) == set(run.said)
    assert set(EXACT) < set(run.said)


@pytest.mark.parametrize("path", EXACT)
def test_tokens_equal_usage_and_perf_counters(run: Run, path: str) -> None:
    said, told = run.said[path], run.told[path]
    assert told.prefill + told.decode - said["last"] == said["computed"]
    assert told.prefill + told.cached == told.prompt == said.get("prompt", told.prompt)
    assert told.decode == told.finished_decode == said.get("decode", told.decode)


@pytest.mark.parametrize("path", ["ended", "functions", "processor_fails", "draft"])
def test_tokens_where_the_end_is_not_ours_to_know(run: Run, path: str) -> None:
    """Per request the last token was evaluated or not; a draft decodes what it then rejects."""
    said, told = run.said[path], run.told[path]
    evaluated = told.prefill + told.decode
    rejected = said["computed"] if path == "draft" else 0
    assert evaluated - told.finishes <= said["computed"] <= evaluated + rejected
    assert told.prefill + told.cached == told.prompt == said.get("prompt", told.prompt)
    assert told.decode == told.finished_decode == said.get("decode", told.decode)


def test_only_what_was_left_or_failed_is_aborted(run: Run) -> None:
    aborted = {path for path, told in run.told.items() if told.aborted}
    failed = {path for path, said in run.said.items() if said.get("failed")}
    assert aborted == {"left"} | ({"processor_fails"} & failed) | {"overflow"}
    assert run.told["overflow"].finishes == 1
    assert run.said["overflow"]["failed"] == 2


def test_caches_serve_prompts(run: Run) -> None:
    assert run.told["ram_cache"].cached > run.told["ram_cache"].prefill
    assert run.told["disk_cache"].cached > 0
    assert run.told["image"].finishes == 1
    assert run.told["image"].cached == 0


def test_long_prompts_and_embeddings_are_told_batch_by_batch(run: Run) -> None:
    """Prompts evaluated by hand are not."""
    sizes = sorted(sum(step.prefill_tokens) for step in run.steps)
    assert sizes[-1] == run.said["by_hand"]["prompt"]
    assert sizes[-2] == 32
