"""The stat logger that vLLM finds by entry point (`vllm.stat_logger_plugins`); imported by vLLM.

It lives in API servers only. Whatever it is handed, it raises nothing: vLLM would end.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.metrics.loggers import StatLoggerBase  # type: ignore[import-not-found]

from wattledger_collectors.engines.vllm import hook

_MOST_FAULTS = 3


class WattledgerStatLogger(StatLoggerBase):  # type: ignore[misc]
    """Hands each step's statistics on to the hook."""

    def __init__(self, vllm_config: Any = None, engine_index: int = 0, *_: Any, **__: Any) -> None:
        self._rank = engine_index
        self._faults = 0
        self._record = hook().record
        try:
            hook().add_logger(vllm_config, engine_index)
        except Exception:  # noqa: BLE001 - the engine hook's border
            self._faults = _MOST_FAULTS

    def record(
        self, scheduler_stats: Any = None, iteration_stats: Any = None, *_: Any, **given: Any
    ) -> None:
        """One step of one engine."""
        told = given.get("engine_idx")
        rank = told if isinstance(told, int) else self._rank
        if self._faults < _MOST_FAULTS:
            try:
                self._record(rank, scheduler_stats, iteration_stats)
            except Exception:  # noqa: BLE001 - the engine hook's border
                self._faults += 1

    def log_engine_initialized(self) -> None:
        """Nothing to say."""

    def log(self) -> None:
        """Nothing to say."""


# A later vLLM may ask for more methods: a class that cannot be made would end the server.
WattledgerStatLogger.__abstractmethods__ = frozenset()
