"""The committed protobuf stubs: fresh, and loadable on the oldest runtime we promise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "wattledger"
ROUND_TRIP = """
from wattledger_proto.v1 import collect_pb2, collect_pb2_grpc, node_pb2, node_pb2_grpc
batch = collect_pb2.Batch(source="s", sequence=1, steps=[collect_pb2.Step(prefill_tokens=[7])])
assert collect_pb2.Batch.FromString(batch.SerializeToString()) == batch
assert collect_pb2_grpc.CollectorStub and node_pb2_grpc.NodeStub and node_pb2.Status()
import google.protobuf, grpc
print(google.protobuf.__version__, grpc.__version__)
"""


def test_stubs_are_what_the_generator_makes(tmp_path: Path) -> None:
    subprocess.run([ROOT / "scripts/generate_stubs.sh", tmp_path], check=True)
    made = {p.relative_to(tmp_path): p.read_text() for p in tmp_path.rglob("*_pb2*")}
    committed = {
        p.relative_to(ROOT / "proto"): p.read_text()
        for p in (ROOT / "proto").rglob("*_pb2*.py*")
        if p.suffix in {".py", ".pyi"}
    }
    assert len(made) == 8
    assert made == committed


def test_stubs_load_on_the_oldest_runtime() -> None:
    env = CACHE / "protobuf-5.29.6"
    python = env / "bin" / "python"
    pins = ["grpcio==1.71.2", "protobuf==5.29.6"]
    if not (env / ".complete").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", env], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *pins], check=True)
        (env / ".complete").touch()
    assert _round_trip(python) == "5.29.6 1.71.2"


def test_stubs_load_on_the_newest_runtime() -> None:
    assert int(_round_trip(Path(sys.executable)).split(".")[0]) >= 5


def _round_trip(python: Path) -> str:
    done = subprocess.run(
        [python, "-W", "error", "-c", ROUND_TRIP],
        env={"PYTHONPATH": str(ROOT / "proto"), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.fail(done.stderr)
    return done.stdout.strip()
