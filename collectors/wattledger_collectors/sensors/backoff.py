"""When to try a failing source again."""

from __future__ import annotations

from wattledger.records import NS_PER_S


class Backoff:
    """At the next chance after the first failure, then later and later, up to a minute."""

    __slots__ = ("_due_ns", "_first_ns", "_longest_ns", "_wait_ns", "failing")

    def __init__(self, first_s: float, longest_s: float = 60.0) -> None:
        self._first_ns = int(first_s * NS_PER_S)
        self._longest_ns = int(longest_s * NS_PER_S)
        self._due_ns = 0
        self._wait_ns = 0
        self.failing = False

    def waiting(self, now_ns: int) -> bool:
        """Whether it is too early for another try."""
        return self.failing and now_ns < self._due_ns

    def failed(self, now_ns: int) -> None:
        """Note a failed try."""
        self.failing = True
        self._due_ns = now_ns + self._wait_ns
        self._wait_ns = min(max(2 * self._wait_ns, self._first_ns), self._longest_ns)

    def worked(self) -> None:
        """Note a try that worked."""
        self.failing = False
        self._wait_ns = 0
