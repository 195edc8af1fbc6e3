"""Each engine's names, on two looks at its page (tests/data/scrape)."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest

from wattledger_collectors.scrape.counting import Counting, Finished, Tally, Work
from wattledger_collectors.scrape.protocol import find_scrapers

DATA = Path(__file__).parents[1] / "data" / "scrape"
S = 1_000_000_000

# Prefill computed, cached, decode, finished; of what one look to the next says.
MOVED = {
    # Pipeline ranks tell the same again, data-parallel ones add up; `decode` is the live counter.
    "sglang": Tally(300, 64, 100, 2),
    "tgi": Tally(61, 0, 84, 2),
    "tensorrt_llm": Tally(1024 - 256, 256, 276, 1),
    # One model went on, the other one was loaded anew and counts from 0.
    "triton": Tally(160 + 40, 0, 90 + 20, 2 + 1),
    # Two requests of a real server: 516 tokens, 512 of them cached, and 12 more; then 120 and 7.
    "vllm": Tally(4 + 120, 512, 12 + 7, 2),
}
RUNNING = {"sglang": 3, "tgi": 2, "tensorrt_llm": 0, "triton": 1, "vllm": 0}


@pytest.mark.parametrize("engine", sorted(MOVED))
def test_two_looks_say_what_came_between(engine: str) -> None:
    scraper = find_scrapers()[engine]()
    before, after = (
        scraper.read(((DATA / engine / f"{when}.txt").read_bytes(),))
        for when in ("before", "after")
    )
    counting = Counting()
    assert not counting.take(S, before).work
    told = counting.take(2 * S, after)
    moved = MOVED[engine]
    assert counting.told == moved
    assert told.work == (Work(S, 2 * S, moved.prefill_tokens, moved.decode_tokens),)
    assert told.finished == Finished(
        2 * S,
        moved.finished_requests,
        moved.prefill_tokens + moved.cached_tokens,
        moved.cached_tokens,
        moved.decode_tokens,
    )
    assert (scraper.kind, after.running) == (engine, RUNNING[engine])


def test_a_model_is_named_where_there_is_one() -> None:
    pages = {name: (DATA / name / "after.txt").read_bytes() for name in MOVED}
    made = find_scrapers()
    assert {name: made[name]().read((page,)).model for name, page in pages.items()} == {
        "sglang": "tiny",
        "tgi": "",
        "tensorrt_llm": "tiny",
        "triton": "",
        "vllm": "tiny",
    }


def test_the_readme_names_every_engine() -> None:
    text = files("wattledger_collectors.scrape").joinpath("README.md").read_text()
    assert [name for name in find_scrapers() if f"| `{name}`" not in text] == []


def without(page: bytes, *names: bytes) -> bytes:
    return b"".join(x for x in page.splitlines(keepends=True) if not any(n in x for n in names))


def test_sglang_without_live_counters_tells_of_finished_requests() -> None:
    scraper, counting = find_scrapers()["sglang"](), Counting()
    for at, when in enumerate(("before", "after")):
        page = without((DATA / "sglang" / f"{when}.txt").read_bytes(), b"realtime_tokens")
        counting.take(at * S, scraper.read((page,)))
    assert counting.told == Tally(364 - 64, 64, 90, 2)


def test_an_older_vllm_tells_whole_prompts() -> None:
    page = (
        'vllm:prompt_tokens_total{engine="0",model_name="m"} %d\n'
        'vllm:generation_tokens_total{engine="0",model_name="m"} %d\n'
        'vllm:num_requests_running{engine="0",model_name="m"} 1\n'
    )
    scraper, counting = find_scrapers()["vllm"](), Counting()
    for at, counts in enumerate([(10, 5), (30, 9)]):
        counting.take(at * S, scraper.read(((page % counts).encode(),)))
    assert counting.told == Tally(20, 0, 4, 0)


def test_a_tensorrt_llm_that_counts_no_tokens_says_so() -> None:
    page = (DATA / "tensorrt_llm" / "after.txt").read_bytes()
    reading = find_scrapers()["tensorrt_llm"]().read((without(page, b"_tokens"),))
    assert reading.tier is None
