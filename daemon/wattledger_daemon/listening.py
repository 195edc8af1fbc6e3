"""Who may listen to the books: the seam between the pipeline and whatever exports."""

from __future__ import annotations

from typing import Protocol

from wattledger.records import Page
from wattledger_daemon.health import Snapshot


class Listener(Protocol):
    """Told by the pipeline thread, so that it must neither block nor raise."""

    def booked(self, page: Page) -> None:
        """A page is on disk; the same window may come again, whole, when a late event moved it."""

    def turned(self, snapshot: Snapshot) -> None:
        """A turn is over, and this is how the daemon does."""
