from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes.bmc_redfish import (
    CHASSIS,
    PASSWORD,
    USER,
    Certificate,
    FakeBmc,
    chassis,
    collection,
    metrics,
    power,
    sensor,
    serving,
)
from wattledger.records import NS_PER_S, Device, DeviceKind, PowerReading
from wattledger_collectors.sensors.protocol import (
    Absent,
    Denied,
    ReadFault,
    RedfishSettings,
    SensorSettings,
)
from wattledger_collectors.sensors.redfish import RedfishSensor, watts_of
from wattledger_collectors.sensors.redfish_link import RedfishLink

ONE = f"{CHASSIS}/1"
NODE1 = Device("node1", DeviceKind.NODE)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return Certificate(tmp_path_factory.mktemp("tls"))


class Host:
    """A controller with one chassis, and a sensor that is told of it."""

    def __init__(self, bmc: FakeBmc, certificate: Certificate, root: Path) -> None:
        self.bmc = bmc
        self.secret = root / "password"
        self.secret.write_text(f"{PASSWORD}\n")
        self.now_s = 100
        self.access = RedfishSettings(bmc.url, USER, self.secret, certificate.file, timeout_s=20.0)
        bmc.documents = {
            CHASSIS: collection(ONE),
            ONE: chassis(ONE, power=True),
            f"{ONE}/Power": power(344),
        }
        self._made: list[RedfishSensor] = []

    def sensor(self, **changes: object) -> RedfishSensor:
        access = replace(self.access, **changes)  # type: ignore[arg-type]
        made = RedfishSensor(SensorSettings(redfish=access), lambda: self.now_s * NS_PER_S)
        self._made.append(made)
        return made

    def close(self) -> None:
        for made in self._made:
            made.close()


@pytest.fixture
def host(certificate: Certificate, tmp_path: Path) -> Iterator[Host]:
    with serving(certificate) as bmc:
        made = Host(bmc, certificate, tmp_path)
        yield made
        made.close()


def read_w(sensor: RedfishSensor) -> list[float]:
    return [r.power_uw / 1e6 for r in sensor.read() if isinstance(r, PowerReading)]


def fault(sensor: RedfishSensor) -> str:
    (found,) = sensor.read()
    assert isinstance(found, ReadFault)
    assert found.device == "node1"
    assert PASSWORD not in found.reason
    return found.reason


def test_the_power_of_the_one_chassis_is_read_over_one_connection(host: Host) -> None:
    sensor = host.sensor()
    assert sensor.open() == (NODE1,)
    assert sensor.read() == [PowerReading("node1", 100 * NS_PER_S, 344_000_000)]
    host.bmc.documents[f"{ONE}/Power"] = power(345.5)
    assert read_w(sensor) == [345.5]
    assert host.bmc.connections == 1
    assert host.bmc.asked[-2:] == [f"{ONE}/Power"] * 2
    sensor.close()
    assert sensor.read() == []


def test_the_newer_environment_metrics_are_read_where_power_is_gone(host: Host) -> None:
    host.bmc.documents |= {
        ONE: chassis(ONE, metrics=True),
        f"{ONE}/EnvironmentMetrics": metrics(374.2),
    }
    sensor = host.sensor()
    assert sensor.open() == (NODE1,)
    assert read_w(sensor) == [374.2]


def test_a_sensor_by_name_has_news_when_its_time_stamp_moves(host: Host) -> None:
    path = f"{ONE}/Sensors/TotalPower"
    host.bmc.documents[path] = sensor(500, "2026-10-01T00:00:00Z")
    made = host.sensor(resource=path)
    made.open()
    assert read_w(made) == [500.0]
    host.now_s = 130
    assert made.read() == []
    host.now_s = 131
    assert "again and again" in fault(made)
    host.bmc.documents[path] = sensor(510, "2026-10-01T00:00:31Z")
    assert read_w(made) == [510.0]


def test_boards_inside_the_server_are_never_added_nor_taken_for_it(host: Host) -> None:
    board, gpu, other = f"{CHASSIS}/HGX_Board", f"{CHASSIS}/HGX_GPU_1", f"{CHASSIS}/PDB"
    host.bmc.documents |= {
        CHASSIS: collection(board, gpu, other, ONE),
        board: chassis(board, metrics=True, inside=ONE),
        f"{board}/EnvironmentMetrics": metrics(5000),
        gpu: chassis(gpu, metrics=True, inside=board),
        f"{gpu}/EnvironmentMetrics": metrics(700),
        other: chassis(other, metrics=True, computer=False),
        f"{other}/EnvironmentMetrics": metrics(9000),
        f"{ONE}/Power": power(8200),
    }
    sensor = host.sensor()
    sensor.open()
    assert read_w(sensor) == [8200.0]


def test_two_equal_chassis_are_a_question_for_the_site(host: Host) -> None:
    two = f"{CHASSIS}/2"
    host.bmc.documents |= {
        CHASSIS: collection(ONE, two),
        two: chassis(two, power=True),
        f"{two}/Power": power(100),
    }
    with pytest.raises(Absent) as absent:
        host.sensor().open()
    assert f"set redfish.resource to one of {ONE}/Power, {two}/Power" in absent.value.reason
    sensor = host.sensor(resource=f"{two}/Power")
    sensor.open()
    assert read_w(sensor) == [100.0]


def test_a_controller_without_power_is_absent(host: Host) -> None:
    host.bmc.documents[ONE] = chassis(ONE)
    with pytest.raises(Absent, match="no chassis tells its power"):
        host.sensor().open()
    host.bmc.documents = {}
    with pytest.raises(Absent, match="has no /redfish/v1/Chassis"):
        host.sensor().open()
    with pytest.raises(Absent, match=r"redfish\.url is not set"):
        RedfishSensor(SensorSettings()).open()


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (power(None), "no power in watts"),
        (power("344"), "no power in watts"),
        (power(True), "no power in watts"),
        (power(0), "0 W is not the power of a running host"),
        (power(-3), "not the power of a running host"),
        (power(1e9), "not the power of a running host"),
        (power(10**400), "not the power of a running host"),
        (power(344, state="UnavailableOffline"), "state is 'UnavailableOffline'"),
        (metrics(None), "no power in watts"),
        (sensor(3, units="Cel"), "no power in watts"),
        ({"PowerControl": []}, "no power in watts"),
        ([], "no power in watts"),
        ("text", "no power in watts"),
    ],
)
def test_what_is_no_power_is_a_fault_and_the_next_good_one_goes_on(
    host: Host, document: object, said: str
) -> None:
    sensor = host.sensor()
    sensor.open()
    host.bmc.documents[f"{ONE}/Power"] = document
    assert said in fault(sensor)
    host.bmc.documents[f"{ONE}/Power"] = power(340, state="Enabled")
    assert read_w(sensor) == [340.0]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((503, b"busy"), "status 503"),
        ((302, b""), "status 302"),
        ((200, b"<html>"), "Expecting value"),
        ((200, b"[" * 100_000), "nested too deep"),
        ((200, b"\xff\xfe\xfd"), ""),
        ((200, b'{"PowerControl": [{"PowerConsumedWatts": NaN}]}'), "not the power"),
        ((200, b" " * (5 * 1024 * 1024)), "more than 4194304 bytes"),
    ],
)
def test_what_is_no_answer_is_a_fault(host: Host, answer: tuple[int, bytes], said: str) -> None:
    sensor = host.sensor()
    sensor.open()
    host.bmc.answer = answer
    assert said in fault(sensor)
    host.bmc.answer = None
    assert read_w(sensor) == [344.0]


def test_a_connection_that_was_closed_is_opened_again(host: Host) -> None:
    host.bmc.hang_up = True
    sensor = host.sensor()
    sensor.open()
    assert read_w(sensor) + read_w(sensor) == [344.0, 344.0]
    assert host.bmc.connections == len(host.bmc.asked)


def test_a_controller_that_falls_silent_is_a_fault_in_time(host: Host) -> None:
    sensor = host.sensor(timeout_s=0.3)
    sensor.open()
    host.bmc.silent.set()
    assert "timed out" in fault(sensor)
    host.bmc.silent.clear()
    assert read_w(host_sensor_again(host)) == [344.0]


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nServer:",
        b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1f4\r\n",
    ],
)
def test_an_answer_that_dribbles_in_is_a_fault_in_time(host: Host, head: bytes) -> None:
    sensor = host.sensor(timeout_s=0.5)
    sensor.open()
    host.bmc.dribble = head
    assert "timed out" in fault(sensor)
    host.bmc.dribble = None
    assert read_w(host_sensor_again(host)) == [344.0]


def test_the_time_for_an_answer_starts_anew_with_each_question(host: Host) -> None:
    link = RedfishLink(replace(host.access, timeout_s=20.0), lambda: now_s)
    now_s = 0.0
    for _ in range(3):
        link.get(f"{ONE}/Power")
        now_s += 15.0
    assert host.bmc.connections == 1
    link.close()


def host_sensor_again(host: Host) -> RedfishSensor:
    again = host.sensor()
    again.open()
    return again


def test_a_controller_that_is_gone_is_a_fault(certificate: Certificate, tmp_path: Path) -> None:
    with serving(certificate) as bmc:
        host = Host(bmc, certificate, tmp_path)
        sensor = host.sensor()
        sensor.open()
        bmc.hang_up = True
        assert read_w(sensor) == [344.0]
    assert "refused" in fault(sensor)
    sensor.close()


def test_refused_credentials_end_it_before_the_account_is_locked(host: Host) -> None:
    sensor = host.sensor()
    sensor.open()
    host.bmc.password = "another"
    asked = len(host.bmc.asked)
    with pytest.raises(Denied) as denied:
        sensor.read()
    assert len(host.bmc.asked) == asked + 1
    assert "redfish.password_file" in denied.value.mend
    assert PASSWORD not in str(denied.value)
    host.bmc.password = PASSWORD
    host.secret.write_text("wrong")
    with pytest.raises(Denied, match="status 401"):
        host.sensor().open()


@pytest.mark.parametrize("content", [None, b"", b"\n", b"\xff\xfe"])
def test_a_password_that_cannot_be_read_is_denied(host: Host, content: bytes | None) -> None:
    host.secret.unlink()
    if content is not None:
        host.secret.write_bytes(content)
    with pytest.raises(Denied) as denied:
        host.sensor().open()
    assert str(host.secret) in denied.value.reason
    assert host.bmc.asked == []


def test_a_user_without_a_password_is_denied(host: Host) -> None:
    with pytest.raises(Denied, match=r"redfish\.password_file"):
        host.sensor(password_file=None).open()


def test_an_unknown_certificate_is_denied_before_anything_is_said(
    host: Host, tmp_path: Path
) -> None:
    for ca_file in (None, Certificate(tmp_path, "elsewhere").file):
        with pytest.raises(Denied) as denied:
            host.sensor(ca_file=ca_file).open()
        assert "redfish.ca_file" in denied.value.mend
    with pytest.raises(Denied, match="PEM"):
        host.sensor(ca_file=host.secret).open()
    with pytest.raises(Denied, match="PEM"):
        host.sensor(ca_file=tmp_path / "missing.pem").open()
    assert host.bmc.asked == []


def test_a_certificate_of_another_name_is_denied(host: Host) -> None:
    with pytest.raises(Denied, match="certificate of https://127"):
        host.sensor(url=host.bmc.url.replace("localhost", "127.0.0.1")).open()
    assert host.bmc.asked == []


def test_a_link_to_another_host_is_not_followed(host: Host) -> None:
    host.bmc.documents[CHASSIS] = collection("https://elsewhere.example/redfish/v1/Chassis/1")
    with pytest.raises(ValueError, match="is no Redfish path"):
        host.sensor().open()


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text() | st.integers(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["PowerControl", "PowerWatts", "Reading", "ReadingUnits", "W"]),
                inner,
                max_size=3,
            )
        ),
        max_leaves=12,
    )
)
def test_any_document_is_a_power_or_a_value_error(document: object) -> None:
    try:
        assert 0.0 < watts_of(document) <= 1e6
    except ValueError as refused:
        assert len(str(refused)) < 400
