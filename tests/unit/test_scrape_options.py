"""`[scrape]`: what it may say, and what a wrong entry gets."""

from __future__ import annotations

from pathlib import Path

import pytest

from wattledger.errors import InputError
from wattledger_daemon import settings
from wattledger_daemon.config import DaemonConfig
from wattledger_daemon.scrape_options import ScrapeTarget

URL = "http://127.0.0.1:30000/metrics"


def parse(text: str) -> DaemonConfig:
    return settings.parse(DaemonConfig, f"[scrape]\n{text}", "w.toml")


def test_an_entry_with_all_its_keys_and_one_with_the_least() -> None:
    config = parse(
        f'a = {{ engine = "sglang", url = "{URL}" }}\n'
        'b = { engine = "mine", url = "https://[::1]/m?x=1", period_s = 0.5, model = "m",'
        ' workload = "w", job = "j", headers_file = "/h" }\n'
    )
    assert config.scrape == {
        "a": ScrapeTarget("sglang", URL),
        "b": ScrapeTarget("mine", "https://[::1]/m?x=1", 0.5, "m", "w", "j", Path("/h")),
    }


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (f'a = "{URL}"', "a must be a table with at least engine and url"),
        ('a = { engine = "tgi" }', "a must be a table with at least engine and url"),
        (f'a = {{ engine = "tgi", url = "{URL}", modl = "m" }}', "did you mean model?"),
        (f'a = {{ engine = "tgi", url = "{URL}", period_s = 60 }}', "a period_s must be a number"),
        ('a = { engine = "tgi", url = "ftp://h/" }', "a url must be a URL"),
        ('a = { engine = "tgi", url = "http://u:p@h/" }', "a url must be a URL"),
        ('a = { engine = "tgi", url = "http://h:0/" }', "a url must be a URL"),
        (f'"\\n" = {{ engine = "tgi", url = "{URL}" }}', "printable characters"),
        (
            f'a = {{ engine = "tgi", url = "{URL}" }}\nb = {{ engine = "vllm", url = "{URL}" }}',
            "must not read one url twice, as a and b do",
        ),
    ],
)
def test_a_wrong_entry_is_named(entry: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        parse(entry)
    assert said in str(caught.value)
    assert str(caught.value).startswith("w.toml: scrape: ")
    assert "u:p" not in str(caught.value)
