"""Makes vLLM one whose internals have other names: what our hook looks for is not there.

On PYTHONPATH before an attached vLLM; runs before the hook sees the module.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import Any

TARGET = "vllm.v1.engine.output_processor"


class Loader(SourceFileLoader):
    """Renames after the module has run."""

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        renamed = module.OutputProcessor
        renamed.handle_outputs = renamed.process_outputs
        del renamed.process_outputs
        renamed.__getattr__ = handle


def handle(processor: Any, name: str) -> Any:
    """vLLM's own callers ask an instance, and find it."""
    if name == "process_outputs":
        return processor.handle_outputs
    raise AttributeError(name)


class Finder:
    """Stands behind the hook's own finder, which asks it."""

    @staticmethod
    def find_spec(
        fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != TARGET:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.origin is not None:
            spec.loader = Loader(fullname, spec.origin)
        return spec


sys.meta_path.insert(1, Finder)
