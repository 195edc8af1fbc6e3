"""Two jobs on one device: the recorded vectors V12 and V13 through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fakes.cli import Cli

ROOT = Path(__file__).parents[2]
TRACES = ROOT / "tests" / "data" / "traces"
WINDOW = ("--from", "2026-09-21T14:13:20Z", "--to", "2026-09-21T14:13:21Z")
V12 = {"A": (17.5, 172.5), "B": (52.5, 57.5)}
V13 = {"A": (0.0, 15.0), "B": (0.0, 7.5), None: (10.0, 7.5)}


def usage(folder: Path, trace: str, *arguments: str) -> str:
    """What `usage` prints of a trace that was replayed into a fresh ledger."""
    cli, url = Cli(folder), f"sqlite:{folder / trace}.db"
    replayed = cli.run("replay", str(TRACES / f"{trace}.jsonl"), "--ledger", url)
    assert (replayed.status, replayed.err) == (0, "")
    told = cli.run("usage", "--ledger", url, *WINDOW, *arguments)
    assert (told.status, told.err) == (0, "")
    return told.out


@pytest.mark.parametrize(
    ("trace", "expected"),
    [
        ("v12_two_jobs_on_a_gpu", V12),
        ("v13_two_jobs_on_a_cpu", V13),
        ("v13_by_control_groups", V13),
    ],
)
def test_each_job_gets_what_its_vector_says(
    tmp_path: Path, trace: str, expected: dict[str | None, tuple[float, float]]
) -> None:
    told = json.loads(usage(tmp_path, trace, "--by", "job", "--format", "json"))
    assert {g["by"]["job"]: (g["static_j"], g["dynamic_j"]) for g in told["groups"]} == expected
    parts = [sum(part) for part in expected.values()]
    assert told["total"]["energy_j"] == sum(parts)
    assert told["coverage"]["energy"] == {"measured": 1.0}


def test_the_rest_of_the_machine_is_the_system(tmp_path: Path) -> None:
    text = usage(tmp_path, "v13_by_control_groups", "--by", "workload", "--format", "json")
    shares = {g["by"]["workload"]: g["energy_j"] for g in json.loads(text)["groups"]}
    assert shares == {"slurm": 22.5, "system": 7.5, None: 10.0}


@pytest.mark.parametrize("trace", ["v12_two_jobs_on_a_gpu", "v13_two_jobs_on_a_cpu"])
def test_the_document_shows_what_is_printed(tmp_path: Path, trace: str) -> None:
    document = (ROOT / "docs" / "accounting.md").read_text()
    shown = document.split(f"{trace}.jsonl --ledger", 1)[1].split("--by job,activity\n", 1)[1]
    printed = usage(tmp_path, trace, "--by", "job,activity")
    table, found = shown.split("```", 1)[0].rstrip(), printed.split("\n\n", 1)[0].rstrip()
    assert [line.rstrip() for line in found.splitlines()] == table.splitlines()
