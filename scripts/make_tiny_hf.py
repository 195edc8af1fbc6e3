#!/usr/bin/env python3
"""Writes a tiny Llama with random weights in Hugging Face's layout: runs a real vLLM, no text.

usage: make_tiny_hf.py FOLDER [--seed N]

Runs in vLLM's environment (scripts/engines.sh vllm), which holds `tokenizers`, `safetensors` and
`numpy`. Byte-level vocabulary of 512, a chat template, 0.4 million parameters (1.7 MB). The same
seed writes the same weights. Nothing is fetched.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIALS = ("<s>", "</s>", "<pad>", "<role>", "<turn>")
CHAT_TEMPLATE = (
    "{% for m in messages %}<role>{{ m['role'] }}: {{ m['content'] }}<turn>{% endfor %}"
    "{% if add_generation_prompt %}<role>assistant: {% endif %}"
)
LEARNED_FROM = (
    "the energy of a token is what the model used of it",
    "hello world, measure each watt and each joule that was spent",
    "a request has a prompt, and an answer of many tokens",
)


@dataclass(frozen=True)
class Shape:
    """Sizes of the network."""

    vocabulary: int = 512
    hidden: int = 128
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    feed_forward: int = 256
    context: int = 2048

    @property
    def head(self) -> int:
        """Width of one attention head."""
        return self.hidden // self.heads


def write_tokenizer(folder: Path, shape: Shape) -> None:
    """Every byte is a token, so any text has one; merges come from a few sentences."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=shape.vocabulary,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text * 4 for text in LEARNED_FROM], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    told = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": shape.context,
        "bos_token": SPECIALS[0],
        "eos_token": SPECIALS[1],
        "pad_token": SPECIALS[2],
        "chat_template": CHAT_TEMPLATE,
    }
    write_json(folder / "tokenizer_config.json", told)


def write_config(folder: Path, shape: Shape) -> None:
    """Writes what vLLM reads to build the network."""
    told = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "float32",
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.feed_forward,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head,
        "max_position_embeddings": shape.context,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
    }
    write_json(folder / "config.json", told)


def write_json(path: Path, told: dict[str, object]) -> None:
    """Writes one object, readable."""
    path.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def make_weights(shape: Shape, seed: int) -> dict[str, np.ndarray]:
    """Norms of one, and matrices scaled so that activations keep their size."""
    rng = np.random.default_rng(seed)

    def matrix(rows: int, columns: int) -> np.ndarray:
        # float32 scale: a float64 one would silently make float64 tensors.
        scale = np.float32(columns**-0.5)
        return rng.standard_normal((rows, columns), dtype=np.float32) * scale

    width, kv_width = shape.hidden, shape.kv_heads * shape.head
    weights = {
        "model.embed_tokens.weight": matrix(shape.vocabulary, width),
        "model.norm.weight": np.ones(width, np.float32),
        "lm_head.weight": matrix(shape.vocabulary, width),
    }
    for layer in range(shape.layers):
        block = f"model.layers.{layer}."
        weights[block + "input_layernorm.weight"] = np.ones(width, np.float32)
        weights[block + "post_attention_layernorm.weight"] = np.ones(width, np.float32)
        weights[block + "self_attn.q_proj.weight"] = matrix(width, width)
        weights[block + "self_attn.k_proj.weight"] = matrix(kv_width, width)
        weights[block + "self_attn.v_proj.weight"] = matrix(kv_width, width)
        weights[block + "self_attn.o_proj.weight"] = matrix(width, width)
        weights[block + "mlp.gate_proj.weight"] = matrix(shape.feed_forward, width)
        weights[block + "mlp.up_proj.weight"] = matrix(shape.feed_forward, width)
        weights[block + "mlp.down_proj.weight"] = matrix(width, shape.feed_forward)
    return weights


def main() -> int:
    """Parses the command line and writes the folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder to write into; made where missing")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    folder, shape = arguments.folder, Shape()
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder, shape)
    write_config(folder, shape)
    save_file(
        make_weights(shape, arguments.seed), folder / "model.safetensors", metadata={"format": "pt"}
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
