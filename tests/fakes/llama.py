"""Stands in for `llama_cpp.Llama`: the same generator protocol, arithmetic instead of a model."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

EOS = 2


class FakeBatch:
    """How much is to be decoded."""

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens

    def n_tokens(self) -> int:
        return self._tokens


class FakeContext:
    """What decodes; `failing` makes it fail, once."""

    def __init__(self) -> None:
        self.decoded: list[int] = []
        self.failing = False

    def decode(self, batch: FakeBatch) -> None:
        if self.failing:
            self.failing = False
            raise RuntimeError("llama_decode returned 1")
        self.decoded.append(batch.n_tokens())


class FakeLlama:
    """Evaluates in chunks of `n_batch`, keeps a prefix cache, ends when `ends` says so.

    `broken_at` is the position at which `eval` fails, as `llama_decode` does when memory is out.
    """

    def __init__(self, n_batch: int = 512, broken_at: int | None = None) -> None:
        self.model_path = "/models/tiny.gguf"
        self.n_batch = n_batch
        self.broken_at = broken_at
        self.n_tokens = 0
        self.input_ids: list[int] = []
        self.evaluated = 0
        self._ctx = FakeContext()

    def reset(self) -> None:
        self.n_tokens = 0

    def load_state(self, input_ids: list[int]) -> None:
        """The real one's state is opaque; this one is what it stands for."""
        self.input_ids = list(input_ids)
        self.n_tokens = len(input_ids)

    def eval(self, tokens: Sequence[int]) -> None:
        for first in range(0, len(tokens), self.n_batch):
            chunk = tokens[first : first + self.n_batch]
            if self.broken_at is not None and self.n_tokens + len(chunk) > self.broken_at:
                self._ctx.failing = True
            self._ctx.decode(FakeBatch(len(chunk)))
            self.input_ids[self.n_tokens :] = chunk
            self.n_tokens += len(chunk)
            self.evaluated += len(chunk)

    def sample(self) -> int:
        return 3 + sum(self.input_ids[-3:]) % 400

    def generate(
        self,
        tokens: Sequence[int],
        ends: Callable[[list[int]], bool] | None = None,
        reset: bool = True,
    ) -> Generator[int, Sequence[int] | None, None]:
        """As the real one: what is in the cache already is not evaluated again."""
        rest = list(tokens)
        if reset:
            same = 0
            while same < min(len(rest), self.n_tokens) and self.input_ids[same] == rest[same]:
                same += 1
            if same == len(rest) == self.n_tokens:
                rest = []
            elif not same:
                self.reset()
            else:
                self.n_tokens = min(same, len(rest) - 1)
                rest = rest[self.n_tokens :]
        while True:
            self.eval(rest)
            token = self.sample()
            if ends is not None and ends(self.input_ids[: self.n_tokens]):
                return
            sent = yield token
            rest = [token, *(sent or ())]

    def embed(
        self, text: str, normalize: bool = False, return_count: bool = False
    ) -> list[float] | tuple[list[float], int]:
        """One token per letter, in batches of `n_batch`."""
        for first in range(0, len(text), self.n_batch):
            self._ctx.decode(FakeBatch(len(text[first : first + self.n_batch])))
        if not text:
            raise RuntimeError("nothing to embed")
        self.reset()
        embedding = [float(normalize), float(len(text))]
        return (embedding, len(text)) if return_count else embedding

    def _create_completion(self, prompt: Sequence[int], most: int) -> Generator[str, None, None]:
        """Each token as text, then the end."""
        for number, token in enumerate(self.generate(prompt), 1):
            if token == self.token_eos():
                break
            yield f"{token} "
            if number >= most:
                break
        yield "."

    def token_eos(self) -> int:
        return EOS


def complete(llama: FakeLlama, prompt: Sequence[int], most: int) -> list[int]:
    """What `Llama._create_completion` does with the generator, end-of-generation token included."""
    completion: list[int] = []
    for token in llama.generate(prompt):
        if token == llama.token_eos():
            break
        completion.append(token)
        if len(completion) >= most:
            break
    return completion
