"""A user's script around `vllm.LLM`: no server, no stat loggers. Runs in vLLM's environment.

usage: offline.py MODEL RESULT     writes what the outputs say they hold, as JSON, to RESULT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

PROMPTS = [
    f"the energy of request {number} is " + "a watt and a joule " * 40 for number in range(8)
]


def counts(outputs: Any) -> dict[str, int]:
    """Tokens, as the engine's own outputs tell them."""
    answers = [answer for output in outputs for answer in output.outputs]
    prompt_tokens = sum(len(output.prompt_token_ids) * len(output.outputs) for output in outputs)
    return {
        "requests": len(answers),
        "prompt_tokens": prompt_tokens,
        "decode_tokens": sum(len(answer.token_ids) for answer in answers),
    }


def break_the_hook() -> None:
    """From here on it raises at each step that it looks at."""
    from wattledger_collectors.engines.vllm_requests import Requests

    def read(*_: object) -> None:
        raise ZeroDivisionError("broken on purpose")

    Requests.read = read  # type: ignore[method-assign,assignment]


def main() -> None:
    """Generates twice with the hook, and once with a broken one."""
    import vllm  # type: ignore[import-not-found]

    model, result = sys.argv[1:]
    options = {"dtype": "float32", "enforce_eager": True, "max_model_len": 1024}
    llm = vllm.LLM(model, max_num_batched_tokens=256, max_num_seqs=16, **options)
    sampling = vllm.SamplingParams(max_tokens=20, ignore_eos=True, n=2, temperature=1.0)
    outputs = llm.generate(PROMPTS, sampling, use_tqdm=False)
    outputs += llm.generate(PROMPTS, sampling, use_tqdm=False)  # from the prefix cache
    break_the_hook()
    unmetered = llm.generate(PROMPTS, sampling, use_tqdm=False)
    told = {"metered": counts(outputs), "unmetered": counts(unmetered)}
    Path(result).write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    main()
