#!/usr/bin/env python3
"""Writes a tiny llama model with random weights: enough to run a real engine, no use for text.

usage: make_tiny_gguf.py OUT.gguf [--seed N]

Runs in the engine's environment (scripts/engines.sh), which holds `gguf` and `numpy`. The file
has a SentencePiece-style vocabulary of about 500 pieces, a chat template and 2.6 million
parameters (10 MB). The same seed writes the same weights.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field

import gguf
import numpy as np

SPACE = "\u2581"
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
COMMON = "the a to of and in is token energy model hello world"
PIECES = (
    "th he in er an re on at en nd ti es or te of ed is it al ar st to nt ng se ha as ou io le ve "
    "co me de hi ri ro ic ne ea the ing and ion ent for token energy watt model hello world joule"
)


@dataclass(frozen=True)
class Shape:
    """Sizes of the network."""

    embedding: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    feed_forward: int = 512
    context: int = 2048

    @property
    def head(self) -> int:
        """Width of one attention head."""
        return self.embedding // self.heads


@dataclass
class Vocabulary:
    """Pieces in order of their id, with their scores and kinds."""

    pieces: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    kinds: list[int] = field(default_factory=list)

    def add(self, piece: str, score: float, kind: gguf.TokenType) -> None:
        """Appends a piece unless it is there already."""
        if piece not in self.pieces:
            self.pieces.append(piece)
            self.scores.append(score)
            self.kinds.append(int(kind))


def make_vocabulary() -> Vocabulary:
    """Specials, 256 bytes, words, and every prefix of a word, which merging passes through."""
    vocabulary = Vocabulary()
    vocabulary.add("<unk>", 0.0, gguf.TokenType.UNKNOWN)
    vocabulary.add("<s>", 0.0, gguf.TokenType.CONTROL)
    vocabulary.add("</s>", 0.0, gguf.TokenType.CONTROL)
    for byte in range(256):
        vocabulary.add(f"<0x{byte:02X}>", 0.0, gguf.TokenType.BYTE)
    words = [SPACE + word for word in COMMON.split()] + PIECES.split()
    prefixes = [word[:end] for word in words for end in range(2, len(word))]
    characters = [SPACE, *map(chr, range(33, 127))]
    for rank, piece in enumerate([*words, *prefixes, *characters], start=1):
        vocabulary.add(piece, -float(rank), gguf.TokenType.NORMAL)
    while len(vocabulary.pieces) % 32:
        vocabulary.add(f"<pad{len(vocabulary.pieces)}>", -1e4, gguf.TokenType.UNUSED)
    return vocabulary


def write_metadata(writer: gguf.GGUFWriter, shape: Shape, vocabulary: Vocabulary) -> None:
    """Writes the keys that llama.cpp reads before the tensors."""
    writer.add_name("tiny-random-llama")
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.embedding)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(shape.head)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(vocabulary.pieces))
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([piece.encode() for piece in vocabulary.pieces])
    writer.add_token_scores(vocabulary.scores)
    writer.add_token_types(vocabulary.kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(True)
    writer.add_chat_template(CHAT_TEMPLATE)


def write_tensors(writer: gguf.GGUFWriter, shape: Shape, vocabulary_size: int, seed: int) -> None:
    """Adds the weights: norms of one, matrices scaled so that activations keep their size."""
    rng = np.random.default_rng(seed)
    width, kv_width = shape.embedding, shape.kv_heads * shape.head

    def matrix(name: str, rows: int, columns: int) -> None:
        # float32 scale: a float64 one would silently write F64 tensors.
        scale = np.float32(columns**-0.5)
        values = rng.standard_normal((rows, columns), dtype=np.float32)
        writer.add_tensor(name, values * scale)

    def norm(name: str) -> None:
        writer.add_tensor(name, np.ones(width, np.float32))

    matrix("token_embd.weight", vocabulary_size, width)
    norm("output_norm.weight")
    matrix("output.weight", vocabulary_size, width)
    for layer in range(shape.layers):
        block = f"blk.{layer}."
        norm(block + "attn_norm.weight")
        norm(block + "ffn_norm.weight")
        matrix(block + "attn_q.weight", width, width)
        matrix(block + "attn_k.weight", kv_width, width)
        matrix(block + "attn_v.weight", kv_width, width)
        matrix(block + "attn_output.weight", width, width)
        matrix(block + "ffn_gate.weight", shape.feed_forward, width)
        matrix(block + "ffn_up.weight", shape.feed_forward, width)
        matrix(block + "ffn_down.weight", width, shape.feed_forward)


def main() -> int:
    """Parses the command line and writes the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", help="file to write")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    shape, vocabulary = Shape(), make_vocabulary()
    writer = gguf.GGUFWriter(arguments.out, "llama")
    write_metadata(writer, shape, vocabulary)
    write_tensors(writer, shape, len(vocabulary.pieces), arguments.seed)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
