"""Readers of the options of `[redfish]`."""

from __future__ import annotations

from urllib.parse import urlsplit

from wattledger.errors import InputError


def https_origin(value: object) -> str:
    """Reader of `https://HOST[:PORT]`: a password never travels in the clear, nor in a URL.

    Raises InputError where a secret may be in it, as a fault would show the value.
    """
    fault = ValueError("must be https://HOST[:PORT]")
    if not isinstance(value, str) or not value.isprintable() or " " in value:
        raise fault
    if "@" in value:
        raise InputError(
            "redfish.url: holds a user or a password: move them to redfish.user and "
            "redfish.password_file"
        )
    try:
        parts = urlsplit(value)
        named = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError as wrong:
        raise fault from wrong
    rest = parts.path.strip("/") + parts.query + parts.fragment
    if parts.scheme != "https" or not named or rest:
        raise fault
    return value.rstrip("/")


def redfish_path(value: object) -> str:
    """Reader of the path of a Redfish resource."""
    if (
        isinstance(value, str)
        and value.startswith("/redfish/")
        and value.isprintable()
        and " " not in value
    ):
        return value
    raise ValueError("must be a path like /redfish/v1/Chassis/1/Power")
