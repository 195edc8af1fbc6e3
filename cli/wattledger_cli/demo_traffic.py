"""The demo's clients: a few threads that keep two engines busy, each in its own way."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

TIMEOUT_S = 60.0
_WORDS = ("the", "meter", "reads", "every", "joule", "and", "the", "ledger", "tells", "whose")


@dataclass(frozen=True, slots=True)
class Mix:
    """What one job asks of its engine: the length of its prompts in words, and of its answers."""

    job: str
    port: int
    prompt_words: int
    answer_tokens: int


@dataclass(slots=True)
class Tally:
    """What the engines answered, as their own `usage` counts it; shared by all clients."""

    requests: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    failures: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, prompt_tokens: int, answer_tokens: int) -> None:
        """Count one finished request."""
        with self._lock:
            self.requests += 1
            self.prompt_tokens += prompt_tokens
            self.answer_tokens += answer_tokens

    def fail(self, reason: str) -> None:
        """Keep why a request got no answer."""
        with self._lock:
            self.failures.append(reason)


def complete(mix: Mix, turn: int, tally: Tally) -> None:
    """Ask for one completion and count it."""
    words = [_WORDS[(turn + at * (turn % 5 + 1)) % len(_WORDS)] for at in range(mix.prompt_words)]
    body = {"prompt": " ".join(words), "max_tokens": mix.answer_tokens, "seed": turn}
    connection = http.client.HTTPConnection("127.0.0.1", mix.port, timeout=TIMEOUT_S)
    try:
        connection.request(
            "POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"}
        )
        response = connection.getresponse()
        answer = json.loads(response.read())
        usage = answer["usage"]
        tally.add(usage["prompt_tokens"], usage["completion_tokens"])
    except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
        tally.fail(f"{mix.job}: {type(error).__name__}: {error}")
    finally:
        connection.close()


def drive(
    mixes: Sequence[Mix], clients: int, seconds: float, progress: Callable[[float, Tally], None]
) -> Tally:
    """Keep `clients` threads asking for `seconds`, dealt over `mixes`; return what they got.

    `progress` is called about every five seconds with the seconds gone by. A request that is
    under way when the time is up is waited for.
    """
    tally = Tally()
    stop = threading.Event()

    def client(mix: Mix, number: int) -> None:
        turn = number
        while not stop.is_set() and not tally.failures:
            complete(mix, turn, tally)
            turn += clients

    threads = [
        threading.Thread(target=client, args=(mixes[number % len(mixes)], number), daemon=True)
        for number in range(clients)
    ]
    started_s = time.monotonic()
    for thread in threads:
        thread.start()
    try:
        while (gone_s := time.monotonic() - started_s) < seconds and not tally.failures:
            stop.wait(min(5.0, seconds - gone_s))
            progress(time.monotonic() - started_s, tally)
    finally:
        stop.set()
    for thread in threads:
        thread.join(TIMEOUT_S)
    return tally
