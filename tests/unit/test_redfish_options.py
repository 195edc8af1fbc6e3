from __future__ import annotations

from pathlib import Path

import pytest

from wattledger.errors import InputError
from wattledger_collectors.sensors.protocol import RedfishSettings
from wattledger_daemon import settings
from wattledger_daemon.config import DaemonConfig


def parse(text: str) -> DaemonConfig:
    return settings.parse(DaemonConfig, f"[redfish]\n{text}", "w.toml")


def test_unset_there_is_no_controller_to_ask() -> None:
    assert DaemonConfig().redfish.access is None
    assert parse('user = "u"').redfish.access is None


def test_what_the_table_says_reaches_the_sensor() -> None:
    config = parse(
        'url = "https://bmc.example.org:8443/"\nuser = "u"\npassword_file = "/p"\nca_file = "/c"\n'
        'resource = "/redfish/v1/Chassis/1/Power"\nperiod_s = 2\n'
    )
    assert config.redfish.access == RedfishSettings(
        "https://bmc.example.org:8443",
        "u",
        Path("/p"),
        Path("/c"),
        "/redfish/v1/Chassis/1/Power",
        2.0,
    )


@pytest.mark.parametrize(
    "url",
    [
        "http://bmc.example.org",
        "bmc.example.org",
        "https://",
        "https://bmc.example.org/redfish/v1",
        "https://bmc.example.org?x=1",
        "https://bmc.example.org#x",
        "https://bmc.example.org:port",
        "https://bmc.example.org:99999",
        "https://[::1",
        "https://bmc example.org",
        "",
    ],
)
def test_only_https_and_a_bare_host_are_taken(url: str) -> None:
    with pytest.raises(InputError, match=r"redfish\.url: must be https://HOST\[:PORT\]"):
        parse(f'url = "{url}"')


def test_a_secret_in_the_url_is_refused_without_being_shown() -> None:
    with pytest.raises(InputError) as refused:
        parse('url = "https://root:hunter2@bmc.example.org"')
    assert "redfish.password_file" in str(refused.value)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("line", ['resource = "Chassis/1"', "resource = 3", "period_s = 5"])
def test_other_options_are_checked(line: str) -> None:
    with pytest.raises(InputError, match=r"w\.toml: redfish\."):
        parse(line)
