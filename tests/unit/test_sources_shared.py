"""One engine of which several processes report, as vLLM's API servers do."""

from __future__ import annotations

from pathlib import Path

from fakes.collecting import NOW_NS, a_world, batch_of


def test_an_engine_is_shown_once_with_what_all_its_sources_told(tmp_path: Path) -> None:
    world = a_world(tmp_path)
    for source, pids, decode_tokens, dropped, coarse in (
        ("vllm/1/1/0", (7, 41), 30, 2, False),
        ("vllm/2/1/0", (9, 41), 12, 1, True),
    ):
        batch = batch_of(1, source=source)
        del batch.engine.pids[:]
        batch.engine.pids.extend(pids)
        batch.engine.coarse = coarse
        batch.totals.decode_tokens = decode_tokens
        batch.totals.finishes = 1
        batch.dropped_events = dropped
        world.sources.take(batch, NOW_NS + decode_tokens)
    (engine,) = world.sources.engines()
    assert engine.engine == "fake-1"
    assert engine.pids == (7, 9, 41)
    assert (engine.decode_tokens, engine.finishes) == (42, 2)
    assert engine.dropped_events == 3
    assert engine.last_ns == NOW_NS + 30
    assert engine.coarse


def test_other_engines_keep_their_own(tmp_path: Path) -> None:
    world = a_world(tmp_path)
    for name in ("b", "a"):
        batch = batch_of(1, source=f"vllm/{name}")
        batch.engine.engine = name
        world.sources.take(batch, NOW_NS)
    assert [engine.engine for engine in world.sources.engines()] == ["a", "b"]
