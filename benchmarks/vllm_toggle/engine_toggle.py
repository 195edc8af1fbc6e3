"""An ASGI middleware that takes wattledger's hook off a running vLLM and puts it back.

Loaded by vLLM itself (`--middleware engine_toggle.Toggle`), in its API server: so that hooked and
unhooked rounds share one process, its memory and its caches. `/hook/off` and `/hook/on`.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


class Toggle:
    """Answers the two paths; all else goes on to vLLM."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if not path.startswith("/hook/"):
            await self._app(scope, receive, send)
            return
        _switch(path == "/hook/on")
        headers = [(b"content-type", b"text/plain")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"ok"})


def _switch(on: bool) -> None:
    from wattledger_collectors.engines import vllm, vllm_stats

    hook, logger = vllm.hook(), vllm_stats.WattledgerStatLogger
    hook.detach()
    if "kept" not in _RECORD:
        _RECORD["kept"] = logger.record
    logger.record = _RECORD["kept"] if on else _silent  # type: ignore[method-assign]
    processor = sys.modules["vllm.v1.engine.output_processor"]
    if on:
        hook.attach(processor)
    if hasattr(processor.OutputProcessor.process_outputs, "_wattledger") is not on:
        raise RuntimeError("the hook is not as asked for")


def _silent(*_: object, **__: object) -> None:
    """A stat logger that nobody has added."""


_RECORD: dict[str, Any] = {}
