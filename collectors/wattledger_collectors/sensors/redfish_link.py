"""One kept HTTPS connection to a management controller; its certificate is always verified.

The standard library's own client, below urllib: it keeps the connection (a controller takes long
over a handshake), follows no redirect, and asks no proxy, so that the password goes nowhere else.
"""

from __future__ import annotations

import base64
import json
import socket
import ssl
import time
from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from wattledger_collectors.deadline import DeadlineReader
from wattledger_collectors.sensors.protocol import Denied, RedfishSettings

if TYPE_CHECKING:
    from http.client import HTTPResponse, HTTPSConnection

_MOST_BYTES = 4 * 1024 * 1024
_MEND_REFUSED = (
    "check redfish.user and redfish.password_file: the account needs the right to log in"
)
_MEND_TRUST = (
    "set redfish.ca_file to the controller's certificate or its authority's, and redfish.url to "
    "a name that the certificate holds"
)


class RedfishLink:
    """Asks for resources, at most one at a time; `timeout_s` is for a whole answer."""

    def __init__(
        self, access: RedfishSettings, clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        """Read password and certificate files; raises `Denied` where they are not to be had."""
        self._access = access
        self._clock_s = clock_s
        self._deadline_s = 0.0
        self._headers = {"Accept": "application/json", "OData-Version": "4.0"}
        if access.user is not None:
            secret = f"{access.user}:{_password(access)}".encode()
            self._headers["Authorization"] = f"Basic {base64.b64encode(secret).decode()}"
        self._trust = _trust(access)
        self._connection: HTTPSConnection | None = None

    def get(self, path: str) -> object:
        """The JSON document at a path.

        Raises LookupError where there is none, `Denied` where credentials or certificate are
        refused, ValueError for what is no answer, OSError for what is no connection.
        """
        if not path.startswith("/redfish/") or not path.isprintable() or " " in path:
            raise ValueError(f"{path[:80]!r} is no Redfish path")
        status, body = self._ask(path)
        if status in (401, 403):
            raise Denied(f"{self._access.url} refuses with status {status}", _MEND_REFUSED)
        if status == 404:
            raise LookupError(path)
        if status != 200:
            raise ValueError(f"status {status}")
        if len(body) > _MOST_BYTES:
            raise ValueError(f"more than {_MOST_BYTES} bytes")
        try:
            document: object = json.loads(body)
        except RecursionError as nested:
            raise ValueError("nested too deep") from nested
        return document

    def close(self) -> None:
        """Close the connection; the next question opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _ask(self, path: str) -> tuple[int, bytes]:
        """Status and body; a kept connection that the other side closed is opened once more."""
        from http.client import HTTPException

        kept = self._connection is not None
        try:
            return self._ask_once(path)
        except ssl.SSLCertVerificationError as untrusted:
            self.close()
            reason = f"the certificate of {self._access.url}: {untrusted.verify_message}"
            raise Denied(reason, _MEND_TRUST) from untrusted
        except (HTTPException, OSError) as failed:
            self.close()
            if kept and not isinstance(failed, TimeoutError):
                return self._ask(path)
            if isinstance(failed, OSError):
                raise
            raise OSError(f"not HTTP: {type(failed).__name__}") from failed

    def _ask_once(self, path: str) -> tuple[int, bytes]:
        self._deadline_s = self._clock_s() + self._access.timeout_s
        if self._connection is None:
            from http.client import HTTPSConnection

            parts = urlsplit(self._access.url)
            self._connection = HTTPSConnection(
                parts.hostname or "",
                parts.port,
                timeout=self._access.timeout_s,
                context=self._trust,
            )
            # A class to the library, which only ever calls it.
            self._connection.response_class = self._response  # type: ignore[assignment]
        if self._connection.sock is None:
            self._connection.connect()
        self._connection.sock.settimeout(self._left_s())
        self._connection.request("GET", path, headers=self._headers)
        answer = self._connection.getresponse()
        body = answer.read(_MOST_BYTES + 1)
        if answer.length:
            # The rest of it would be taken for the next answer.
            self.close()
        return answer.status, body

    def _response(self, sock: socket.socket, method: str | None = None) -> HTTPResponse:
        from http.client import HTTPResponse

        # All it asks of a socket is a file.
        return HTTPResponse(DeadlineReader(sock, self._left_s), method=method)  # type: ignore[arg-type]

    def _left_s(self) -> float:
        """Time until the deadline, never 0; raises TimeoutError from then on."""
        left_s = self._deadline_s - self._clock_s()
        if left_s <= 0.0:
            raise TimeoutError(f"timed out: no whole answer in {self._access.timeout_s} s")
        return left_s


def _password(access: RedfishSettings) -> str:
    path = access.password_file
    if path is None:
        raise Denied("redfish.user has no password", "set redfish.password_file")
    try:
        password = path.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as failed:
        what = failed.strerror if isinstance(failed, OSError) else "not UTF-8"
        raise Denied(
            f"{path} cannot be read: {what}", "mend redfish.password_file or its permissions"
        ) from None
    if not password:
        raise Denied(f"{path} is empty", "write the password into it")
    return password


def _trust(access: RedfishSettings) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=access.ca_file)
    except OSError as failed:
        raise Denied(
            f"{access.ca_file} holds no certificate that can be read",
            "set redfish.ca_file to a PEM file",
        ) from failed
