from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes.bmc import (
    BUSY,
    NO_DCMI,
    NO_DEVICE,
    READING,
    READING_1_8_19,
    UNSET_CLOCK,
    UNSUPPORTED,
    FakeIpmitool,
    reading,
)
from wattledger.records import NS_PER_S, Device, DeviceKind, PowerReading
from wattledger_collectors.sensors.ipmi import (
    DcmiPower,
    IpmiSensor,
    UnsupportedError,
    may_open,
    parse_dcmi,
)
from wattledger_collectors.sensors.protocol import Absent, Denied, ReadFault, SensorSettings
from wattledger_daemon.heart.metering import MAX_GAP_NS


class Host:
    """A host with a controller; its clock stands where it is put."""

    def __init__(self, root: Path) -> None:
        self.tool = FakeIpmitool(root)
        self.now_s = 100
        self.sensor = self.make()

    def make(
        self, timeout_s: float = 20.0, allowed: Callable[[Path], bool] = may_open
    ) -> IpmiSensor:
        return IpmiSensor(
            SensorSettings(),
            lambda: self.now_s * NS_PER_S,
            dev_root=self.tool.dev,
            search_path=f"{self.tool.bin}",
            timeout_s=timeout_s,
            allowed=allowed,
        )

    def power(self) -> list[tuple[int, int]]:
        """Seconds and watts of what is read now."""
        return [
            (r.t_ns // NS_PER_S, r.power_uw // 1_000_000)
            for r in self.sensor.read()
            if isinstance(r, PowerReading)
        ]

    def fault(self) -> str:
        (found,) = self.sensor.read()
        assert isinstance(found, ReadFault)
        assert (found.device, found.t_ns) == ("node0", self.now_s * NS_PER_S)
        return found.reason


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_the_node_is_a_device_that_no_total_holds(host: Host) -> None:
    assert host.sensor.open() == (Device("node0", DeviceKind.NODE),)
    assert host.power() == [(100, 215)]
    assert host.tool.calls == ["dcmi power reading"] * 2
    host.sensor.close()
    assert host.sensor.read() == []
    assert host.tool.alive == []


def test_it_is_read_often_enough_for_the_meter(host: Host) -> None:
    assert host.sensor.period_s * NS_PER_S < MAX_GAP_NS


def test_the_same_time_stamp_is_no_news_and_then_a_fault(host: Host) -> None:
    host.sensor.open()
    assert host.power() == [(100, 215)]
    host.now_s = 130
    assert host.sensor.read() == []
    host.now_s = 131
    assert "again and again" in host.fault()
    host.tool.says(reading(220, second=1))
    assert host.power() == [(131, 220)]
    host.sensor.close()


@pytest.mark.parametrize("stamp", [UNSET_CLOCK, "01/01/70 00:00:00 UTC", "Unspecified"])
def test_a_controller_without_a_clock_has_news_each_time(host: Host, stamp: str) -> None:
    host.tool.says(READING.format(power_w=360, stamp=stamp, state="activated"))
    host.sensor.open()
    assert host.power() + host.power() == [(100, 360), (100, 360)]
    host.sensor.close()


def test_the_shape_of_1_8_19_is_understood() -> None:
    stamp = "08/28/26 07:12:06 UTC"
    text = READING_1_8_19.format(power_w=195, stamp=stamp, state="activated")
    assert parse_dcmi(text) == DcmiPower(195, stamp)
    assert parse_dcmi(reading(195)) == DcmiPower(195, "Wed Feb 15 12:00:00 2017")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n\n",
        NO_DEVICE,
        BUSY,
        "Instantaneous power reading: 212 Watts\n",
        "Power reading state is: activated\n",
        reading(212).replace("212 Watts", "212garbage Watts"),
        reading(212).replace("212 Watts", "1e6 Watts"),
        reading(212).replace("212 Watts", "-5 Watts"),
        reading(212).replace("212 Watts", "212 Amps"),
        reading(212).replace("212 Watts", "9999999 Watts"),
        reading(0),
    ],
)
def test_what_is_no_reading_is_a_fault(host: Host, text: str) -> None:
    with pytest.raises(ValueError):
        parse_dcmi(text)
    host.sensor.open()
    host.tool.says(text)
    assert host.fault().startswith("ipmitool: ")
    host.tool.says(reading(230, second=5))
    assert host.power() == [(100, 230)]
    host.sensor.close()


@given(st.text())
def test_any_text_is_a_reading_or_a_fault(text: str) -> None:
    try:
        assert parse_dcmi(text).power_w > 0
    except ValueError as refused:
        assert len(str(refused)) < 200


@pytest.mark.parametrize("text", [UNSUPPORTED, NO_DCMI, reading(360, state="deactivated")])
def test_a_controller_that_does_not_measure_is_absent_and_redfish_is_named(
    host: Host, text: str
) -> None:
    host.tool.says(text)
    with pytest.raises(UnsupportedError):
        parse_dcmi(text)
    with pytest.raises(Absent, match=r"\[redfish\]"):
        host.sensor.open()


def test_a_busy_controller_at_the_start_is_tried_again(host: Host) -> None:
    host.tool.says(BUSY)
    with pytest.raises(ValueError, match="busy"):
        host.sensor.open()


def test_what_is_missing_is_told_with_its_mend(host: Host) -> None:
    (host.tool.bin / "ipmitool").rename(host.tool.bin / "else")
    with pytest.raises(Absent, match="apt install ipmitool"):
        host.sensor.open()
    (host.tool.bin / "else").rename(host.tool.bin / "ipmitool")
    (host.tool.dev / "ipmi0").rename(host.tool.dev / "else")
    with pytest.raises(Absent, match="modprobe ipmi_si ipmi_devintf"):
        host.sensor.open()


def test_a_device_that_may_not_be_opened_is_denied(tmp_path: Path) -> None:
    host = Host(tmp_path)
    asked: list[Path] = []

    def allowed(path: Path) -> bool:
        asked.append(path)
        return False

    with pytest.raises(Denied) as denied:
        host.make(allowed=allowed).open()
    assert asked == [host.tool.dev / "ipmi0"]
    assert "udev rule" in denied.value.mend


def test_a_tool_that_fails_is_a_fault_whatever_it_exits_with(host: Host) -> None:
    host.sensor.open()
    host.tool.does("echo broken >&2", status=1)
    assert host.fault() == "ipmitool: no DCMI power reading: broken"
    (host.tool.bin / "ipmitool").write_text("no script\n")
    (host.tool.bin / "ipmitool").chmod(0o644)
    assert "Permission denied" in host.fault()
    host.sensor.close()


def test_a_tool_that_hangs_is_killed_with_all_that_it_started(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.sensor.open()
    host.tool.does("sleep 600 & sleep 600")
    hasty = host.make(timeout_s=0.3)
    with pytest.raises(TimeoutError, match=r"within 0\.3 s"):
        hasty.open()
    assert host.tool.alive == []
    hasty.close()
    host.sensor.close()
