"""Whose a request of llama-cpp-python's server is: a header of the user's choice says so.

The tenant cannot ride in X-Request-ID, as it does on vLLM: this server refuses one that is not a
UUID. But the plugin that reads it sees all headers (read in 0.3.36, server/app.py, and in
starlette_context). Off unless WATTLEDGER_TENANT_HEADER names the header.
"""

from __future__ import annotations

import os
import re
from types import ModuleType
from typing import Any

from wattledger_collectors.engines.llama_cpp_outside import harmless
from wattledger_collectors.engines.tenancy import note, of

AGAIN = "#r"
"""What stands between a request id and our number where the id comes again."""

_NUMBER = re.compile(r"#r[0-9]+\Z")


def install(module: ModuleType) -> None:
    """Hooks `llama_cpp.server.app`: an app made from now on notes its tenants."""
    header = os.environ.get("WATTLEDGER_TENANT_HEADER", "")
    if not header:
        return
    plain: Any = module.RequestIdPlugin

    class NotingRequestId(plain):  # type: ignore[misc]
        async def process_request(self, request: Any) -> Any:
            request_id = await super().process_request(request)
            _note(request_id, header, request)
            return request_id

    module.RequestIdPlugin = NotingRequestId  # type: ignore[attr-defined]


@harmless
def _note(request_id: Any, header: str, request: Any) -> None:
    if request.scope.get("method") == "POST":
        note(str(request_id), request.headers.get(header, "").encode("latin-1", "replace"))


def tenant_of(name: str) -> str:
    """The tenant of a request by the hook's name for it, "" where none is known."""
    return of(_NUMBER.sub("", name))
