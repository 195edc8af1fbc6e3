"""How a vLLM finds the hook: by entry points, attached or installed, in each kind of process."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from fakes.collector_server import FakeCollector
from wattledger_collectors.engines.attach import attach_environment

ROOT = Path(__file__).resolve().parents[2]
PROCESSOR = '''
from fakes.vllm import OutputProcessor as _Fake


class OutputProcessor(_Fake):
    """A vLLM's."""
'''
LOGGERS = """
from abc import ABC, abstractmethod


class StatLoggerBase(ABC):
    @abstractmethod
    def __init__(self, vllm_config, engine_index=0): ...
    @abstractmethod
    def record(self, scheduler_stats, iteration_stats, mm_cache_stats=None, engine_idx=0): ...
    @abstractmethod
    def log_engine_initialized(self): ...
    @abstractmethod
    def of_a_later_version(self): ...
"""
PLUGINS = """
from importlib.metadata import entry_points
plugins = {found.name: found for found in entry_points(group="vllm.general_plugins")}
for plugin in [*plugins.values()] * 2:
    plugin.load()()
"""
SERVER = (
    PLUGINS
    + """
from types import SimpleNamespace
loggers = {found.name: found.load() for found in entry_points(group="vllm.stat_logger_plugins")}
from fakes.vllm import FinishReason, IterationStats, Request, first
from vllm.v1.engine.output_processor import OutputProcessor
from vllm.v1.metrics.loggers import StatLoggerBase
config = SimpleNamespace(model_config=SimpleNamespace(served_model_name="tiny"))
recorders = [logger(config, 0) for logger in loggers.values()]
assert all(isinstance(recorder, StatLoggerBase) for recorder in recorders)
processor, stats = OutputProcessor(), IterationStats()
processor.add_request(Request("cmpl-a-0-1", "cmpl-a-0", 10), None)
output = first("cmpl-a-0-1", 7, 3, finish_reason=FinishReason.STOP)
print(processor.process_outputs([output], 5.0, stats), len(recorders))
for recorder in recorders:
    recorder.record(None, stats, mm_cache_stats=None, engine_idx=0)
    recorder.record(object(), None, engine_idx="what")
    recorder.log_engine_initialized(); recorder.log(); recorder.of_a_later_version()
"""
)
WORKER = (
    PLUGINS
    + """
import sys, threading
print(sorted(name for name in sys.modules if "grpc" in name or name.startswith("vllm")))
print("wattledger_collectors.reporter" in sys.modules, threading.active_count())
"""
)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Holds a `vllm` to import; short enough for a socket's path."""
    with tempfile.TemporaryDirectory(prefix="wl") as name:
        for path, text in {
            "vllm/v1/engine/output_processor.py": PROCESSOR,
            "vllm/v1/metrics/loggers.py": LOGGERS,
        }.items():
            module = Path(name) / path
            module.parent.mkdir(parents=True)
            module.write_text(text)
        yield Path(name)


def environment(folder: Path) -> dict[str, str]:
    path = f"{folder}:{ROOT / 'tests'}"
    return {"PATH": os.environ["PATH"], "HOME": str(folder), "PYTHONPATH": path}


def attached(folder: Path) -> dict[str, str]:
    return attach_environment(environment(folder), socket=str(folder / "w.sock"), job="j7")


def installed(folder: Path) -> dict[str, str]:
    """Nothing is attached; a distribution on the path names our entry points."""
    environ = attached(folder) | {"WATTLEDGER_JOB": "j7"}
    del environ["WATTLEDGER_ATTACH"]
    return environ


def both(folder: Path) -> dict[str, str]:
    """Attached, and installed under another distribution's name as well."""
    shown = ROOT / "collectors/wattledger_collectors/engines/_site/wattledger_attach-0.dist-info"
    second = folder / "wattledger-0.1.0.dist-info"
    second.mkdir()
    (second / "METADATA").write_text("Metadata-Version: 2.1\nName: wattledger\nVersion: 0.1.0\n")
    (second / "entry_points.txt").write_text((shown / "entry_points.txt").read_text())
    return attached(folder)


def run(code: str, environ: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, env=environ, check=True, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("way", [attached, installed, both])
def test_a_server_is_metered_once_by_whatever_way(folder: Path, way: object) -> None:
    collector = FakeCollector(folder / "w.sock")
    try:
        result = run(SERVER, way(folder))  # type: ignore[operator]
    finally:
        collector.stop()
    assert (result.stdout, result.stderr) == ("['cmpl-a-0'] 1\n", "")
    (tokens,) = collector.told().values()
    assert (tokens.prefill, tokens.cached, tokens.decode) == (7, 3, 1)
    batch = collector.batches[0]
    assert batch.engine.engine == f"vllm-{batch.engine.pids[0]}"
    assert (batch.engine.model, batch.engine.job) == ("tiny", "j7")
    assert batch.source.endswith("/0")


def test_a_worker_loads_nothing_of_the_reporters(folder: Path) -> None:
    result = run(WORKER, installed(folder))
    assert (result.stdout, result.stderr) == ("[]\nFalse 1\n", "")


def test_a_list_of_plugins_without_our_name_switches_the_hook_off_and_says_so(
    folder: Path,
) -> None:
    code = SERVER.replace("recorders = [logger(config, 0) for logger in loggers.values()]", "")
    code = code.partition("assert all")[0] + "print(hasattr(OutputProcessor.process_outputs,"
    result = run(code + " '_wattledger'))", attached(folder) | {"VLLM_PLUGINS": "lora,other"})
    assert result.stdout == "False\n"
    assert result.stderr == (
        "wattledger: vllm.v1.engine.output_processor is not metered:"
        " VLLM_PLUGINS does not name it; add wattledger\n"
    )


def test_without_a_daemon_the_server_runs_the_same(folder: Path) -> None:
    result = run(SERVER, attached(folder))
    assert result.stdout == "['cmpl-a-0'] 1\n"
    assert result.stderr.count("\n") == 1
    assert "no daemon at" in result.stderr
