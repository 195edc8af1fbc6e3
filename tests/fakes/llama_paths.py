"""Every way to compute tokens with llama-cpp-python; runs in the engine's environment.

usage: llama_paths.py MODEL FOLDER, writes FOLDER/said.json: by path, what the engine itself says.

Each path has a Llama of its own, whose model file is a link named like the path: by that the
hook's events are told apart. `usage` is the sum of the completions' own; `computed` is what
`llama_perf_context` says was decoded; `last` is how many last tokens were never evaluated.
"""

from __future__ import annotations

import itertools
import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llama_cpp
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

COMMON = "hello world token energy model " * 12
FIXED: dict[str, Any] = {"logit_bias": {2: -100}, "temperature": 0.0}
TOOL = {
    "type": "function",
    "function": {
        "name": "watts",
        "parameters": {"type": "object", "properties": {"a": {"type": "boolean"}}},
    },
}

PATHS: dict[str, Callable[[Any], dict[str, Any]]] = {}
OPTIONS: dict[str, dict[str, Any]] = {}
MODEL, FOLDER = Path(sys.argv[1]), Path(sys.argv[2])


def path(**options: Any) -> Callable[[Callable[[Any], dict[str, Any]]], object]:
    """Adds a function to `PATHS`, which is run with a Llama made with `options`."""

    def add(function: Callable[[Any], dict[str, Any]]) -> None:
        PATHS[function.__name__] = function
        OPTIONS[function.__name__] = options

    return add


def load(name: str, **options: Any) -> Any:
    link = FOLDER / f"{name}.gguf"
    link.symlink_to(MODEL)
    threads = {"n_threads": 1, "n_threads_batch": 1, "n_batch": 32, "n_ctx": 512}
    return llama_cpp.Llama(str(link), verbose=False, **(threads | options))


def counted(llm: Any) -> int:
    """Tokens that the context has decoded, by its own counters."""
    llama_cpp.llama_synchronize(llm.ctx)
    data = llama_cpp.llama_perf_context(llm.ctx)
    return int(data.n_p_eval + data.n_eval)


def prime(llm: Any) -> None:
    """The counters never say 0: they start at 1 each, so let them be past that."""
    for tokens in ([5, 6], [7]):
        llm._batch.set_batch(batch=tokens, n_past=0, logits_all=True)
        llm._ctx.decode(llm._batch)
        llm._ctx.get_logits()
        llm._ctx.kv_cache_clear()


def summed(replies: list[Any], last: int | None = None) -> dict[str, Any]:
    usages = [reply["usage"] for reply in replies]
    return {
        "prompt": sum(usage["prompt_tokens"] for usage in usages),
        "decode": sum(usage["completion_tokens"] for usage in usages),
        "last": len(replies) if last is None else last,
    }


@path()
def completion(llm: Any) -> dict[str, Any]:
    prompts = ("hello", COMMON, COMMON + "the end", COMMON)
    return summed([llm.create_completion(prompt, max_tokens=9, **FIXED) for prompt in prompts])


@path()
def ended(llm: Any) -> dict[str, Any]:
    """By end-of-generation, by a stop string, by length: as the seed has it."""
    replies = [
        llm(f"{seed} to", max_tokens=40, seed=seed, temperature=1.8, stop=["e"], logit_bias={2: 4})
        for seed in range(30)
    ]
    return summed(replies) | {"last": None}


@path()
def chat(llm: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": COMMON}]
    return summed([llm.create_chat_completion(messages, max_tokens=7, **FIXED) for _ in range(2)])


@path()
def streams(llm: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "hello"}]
    list(llm.create_completion(COMMON, max_tokens=11, stream=True, **FIXED))
    list(llm.create_chat_completion(messages, max_tokens=12, stream=True, **FIXED))
    return {"decode": 23, "last": 2}


@path(chat_format="chatml-function-calling")
def functions(llm: Any) -> dict[str, Any]:
    """Which of its several completions ended how is the handler's own affair."""
    messages = [{"role": "user", "content": "hello"}]
    chosen = {"type": "function", "function": {"name": "watts"}}
    for choice in (chosen, "auto"):
        llm.create_chat_completion(
            messages, tools=[TOOL], tool_choice=choice, max_tokens=30, temperature=0.0
        )
    return {"last": None}


@path()
def grammar(llm: Any) -> dict[str, Any]:
    rules = llama_cpp.LlamaGrammar.from_string('root ::= ("the" | "energy")+', verbose=False)
    return summed([llm.create_completion("hello", max_tokens=8, grammar=rules, **FIXED)])


@path(logits_all=True)
def logprobs(llm: Any) -> dict[str, Any]:
    asked = {"logprobs": 3, "echo": True, "max_tokens": 6}
    return summed([llm.create_completion(COMMON, **asked, **FIXED)])


@path(draft_model=LlamaPromptLookupDecoding(num_pred_tokens=6), logits_all=True)
def draft(llm: Any) -> dict[str, Any]:
    """Rejected drafts are decoded and not told: `computed` may only be more."""
    return summed([llm.create_completion(COMMON, max_tokens=60, **FIXED)]) | {"last": None}


@path()
def generate(llm: Any) -> dict[str, Any]:
    tokens = llm.tokenize(COMMON.encode())
    first = list(itertools.islice(llm.generate(tokens, temp=0.0), 10))
    ends = llama_cpp.StoppingCriteriaList([lambda ids, _: len(ids) >= len(tokens) + 5])
    second = list(llm.generate(tokens, temp=0.0, stopping_criteria=ends))
    return {"prompt": 2 * len(tokens), "decode": len(first) + len(second), "last": 1}


@path()
def by_hand(llm: Any) -> dict[str, Any]:
    tokens = llm.tokenize(COMMON.encode())
    llm.eval(tokens)
    for _ in range(6):
        llm.eval([llm.sample(temp=0.0)])
    return {"prompt": len(tokens), "decode": 6, "last": 0}


@path()
def image(llm: Any) -> dict[str, Any]:
    """As MTMDChatHandler does it; the image's part goes by the bindings' own `llama_decode`."""
    text = llm.tokenize(b"hello world token")
    llm.reset()
    llm._ctx.kv_cache_clear()
    llm.eval(text)
    llm._batch.set_batch(batch=[9] * 20, n_past=llm.n_tokens, logits_all=False)
    assert llama_cpp.llama_decode(llm._ctx.ctx, llm._batch.batch) == 0
    llm.n_tokens += 20
    llm.eval(text[1:])
    prompt = llm.input_ids[: llm.n_tokens].tolist()
    return summed([llm.create_completion(prompt, max_tokens=5, **FIXED)])


@path()
def ram_cache(llm: Any) -> dict[str, Any]:
    llm.set_cache(llama_cpp.LlamaRAMCache())
    prompts = (COMMON, "the other " * 20, COMMON, COMMON + "more", "the other " * 20)
    return summed([llm.create_completion(prompt, max_tokens=4, **FIXED) for prompt in prompts])


@path()
def disk_cache(llm: Any) -> dict[str, Any]:
    llm.set_cache(llama_cpp.LlamaDiskCache(str(FOLDER / "cache")))
    prompts = (COMMON, "the other " * 20, COMMON)
    return summed([llm.create_completion(prompt, max_tokens=4, **FIXED) for prompt in prompts])


@path()
def states(llm: Any) -> dict[str, Any]:
    replies = [llm.create_completion(COMMON, max_tokens=4, **FIXED)]
    state = llm.save_state()
    llm.reset()
    replies.append(llm.create_completion("hello", max_tokens=4, **FIXED))
    llm.load_state(state)
    replies.append(llm.create_completion(COMMON + "more", max_tokens=4, **FIXED))
    return summed(replies)


@path(embedding=True, n_seq_max=4)
def embeddings(llm: Any) -> dict[str, Any]:
    texts = [f"hello world {'token ' * number}" for number in range(9)]
    usage = llm.create_embedding(texts)["usage"]
    return {"prompt": usage["prompt_tokens"], "decode": 0, "last": 0}


@path()
def processor_fails(llm: Any) -> dict[str, Any]:
    """It is called from C, where Python drops what it raises: the engine goes on."""

    def failing(_: Any, scores: Any) -> Any:
        failing.calls += 1  # type: ignore[attr-defined]
        if failing.calls == 3:  # type: ignore[attr-defined]
            raise RuntimeError("a fault of the user's")
        return scores

    failing.calls = 0  # type: ignore[attr-defined]
    failed = 0
    try:
        processors = llama_cpp.LogitsProcessorList([failing])
        llm.create_completion("hello", max_tokens=6, logits_processor=processors)
    except RuntimeError:
        failed = 1
    return {"last": None, "failed": failed}


@path(n_ctx=256)
def overflow(llm: Any) -> dict[str, Any]:
    """One prompt that does not fit at all, and one whose generation outgrows the context.

    The last token finds no room, and is in the engine's counters all the same.
    """
    refused = 0
    try:
        llm.create_completion(COMMON * 6, max_tokens=4)
    except ValueError:
        refused = 1
    decode = 0
    try:
        for _ in llm.generate(llm.tokenize(b"hello"), temp=0.0):
            decode += 1
    except (RuntimeError, ValueError):
        refused += 1
    return {"prompt": len(llm.tokenize(b"hello")), "decode": decode, "last": 0, "failed": refused}


@path()
def left(llm: Any) -> dict[str, Any]:
    """The one whole word of the vocabulary, so that each token is a chunk of text."""
    word = {2: -100, 259: 100}
    stream = llm.create_completion(COMMON, max_tokens=100, stream=True, logit_bias=word)
    list(itertools.islice(stream, 5))
    stream.close()
    return {"last": 1}


@path()
def closed(llm: Any) -> dict[str, Any]:
    """The model is freed while somebody still holds a generator of it."""
    stream = llm.generate(llm.tokenize(b"hello"), temp=0.0)
    list(itertools.islice(stream, 5))
    before = counted(llm)
    llm.close()
    stream.close()
    return {"decode": 5, "last": 1, "counted": before}


@path()
def empty(llm: Any) -> dict[str, Any]:
    """`usage` has one completion token too many: the BOS that stands in for the prompt."""
    told = summed([llm.create_completion("", max_tokens=6, **FIXED)])
    return told | {"decode": told["decode"] - 1}


def run(name: str) -> dict[str, Any]:
    llm = load(name, **OPTIONS[name])
    prime(llm)
    before = counted(llm)
    said = PATHS[name](llm)
    after = said.pop("counted", None) or counted(llm)
    return said | {"computed": after - before}


def side_by_side() -> dict[str, Any]:
    """Two models at once, each in a thread."""
    told: dict[str, Any] = {}

    def work(name: str, llm: Any) -> None:
        prime(llm)
        before = counted(llm)
        said = summed([llm.create_completion(COMMON, max_tokens=40, **FIXED) for _ in range(3)])
        told[name] = said | {"computed": counted(llm) - before}

    # Not loaded in the threads: while it loads, a Llama takes the process's stdout away.
    pair = [(name, load(name)) for name in ("side_a", "side_b")]
    threads = [threading.Thread(target=work, args=each) for each in pair]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return told


if __name__ == "__main__":
    said = {name: run(name) for name in PATHS} | side_by_side()
    (FOLDER / "said.json").write_text(json.dumps(said))
