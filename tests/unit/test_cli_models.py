"""`wattledger models`: tokens and joules as booked, and the cost model behind their split."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from fakes.cli import WINDOW, Cli, small_ledger
from fakes.pages import T0_NS
from wattledger.fits import Calibrated, Coefficient, Fit, FitKey
from wattledger.records import NS_PER_S
from wattledger.statement.models import models_report
from wattledger.store import open_ledger
from wattledger.store.sqlite import SqliteLedger
from wattledger.timespan import Window

KEY = FitKey("vllm", "llama-3-8b", "NVIDIA H200")
FIT = Fit(
    key=KEY,
    engine="vllm-a",
    fitted_ns=T0_NS,
    rows=36,
    rank=3,
    identified=True,
    reason="",
    f=Coefficient(2.4, 2.3, 2.5),
    a=Coefficient(0.0075, 0.0074, 0.0076),
    b=Coefficient(0.0, 0.0, 0.0004),
    c=None,
    lag_s=0.052,
    idle_w=110.0,
    idle_basis="step-free",
    residual_ratio=0.0075,
    method="calibrated",
    since_ns=T0_NS - NS_PER_S,
    engines=("vllm-b", "vllm-a"),
)
REFUSED = replace(
    FIT,
    identified=False,
    reason="prefill and decode keep one ratio: no telling them apart",
    f=None,
    a=None,
    b=None,
    method="default-weights",
)


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path)


def ledger(tmp_path: Path, *fits: Fit, host: str = "h1") -> str:
    path = tmp_path / "ledger.db"
    url = small_ledger(path)
    with SqliteLedger(path, writable=True) as book:
        book.calibrate(host, [Calibrated(fit.key, fit.fitted_ns, "{}", fit) for fit in fits])
    return url


def test_a_model_by_engine_with_its_fit_as_json(cli: Cli, tmp_path: Path) -> None:
    url = ledger(tmp_path, FIT)
    ran = cli.run("models", "--ledger", url, *WINDOW, "--format", "json")
    assert (ran.status, ran.err) == (0, "")
    document = json.loads(ran.out)
    assert (document["schema"], document["found"]) == ("wattledger.models/1", 1)
    (line,) = document["models"]
    assert (line["model"], line["prefill_j"], line["decode_j"]) == ("llama-3-8b", 150.0, 500.0)
    assert line["j_per_prefill_token"] == pytest.approx(0.1)
    (engine,) = line["engines"]
    fit = engine.pop("fit")
    assert engine == {
        "host": "h1",
        "engine": "vllm-a",
        "devices": "NVIDIA H200",
        "energy_j": 650.0,
        "prefill_j": 150.0,
        "decode_j": 500.0,
        "requests": 2,
        "prefill_tokens": 1500,
        "cached_tokens": 200,
        "decode_tokens": 100,
        "j_per_prefill_token": pytest.approx(0.1),
        "j_per_decode_token": 5.0,
        "methods": ["steps"],
    }
    assert fit == {
        "kind": "vllm",
        "method": "calibrated",
        "since": "2026-09-21T13:59:59Z",
        "fitted": "2026-09-21T14:00:00Z",
        "identified": True,
        "reason": None,
        "rows": 36,
        "rank": 3,
        "f_j": 2.4,
        "f_low_j": 2.3,
        "f_high_j": 2.5,
        "a_j": 0.0075,
        "a_low_j": 0.0074,
        "a_high_j": 0.0076,
        "b_j": 0.0,
        "b_low_j": 0.0,
        "b_high_j": 0.0004,
        "c_j": None,
        "c_low_j": None,
        "c_high_j": None,
        "lag_s": 0.052,
        "idle_w": 110.0,
        "idle_basis": "step-free",
        "residual_ratio": 0.0075,
    }


def test_csv_has_a_line_an_engine_and_its_fit_beside_it(cli: Cli, tmp_path: Path) -> None:
    url = ledger(tmp_path, FIT)
    ran = cli.run("models", "--ledger", url, *WINDOW, "--format", "csv")
    (line,) = csv.DictReader(io.StringIO(ran.out))
    assert (line["model"], line["engine"], line["methods"]) == ("llama-3-8b", "vllm-a", "steps")
    assert (line["fit_a_j"], line["fit_c_j"], line["fit_identified"]) == ("0.0075", "", "True")


@pytest.mark.parametrize("columns", [80, 120])
def test_the_table_fits_and_says_what_a_token_costs(cli: Cli, tmp_path: Path, columns: int) -> None:
    url = ledger(tmp_path, FIT)
    out = cli.run("models", "--ledger", url, *WINDOW, columns=columns, env={"NO_COLOR": "1"}).out
    assert max(map(len, out.splitlines())) <= columns
    assert "7.5 mJ ±1.3 %" in out
    assert "2.4 J ±4.2 %" in out
    assert "0 to 400 uJ" in out
    assert "1 of 1 models, costliest first" in out


def test_a_refused_fit_is_told_with_its_reason_and_no_figure(cli: Cli, tmp_path: Path) -> None:
    url = ledger(tmp_path, FIT, replace(REFUSED, fitted_ns=T0_NS + 1))
    out = cli.run("models", "--ledger", url, *WINDOW, columns=100).out
    assert "default-weights" in out
    assert "not fitted" in out
    assert "keep one ratio" in out
    assert "7.5 mJ" not in out


def test_without_a_fit_it_says_what_would_tell_one(cli: Cli, tmp_path: Path) -> None:
    url = small_ledger(tmp_path / "ledger.db")
    ran = cli.run("models", "--ledger", url, *WINDOW)
    assert ran.status == 0
    assert "no fit" in ran.out
    empty = cli.run("models", "--ledger", url, "--day", "2020-01-01")
    assert (empty.status, "0 of 0 models" in empty.out) == (0, True)


def test_the_fit_is_that_of_the_host_the_devices_and_rather_of_the_engine(tmp_path: Path) -> None:
    mine = replace(FIT, rows=40)
    others = [
        replace(FIT, key=KEY._replace(devices="2 x NVIDIA H200"), rows=1),
        replace(
            FIT,
            key=KEY._replace(kind="sglang"),
            engine="other",
            engines=("other",),
            fitted_ns=T0_NS + 9,
            rows=2,
        ),
        replace(FIT, key=KEY._replace(model="other"), rows=3),
    ]
    url = ledger(tmp_path, mine, *others)
    with open_ledger(url) as store:
        window = Window(T0_NS, T0_NS + 5 * NS_PER_S)
        (served,) = models_report(store, window).served
        assert served.fit == mine


def test_an_engine_that_is_not_under_a_fit_of_its_kind_has_none(cli: Cli, tmp_path: Path) -> None:
    url = ledger(tmp_path, replace(FIT, engine="vllm-b", engines=("vllm-b",)))
    out = cli.run("models", "--ledger", url, *WINDOW, columns=100).out
    assert "7.5 mJ" not in out
    assert "no fit" in out
