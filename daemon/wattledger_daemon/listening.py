"""Who may listen to the books: the seam between the pipeline and whatever exports.

This is a border where a broad `except` stands: a listener that raises is told of once in the log
and told nothing more, so that nobody who listens stops the books.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Protocol

from wattledger.records import Page
from wattledger_daemon.health import Snapshot
from wattledger_daemon.logs import event

_LOG = logging.getLogger(__name__)


class Listener(Protocol):
    """Told by the pipeline thread, so that it must neither block nor raise."""

    def booked(self, page: Page) -> None:
        """A page is on disk; the same window may come again, whole, when a late event moved it."""

    def turned(self, snapshot: Snapshot) -> None:
        """A turn is over, and this is how the daemon does."""

    def dropped(self) -> None:
        """This raised and hears no more: what it said last must not be taken for now."""


class Listeners:
    """All who listen; used by the pipeline thread alone."""

    def __init__(self, listeners: Iterable[Listener]) -> None:
        self._listeners = tuple(listeners)

    def booked(self, page: Page) -> None:
        """As `Listener.booked`, to each."""
        self._tell(lambda listener: listener.booked(page))

    def turned(self, snapshot: Snapshot) -> None:
        """As `Listener.turned`, to each."""
        self._tell(lambda listener: listener.turned(snapshot))

    def _tell(self, say: Callable[[Listener], None]) -> None:
        for listener in self._listeners:
            try:
                say(listener)
            except Exception as error:  # noqa: BLE001 - the border: no listener may stop the books
                self._drop(listener, error)

    def _drop(self, listener: Listener, error: Exception) -> None:
        self._listeners = tuple(other for other in self._listeners if other is not listener)
        name = type(listener).__name__
        text = event("listener_dropped", listener=name, reason=repr(error), mend="restart")
        _LOG.error(text, exc_info=error)
        listener.dropped()
