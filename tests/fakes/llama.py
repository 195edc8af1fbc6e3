"""Stands in for `llama_cpp.Llama`: the same generator protocol, arithmetic instead of a model."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

EOS = 2


class FakeLlama:
    """Evaluates in chunks of `n_batch`, keeps a prefix cache, ends when `ends` says so.

    `broken_at` is the position at which `eval` fails, as `llama_decode` does when memory is out.
    """

    def __init__(self, n_batch: int = 8, broken_at: int | None = None) -> None:
        self.model_path = "/models/tiny.gguf"
        self.n_batch = n_batch
        self.broken_at = broken_at
        self.n_tokens = 0
        self.input_ids: list[int] = []
        self.evaluated = 0

    def eval(self, tokens: Sequence[int]) -> None:
        for first in range(0, len(tokens), self.n_batch):
            chunk = tokens[first : first + self.n_batch]
            if self.broken_at is not None and self.n_tokens + len(chunk) > self.broken_at:
                raise RuntimeError("llama_decode returned 1")
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
        """One token per letter."""
        if not text:
            raise RuntimeError("nothing to embed")
        embedding = [float(normalize), float(len(text))]
        return (embedding, len(text)) if return_count else embedding

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
