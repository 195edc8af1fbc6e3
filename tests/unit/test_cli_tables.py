from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes.cli import WINDOW, Cli, small_ledger
from wattledger_cli.tables import GAP, LABEL_FLOOR, Cells, Column, fit

ENGINE = "llama_cpp-30240"
MODEL = "meta-llama/Llama-3.1-8B-Instruct"
ROW = "2026-09-21T14:00:00Z,2026-09-21T14:00:05Z"
ENERGY = f"""\
start,end,host,device,energy_j,workload,job,engine,model,activity,decode_tokens,quality
{ROW},gpu-host-0001,gpu0,500,llama.service,summarize,{ENGINE},{MODEL},decode,2000,measured
{ROW},gpu-host-0002,gpu0,70,,,{ENGINE},{MODEL},engine_idle,0,measured
"""
FOUR = "job,engine,model,activity"
NINE = "host,device,kind,workload,job,engine,model,activity,quality"
PRICED = ("--intensity", "100", "--embodied", "unknown=180")


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path)


@pytest.fixture
def url(cli: Cli, tmp_path: Path) -> str:
    url = f"sqlite:{tmp_path / 'long.db'}"
    path = tmp_path / "meter.csv"
    path.write_text(ENERGY)
    assert cli.run("import", "energy", str(path), "--ledger", url).status == 0
    return url


def draw(cli: Cli, url: str, columns: int, *command: str) -> list[str]:
    ran = cli.run(*command, *WINDOW, "--ledger", url, columns=columns, env={"NO_COLOR": "1"})
    assert ran.status == 0, ran.err
    return ran.out.splitlines()


@pytest.mark.parametrize("command", [("usage",), ("carbon", *PRICED)], ids=lambda x: x[0])
@pytest.mark.parametrize("columns", [80, 120, 160])
@pytest.mark.parametrize("by", [FOUR, NINE])
def test_a_row_is_one_line(
    cli: Cli, url: str, by: str, columns: int, command: tuple[str, ...]
) -> None:
    lines = draw(cli, url, columns, *command, "--by", by)
    table = lines[: lines.index("")]
    assert len(table) == 2 + 1 + 2 + 1 + 1  # title and unit, rule, two groups, rule, total
    if columns > 80 or by == FOUR:
        assert max(map(len, lines)) <= columns


def test_narrow_terminals_cut_labels_and_drop_the_least_columns(cli: Cli, url: str) -> None:
    lines = draw(cli, url, 80, "carbon", *PRICED, "--by", FOUR)
    assert lines[0].split() == ["job", "engine", "model", "activity", "energy", "tokens", "carbon"]
    assert any("summarize" in line and "llama_" in line and "…" in line for line in lines)
    told = " ".join(" ".join(lines).split())
    assert "left out operat., embodied, per token: --format json or a wider terminal" in told
    # A total never stands without its two parts.
    assert "operational, " in told
    wide = draw(cli, url, 160, "carbon", *PRICED, "--by", FOUR)
    assert wide[0].split()[4:] == [
        "energy",
        "tokens",
        "operat.",
        "embodied",
        "carbon",
        "per",
        "token",
    ]
    assert MODEL in " ".join(wide)
    assert "left out" not in " ".join(wide)


def test_usage_keeps_its_energy(cli: Cli, url: str) -> None:
    lines = draw(cli, url, 80, "usage", "--by", NINE)
    assert lines[0].split()[-1] == "energy"
    told = " ".join(" ".join(lines).split())
    assert "left out static, dynamic, prefill, decode, per token:" in told


def test_hours_are_never_cut(cli: Cli, url: str) -> None:
    lines = draw(cli, url, 60, "usage", "--by", f"hour,{FOUR}")
    assert any(line.startswith("2026-09-21T14:00:00Z ") for line in lines)


def test_reasons_wrap_at_words(cli: Cli) -> None:
    out = cli.run("doctor", columns=80, env={"NO_COLOR": "1"}).out
    assert "mend: start wattledgerd" in " ".join(out.split())


@pytest.mark.parametrize("command", [("usage", "--by", "job"), ("requests",), ("jobs",)])
def test_no_color_leaves_no_escape_at_all(
    cli: Cli, tmp_path: Path, command: tuple[str, ...]
) -> None:
    url = small_ledger(tmp_path / "ledger.db")
    seen = cli.run(*command, *WINDOW, "--ledger", url, columns=80)
    plain = cli.run(*command, *WINDOW, "--ledger", url, columns=80, env={"NO_COLOR": "1"})
    piped = cli.run(*command, *WINDOW, "--ledger", url, env={"FORCE_COLOR": "1"})
    assert "\x1b[1m" in seen.out
    assert "\x1b" not in plain.out
    assert "\x1b" not in piped.out


CELLS = st.lists(st.text("abc", max_size=30), min_size=2, max_size=2).map(tuple)
COLUMNS = st.lists(
    st.builds(Column, st.just("t"), CELLS, holds=st.sampled_from(Cells), spare=st.integers(0, 3)),
    min_size=1,
    max_size=8,
).filter(lambda columns: any(not column.spare for column in columns))


@given(COLUMNS, st.integers(1, 200))
def test_what_fits_is_shown_whole_and_nothing_is_cut_below_its_floor(
    columns: list[Column], width: int
) -> None:
    fitted = fit(columns, width)
    widest = [column.width() for column in columns]
    if sum(widest) + GAP * (len(widest) - 1) <= width:
        assert (fitted.columns, fitted.widths) == (tuple(columns), tuple(widest))
    for column, cut in zip(fitted.columns, fitted.widths, strict=True):
        if column.holds in {Cells.NUMBERS, Cells.WHOLE}:
            assert cut == column.width()
        assert min(LABEL_FLOOR, column.width()) <= cut <= column.width()
    kept = {column.spare for column in fitted.columns}
    assert all(column.spare > max(kept) for column in columns if column not in fitted.columns)
    if max(kept):
        assert fitted.width <= width
