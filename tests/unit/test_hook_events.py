"""The hook's buffer: bounded, and exact about what it lost."""

from __future__ import annotations

import threading

from hypothesis import given
from hypothesis import strategies as st

from wattledger_collectors.engines.events import Counts, Event, EventBuffer


def step(number: int, decode_tokens: int = 1) -> Event:
    return ("step", "m", number, number + 1, (("r", 2, decode_tokens, 0),))


def token(number: int) -> Event:
    return ("token", "m", number, number + 1, "r", 7)


def finish(number: int) -> Event:
    return ("finish", "m", number, "r", 2, 0, 1, False)


def columns(number: int, requests: int) -> Event:
    names = [f"r{at}" for at in range(requests)]
    tokens = [1] * requests
    return ("columns", "m", number, number + 1, names, tokens, tokens, tokens)


def tally(number: int) -> Event:
    return ("tally", "m", number, 3, 30, 0, 9)


def counted(events: list[Event]) -> Counts:
    counts = Counts()
    for event in events:
        counts.count(event)
    return counts


def test_takes_in_order_and_no_more_than_asked() -> None:
    buffer = EventBuffer()
    events = [step(number) for number in range(10)]
    for event in events:
        buffer.add(event)
    assert buffer.take(4) == events[:4]
    assert buffer.take(100) == events[4:]
    assert buffer.take(1) == []


def test_the_oldest_make_room_and_are_counted_with_their_tokens() -> None:
    buffer = EventBuffer(limit=3)
    for event in (step(0, decode_tokens=5), finish(1), step(2), step(3), step(4)):
        buffer.add(event)
    assert buffer.dropped == Counts(1, 2, 5, 1)
    assert buffer.take(9) == [step(2), step(3), step(4)]


@given(
    st.lists(
        st.one_of(
            st.just("take"),
            st.sampled_from((step, token, finish, tally, lambda at: columns(at, at))).flatmap(
                lambda make: st.integers(0, 9).map(make)
            ),
        )
    )
)
def test_what_was_told_is_taken_or_counted_as_dropped(moves: list[Event | str]) -> None:
    buffer = EventBuffer(limit=4)
    told: list[Event] = []
    taken: list[Event] = []
    for move in moves:
        if isinstance(move, str):
            taken += buffer.take(2)
        else:
            told.append(move)
            buffer.add(move)
        assert len(buffer) <= 4
    taken += buffer.take(9)
    both = counted(taken)
    for name in ("steps", "prefill_tokens", "decode_tokens", "finishes"):
        total = getattr(both, name) + getattr(buffer.dropped, name)
        assert total == getattr(counted(told), name)


def test_many_threads_lose_nothing_uncounted() -> None:
    buffer = EventBuffer(limit=50)
    taken: list[Event] = []
    done = threading.Event()

    def tell() -> None:
        for number in range(20_000):
            buffer.add(step(number))

    def take() -> None:
        while not done.is_set():
            taken.extend(buffer.take(7))

    tellers = [threading.Thread(target=tell) for _ in range(4)]
    taker = threading.Thread(target=take)
    for thread in (*tellers, taker):
        thread.start()
    for thread in tellers:
        thread.join()
    done.set()
    taker.join()
    assert len(buffer) <= 50 + len(tellers)
    assert len(taken) + len(buffer) + buffer.dropped.events == 4 * 20_000
    assert buffer.dropped.steps == buffer.dropped.decode_tokens


def test_what_went_in_unlooked_at_is_pushed_out_and_counted_at_the_next_look() -> None:
    buffer = EventBuffer(limit=3)
    for number in range(10):
        buffer.append(token(number))
    buffer.add(token(10))
    assert buffer.dropped == Counts(steps=8, decode_tokens=8)
    assert buffer.take(9) == [token(8), token(9), token(10)]


def test_a_closed_buffer_keeps_nothing_to_speak_of() -> None:
    buffer = EventBuffer()
    buffer.add(step(1))
    buffer.close()
    for number in range(1_000):
        buffer.append(token(number))
        buffer.add(step(number))
    assert len(buffer) <= 1


def test_a_cleared_buffer_starts_again() -> None:
    buffer = EventBuffer(limit=1)
    buffer.add(step(1))
    buffer.add(step(2))
    buffer.clear()
    assert buffer.dropped == Counts()
    assert buffer.take(9) == []


def test_steps_of_many_requests_are_bounded_by_their_requests() -> None:
    buffer = EventBuffer(limit=100, most_entries=1_000)
    for number in range(30):
        buffer.add(columns(number, 256))
    assert len(buffer) == 3
    assert buffer.dropped == Counts(27, 27 * 256, 27 * 256, 0)
    buffer.add(columns(30, 5_000))
    assert len(buffer) == 1
    buffer.clear()
    buffer.add(columns(31, 256))
    assert len(buffer) == 1


def test_a_batch_ends_with_the_step_that_fills_it() -> None:
    buffer = EventBuffer()
    events = [columns(number, 256) for number in range(10)]
    for event in events:
        buffer.add(event)
    assert buffer.take(512, most_entries=1_000) == events[:4]
    assert buffer.take(512, most_entries=1) == events[4:5]
    assert buffer.take(512) == events[5:]


def test_requests_without_names_count_as_many() -> None:
    assert counted([tally(1), finish(2)]) == Counts(0, 0, 0, 4)
