"""What a hook tells its reporter of the engine beyond its events."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What a hook knows of its engine beyond the process that it runs in.

    Without `engine` it is `<kind>-<pid>`; `part` tells apart what one process reports of several
    engines. `pids` is asked now and then, by the reporter's thread; without it the engine is this
    process. `coarse` is for events read off counters. `tenant_of` is asked for each request until
    it names somebody, "" is nobody.
    """

    engine: str = ""
    part: str = ""
    pids: Callable[[], Iterable[int]] | None = None
    coarse: bool = False
    tenant_of: Callable[[str], str] | None = None
