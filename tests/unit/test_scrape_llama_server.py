"""llama-server: `/metrics` joined with `/slots`, on its real output and against a model of it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattledger_collectors.scrape.counting import Counting, Tally
from wattledger_collectors.scrape.llama_server import LlamaServerScraper, scraper
from wattledger_collectors.scrape.protocol import Kind, Reading, ScrapeError, find_scrapers

DATA = Path(__file__).parents[1] / "data" / "scrape" / "llama_server"
URL = "http://127.0.0.1:8080/metrics"


def recorded(when: str) -> tuple[bytes, bytes]:
    return (DATA / f"metrics_{when}.txt").read_bytes(), (DATA / f"slots_{when}.json").read_bytes()


def decoded(reading: Reading) -> float:
    return sum(v for series, v in reading.counters.items() if series.kind is Kind.DECODE)


def test_the_recorded_run_moves_while_it_runs_and_ends_at_the_counters() -> None:
    ours, counting = scraper(), Counting()
    told = []
    for second, when in enumerate(("idle", "running", "later", "after"), 1):
        reading = ours.read(recorded(when))
        counting.take(second * 10**9, reading)
        told.append((counting.told.decode_tokens, reading.running))
    assert told == [
        (0, 0),
        (24 + 243 + 247 + 247, 3),
        (24 + 315 + 319 + 319, 3),
        (2_724, 0),
    ]
    assert counting.told == Tally(54, 6, 2_724, 0)


def test_slots_are_asked_at_first_and_while_requests_run() -> None:
    ours = scraper()
    both = (URL, "http://127.0.0.1:8080/slots")
    assert ours.pages(URL) == both
    ours.read(recorded("idle"))
    assert ours.pages(URL) == (URL,)
    ours.read(recorded("running")[:1])
    assert ours.pages(URL) == both


@pytest.mark.parametrize(
    ("url", "slots"),
    [
        ("http://h/api/metrics?model=a", "http://h/api/slots?model=a"),
        ("https://h:1/metrics", "https://h:1/slots"),
        ("http://h/else", None),
    ],
)
def test_slots_stand_beside_the_metrics(url: str, slots: str | None) -> None:
    assert scraper().pages(url)[1:] == ((slots,) if slots else ())


def test_without_slots_the_counters_alone_are_told() -> None:
    ours = scraper()
    assert decoded(ours.read((recorded("running")[0], b""))) == 24
    assert decoded(ours.read((recorded("after")[0],))) == 2_724


@pytest.mark.parametrize(
    "slots",
    [
        b"{}",
        b"[",
        b"[" * 100_000,
        b"\xff",
        b'[{"is_processing": true}]',
        b'[{"is_processing": true, "next_token": [{"n_decoded": -1}]}]',
        b'[{"is_processing": true, "next_token": [{"n_decoded": true}]}]',
        b'[{"is_processing": true, "next_token": [{"n_decoded": 1e300}]}]',
    ],
)
def test_slots_that_cannot_be_read_are_a_fault(slots: bytes) -> None:
    with pytest.raises(ScrapeError, match="/slots"):
        scraper().read((recorded("idle")[0], slots))


def test_a_page_without_its_counters_tells_of_none() -> None:
    assert scraper().read((b"other 1\n",)).tier is None


def test_it_is_found_by_its_name() -> None:
    assert isinstance(find_scrapers()["llama_server"](), LlamaServerScraper)


@dataclass
class Server:
    """What llama-server counts: prompts at once, generated tokens at a request's end."""

    prompt: int = 0
    flushed: int = 0
    decodes: int = 0
    slots: list[int] = field(default_factory=lambda: [0, 0, 0])
    truth: int = 0

    def metrics(self) -> bytes:
        rows = {
            "prompt_tokens_total": self.prompt,
            "prompt_tokens_cached_total": 0,
            "tokens_predicted_total": self.flushed,
            "n_decode_total": self.decodes,
            "requests_processing": sum(map(bool, self.slots)),
        }
        return "".join(f"llamacpp:{name} {value:.6g}\n" for name, value in rows.items()).encode()

    def shown(self) -> bytes:
        return json.dumps(
            [{"is_processing": n > 0, "next_token": [{"n_decoded": n}]} for n in self.slots]
        ).encode()

    def generate(self, slot: int, tokens: int) -> None:
        if not self.slots[slot]:
            self.prompt += 7
        self.slots[slot] += tokens
        self.decodes += tokens
        self.truth += tokens

    def end(self, slot: int) -> None:
        self.flushed += self.slots[slot]
        self.slots[slot] = 0


moves = st.lists(
    st.one_of(
        st.tuples(st.just("generate"), st.integers(0, 2), st.integers(1, 500)),
        st.tuples(st.just("end"), st.integers(0, 2), st.just(0)),
        st.tuples(st.sampled_from(["look", "split look"]), st.integers(0, 2), st.just(0)),
    ),
    max_size=40,
)


@given(moves)
def test_never_more_than_was_generated_and_all_of_it_when_quiet(
    acts: list[tuple[str, int, int]],
) -> None:
    server, ours, counting = Server(), scraper(), Counting()
    t_ns = 0

    def look(between: int | None = None) -> None:
        nonlocal t_ns
        t_ns += 10**9
        bodies = [server.metrics()]
        if len(ours.pages(URL)) == 2:
            if between is not None:
                server.end(between)
            bodies.append(server.shown())
        counting.take(t_ns, ours.read(tuple(bodies)))
        assert counting.told.decode_tokens <= server.truth

    look()
    for act, slot, tokens in acts:
        if act == "generate":
            server.generate(slot, tokens)
        elif act == "end":
            server.end(slot)
        else:
            look(slot if act == "split look" else None)
    for slot in range(3):
        server.end(slot)
    look()
    assert counting.told.decode_tokens == server.truth
    assert counting.told.prefill_tokens == server.prompt


@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 300))
def test_a_restart_is_counted_from_nothing(before: int, after: int, live: int) -> None:
    ours, counting, first = scraper(), Counting(), Server()
    counting.take(1, ours.read((first.metrics(), first.shown())))
    first.generate(0, before)
    first.end(0)
    first.generate(1, live)
    counting.take(2, ours.read((first.metrics(), first.shown())))
    second = Server()
    second.generate(0, after)
    second.end(0)
    counting.take(3, ours.read((second.metrics(), second.shown())))
    seen = counting.told.decode_tokens
    # Where the new one has decoded as much, nothing that it shows tells it from the old one.
    if second.decodes < first.decodes:
        assert seen == first.truth + second.truth
    else:
        assert first.truth <= seen <= first.truth + second.truth


def test_rounded_counters_lag_and_do_not_add_up() -> None:
    ours, counting, server = scraper(), Counting(), Server()
    counting.take(1, ours.read((server.metrics(), server.shown())))
    for turn in range(2, 400):
        server.generate(turn % 3, 7_001)
        server.end(turn % 3)
        counting.take(turn, ours.read((server.metrics(),)))
        assert abs(counting.told.decode_tokens - server.truth) <= 5
