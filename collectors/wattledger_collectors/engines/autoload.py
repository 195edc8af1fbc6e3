"""Hooks an engine when it is imported: a finder that waits for the modules of `TARGETS`.

It costs a dictionary lookup per import, leaves no trace in the module it hooks, and tells its
own faults in one line on stderr while the engine runs on. Every Python that an attached command
starts imports this file, so it imports next to nothing itself.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from importlib.abc import Loader
    from importlib.machinery import ModuleSpec
    from types import ModuleType

VLLM_TARGETS: Mapping[str, str] = {
    "vllm.v1.engine.output_processor": "wattledger_collectors.engines.vllm",
    "vllm.v1.engine.llm_engine": "wattledger_collectors.engines.vllm",
}

TARGETS: Mapping[str, str] = {
    "llama_cpp.llama": "wattledger_collectors.engines.llama_cpp",
    "llama_cpp.server.app": "wattledger_collectors.engines.llama_cpp_server",
    **VLLM_TARGETS,
}
"""The engine's module, and ours whose `install(module)` hooks it."""


def enable(targets: Mapping[str, str] = TARGETS) -> None:
    """Hooks what is imported from now on or was before, where `WATTLEDGER_ATTACH` is 1."""
    if os.environ.get("WATTLEDGER_ATTACH") == "1":
        hook_when_imported(targets)


def hook_when_imported(targets: Mapping[str, str]) -> None:
    """Hooks these modules, now or when they are imported; asked again it changes nothing."""
    new = {name: hook for name, hook in targets.items() if name not in _WATCHED}
    _WATCHED.update(new)
    if new:
        sys.meta_path.insert(0, _Finder(new))
    for name in new.keys() & sys.modules.keys():
        _install(new[name], sys.modules[name])


def tell(line: str) -> None:
    """One line on stderr, which may be closed."""
    try:
        sys.stderr.write(f"wattledger: {line}\n")
    except Exception:  # noqa: BLE001 - the engine hook's border
        return


_WATCHED: dict[str, str] = {}


def _install(hook: str, module: ModuleType) -> None:
    try:
        __import__(hook)
        sys.modules[hook].install(module)
    except Exception as error:  # noqa: BLE001 - the engine hook's border
        tell(f"{module.__name__} is not metered: {error}")


class _Finder:
    """Lets the other finders find a target, and puts `_Loader` before its loader."""

    def __init__(self, targets: Mapping[str, str]) -> None:
        self._targets = targets

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        hook = self._targets.get(fullname)
        if hook is None:
            return None
        for finder in sys.meta_path:
            if isinstance(finder, _Finder) or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader, hook)  # type: ignore[assignment]
                return spec
        return None


class _Loader:
    """Runs the module as its own loader does, then hooks it."""

    def __init__(self, inner: Loader, hook: str) -> None:
        self._inner = inner
        self._hook = hook

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # Handed back first: the module, and whoever asks for its source, sees its own loader.
        module.__loader__ = self._inner
        if module.__spec__ is not None:
            module.__spec__.loader = self._inner
        self._inner.exec_module(module)
        _install(self._hook, module)
