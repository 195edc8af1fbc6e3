"""The audit statement: do the books balance, and what is known to be missing."""

from __future__ import annotations

from dataclasses import dataclass

from wattledger.records import NS_PER_S
from wattledger.statement.coverage import device_books
from wattledger.store.protocol import Books, DeviceBook, Store
from wattledger.timespan import Window

SCHEMA = "wattledger.audit/1"


@dataclass(frozen=True, slots=True)
class AuditStatement:
    """The balance of every device of a window; node meters are reconciled elsewhere.

    The imbalances are sums of absolute differences, so that two faults never cancel.
    """

    window: Window
    books: Books

    @property
    def devices(self) -> tuple[DeviceBook, ...]:
        """The devices that must balance, by host and name."""
        return tuple(
            sorted(device_books(self.books, ()), key=lambda book: (book.host, book.device.device))
        )

    @property
    def imbalance_uj(self) -> int:
        """Energy metered and not posted, or posted and not metered, microjoules."""
        return sum(abs(book.metered_uj - book.posted_uj) for book in self.devices)

    @property
    def imbalance_device_ns(self) -> int:
        """Device time metered and not posted, or posted and not metered, nanoseconds."""
        return sum(abs(book.metered_ns - book.posted_ns) for book in self.devices)

    @property
    def balanced(self) -> bool:
        """Whether energy and device time of every device are posted as metered, exactly."""
        return self.imbalance_uj == 0 and self.imbalance_device_ns == 0

    def to_json(self) -> dict[str, object]:
        """The contract's `wattledger.audit/1`."""
        return {
            "schema": SCHEMA,
            "window": self.window.to_json(),
            "balanced": self.balanced,
            "imbalance_uj": self.imbalance_uj,
            "imbalance_device_ns": self.imbalance_device_ns,
            "devices": [_device_json(book) for book in self.devices],
            "gaps": sum(book.gaps for book in self.books.devices),
            "resets": sum(book.resets for book in self.books.devices),
            "wraps": sum(book.wraps for book in self.books.devices),
            "late": self.books.late,
            "duplicates": self.books.duplicates,
            "dropped": self.books.dropped,
        }


def audit_statement(store: Store, window: Window) -> AuditStatement:
    """The audit of a window; an empty ledger balances."""
    return AuditStatement(window, store.books(window.start_ns, window.end_ns))


def _device_json(book: DeviceBook) -> dict[str, object]:
    return {
        "device": book.device.device,
        "metered_uj": book.metered_uj,
        "posted_uj": book.posted_uj,
        "device_s": book.posted_ns / NS_PER_S,
        "metered_s": book.metered_ns / NS_PER_S,
        "host": book.host,
        "kind": book.device.kind.value,
        "gaps": book.gaps,
        "resets": book.resets,
        "wraps": book.wraps,
    }
