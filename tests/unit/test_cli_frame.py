from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fakes.cli import WINDOW, Cli, small_ledger
from wattledger import __version__
from wattledger_cli.app import COMMANDS
from wattledger_cli.faults import INTERRUPTED, status_of

HELP = [
    *([name] for name in COMMANDS if name not in {"grid", "hardware", "import"}),
    ["grid", "zones"],
    ["hardware", "list"],
    ["hardware", "show"],
    ["import", "energy"],
]


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path)


def process(cli: Cli, *arguments: str, code: str = "") -> subprocess.CompletedProcess[str]:
    head = [sys.executable, "-c", code] if code else [sys.executable, "-m", "wattledger_cli"]
    return subprocess.run(
        [*head, *arguments],
        env={**os.environ, **cli.environ()},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_help_names_every_command_and_loads_none(cli: Cli) -> None:
    code = (
        "import sys; from wattledger_cli.app import run; status = run(['--help']);"
        "heavy = {'rich', 'grpc', 'sqlite3', 'pydantic', 'wattledger_cli.carbon'};"
        "sys.exit(9 if heavy & set(sys.modules) else status)"
    )
    ran = process(cli, code=code)
    assert (ran.returncode, ran.stderr) == (0, "")
    for name in COMMANDS:
        assert f"\n  {name} " in ran.stdout


@pytest.mark.parametrize("command", HELP, ids=" ".join)
def test_every_command_explains_itself_and_the_global_options(cli: Cli, command: list[str]) -> None:
    ran = cli.run(*command, "--help")
    assert (ran.status, ran.err) == (0, "")
    for option in ("--ledger URL", "--token-file FILE", "--format", "--quiet", "--version"):
        assert option in ran.out
    assert len(ran.out.splitlines()) > 8


def test_without_a_command_help_is_shown(cli: Cli) -> None:
    assert cli.run() == cli.run("--help")


def test_attach_shows_how_it_is_called(cli: Cli) -> None:
    told = cli.run("attach", "--help").out
    assert told.startswith("Usage: wattledger attach [OPTIONS] -- COMMAND...\n")
    assert "<" not in told


@pytest.mark.parametrize("arguments", [["--version"], ["carbon", "--version"]])
def test_version(cli: Cli, arguments: list[str]) -> None:
    ran = cli.run(*arguments)
    assert (ran.status, ran.out) == (0, f"wattledger {__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["carbon", "--jbo", "x"],
            "no such option --jbo of wattledger carbon: did you mean --job?",
        ),
        (["--frmat", "csv"], "no such option --frmat of wattledger: did you mean --format?"),
        (["carbon", "--xyzzy"], "no such option --xyzzy of wattledger carbon:"),
        (["crabon"], "no command 'crabon': did you mean carbon?"),
        (["xyzzy"], "no command 'xyzzy': see wattledger --help"),
        (["grid", "zoens"], "no such command 'zoens'"),
        (["grid"], "missing command: see wattledger grid --help"),
        (["attach"], "missing argument 'COMMAND...': see wattledger attach --help"),
        (["usage", "--format", "xml"], "no format 'xml': use --format table|json|csv"),
        (["usage", "--last"], "option '--last' requires an argument"),
        (["carbon", "--pue", "much"], "invalid value for '--pue'"),
        (["requests", "--limit", "0"], "--limit '0': give a whole number of 1 or more"),
        (["jobs", "--limit", "x"], "--limit 'x': give a whole number of 1 or more"),
        (["carbon", "stray"], "unexpected extra argument"),
    ],
)
def test_wrong_usage_is_one_line_with_the_mend(cli: Cli, arguments: list[str], line: str) -> None:
    ran = cli.run(*arguments)
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.startswith("wattledger: ")
    assert line in ran.err
    assert ran.err.count("\n") == 1


def test_global_options_before_and_after_the_command_the_later_one_wins(
    cli: Cli, tmp_path: Path
) -> None:
    url = small_ledger(tmp_path / "ledger.db")
    before = cli.run("--ledger", url, "--format", "json", "usage", *WINDOW)
    after = cli.run("usage", *WINDOW, "--ledger", url, "--format", "json")
    both = cli.run("--format", "csv", "--ledger", "no.db", "usage", *WINDOW, "--ledger", url)
    assert before == after
    assert before.out.startswith("{")
    assert both.out.startswith("energy_j,")
    family = cli.run("grid", "--format", "csv", "zones")
    assert family.out.startswith("zone,name,year,")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "no such ledger"),
        (b"not a database, but long enough to look like one\n" * 40, "not a wattledger ledger"),
    ],
)
def test_an_unreadable_ledger_is_out_of_reach(
    cli: Cli, tmp_path: Path, content: bytes | None, told: str
) -> None:
    path = tmp_path / "other.db"
    if content is not None:
        path.write_bytes(content)
    ran = cli.run("usage", "--ledger", f"sqlite:{path}")
    assert (ran.status, ran.out) == (4, "")
    assert told in ran.err
    assert str(path) in ran.err


def test_a_newer_schema_is_out_of_reach(cli: Cli, tmp_path: Path) -> None:
    import sqlite3

    url = small_ledger(tmp_path / "ledger.db")
    connection = sqlite3.connect(tmp_path / "ledger.db")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    ran = cli.run("audit", "--ledger", url)
    assert ran.status == 4
    assert "99" in ran.err
    assert "newer" in ran.err


def test_an_unknown_kind_of_ledger_is_a_usage_error(cli: Cli) -> None:
    ran = cli.run("usage", "--ledger", "mysql://db/x")
    assert ran.status == 2
    assert "mysql://db/x" in ran.err


def test_the_default_ledger_is_the_configs(cli: Cli, tmp_path: Path) -> None:
    small_ledger(tmp_path / "named.db")
    config = tmp_path / "named.toml"
    config.write_text(f'[ledger]\npath = "{tmp_path / "named.db"}"\n')
    env = {"WATTLEDGER_CONFIG": str(config)}
    assert cli.run("usage", *WINDOW, env=env).status == 0
    assert "state/wattledger/ledger.db" in cli.run("usage", *WINDOW).err


def test_without_typer_the_mend_is_told(cli: Cli) -> None:
    code = (
        "import sys; sys.modules['typer'] = None; from wattledger_cli import main; sys.exit(main())"
    )
    ran = process(cli, code=code)
    assert ran.returncode == 2
    assert ran.stderr == (
        "wattledger: the command line is not installed: run pip install 'wattledger[cli]'\n"
    )


def test_a_reader_who_leaves_is_no_fault(cli: Cli) -> None:
    command = f"{sys.executable} -m wattledger_cli grid zones --format csv | head -n 1"
    ran = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        env={**os.environ, **cli.environ()},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout == "zone,name,year,gco2e_per_kwh\n"


@pytest.mark.parametrize(
    ("into", "why"), [(">/dev/full", "No space left on device"), (">&-", "it is closed")]
)
@pytest.mark.parametrize(
    "command", ["usage --ledger {}", "grid zones --format csv", "--version", "carbon --help"]
)
def test_a_stdout_that_takes_nothing_is_told(
    cli: Cli, tmp_path: Path, into: str, why: str, command: str
) -> None:
    words = command.format(small_ledger(tmp_path / "ledger.db"))
    ran = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m wattledger_cli {words} --quiet {into}"],
        env={**os.environ, **cli.environ()},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ran.returncode == 1
    assert ran.stderr.startswith(f"wattledger: stdout cannot be written ({why}): ")
    assert ran.stderr.count("\n") == 1


def test_an_internal_fault_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(ValueError("two\nlines"), {}) == 1
    told = capsys.readouterr().err
    assert told.startswith("wattledger: internal fault, ValueError: two lines: please report")
    assert "WATTLEDGER_DEBUG=1" in told
    assert told.count("\n") == 1


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(ValueError("why"), {"WATTLEDGER_DEBUG": "1"}) == 1
    assert "ValueError: why" in capsys.readouterr().err.splitlines()


def test_an_interrupt_is_no_fault(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(KeyboardInterrupt(), {}) == INTERRUPTED == 130
    assert capsys.readouterr().err == "wattledger: stopped\n"
