from __future__ import annotations

from pathlib import Path

import pytest

from wattledger.errors import InputError
from wattledger.locations import (
    LocalSettings,
    default_config_path,
    default_ledger_path,
    local_settings,
)


def test_the_ledger_lies_in_the_state_folder() -> None:
    assert default_ledger_path({"XDG_STATE_HOME": "/s"}) == Path("/s/wattledger/ledger.db")
    home = Path("/h/.local/state/wattledger/ledger.db")
    assert default_ledger_path({"HOME": "/h"}) == home
    assert default_ledger_path({"HOME": "/h", "XDG_STATE_HOME": "not/absolute"}) == home


def test_the_config_is_named_or_the_systems() -> None:
    assert default_config_path({}) == Path("/etc/wattledger/wattledger.toml")
    assert default_config_path({"WATTLEDGER_CONFIG": "/c.toml"}) == Path("/c.toml")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "wattledger.toml"


def environ(config: Path) -> dict[str, str]:
    return {"HOME": "/h", "WATTLEDGER_CONFIG": str(config)}


def test_a_silent_config_leaves_the_defaults(config: Path) -> None:
    config.write_text("")
    assert local_settings(environ(config)) == LocalSettings(
        Path("/h/.local/state/wattledger/ledger.db")
    )


def test_a_config_is_believed(config: Path) -> None:
    config.write_text(
        '[ledger]\npath = "/l.db"\nraw_days = 3\n[collect]\nsocket = "/s"\n'
        '[site]\nzone = "FRA"\npue = 2\n'
    )
    expected = LocalSettings(Path("/l.db"), Path("/s"), "FRA", 2.0)
    assert local_settings(environ(config)) == expected


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[ledger\n", "not TOML"),
        ("ledger = 1\n", "write [ledger]"),
        ("[ledger]\npath = 1\n", "ledger.path must be a str"),
        ('[site]\npue = "high"\n', "site.pue must be a float"),
        ("[site]\npue = true\n", "site.pue must be a float"),
    ],
)
def test_a_wrong_config_names_file_and_key(config: Path, text: str, told: str) -> None:
    config.write_text(text)
    with pytest.raises(InputError) as caught:
        local_settings(environ(config))
    assert str(config) in str(caught.value)
    assert told in str(caught.value)


def test_a_named_config_must_be_there(config: Path) -> None:
    with pytest.raises(InputError, match="unset WATTLEDGER_CONFIG"):
        local_settings(environ(config))
