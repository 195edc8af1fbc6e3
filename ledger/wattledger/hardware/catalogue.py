"""GPU specifications by the name a driver reports.

Source: `data/gpu_specs.csv`, each row with its own sources and doubts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

from wattledger.errors import InputError

_WORDS = re.compile(r"[a-z0-9]+")
# Drivers and tools add or leave out the maker and the product line.
_BRANDS = frozenset({"nvidia", "tesla", "geforce", "amd", "instinct"})


@dataclass(frozen=True, slots=True)
class GpuSpec:
    """One device of the catalogue; None where no source has the figure.

    `memory_gb` is the GPU's own memory, `fp16_dense_tflops` the dense peak (not the sparse one).
    `confidence` is H, M or L; `note` says why it is not better.
    """

    name: str
    aliases: tuple[str, ...]
    die: str
    process_nm: int
    memory_gb: float
    memory_type: str
    tdp_w: float
    year: int
    fp16_dense_tflops: float | None
    name_source: str
    fp16_source: str
    spec_source: str
    note: str
    confidence: str


def list_gpus() -> tuple[GpuSpec, ...]:
    """Every device of the catalogue, in its order."""
    return tuple(_catalogue().values())


def find_gpu(name: str) -> GpuSpec | None:
    """The device that a driver calls `name`, None where the catalogue has none.

    Case, punctuation, word order and the maker's name do not matter: `NVIDIA A100-PCIe-40GB`
    and `A100-PCIE-40GB` are one.
    """
    return _by_name().get(normalised(name))


def require_gpu(name: str) -> GpuSpec:
    """As `find_gpu`, but an unknown name raises `InputError` that names the nearest ones."""
    spec = find_gpu(name)
    if spec is None:
        near = nearest_names(name, (known.name for known in list_gpus()))
        hint = f"did you mean {' or '.join(near)}?" if near else "see `wattledger hardware list`"
        raise InputError(f"device {name!r} is not in the catalogue: {hint}")
    return spec


def canonical_name(name: str) -> str:
    """The catalogue's name of a device where it has one, else `name` itself."""
    spec = find_gpu(name)
    return spec.name if spec else name


def normalised(name: str) -> tuple[str, ...]:
    """What of a device name tells devices apart: its words, sorted, without the maker."""
    return tuple(sorted(set(_WORDS.findall(name.casefold())) - _BRANDS))


def nearest_names(name: str, known: Iterable[str], limit: int = 3) -> list[str]:
    """Up to `limit` of the `known` names that look most like `name`, best first."""
    from difflib import SequenceMatcher

    wanted = _spoken(name)

    def likeness(candidate: str) -> tuple[int, float]:
        spoken = _spoken(candidate)
        shared = len(set(wanted) & set(spoken))
        return shared, SequenceMatcher(None, " ".join(wanted), " ".join(spoken)).ratio()

    ranked = sorted(((likeness(candidate), candidate) for candidate in known), reverse=True)
    return [candidate for score, candidate in ranked if score >= (0, 0.5)][:limit]


def _spoken(name: str) -> list[str]:
    return [word for word in _WORDS.findall(name.casefold()) if word not in _BRANDS]


def read_rows(file_name: str) -> list[dict[str, str]]:
    """The rows of a bundled CSV file of this package, by column name."""
    import csv
    from importlib.resources import files

    text = files("wattledger.hardware").joinpath("data", file_name).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


@cache
def _catalogue() -> Mapping[str, GpuSpec]:
    return {row["name"]: _spec(row) for row in read_rows("gpu_specs.csv")}


@cache
def _by_name() -> Mapping[tuple[str, ...], GpuSpec]:
    return {
        normalised(name): spec
        for spec in _catalogue().values()
        for name in (spec.name, *spec.aliases)
    }


def _spec(row: Mapping[str, str]) -> GpuSpec:
    return GpuSpec(
        name=row["name"],
        aliases=tuple(filter(None, row["aliases"].split(";"))),
        die=row["die"],
        process_nm=int(row["process_nm"]),
        memory_gb=float(row["memory_gb"]),
        memory_type=row["memory_type"],
        tdp_w=float(row["tdp_w"]),
        year=int(row["year"]),
        fp16_dense_tflops=float(row["fp16_dense_tflops"]) if row["fp16_dense_tflops"] else None,
        name_source=row["name_source"],
        fp16_source=row["fp16_source"],
        spec_source=row["spec_source"],
        note=row["note"],
        confidence=row["confidence"],
    )
