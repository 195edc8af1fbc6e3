"""Engines' batches: what is refused, by field, and what a good one becomes."""

from __future__ import annotations

import pytest

from fakes.collecting import NOW_NS, Change, S, batch_of, changed
from fakes.daemon_parts import BOOT_ID
from wattledger.records import Finish, RequestTokens, Step
from wattledger_daemon import batches
from wattledger_daemon.batches import BadBatchError, check_batch, events_of

REFUSED: list[tuple[str, Change]] = [
    ("source is empty", lambda b: setattr(b, "source", "")),
    ("source is longer than 512", lambda b: setattr(b, "source", "x" * 513)),
    ("boot_id is not this host's", lambda b: setattr(b, "boot_id", "another")),
    ("sent_ns is ", lambda b: setattr(b, "sent_ns", NOW_NS + 61 * S)),
    ("sent_ns is ", lambda b: setattr(b, "sent_ns", NOW_NS - 61 * S)),
    ("sequence is 0 for a batch with events", lambda b: setattr(b, "sequence", 0)),
    ("sequence above", lambda b: setattr(b, "sequence", 2**63)),
    ("dropped_events above", lambda b: setattr(b, "dropped_events", 2**63)),
    ("engine.engine is empty", lambda b: b.ClearField("engine")),
    ("engine.kind is empty", lambda b: setattr(b.engine, "kind", "")),
    ("engine.job is longer than 512", lambda b: setattr(b.engine, "job", "j" * 513)),
    ("engine.pids name no process", lambda b: b.engine.pids.append(0)),
    ("engine.pids name no process", lambda b: b.engine.pids.append(2**31)),
    ("engine.pids name a process twice", lambda b: b.engine.pids.extend([7, 7])),
    ("engine.pids name 1025, at most 1024", lambda b: b.engine.pids.extend(range(100, 1124))),
    ("request_tenants has 1 entries", lambda b: b.request_tenants.append("acme")),
    ("request_ids name a request twice", lambda b: b.request_ids.append("r1")),
    ("steps[0].end_ns is 1, before its start", lambda b: setattr(b.steps[0], "end_ns", 1)),
    ("steps[0].start_ns is ", lambda b: setattr(b.steps[0], "start_ns", NOW_NS - 86_401 * S)),
    ("steps[0].end_ns is ", lambda b: setattr(b.steps[0], "end_ns", NOW_NS + 61 * S)),
    ("steps[0].requests point to 2", lambda b: b.steps[0].requests.__setitem__(0, 2)),
    ("steps[0].requests name a request twice", lambda b: b.steps[0].requests.__setitem__(0, 1)),
    ("steps[0].requests point to -1", lambda b: b.steps[0].ClearField("requests")),
    ("steps[0].prefill_tokens has 3 entries for 2", lambda b: b.steps[0].prefill_tokens.append(1)),
    ("steps[0].context_tokens has 0 entries", lambda b: b.steps[0].ClearField("context_tokens")),
    (
        "steps[0].decode_tokens counts above",
        lambda b: b.steps[0].decode_tokens.__setitem__(0, 2**31 + 1),
    ),
    ("finishes[0].request point to 9", lambda b: setattr(b.finishes[0], "request", 9)),
    ("finishes[0].t_ns is ", lambda b: setattr(b.finishes[0], "t_ns", NOW_NS + 61 * S)),
    ("finishes[0].cached_tokens is 101", lambda b: setattr(b.finishes[0], "cached_tokens", 101)),
    ("finishes[0].decode_tokens is ", lambda b: setattr(b.finishes[0], "decode_tokens", 2**32 - 1)),
]


@pytest.mark.parametrize(("said", "change"), REFUSED, ids=[said for said, _ in REFUSED])
def test_a_malformed_batch_is_refused_by_field(said: str, change: Change) -> None:
    with pytest.raises(BadBatchError) as refused:
        check_batch(changed(change), boot_id=BOOT_ID, now_ns=NOW_NS)
    assert str(refused.value).startswith(said)


def test_a_batch_of_too_many_entries_is_refused() -> None:
    batch = batch_of()
    for _ in range(batches.MAX_ENTRIES):
        batch.finishes.add(t_ns=NOW_NS)
    with pytest.raises(BadBatchError, match="entries, at most 100000"):
        check_batch(batch, boot_id=BOOT_ID, now_ns=NOW_NS)


def test_a_good_batch_becomes_evidence() -> None:
    batch = batch_of()
    batch.steps.add(start_ns=NOW_NS - 2 * S, end_ns=NOW_NS - S)
    check_batch(batch, boot_id=BOOT_ID, now_ns=NOW_NS)
    step, unknown, finish = events_of(batch)
    assert isinstance(step, Step)
    assert isinstance(unknown, Step)
    assert step.requests == (RequestTokens("r1", 100, 0, 0), RequestTokens("r2", 0, 1, 512))
    assert unknown.requests == ()
    assert finish == Finish("fake-1", "r1", NOW_NS, 100, 20, 1)
    assert tuple(events_of(batch)) == (step, unknown, finish)


def test_steps_of_a_restarted_engine_are_other_steps() -> None:
    seqs = set()
    for sequence in (1, 2):
        for source in ("fake/1/1", "fake/2/9"):
            (step, _) = events_of(batch_of(sequence, source=source))
            assert isinstance(step, Step)
            assert 0 <= step.seq < 2**63
            seqs.add(step.seq)
    assert len(seqs) == 4
