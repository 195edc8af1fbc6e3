"""The outbox: numbers without holes, bounded, nothing lost uncounted, whatever the daemon does."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from wattledger_collectors.outbox import EMPTY, Bounds, Outbox

BOUNDS = Bounds(payload_bytes=40, batches=6, uncommitted=4)


def send_all(outbox: Outbox) -> list[tuple[int, bytes]]:
    sent = []
    while parcel := outbox.next():
        sent.append(parcel)
        outbox.delivered(parcel[0])
    return sent


def filled(count: int, bounds: Bounds = BOUNDS) -> Outbox:
    outbox = Outbox(bounds)
    for number in range(1, count + 1):
        outbox.add(b"%d" % number, events=1)
    return outbox


def test_a_batch_is_sent_once_to_a_daemon_that_answers() -> None:
    outbox = filled(3)
    assert send_all(outbox) == [(1, b"1"), (2, b"2"), (3, b"3")]
    assert outbox.uncommitted
    assert send_all(outbox) == []


def test_a_batch_that_was_not_delivered_is_offered_again() -> None:
    outbox = filled(2)
    assert outbox.next() == outbox.next() == (1, b"1")


def test_committed_batches_are_forgotten() -> None:
    outbox = filled(3)
    send_all(outbox)
    outbox.commit(2)
    assert len(outbox) == 1
    outbox.commit(3)
    assert not outbox.uncommitted


def test_another_daemon_gets_what_the_last_one_had_not_committed() -> None:
    outbox = filled(4)
    send_all(outbox)
    outbox.rewind(2)
    assert send_all(outbox) == [(3, b"3"), (4, b"4")]


def test_a_daemon_that_commits_nothing_gets_no_more_than_the_window() -> None:
    outbox = filled(6)
    assert [number for number, _ in send_all(outbox)] == [1, 2, 3, 4]
    outbox.commit(1)
    assert [number for number, _ in send_all(outbox)] == [5]


def test_what_is_dropped_unsent_leaves_no_hole() -> None:
    outbox = filled(8)
    assert outbox.dropped_events == 2
    assert send_all(outbox) == [(1, b"3"), (2, b"4"), (3, b"5"), (4, b"6")]


def test_what_is_dropped_after_it_was_sent_goes_empty_to_another_daemon() -> None:
    outbox = filled(4)
    send_all(outbox)
    for payload in (b"5", b"6", b"7", b"8"):
        outbox.add(payload, events=1)
    assert outbox.dropped_events == 2
    outbox.rewind(0)
    assert send_all(outbox) == [(1, EMPTY), (2, EMPTY), (3, b"3"), (4, b"4")]


def test_a_refused_batch_goes_empty_and_a_refused_empty_one_is_passed_over() -> None:
    outbox = filled(2)
    outbox.refuse(1)
    assert outbox.next() == (1, EMPTY)
    outbox.refuse(1)
    assert outbox.next() == (2, b"2")
    assert outbox.dropped_events == 1


def test_bytes_are_bounded_too() -> None:
    outbox = Outbox(BOUNDS)
    for _ in range(5):
        outbox.add(b"x" * 15, events=3)
    assert outbox.payload_bytes == 30
    assert outbox.dropped_events == 9


class Daemon(RuleBasedStateMachine):
    """A daemon that crashes, lags, refuses and loses replies, at the other end of an outbox."""

    def __init__(self) -> None:
        super().__init__()
        self.outbox = Outbox(BOUNDS)
        self.made = 0
        self.memory: dict[int, bytes] = {}
        self.disk: dict[int, bytes] = {}

    @initialize(count=st.integers(0, 3))
    def begin(self, count: int) -> None:
        for _ in range(count):
            self.make(5)

    @rule(size=st.integers(3, 25))
    def make(self, size: int) -> None:
        self.made += 1
        self.outbox.add(b"%d:".ljust(size, b".") % self.made, events=1)

    @rule(reply_lost=st.booleans())
    def send(self, reply_lost: bool) -> None:
        parcel = self.outbox.next()
        if parcel is None:
            return
        number, payload = parcel
        taken = {**self.disk, **self.memory}
        assert number <= max(taken, default=0) + 1, "a hole"
        before = taken.get(number, payload)
        assert payload in (before, EMPTY) or before == EMPTY, "one number, two contents"
        self.memory.setdefault(number, payload)
        if not reply_lost:
            self.outbox.delivered(number)

    @rule()
    def refuse(self) -> None:
        parcel = self.outbox.next()
        if parcel is not None and parcel[0] not in {**self.disk, **self.memory}:
            self.outbox.refuse(parcel[0])
            if parcel[1] == EMPTY:
                self.memory[parcel[0]] = EMPTY

    @rule()
    def commit(self) -> None:
        self.disk |= {k: v for k, v in self.memory.items() if k not in self.disk}
        self.memory.clear()
        self.outbox.commit(max(self.disk, default=0))

    @precondition(lambda self: self.memory)
    @rule()
    def crash(self) -> None:
        self.memory.clear()
        self.outbox.rewind(max(self.disk, default=0))

    @invariant()
    def bounded(self) -> None:
        assert self.outbox.payload_bytes <= BOUNDS.payload_bytes
        assert len(self.outbox) <= BOUNDS.batches

    def teardown(self) -> None:
        while self.outbox.uncommitted:
            parcel = self.outbox.next()
            if parcel is None:
                self.commit()
                continue
            self.memory.setdefault(*parcel)
            self.outbox.delivered(parcel[0])
        kept = [payload for payload in self.disk.values() if payload != EMPTY]
        assert len(kept) == len(set(kept)), "doubled"
        assert sorted(self.disk) == list(range(1, len(self.disk) + 1)), "a hole"
        assert len(kept) + self.outbox.dropped_events >= self.made, "lost in silence"


Daemon.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestDaemon = Daemon.TestCase
