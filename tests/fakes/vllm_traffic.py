"""Clients of a vLLM server that ask in every way there is, sixteen at a time."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fakes.vllm_server import VllmServer

CONCURRENCY = 16
SHARED = "measure each watt and each joule that was spent " * 30
"""A prompt long enough to fill several blocks of the prefix cache (128 tokens on CPUs)."""

LONGEST = 1900
"""Tokens of an answer whose client goes away: too many to be there before that is noticed."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the engine has to count for one HTTP request."""

    finishes: int
    prompt_tokens: int
    decode_tokens: int


class Clients:
    """Asks `server` and notes what it was told; a reply that is not 200 is an AssertionError.

    `tenants` take turns; each request's id begins with its tenant's name. `answers` holds what the
    server's `usage` said of each id, `hung_up` the ids that nobody waited for.
    """

    def __init__(self, server: VllmServer, *tenants: str) -> None:
        self.answers: dict[str, Answer] = {}
        self.hung_up: set[str] = set()
        self._server = server
        self._tenants = itertools.cycle(tenants or ("nobody",))
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._ways: tuple[Callable[[str], None], ...] = (
            self._plain,
            self._chat,
            self._streamed,
            self._streamed_chat,
            self._two_answers,
            self._long_prompt,
            self._shared_prompt,
            self._stop_string,
            self._two_prompts,
            self._one_token,
            self._hang_up,
            self._natural_end,
        )

    def ask(self, count: int) -> None:
        """`count` requests, each way in turn, and each reply read to its end."""
        ways = list(itertools.islice(itertools.cycle(self._ways), count))
        with ThreadPoolExecutor(CONCURRENCY) as pool:
            list(pool.map(self._ask, ways))

    def hang_up(self, count: int) -> None:
        """So many clients at once that go away in mid-stream."""
        with ThreadPoolExecutor(CONCURRENCY) as pool:
            list(pool.map(self._ask, [self._hang_up] * count))

    def _ask(self, way: Callable[[str], None]) -> None:
        with self._lock:
            name = f"{next(self._tenants)}-{next(self._numbers)}"
        way(name)

    def _note(self, name: str, usage: Any, finishes: int = 1) -> None:
        with self._lock:
            self.answers[name] = Answer(
                finishes, usage["prompt_tokens"], usage["completion_tokens"]
            )

    def _post(self, path: str, name: str, **body: object) -> Any:
        asked = {"model": "tiny", "ignore_eos": True, **body}
        return self._server.request("POST", path, asked, **{"X-Request-Id": name})

    def _plain(self, name: str) -> None:
        reply = self._post("/v1/completions", name, prompt=f"hello {name}", max_tokens=30)
        assert reply["id"] == f"cmpl-{name}"
        self._note(name, reply["usage"])

    def _chat(self, name: str) -> None:
        messages = [{"role": "user", "content": f"what is the energy of {name}?"}]
        reply = self._post("/v1/chat/completions", name, messages=messages, max_tokens=25)
        assert reply["id"] == f"chatcmpl-{name}"
        self._note(name, reply["usage"])

    def _stream(self, path: str, name: str, **body: object) -> Generator[Any, None, None]:
        asked = {"ignore_eos": True, "stream_options": {"include_usage": True}, **body}
        return self._server.stream(path, asked, **{"X-Request-Id": name})

    def _streamed(self, name: str) -> None:
        chunks = list(self._stream("/v1/completions", name, prompt=f"a {name}", max_tokens=40))
        self._note(name, chunks[-1]["usage"])

    def _streamed_chat(self, name: str) -> None:
        messages = [{"role": "user", "content": f"hello world {name}"}]
        path = "/v1/chat/completions"
        chunks = list(self._stream(path, name, messages=messages, max_tokens=35))
        self._note(name, chunks[-1]["usage"])

    def _two_answers(self, name: str) -> None:
        reply = self._post("/v1/completions", name, prompt=f"two {name}", max_tokens=12, n=2)
        assert len(reply["choices"]) == 2
        # Each of the two answers has the whole prompt to itself.
        prompt_tokens = 2 * reply["usage"]["prompt_tokens"]
        self._note(name, reply["usage"] | {"prompt_tokens": prompt_tokens}, finishes=2)

    def _long_prompt(self, name: str) -> None:
        prompt = f"{name} " + "a request has a prompt of many tokens " * 50
        self._note(name, self._post("/v1/completions", name, prompt=prompt, max_tokens=5)["usage"])

    def _shared_prompt(self, name: str) -> None:
        reply = self._post("/v1/completions", name, prompt=SHARED + name, max_tokens=6)
        self._note(name, reply["usage"])

    def _stop_string(self, name: str) -> None:
        body = {"prompt": f"s {name}", "max_tokens": 300, "stop": ["e", "a"], "temperature": 1.5}
        reply = self._post("/v1/completions", name, **body)
        self._note(name, reply["usage"])

    def _two_prompts(self, name: str) -> None:
        prompts = [f"first of {name}", f"and the second of {name}"]
        reply = self._post("/v1/completions", name, prompt=prompts, max_tokens=8)
        self._note(name, reply["usage"], finishes=2)

    def _one_token(self, name: str) -> None:
        self._note(
            name, self._post("/v1/completions", name, prompt=f"1 {name}", max_tokens=1)["usage"]
        )

    def _natural_end(self, name: str) -> None:
        body = {"prompt": f"n {name}", "max_tokens": 200, "ignore_eos": False, "temperature": 2.0}
        reply = self._post("/v1/completions", name, logit_bias={"1": 5}, **body)
        self._note(name, reply["usage"])

    def _hang_up(self, name: str) -> None:
        chunks = self._stream("/v1/completions", name, prompt=f"long {name}", max_tokens=LONGEST)
        next(chunks)
        chunks.close()
        with self._lock:
            self.hung_up.add(name)


class Stream:
    """Clients that ask for plain completions until told to stop."""

    def __init__(self, server: VllmServer, clients: int = 4) -> None:
        self.answered = 0
        self.failures: list[Exception] = []
        self._server = server
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._ask, args=(i,)) for i in range(clients)]

    @contextmanager
    def flowing(self) -> Iterator[None]:
        """Asks for the length of a `with` block; every request is answered at its end."""
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join()

    def answered_in(self, seconds: float) -> int:
        """Requests answered in the next `seconds`."""
        before = self.answered
        self._stop.wait(seconds)
        return self.answered - before

    def _ask(self, number: int) -> None:
        while not self._stop.is_set():
            try:
                self._server.complete(f"client {number} asks", 12)
            except (OSError, AssertionError) as error:
                self.failures.append(error)
                return
            with self._lock:
                self.answered += 1
