"""What can go wrong, and the exit status each wrong has in the contract.

    WattledgerError            1  internal fault
    ├── InputError             2  usage, config or input
    ├── DataMissingError       3  data missing, or coverage below what was asked
    ├── UnreachableError       4  ledger or daemon out of reach
    └── UnbalancedError        5  the books do not balance

Every message is one line: what, where, the mend.
"""

from __future__ import annotations

from typing import ClassVar


class WattledgerError(Exception):
    """A fault told in one line; `exit_status` is the process's status."""

    exit_status: ClassVar[int] = 1


class InputError(WattledgerError):
    """A flag, a config key or an input file is wrong."""

    exit_status: ClassVar[int] = 2


class DataMissingError(WattledgerError):
    """The ledger, a factor table or a coverage bar has nothing for what was asked."""

    exit_status: ClassVar[int] = 3


class UnreachableError(WattledgerError):
    """The ledger or the daemon cannot be reached or used."""

    exit_status: ClassVar[int] = 4


class UnbalancedError(WattledgerError):
    """The postings of a device do not sum to its metered energy."""

    exit_status: ClassVar[int] = 5
