"""Which software made a statement."""

from __future__ import annotations


def software_version() -> str:
    """The installed version of wattledger, `unknown` in a source tree that is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("wattledger")
    except PackageNotFoundError:
        return "unknown"
