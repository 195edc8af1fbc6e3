"""The metrics page: what it says, in which form, and that any parser takes it."""

from __future__ import annotations

import gzip
import math
import re
from collections.abc import Iterable
from http import HTTPStatus

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import parser as text_parser
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import parser as openmetrics_parser

from fakes.figures import a_snapshot, busy_page, figures, gpus, node_page
from wattledger.records import UJ_PER_J
from wattledger_daemon.export.figures import Figures
from wattledger_daemon.export.http import Request
from wattledger_daemon.export.prometheus import Page, render
from wattledger_daemon.export.totals import Quantity

Sample = tuple[str, dict[str, str], float]


def parsed(page: bytes, *, openmetrics: bool = False) -> list[Metric]:
    parse = openmetrics_parser if openmetrics else text_parser
    families: Iterable[Metric] = parse.text_string_to_metric_families(page.decode())
    return list(families)


def samples(page: bytes, *, openmetrics: bool = False) -> list[Sample]:
    families = parsed(page, openmetrics=openmetrics)
    return [(s.name, s.labels, s.value) for family in families for s in family.samples]


def one(page: bytes, name: str, **labels: str) -> float:
    found = [
        value for at, seen, value in samples(page) if at == name and labels.items() <= seen.items()
    ]
    assert len(found) == 1, found
    return found[0]


def total(page: bytes, name: str) -> float:
    return math.fsum(value for at, _, value in samples(page) if at == name)


def asked(page: Page, method: str = "GET", path: str = "/metrics", **headers: str) -> str:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    answer = page.answer(Request(method, path, named))
    return f"{answer.status.value} {dict(answer.headers)['Content-Type']}"


def test_both_parsers_read_the_same_of_a_busy_host() -> None:
    told = figures(busy_page(devices=gpus(8), workloads=[f"w{n}" for n in range(40)]))
    plain, open_page = render(told), render(told, openmetrics=True)
    key = lambda s: (s[0], sorted(s[1].items()))  # noqa: E731
    assert sorted(samples(plain), key=key) == sorted(samples(open_page, openmetrics=True), key=key)
    assert open_page.endswith(b"# EOF\n")
    metered = sum(v for s, v in told.standing.totals if s.quantity is Quantity.METERED_UJ)
    energy_j = total(plain, "wattledger_energy_joules_total")
    assert math.isclose(energy_j, metered / UJ_PER_J, rel_tol=1e-12)
    assert total(plain, "wattledger_prefill_tokens_total") == 40 * 100
    assert total(plain, "wattledger_decode_tokens_total") == 40 * 7
    assert total(plain, "wattledger_cached_tokens_total") == 40 * 3
    assert total(plain, "wattledger_requests_total") == 40


def test_the_labels_of_energy_say_who_and_how_well() -> None:
    page = render(figures(busy_page()))
    [labels] = [
        labels
        for name, labels, value in samples(page)
        if name == "wattledger_energy_joules_total" and value == 1.250001
    ]
    assert labels == {
        "device": "gpu0",
        "kind": "gpu",
        "workload": "a",
        "engine": "vllm-a",
        "model": "llama-3-8b",
        "activity": "decode",
        "quality": "measured",
    }


def test_the_whole_node_is_never_in_the_energy() -> None:
    page = render(figures(node_page()))
    assert total(page, "wattledger_energy_joules_total") == 2.0
    assert one(page, "wattledger_metered_energy_joules_total", kind="node") == 9.0


def test_the_daemon_tells_how_it_does() -> None:
    page = render(figures(busy_page()))
    assert one(page, "wattledger_device_power_watts", device="gpu0") == 250.5
    assert one(page, "wattledger_sensor_reads_total", sensor="nvml") == 900
    assert one(page, "wattledger_sensor_failures_total", sensor="nvml") == 2
    assert one(page, "wattledger_sensor_running", sensor="nvml") == 1
    assert one(page, "wattledger_sensor_longest_read_seconds", sensor="nvml") == 0.25
    assert one(page, "wattledger_queue_records") == 12
    assert one(page, "wattledger_windows_booked_total") == 18
    assert one(page, "wattledger_uptime_seconds") == 90
    assert one(page, "wattledger_late_events_total") == 2
    assert one(page, "wattledger_device_gaps_total", device="gpu0") == 0
    assert one(page, "wattledger_build_info", version="1.2.3") == 1


@pytest.mark.parametrize("power_w", [None, math.nan, math.inf])
def test_an_unknown_power_is_no_series(power_w: float | None) -> None:
    page = render(figures(busy_page(), snapshot=a_snapshot(power_w=power_w)))
    assert not [1 for name, *_ in samples(page) if name == "wattledger_device_power_watts"]
    assert not [1 for *_, value in samples(page) if math.isnan(value)]


def test_names_keep_the_rules() -> None:
    for family in parsed(render(figures(busy_page()), openmetrics=True), openmetrics=True):
        assert re.fullmatch(r"wattledger(_[a-z]+)+", family.name), family.name
        assert family.documentation.endswith("."), family.name
        for sample in family.samples:
            assert (sample.name == f"{family.name}_total") is (family.type == "counter")
            assert not {"job", "instance", "pid", "request"} & sample.labels.keys()
        unit = family.name.rsplit("_", 1)[-1]
        assert (family.unit or "") in ("", unit), family.name
        assert unit not in ("milliseconds", "ms", "uj", "mj", "kwh"), family.name


@given(st.text(st.characters(codec=None), max_size=30))
def test_any_name_of_a_workload_comes_through_escaped(name: str) -> None:
    told = figures(busy_page(workloads=[name]))
    said = name.encode("utf-8", "replace").decode()
    for openmetrics in (False, True):
        page = render(told, openmetrics=openmetrics)
        found = [
            labels["workload"]
            for at, labels, _ in samples(page, openmetrics=openmetrics)
            if at == "wattledger_energy_joules_total"
        ]
        assert found == [said]


@pytest.mark.parametrize(
    "name", ['a\nb"c\\d', "a\\nb", "\udcff\udc80", 'x"} 1\nevil 2\n#', "x\r\ny"]
)
def test_a_name_adds_no_line_and_no_metric(name: str) -> None:
    plain = render(figures(busy_page(workloads=["plain"])))
    odd = render(figures(busy_page(workloads=[name])))
    assert odd.count(b"\n") == plain.count(b"\n")
    assert {at for at, *_ in samples(odd)} == {at for at, *_ in samples(plain)}


def test_what_a_scraper_asks_for_is_what_it_gets() -> None:
    told = figures(busy_page())
    page = Page(lambda: told)
    assert asked(page).startswith("200 text/plain; version=0.0.4")
    accept = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3"
    assert asked(page, accept=accept).startswith("200 application/openmetrics-text; version=1.0.0")
    assert asked(page, "HEAD").startswith("200 ")
    assert asked(page, "POST").startswith("405 ")
    for path in ("/", "/metric", "/metrics/", "/favicon.ico", "//metrics", "/../metrics"):
        assert asked(page, path=path).startswith("404 ")
    assert asked(Page(lambda: None)).startswith("503 ")


@pytest.mark.parametrize(
    ("asked_for", "zipped"),
    [
        ("gzip", True),
        ("deflate, GZIP;q=0.5", True),
        ("gzip;q=0", False),
        ("br", False),
        ("", False),
    ],
)
def test_gzip_where_it_is_taken(asked_for: str, *, zipped: bool) -> None:
    told = figures(busy_page())
    answer = Page(lambda: told).answer(Request("GET", "/metrics", {"accept-encoding": asked_for}))
    assert answer.status is HTTPStatus.OK
    assert (dict(answer.headers).get("Content-Encoding") == "gzip") is zipped
    assert (gzip.decompress(answer.body) if zipped else answer.body) == render(told)


def test_many_scrapers_of_one_turn_share_one_page() -> None:
    turns: list[Figures] = [figures(busy_page())]
    page = Page(lambda: turns[-1])
    request = Request("GET", "/metrics", {})
    first = page.answer(request).body
    assert page.answer(request).body is first
    turns.append(figures(busy_page(), busy_page(1)))
    second = page.answer(request).body
    assert total(second, "wattledger_requests_total") == 2 * total(
        first, "wattledger_requests_total"
    )
