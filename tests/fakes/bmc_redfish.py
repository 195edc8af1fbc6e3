"""A management controller that speaks Redfish: a real HTTPS server in this process."""

from __future__ import annotations

import base64
import json
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

USER = "wattledger"
PASSWORD = "correct horse: battery"  # a colon may stand in a password
CHASSIS = "/redfish/v1/Chassis"

Json = dict[str, object]


def collection(*paths: str) -> Json:
    return {
        "@odata.type": "#ChassisCollection.ChassisCollection",
        "Members": [{"@odata.id": path} for path in paths],
        "Members@odata.count": len(paths),
    }


def chassis(
    path: str,
    *,
    power: bool = False,
    metrics: bool = False,
    inside: str = "",
    computer: bool = True,
) -> Json:
    """A chassis that has a Power or an EnvironmentMetrics resource, perhaps inside another."""
    links: Json = {"ComputerSystems": [{"@odata.id": "/redfish/v1/Systems/1"}] if computer else []}
    if inside:
        links["ContainedBy"] = {"@odata.id": inside}
    body: Json = {"@odata.id": path, "@odata.type": "#Chassis.v1_14_0.Chassis", "Links": links}
    if power:
        body["Power"] = {"@odata.id": f"{path}/Power"}
    if metrics:
        body["EnvironmentMetrics"] = {"@odata.id": f"{path}/EnvironmentMetrics"}
    return body


def power(watts: object, state: str | None = None) -> Json:
    """A Power resource as iDRAC, iLO and XCC give it."""
    control: Json = {
        "MemberId": "0",
        "Name": "System Power Control",
        "PowerCapacityWatts": 1600,
        "PowerConsumedWatts": watts,
        "PowerMetrics": {"AverageConsumedWatts": 300, "IntervalInMin": 1},
    }
    if state is not None:
        control["Status"] = {"State": state, "Health": "OK"}
    return {
        "@odata.type": "#Power.v1_6_0.Power",
        "Id": "Power",
        "PowerControl": [control, {"MemberId": "1", "PowerConsumedWatts": 77}],
        "PowerSupplies": [{"LastPowerOutputWatts": 1600, "PowerInputWatts": None}],
    }


def metrics(watts: object) -> Json:
    return {
        "@odata.type": "#EnvironmentMetrics.v1_3_0.EnvironmentMetrics",
        "PowerWatts": {
            "DataSourceUri": f"{CHASSIS}/1/Sensors/TotalPower",
            "Reading": watts,
        },
        "TemperatureCelsius": {"Reading": 24},
    }


def sensor(watts: object, reading_time: str | None = None, units: str = "W") -> Json:
    body: Json = {
        "@odata.type": "#Sensor.v1_7_0.Sensor",
        "Reading": watts,
        "ReadingType": "Power",
        "ReadingUnits": units,
        "Status": {"State": "Enabled", "Health": "OK"},
    }
    return body if reading_time is None else body | {"ReadingTime": reading_time}


class Certificate:
    """A self-signed certificate of `localhost`, made with openssl."""

    def __init__(self, folder: Path, name: str = "localhost") -> None:
        self.file, self.key = folder / f"{name}.pem", folder / f"{name}.key"
        command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
        subprocess.run(
            [
                *command.split(),
                *("-days", "2", "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}"),
                *("-keyout", str(self.key), "-out", str(self.file)),
            ],
            check=True,
            capture_output=True,
        )


class FakeBmc:
    """What a controller answers: `documents` by path, or else what `answer` says."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.documents: dict[str, object] = {}
        self.asked: list[str] = []
        self.connections = 0
        self.password = PASSWORD
        # Set, to be sent as it stands: status and body.
        self.answer: tuple[int, bytes] | None = None
        self.silent = threading.Event()
        # Set, to send what stands here first, then 500 blanks, one at a time.
        self.dribble: bytes | None = None
        self.hang_up = False

    def reply(self, path: str, authorization: str | None) -> tuple[int, bytes]:
        self.asked.append(path)
        secret = base64.b64encode(f"{USER}:{self.password}".encode()).decode()
        if authorization != f"Basic {secret}":
            return 401, b'{"error": {}}'
        if self.answer is not None:
            return self.answer
        if path not in self.documents:
            return 404, b"{}"
        return 200, json.dumps(self.documents[path]).encode()


@contextmanager
def serving(certificate: Certificate) -> Iterator[FakeBmc]:
    """A controller on a port of the loopback, until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            bmc.connections += 1
            super().setup()

        def do_GET(self) -> None:
            if bmc.silent.is_set():
                released.wait(30.0)
                self.close_connection = True
                return
            if bmc.dribble is not None:
                self.dribble(bmc.dribble)
                return
            status, body = bmc.reply(self.path, self.headers["Authorization"])
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            self.close_connection = bmc.hang_up

        def dribble(self, head: bytes) -> None:
            self.close_connection = True
            # Whoever asked may have hung up long before.
            with suppress(OSError):
                self.wfile.write(head)
                for _ in range(500):
                    if released.wait(0.02):
                        break
                    self.wfile.write(b" ")

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    released = threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    trust = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trust.load_cert_chain(certificate.file, certificate.key)
    server.socket = trust.wrap_socket(server.socket, server_side=True)
    bmc = FakeBmc(f"https://localhost:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield bmc
    finally:
        released.set()
        server.shutdown()
        thread.join()
        server.server_close()
