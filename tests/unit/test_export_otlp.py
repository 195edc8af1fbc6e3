"""OTLP: what a real receiver gets, and what happens where it is away, slow or refuses."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fakes.figures import IDENTITY, a_snapshot, busy_page, figures, gpus, node_page
from fakes.otlp_receiver import OtlpReceiver
from fakes.pages import GPU0, NODE0
from wattledger.errors import InputError
from wattledger.records import UJ_PER_J
from wattledger_daemon.export.figures import Figures
from wattledger_daemon.export.headers import read_headers
from wattledger_daemon.export.otlp import Sender, metrics_url
from wattledger_daemon.export.totals import Quantity

FAST_S = 0.05
NEVER_S = 3600.0


@contextmanager
def sending(
    endpoint: str,
    said: list[Figures],
    *,
    period_s: float = NEVER_S,
    headers: dict[str, str] | None = None,
) -> Iterator[Sender]:
    sender = Sender(endpoint, headers or {}, IDENTITY, lambda: said[-1] if said else None, period_s)
    sender.start()
    try:
        yield sender
    finally:
        sender.stop()


def tell(receiver: OtlpReceiver, told: Figures) -> None:
    """Have the receiver told once at least."""
    with sending(receiver.endpoint, [told], period_s=FAST_S):
        receiver.wait_for_tries(1)


@pytest.fixture
def receiver() -> Iterator[OtlpReceiver]:
    with OtlpReceiver() as found:
        yield found


def test_a_receiver_gets_the_same_totals_under_the_names_of_the_conventions(
    receiver: OtlpReceiver,
) -> None:
    workloads = [f"w{n}" for n in range(40)]
    told = figures(busy_page(devices=gpus(8), workloads=workloads))
    tell(receiver, told)
    metered_j = (
        sum(v for s, v in told.standing.totals if s.quantity is Quantity.METERED_UJ) / UJ_PER_J
    )
    assert receiver.total("hw.energy") == pytest.approx(metered_j, rel=1e-12)
    assert receiver.total("wattledger.energy") == pytest.approx(metered_j, rel=1e-12)
    assert len(receiver.metrics["wattledger.energy"]) == 8 * 40
    assert receiver.total("wattledger.tokens", {"gen_ai.token.type": "output"}) == 40 * 7
    assert receiver.total("wattledger.tokens", {"wattledger.phase": "prefill"}) == 40 * 100
    assert receiver.total("wattledger.tokens", {"wattledger.phase": "cached"}) == 40 * 3
    assert receiver.total("wattledger.requests") == 40
    assert receiver.total("wattledger.events.late") == 2
    assert receiver.kinds["hw.energy"] == receiver.kinds["wattledger.energy"] == ("sum", "J")
    assert receiver.kinds["hw.power"] == ("gauge", "W")
    assert receiver.metrics["hw.power"] == [
        (
            250.5,
            {
                "hw.id": "gpu0",
                "hw.type": "gpu",
                "hw.name": "NVIDIA H200",
                "wattledger.quality": "measured",
            },
        )
    ]


def test_the_resource_says_whose_they_are(receiver: OtlpReceiver) -> None:
    tell(receiver, figures(busy_page()))
    assert receiver.resource.items() >= {
        ("service.name", "wattledger"),
        ("service.version", "1.2.3"),
        ("service.instance.id", "run-1"),
        ("host.name", "h1"),
    }


def test_the_whole_node_has_names_of_its_own(receiver: OtlpReceiver) -> None:
    told = figures(node_page(), snapshot=a_snapshot((GPU0, NODE0)))
    tell(receiver, told)
    assert receiver.metrics["hw.energy"] == [(2.0, {"hw.id": "gpu0", "hw.type": "gpu"})]
    assert receiver.metrics["hw.host.energy"] == [(9.0, {"hw.id": "node0"})]
    assert [a["hw.id"] for _, a in receiver.metrics["hw.host.power"]] == ["node0"]
    assert receiver.total("wattledger.energy") == 2.0


def test_more_series_than_the_sdk_would_keep_are_all_told(receiver: OtlpReceiver) -> None:
    workloads = [f"w{n}" for n in range(190)]
    told = figures(busy_page(devices=gpus(16), workloads=workloads))
    tell(receiver, told)
    assert len(receiver.metrics["wattledger.energy"]) == 190 * 16
    assert receiver.total("wattledger.energy") == pytest.approx(receiver.total("hw.energy"))


def test_an_unknown_power_is_no_point(receiver: OtlpReceiver) -> None:
    tell(receiver, figures(busy_page(), snapshot=a_snapshot(power_w=None)))
    assert receiver.metrics.get("hw.power", []) == []


def test_odd_names_arrive(receiver: OtlpReceiver) -> None:
    tell(receiver, figures(busy_page(workloads=["a\n\"b'", "\udcff"])))
    found = {a["wattledger.workload"] for _, a in receiver.metrics["wattledger.energy"]}
    assert found == {"a\n\"b'", "?"}


@pytest.mark.parametrize(
    ("status", "reason"), [(503, "HTTP 503"), (401, "HTTP 401"), (307, "HTTP 307")]
)
def test_a_receiver_that_refuses_is_told_once_and_misses_nothing(
    receiver: OtlpReceiver, caplog: pytest.LogCaptureFixture, status: int, reason: str
) -> None:
    receiver.status = status
    said = [figures(busy_page())]
    with caplog.at_level(logging.DEBUG), OtlpReceiver() as elsewhere:
        receiver.redirect = f"{elsewhere.endpoint}/v1/metrics" if status == 307 else ""
        with sending(
            receiver.endpoint, said, period_s=FAST_S, headers={"x-token": "s3cret"}
        ) as sender:
            receiver.wait_for_tries(4)
            said.append(figures(busy_page(), busy_page(1)))
            receiver.status = 200
            receiver.redirect = ""
            receiver.wait_for_tries(receiver.tries + 3)
            sender.stop()
        assert elsewhere.tries == 0
    assert receiver.total("wattledger.requests") == 4
    warnings = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert [w.partition(" ")[0] for w in warnings] == [
        "event=otlp_failing",
        "event=otlp_works_again",
    ]
    assert f'reason="{reason}"' in warnings[0]
    assert receiver.headers["x-token"] == "s3cret"
    assert "s3cret" not in caplog.text


def test_a_receiver_that_is_away_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    with OtlpReceiver() as gone:
        endpoint = gone.endpoint
    sender = Sender(endpoint, {}, IDENTITY, lambda: figures(busy_page()), NEVER_S)
    with caplog.at_level(logging.INFO):
        sender._turn()
        sender._turn()
    sender.stop()
    warnings = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert 'reason="it cannot be reached"' in warnings[0]


def test_a_receiver_that_hangs_does_not_keep_the_daemon(receiver: OtlpReceiver) -> None:
    receiver.hang()
    with sending(receiver.endpoint, [figures(busy_page())], period_s=FAST_S) as sender:
        receiver.wait_for_tries(1)
        began_s = time.monotonic()
        sender.stop()
        assert time.monotonic() - began_s < 1.0


@pytest.mark.parametrize("url", ["http://h:1", "http://h:1/", "http://h:1/v1/metrics"])
def test_where_metrics_go(url: str) -> None:
    assert metrics_url(url) == "http://h:1/v1/metrics"


def test_a_file_of_headers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "headers"
    path.write_text("# ours\n\nAuthorization: Bearer a:b=\nx-scope:  t1 \n")
    path.chmod(0o600)
    assert read_headers(path) == {"Authorization": "Bearer a:b=", "x-scope": "t1"}
    assert caplog.text == ""
    path.chmod(0o644)
    read_headers(path)
    assert f'mend="chmod 600 {path}"' in caplog.text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"s3cret", "headers:1: not a header: write it as `name: value`"),
        (b"a: b\nx y: s3cret", "headers:2: not a header"),
        (b"a:\n", "headers:1: not a header"),
        (b"a: s3cret\x01", "headers:1: not a header"),
        (b"a: s3cret\xff", "headers: not ASCII at byte 9"),
    ],
)
def test_a_wrong_file_of_headers_is_named_and_not_told(
    tmp_path: Path, text: bytes, said: str
) -> None:
    path = tmp_path / "headers"
    path.write_bytes(text)
    with pytest.raises(InputError) as refused:
        read_headers(path)
    assert said in str(refused.value)
    assert "s3cret" not in str(refused.value)


def test_a_file_of_headers_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"otlp\.headers_file = .*No such file"):
        read_headers(tmp_path / "none")
    with pytest.raises(InputError, match="Is a directory"):
        read_headers(tmp_path)
