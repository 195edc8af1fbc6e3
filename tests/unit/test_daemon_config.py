"""The config: its sample, its defaults, and what a wrong key gets."""

from __future__ import annotations

import dataclasses
import re
from importlib.resources import files
from pathlib import Path

import pytest

from wattledger.errors import InputError
from wattledger.records import CostModel
from wattledger_daemon import settings
from wattledger_daemon.config import LIVE_KEYS, DaemonConfig, find_config, load_config

SAMPLE = files("wattledger_daemon").joinpath("wattledger.toml").read_text()


def parse(text: str) -> DaemonConfig:
    return settings.parse(DaemonConfig, text, "w.toml")


def key_paths(value: object, path: str = "") -> list[str]:
    paths = []
    for field in dataclasses.fields(value):  # type: ignore[arg-type]
        inner = getattr(value, field.name)
        if dataclasses.is_dataclass(inner):
            paths += key_paths(inner, f"{path}{field.name}.")
        else:
            paths.append(path + field.name)
    return paths


def uncommented(prefix: str) -> str:
    return re.sub(rf"^{prefix}(?=[\w-]+ = )", "", SAMPLE, flags=re.MULTILINE)


def test_the_sample_as_it_stands_is_the_defaults() -> None:
    assert parse(SAMPLE) == DaemonConfig()


def test_each_commented_option_of_the_sample_is_its_default() -> None:
    text = uncommented("# ")
    assert text.count("\n# ") == 0
    assert parse(text) == DaemonConfig()


def test_the_sample_names_every_key_and_its_examples_hold() -> None:
    examples = uncommented("##   ").replace("# static_w = {}\n", "")
    config = parse(re.sub(r"^# (?=\w+ = )", "", examples, flags=re.MULTILINE))
    defaults = DaemonConfig()
    assert config.cost["vllm-a"] == CostModel(40.0, 0.05, 2.0, 0.0)
    unset = set(settings.changed(defaults, config))
    shown = {path for path in key_paths(defaults) if f"\n# {path.rpartition('.')[2]} = " in SAMPLE}
    assert unset | shown == set(key_paths(defaults))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[ledger]\nraw_dayz = 3", "w.toml: ledger.raw_dayz: unknown key, did you mean raw_days?"),
        ("[samplin]", "w.toml: samplin: unknown key, did you mean sampling?"),
        ("[log]\nqqq = 1", "w.toml: log.qqq: unknown key, known here: level"),
        ("sampling = 3", "w.toml: sampling: must be a table, written [sampling]"),
        ("[sampling]\nwindow_s = 7", "sampling.window_s: must be one of 1, 2, 3"),
        ("[sampling]\nwindow_s = 5.0", "sampling.window_s: must be one of"),
        ("[sampling]\nperiod_s = nan", "sampling.period_s: must be a number from 0.05 to 10"),
        ("[sampling]\nperiod_s = 0.01", "sampling.period_s: must be a number from 0.05 to 10"),
        ("[sampling]\nperiod_s = '1'", "sampling.period_s: must be a number"),
        ("[site]\npue = true", "site.pue: must be a number from 1 to 10, not True"),
        ("[site]\npue = 0.9", "site.pue: must be a number from 1 to 10, not 0.9"),
        ("[site]\nhost = ''", "site.host: must be a non-empty line of text"),
        ('[site]\nzone = "a\\nb"', "site.zone: must be a non-empty line of text"),
        ("[ledger]\npath = 'ledger.db'", "ledger.path: must be an absolute path"),
        ("[ledger]\nraw_days = 0", "ledger.raw_days: must be a number from 0.1"),
        ("[collect]\nsocket_mode = 660", "collect.socket_mode: must be an octal mode"),
        ("[collect]\nsocket_mode = 0o440", "collect.socket_mode: must be an octal mode"),
        ("[collect]\nsocket_mode = 0o777", "collect.socket_mode: must be an octal mode"),
        ("[power]\nstatic_w = { gpu0 = 'a' }", "power.static_w: gpu0 must be a number from 0"),
        ("[power]\nstatic_w = 70", "power.static_w: must be a table of NAME = VALUE"),
        ("[sensors]\nnvml = 'on'", "sensors.nvml: must be one of 'auto', 'off', 'require'"),
        ("[log]\nlevel = 'loud'", "log.level: must be one of 'debug'"),
        ("[cost]\ne = { f_j = 1 }", "cost: e must be a table of f_j, a_j, b_j and c_j"),
        ("[cost.e]\nf_j = 1\na_j = -1\nb_j = 1\nc_j = 0", "cost: e must be a number from 0"),
        ("[log\n", "w.toml: not TOML: "),
        ("[log]\nlevel = 'info'\nlevel = 'info'", "w.toml: not TOML: Cannot overwrite a value"),
    ],
)
def test_a_wrong_key_is_refused_by_name(text: str, said: str) -> None:
    with pytest.raises(InputError, match=re.escape(said)) as refused:
        parse(text)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        "http://root:hunter2@h:4318",
        "http://root:hun/ter2@h",
        "http://hunter2@h",
        "root:hunter2@h:4318",
        "http://root:hunter2@" + "h" * 80,
    ],
)
@pytest.mark.parametrize("key", ["otlp]\nendpoint", "prometheus]\nlisten"])
def test_a_secret_in_an_address_is_refused_without_being_shown(key: str, url: str) -> None:
    with pytest.raises(InputError, match=r"must be .*, not '(http://)?\*\*\*@h") as refused:
        parse(f'[{key} = "{url}"')
    assert not any(secret in str(refused.value) for secret in ("hun", "ter2", "root"))


def test_values_are_bound_in_their_types() -> None:
    config = parse(
        "[ledger]\npath = '/l.db'\nraw_days = 2\n[collect]\nsocket_mode = 0o600\n"
        "[power.static_w]\ngpu0 = 70\n[cost.e]\nf_j = 40\na_j = 0.05\nb_j = 2\nc_j = 0\n"
    )
    assert config.ledger.path == Path("/l.db")
    assert (config.ledger.retention.raw_days, config.ledger.retention.hour_days) == (2.0, 3650.0)
    assert config.collect.socket_mode == 0o600
    assert config.power.static_w == {"gpu0": 70.0}
    assert config.cost == {"e": CostModel(40.0, 0.05, 2.0, 0.0)}


def test_what_changed_is_told_by_key_and_every_live_key_exists() -> None:
    after = parse("[log]\nlevel = 'debug'\n[ledger]\nraw_days = 3\n[power]\nstatic_w = {a = 1}")
    changed = settings.changed(DaemonConfig(), after)
    assert changed == ["ledger.raw_days", "power.static_w", "log.level"]
    assert set(key_paths(DaemonConfig())) >= LIVE_KEYS


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read the config: Is a directory"):
        load_config(tmp_path)
    path = tmp_path / "w.toml"
    path.write_bytes(b"[log]\nlevel = '\xff'")
    with pytest.raises(InputError, match=r"w\.toml: not UTF-8 at byte 15"):
        load_config(path)


def test_which_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "w.toml"
    missing = str(tmp_path / "none.toml")
    with pytest.raises(InputError, match=r"none\.toml: no such config file: mend --config"):
        find_config(missing, {})
    with pytest.raises(InputError, match="mend WATTLEDGER_CONFIG"):
        find_config(None, {"WATTLEDGER_CONFIG": missing})
    path.write_text("[log]\nlevel = 'error'")
    assert find_config(None, {"WATTLEDGER_CONFIG": str(path)}) == path
    assert find_config(str(path), {"WATTLEDGER_CONFIG": missing}) == path
    assert load_config(path).log.level == "error"
    assert load_config(None) == DaemonConfig()
