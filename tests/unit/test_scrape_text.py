"""What is read off a Prometheus page, and what is refused."""

from __future__ import annotations

import pytest

from wattledger_collectors.scrape.names import Metric, NamesScraper, Source
from wattledger_collectors.scrape.protocol import Kind, ScrapeError, Series
from wattledger_collectors.scrape.text import samples


def read(page: str, *names: str) -> list[tuple[str, dict[str, str], float]]:
    found = samples(page.encode(), names)
    return [(sample.name, dict(sample.labels), sample.value) for sample in found]


def test_a_name_may_hold_colons_and_end_in_total_or_not() -> None:
    page = "# TYPE a:b_total counter\na:b_total 1\n# TYPE c gauge\nc 2\na:b_created 1.7e9\n"
    assert read(page, "a:b", "c_total") == [("a:b", {}, 1.0), ("c", {}, 2.0)]


def test_only_the_very_name_is_read() -> None:
    assert read("tokens_sum 5\ntokens_summed 6\ntokens_sum_total 7\n", "tokens") == []
    assert read("tokens_sum 5\ntokens_count 1\n", "tokens_sum") == [("tokens_sum", {}, 5.0)]


def test_labels_are_read_whatever_is_in_them() -> None:
    page = 'x{a="1,2",b="}\\" \\n\u2028"} 3 1700000000000\nx{a=""} 4\n'
    assert read(page, "x") == [
        ("x", {"a": "1,2", "b": '}" \n\u2028'}, 3.0),
        ("x", {"a": ""}, 4.0),
    ]


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-Inf", "-1", "9007199254740992", "1e300"])
def test_what_is_no_count_is_refused(value: str) -> None:
    with pytest.raises(ScrapeError, match="which is no count"):
        read(f"x_total {value}\n", "x")
    # Whatever a metric says that nobody asked for.
    assert read(f"y {value}\nx 1\n", "x") == [("x", {}, 1.0)]


@pytest.mark.parametrize(
    ("page", "why"),
    [
        (b"x 1\nx", "middle of a line"),
        (b"x 12", "middle of a line"),
        (b"x 1\n\xff\xfe\n", "not UTF-8 at byte 4"),
        (b"x one\n", "no Prometheus text"),
        (b'x{a="1 2\n', "no Prometheus text"),
        (b"x\n", "no Prometheus text"),
        (b"x 1\nx_total 2\n", "twice"),
        (b'x{a="1",b="2"} 1\nx{b="2",a="1"} 1\n', "twice"),
        (b"x{a=" + b'"%d"} 1\n' % 1 + b'x{a="1"} 2\n', "twice"),
        (b"".join(b'x{a="%d"} 1\n' % at for at in range(10_001)), "10001 series"),
    ],
)
def test_a_page_that_cannot_be_trusted_is_refused(page: bytes, why: str) -> None:
    with pytest.raises(ScrapeError, match=why):
        samples(page, ["x"])


def test_a_page_may_be_empty_or_of_something_else() -> None:
    assert samples(b"", ["x"]) == []
    assert samples(b"<html>\n<p>x 1</p>\n</html>\n", ["x"]) == []


SCRAPER = NamesScraper(
    kind="k",
    mend="m",
    sources=(
        Source({Kind.PREFILL: Metric("live", {"mode": "p"}), Kind.DECODE: Metric("d")}),
        Source({Kind.PROMPT: Metric("whole"), Kind.DECODE: Metric("d")}),
    ),
    running=Metric("r"),
    replica_labels=("rank",),
    epoch_label="model",
)


def test_series_keep_their_labels_apart_from_replicas() -> None:
    reading = SCRAPER.read(
        (b'live{mode="p",rank="1",model="m"} 4\nr{rank="1"} 2\nr{rank="2"} 2\n',)
    )
    labels = (("mode", "p"), ("model", "m"))
    assert reading.counters == {Series(Kind.PREFILL, 0, labels, "1", "m"): 4.0}
    assert (reading.tier, reading.running) == (0, 2)


def test_what_sources_share_tells_of_no_source() -> None:
    assert SCRAPER.read((b"d 1\n",)).tier is None
    assert SCRAPER.read((b"d 1\nwhole 1\n",)).tier == 1
    assert SCRAPER.read((b'd 1\nwhole 1\nlive{mode="p"} 1\n',)).tier == 0
