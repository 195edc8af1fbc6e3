from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from fakes.cli import FROM, TO, WINDOW, Cli, small_ledger
from fakes.pages import GPU0, T0_NS, account, posting
from wattledger.records import NS_PER_S, Amounts
from wattledger.store import open_ledger
from wattledger.store.protocol import ImportedEntry

CARBON = """\
job    activity  energy  tokens  operat.  embodied  carbon  per token
                      J           mgCO2e    mgCO2e  mgCO2e          J
──────────────────────────────────────────────────────────────────────
batch  decode         0       0        0         0       0          -
batch  prefill       50     500     1.39      0.57    1.96      0.100
chat   decode       500     100    13.89      2.28   16.17      5.000
chat   prefill      100   1,000     2.78      1.14    3.92      0.100
-      idle         350       0     9.72      1.71   11.43          -
──────────────────────────────────────────────────────────────────────
total             1,000   1,600    27.78      5.71   33.49      0.625

 window     2026-09-21T14:00:00Z to 2026-09-21T14:00:05Z, 5 s
 view       direct; gpu
 tokens     2 requests, 1,500 prefill, 200 cached, 100 decode tokens
 intensity  100 gCO2e/kWh, constant: --intensity
 PUE        1, assumed: IT energy only
 embodied   NVIDIA H200: 180 kgCO2e over 5 years, override
 energy     100 % measured
 time       100 % of the devices' time is booked
"""
AUDIT = """\
host  device  metered  posted  off  booked  off
                    J       J   uJ       s   ns
────────────────────────────────────────────────
h1    gpu0      1,000   1,000    0   5.000    0

 window    2026-09-21T14:00:00Z to 2026-09-21T14:00:05Z, 5 s
 books     balanced: 0 uJ and 0 ns are off
 counters  0 gaps, 0 resets, 0 wraps
 events    1 late, 0 duplicates, 0 dropped
"""
TOTAL_KEYS = [
    "energy_j",
    "static_j",
    "dynamic_j",
    "facility_kwh",
    "operational_gco2e",
    "embodied_gco2e",
    "carbon_gco2e",
    "carbon_gco2e_low",
    "carbon_gco2e_high",
    "intensity_gco2e_per_kwh",
    "device_s",
    "requests",
    "prefill_tokens",
    "cached_tokens",
    "decode_tokens",
    "j_per_decode_token",
    "j_per_token",
    "gco2e_per_token",
]
EMBODIED = ("--embodied", "NVIDIA H200=180")


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return small_ledger(tmp_path / "ledger.db")


def carbon(cli: Cli, url: str, *more: str) -> dict[str, object]:
    ran = cli.run("carbon", *WINDOW, "--ledger", url, "--format", "json", *more)
    assert ran.status == 0, ran.err
    document = json.loads(ran.out)
    assert isinstance(document, dict)
    return document


def test_carbon_as_a_table(cli: Cli, url: str) -> None:
    ran = cli.run(
        "carbon", *WINDOW, "--ledger", url, "--by", "job,activity", "--intensity", "100", *EMBODIED
    )
    assert (ran.status, ran.err) == (0, "")
    assert ran.out == CARBON
    assert max(map(len, ran.out.splitlines())) <= 80


def test_carbon_as_json_has_the_keys_of_the_contract(cli: Cli, url: str) -> None:
    document = carbon(cli, url, "--intensity", "100", "--by", "job", *EMBODIED)
    assert list(document) == (
        [
            "schema",
            "software",
            "window",
            "view",
            "boundary",
            "total",
            "groups",
            "coverage",
            "factors",
            "warnings",
        ]
    )
    assert document["schema"] == "wattledger.carbon/1"
    assert document["window"] == {"from": FROM, "to": TO, "seconds": 5.0}
    total, groups = document["total"], document["groups"]
    assert isinstance(total, dict)
    assert isinstance(groups, list)
    assert list(total) == TOTAL_KEYS
    assert total["energy_j"] == 1000.0
    assert total["operational_gco2e"] == pytest.approx(1000 / 3.6e6 * 100)
    assert total["embodied_gco2e"] == pytest.approx(180_000 * 5 / (5 * 365 * 86_400))
    assert [group["by"] for group in groups] == [{"job": "batch"}, {"job": "chat"}, {"job": None}]
    assert list(groups[0]) == ["by", *TOTAL_KEYS]


def test_carbon_as_csv_is_exact(cli: Cli, url: str) -> None:
    arguments = ("carbon", *WINDOW, "--ledger", url, "--intensity", "100", "--format", "csv")
    grouped = list(csv.DictReader(io.StringIO(cli.run(*arguments, "--by", "job,activity").out)))
    assert list(grouped[0]) == ["job", "activity", *TOTAL_KEYS]
    assert [row["job"] for row in grouped] == ["batch", "batch", "chat", "chat", ""]
    (total,) = csv.DictReader(io.StringIO(cli.run(*arguments).out))
    assert float(total["energy_j"]) == sum(float(row["energy_j"]) for row in grouped)
    assert total["operational_gco2e"] == repr(1000 / 3.6e6 * 100)


def test_warnings_go_to_stderr_unless_quiet(cli: Cli, url: str) -> None:
    arguments = ("carbon", *WINDOW, "--ledger", url, "--zone", "fr")
    ran = cli.run(*arguments)
    assert "warning: " in ran.err
    assert "warning" not in ran.out
    assert cli.run(*arguments, "--quiet").err == ""
    assert cli.run(*arguments, "--format", "json").err == ""


def test_views_filters_and_factors_reach_the_statement(cli: Cli, url: str) -> None:
    chat = carbon(cli, url, "--zone", "FRA", "--job", "ch*", "--view", "loaded", "--pue", "1.5")
    active = carbon(cli, url, "--intensity", "100", "--view", "active", "--no-embodied")
    assert chat["view"] == "loaded"
    assert isinstance(chat["factors"], dict)
    assert chat["factors"]["pue"][0]["pue"] == 1.5
    assert chat["factors"]["intensity"][0]["zone"] == "FRA"
    assert isinstance(active["total"], dict)
    assert (active["total"]["energy_j"], active["total"]["embodied_gco2e"]) == (590.0, 0.0)
    halved = carbon(cli, url, "--intensity", "100", "--lifetime", "10y", *EMBODIED)
    whole = carbon(cli, url, "--intensity", "100", *EMBODIED)
    assert isinstance(halved["total"], dict)
    assert isinstance(whole["total"], dict)
    assert halved["total"]["embodied_gco2e"] * 2 == pytest.approx(whole["total"]["embodied_gco2e"])


def test_zone_and_pue_come_from_the_config(cli: Cli, url: str, tmp_path: Path) -> None:
    config = tmp_path / "site.toml"
    config.write_text('[site]\nzone = "DE"\npue = 1.25\n')
    ran = cli.run(
        "carbon",
        *WINDOW,
        "--ledger",
        url,
        "--format",
        "json",
        env={"WATTLEDGER_CONFIG": str(config)},
    )
    factors = json.loads(ran.out)["factors"]
    assert factors["intensity"][0]["zone"] == "DEU"
    assert factors["pue"][0]["pue"] == 1.25


@pytest.mark.parametrize(
    ("flags", "status", "told"),
    [
        ((), 2, "no grid intensity"),
        (("--zone", "US-CAL-CISO"), 2, "--zone USA"),
        (("--zone", "FRA", "--intensity", "1"), 2, "give one of them"),
        (("--intensity", "-1"), 2, "zero or more"),
        (("--intensity", "1", "--pue", "0.9"), 2, "1 or more"),
        (("--intensity", "1", "--by", "jbo"), 2, "did you mean job?"),
        (("--intensity", "1", "--view", "drect"), 2, "did you mean direct?"),
        (("--intensity", "1", "--lifetime", "long"), 2, "write 5y"),
        (("--intensity", "1", "--embodied", "H200"), 2, "NVIDIA H200=364"),
        (("--intensity", "1", "--last", "5m"), 2, "one window"),
        (("--intensity", "1", "--job", "nobody"), 3, "matches the filters"),
        (("--zone", "FRA", "--min-coverage", "0.9"), 3, "--min-coverage"),
        (("--intensity", "1", "--min-coverage", "2"), 2, "from 0 to 1"),
    ],
)
def test_what_carbon_refuses(
    cli: Cli, url: str, flags: tuple[str, ...], status: int, told: str
) -> None:
    ran = cli.run("carbon", *WINDOW, "--ledger", url, *flags)
    assert (ran.status, ran.out) == (status, "")
    assert told in ran.err
    assert ran.err.count("\n") == 1


def test_an_empty_window_is_told_what_the_ledger_holds(cli: Cli, url: str) -> None:
    held = f"the ledger holds {FROM} to {TO}"
    window = ("--day", "2026-09-20")
    priced = cli.run("carbon", *window, "--ledger", url, "--intensity", "1")
    assert (priced.status, priced.out) == (3, "")
    assert held in priced.err
    for command in ("usage", "requests", "jobs", "audit"):
        ran = cli.run(command, *window, "--ledger", url)
        assert ran.status == 0
        assert held in ran.err


def test_usage_of_nothing_is_zeros(cli: Cli, url: str) -> None:
    ran = cli.run("usage", "--day", "2026-09-20", "--ledger", url, "--format", "json")
    document = json.loads(ran.out)
    assert document["schema"] == "wattledger.usage/1"
    assert document["total"]["energy_j"] == 0.0
    assert document["groups"] == []


def test_usage_by_local_hour(cli: Cli, url: str) -> None:
    arguments = ("usage", "--day", "2026-09-21", "--tz", "Europe/Paris", "--by", "hour")
    (row,) = csv.DictReader(
        io.StringIO(cli.run(*arguments, "--ledger", url, "--format", "csv").out)
    )
    assert row["hour"] == "2026-09-21T16:00:00+02:00"
    assert "operational_gco2e" not in row


def test_requests_costliest_first(cli: Cli, url: str) -> None:
    arguments = ("requests", *WINDOW, "--ledger", url)
    document = json.loads(cli.run(*arguments, "--format", "json").out)
    assert document["schema"] == "wattledger.requests/1"
    first, second = document["requests"]
    assert (first["request"], first["energy_j"], first["decode_j"]) == ("r1", 600.0, 500.0)
    assert (second["request"], second["prefill_j"]) == ("r2", 50.0)
    assert "gco2e" not in first
    priced = json.loads(cli.run(*arguments, "--intensity", "100", "--format", "json").out)
    assert priced["requests"][0]["gco2e"] == pytest.approx(600 / 3.6e6 * 100)
    table = cli.run(*arguments, "--limit", "1").out
    assert "r1" in table
    assert "r2" not in table
    assert "1 of 2 finished requests" in table
    only = json.loads(cli.run(*arguments, "--request", "r2", "--format", "json").out)
    assert [line["request"] for line in only["requests"]] == ["r2"]


def test_jobs_costliest_first(cli: Cli, url: str) -> None:
    document = json.loads(cli.run("jobs", *WINDOW, "--ledger", url, "--format", "json").out)
    assert [line["job"] for line in document["jobs"]] == ["chat", "batch"]
    table = cli.run("jobs", *WINDOW, "--ledger", url).out
    assert table.index("chat") < table.index("batch")
    rows = list(
        csv.DictReader(
            io.StringIO(cli.run("jobs", *WINDOW, "--ledger", url, "--format", "csv").out)
        )
    )
    assert [row["hosts"] for row in rows] == ["h1", "h1"]


def test_a_job_is_first_seen_no_earlier_than_the_window(cli: Cli, url: str) -> None:
    late = ("--from", "2026-09-21T14:00:03Z", "--to", TO)
    rows = cli.run("jobs", *late, "--ledger", url).out.split("window")[0]
    assert "2026-09-21T14:00:03Z\n" in rows
    assert "2026-09-21T14:00Z\n" in cli.run("jobs", *WINDOW, "--ledger", url).out


def test_audit_that_balances(cli: Cli, url: str) -> None:
    ran = cli.run("audit", *WINDOW, "--ledger", url)
    assert (ran.status, ran.err) == (0, "")
    assert ran.out == AUDIT


def test_audit_that_does_not(cli: Cli, tmp_path: Path) -> None:
    url = small_ledger(tmp_path / "off.db", metered_off_uj=3)
    ran = cli.run("audit", *WINDOW, "--ledger", url, "--format", "json")
    document = json.loads(ran.out)
    assert ran.status == 5
    assert (document["balanced"], document["imbalance_uj"]) == (False, 3)
    assert "3 uJ" in ran.err
    table = cli.run("audit", *WINDOW, "--ledger", url)
    assert table.status == 5
    assert "NOT BALANCED" in table.out


def test_no_colour_where_nobody_sees_it(cli: Cli, url: str) -> None:
    ran = cli.run("usage", *WINDOW, "--ledger", url, env={"FORCE_COLOR": "", "TERM": "xterm"})
    assert "\x1b" not in ran.out


def test_names_cannot_steer_a_terminal(cli: Cli, tmp_path: Path) -> None:
    url = f"sqlite:{tmp_path / 'evil.db'}"
    end_ns = T0_NS + 5 * NS_PER_S
    evil = posting(T0_NS, end_ns, Amounts(dynamic_uj=1), to=account(job="evil\x1b[2J"))
    with open_ledger(url, create=True) as ledger:
        ledger.post([ImportedEntry("h1", GPU0, evil)])
    ran = cli.run("usage", *WINDOW, "--ledger", url, "--by", "job")
    assert "evil" in ran.out
    assert "\x1b" not in ran.out
