"""Readers of the addresses in the config that the exporters use."""

from __future__ import annotations

from urllib.parse import urlsplit


def listen_address(value: object) -> str:
    """Reader of `HOST:PORT`, an IPv6 host in brackets; port 0 takes a free one."""
    if isinstance(value, str):
        try:
            split_address(value)
        except ValueError:
            pass
        else:
            return value
    raise ValueError('must be an address like "127.0.0.1:9464" or "[::1]:9464"')


def split_address(address: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT`; raises ValueError for anything else."""
    parts = urlsplit(f"//{address}")
    # A port that is no number raises here.
    if not parts.hostname or parts.port is None or parts.netloc != address or "@" in address:
        raise ValueError(address)
    if not address.isprintable() or " " in address:
        raise ValueError(address)
    return parts.hostname, parts.port


def http_url(value: object) -> str:
    """Reader of an http or https URL without credentials: a URL is logged, a secret must not be."""
    if isinstance(value, str) and value.isascii() and value.isprintable() and " " not in value:
        try:
            parts = urlsplit(value)
            plain = parts.port != 0 and not (parts.username or parts.password or parts.fragment)
        except ValueError:
            plain = False
        if plain and parts.hostname and parts.scheme in ("http", "https"):
            return value
    raise ValueError('must be a URL like "http://127.0.0.1:4318", its secrets in headers_file')
