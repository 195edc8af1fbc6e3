"""What `wattledger.toml` may say, its defaults and its bounds.

`wattledger.toml` beside this file shows every key; a test holds it to these defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Literal

from wattledger.errors import InputError
from wattledger.locations import default_config_path
from wattledger.records import CostModel
from wattledger.store.protocol import Retention
from wattledger_collectors.sensors.protocol import RedfishSettings
from wattledger_collectors.workloads.rules import Rule, rule_of
from wattledger_daemon import settings
from wattledger_daemon.export.addresses import http_url, listen_address
from wattledger_daemon.redfish_options import https_origin, redfish_path
from wattledger_daemon.scrape_options import ScrapeTarget, scrape_targets
from wattledger_daemon.settings import absolute_path, named, number, one_of, text
from wattledger_daemon.tenants import TenantRule, tenant_rule_of

SensorMode = Annotated[Literal["auto", "off", "require"], one_of("auto", "off", "require")]

_MAX_DAYS = 36_500.0


def _socket_mode(value: object) -> int:
    if not isinstance(value, int) or value & ~0o666 or value & 0o600 != 0o600:
        raise ValueError("must be an octal mode from 0o600 to 0o666")
    return value


def _cost(value: object) -> CostModel:
    if not isinstance(value, dict) or set(value) != {"f_j", "a_j", "b_j", "c_j"}:
        raise ValueError("must be a table of f_j, a_j, b_j and c_j")
    joules = {name: number(0.0, 1e6)(part) for name, part in value.items()}
    return CostModel(joules["f_j"], joules["a_j"], joules["b_j"], joules["c_j"])


@dataclass(frozen=True, slots=True)
class LedgerConfig:
    """Where the ledger lies and how long each tier is kept."""

    path: Annotated[Path | None, absolute_path] = None
    raw_days: Annotated[float, number(0.1, _MAX_DAYS)] = 7.0
    minute_days: Annotated[float, number(1.0, _MAX_DAYS)] = 400.0
    hour_days: Annotated[float, number(1.0, _MAX_DAYS)] = 3650.0
    request_days: Annotated[float, number(0.1, _MAX_DAYS)] = 400.0

    @property
    def retention(self) -> Retention:
        """The four lifetimes as the store takes them."""
        return Retention(self.raw_days, self.minute_days, self.hour_days, self.request_days)


@dataclass(frozen=True, slots=True)
class SamplingConfig:
    """How often sensors are read, and how long a booked window is.

    Every window length divides a minute, so that rollups fall on window edges.
    """

    period_s: Annotated[float, number(0.05, 10.0)] = 0.1
    window_s: Annotated[int, one_of(1, 2, 3, 4, 5, 6, 10, 12, 15, 20, 30, 60)] = 5
    use_period_s: Annotated[float, number(0.5, 60.0)] = 2.0


@dataclass(frozen=True, slots=True)
class CollectConfig:
    """The Unix socket that engines report to."""

    socket: Annotated[Path | None, absolute_path] = None
    socket_mode: Annotated[int, _socket_mode] = 0o660


@dataclass(frozen=True, slots=True)
class SiteConfig:
    """Where the host stands; `pue` is its power usage effectiveness."""

    host: Annotated[str | None, text] = None
    zone: Annotated[str | None, text] = None
    pue: Annotated[float | None, number(1.0, 10.0)] = None


@dataclass(frozen=True, slots=True)
class PowerConfig:
    """What is known of the hardware's power: CPU TDP, and idle power per device."""

    cpu_tdp_w: Annotated[float | None, number(1.0, 10_000.0)] = None
    static_w: Annotated[Mapping[str, float], named(number(0.0, 10_000.0))] = field(
        default_factory=dict
    )


@dataclass(frozen=True, slots=True)
class SensorsConfig:
    """Which sensors run: `require` refuses to start without the sensor."""

    nvml: SensorMode = "auto"
    rapl: SensorMode = "auto"
    amdsmi: SensorMode = "auto"
    hwmon: SensorMode = "auto"
    ipmi: SensorMode = "off"
    redfish: SensorMode = "off"
    estimate: SensorMode = "auto"

    def named(self, mode: str) -> set[str]:
        """The sensors that are in this mode."""
        return {field.name for field in fields(self) if getattr(self, field.name) == mode}


@dataclass(frozen=True, slots=True)
class RedfishConfig:
    """How to reach the host's own management controller; None: not at all.

    A period is below the meter's 5 s gap. `resource` names what to read, None to look for it.
    """

    url: Annotated[str | None, https_origin] = None
    user: Annotated[str | None, text] = None
    password_file: Annotated[Path | None, absolute_path] = None
    ca_file: Annotated[Path | None, absolute_path] = None
    resource: Annotated[str | None, redfish_path] = None
    period_s: Annotated[float, number(1.0, 4.5)] = 4.0

    @property
    def access(self) -> RedfishSettings | None:
        """The same as the sensor takes it; None where there is no controller to ask."""
        if self.url is None:
            return None
        return RedfishSettings(
            self.url, self.user, self.password_file, self.ca_file, self.resource, self.period_s
        )


@dataclass(frozen=True, slots=True)
class LogConfig:
    """How much is logged."""

    level: Annotated[str, one_of("debug", "info", "warning", "error")] = "info"


@dataclass(frozen=True, slots=True)
class PrometheusConfig:
    """Where Prometheus may scrape this host; None: nowhere."""

    listen: Annotated[str | None, listen_address] = None


@dataclass(frozen=True, slots=True)
class OtlpConfig:
    """Which OpenTelemetry receiver is sent the totals, over HTTP; None: none."""

    endpoint: Annotated[str | None, http_url] = None
    period_s: Annotated[float, number(1.0, 3600.0)] = 10.0
    headers_file: Annotated[Path | None, absolute_path] = None


@dataclass(frozen=True, slots=True)
class DaemonConfig:
    """The whole of `wattledger.toml`; `cost` pins an engine's cost model by engine name.

    `rules` say whose processes are, `tenants` whose requests are; the first that fits, in the
    order of the file.
    """

    ledger: LedgerConfig = field(default_factory=LedgerConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    collect: CollectConfig = field(default_factory=CollectConfig)
    site: SiteConfig = field(default_factory=SiteConfig)
    power: PowerConfig = field(default_factory=PowerConfig)
    sensors: SensorsConfig = field(default_factory=SensorsConfig)
    redfish: RedfishConfig = field(default_factory=RedfishConfig)
    log: LogConfig = field(default_factory=LogConfig)
    prometheus: PrometheusConfig = field(default_factory=PrometheusConfig)
    otlp: OtlpConfig = field(default_factory=OtlpConfig)
    cost: Annotated[Mapping[str, CostModel], named(_cost)] = field(default_factory=dict)
    rules: Annotated[Mapping[str, Rule], named(rule_of)] = field(default_factory=dict)
    tenants: Annotated[Mapping[str, TenantRule], named(tenant_rule_of)] = field(
        default_factory=dict
    )
    scrape: Annotated[Mapping[str, ScrapeTarget], scrape_targets] = field(default_factory=dict)


LIVE_KEYS = frozenset(
    {
        "ledger.raw_days",
        "ledger.minute_days",
        "ledger.hour_days",
        "ledger.request_days",
        "power.static_w",
        "log.level",
        "cost",
        "tenants",
    }
)
"""Keys that a reload applies to the running daemon; any other needs a restart."""


def find_config(named: str | None, environ: Mapping[str, str]) -> Path | None:
    """The config file to read: `--config`, else `$WATTLEDGER_CONFIG`, else the system's.

    None where nobody named one and the system has none: the defaults hold. Raises InputError
    for a named file that does not exist.
    """
    path = Path(named) if named is not None else default_config_path(environ)
    if path.is_file():
        return path
    if named is None and not environ.get("WATTLEDGER_CONFIG"):
        return None
    source = "--config" if named is not None else "WATTLEDGER_CONFIG"
    raise InputError(f"{path}: no such config file: mend {source}")


def load_config(path: Path | None) -> DaemonConfig:
    """Read a config file, or the defaults where there is none; raises InputError."""
    return DaemonConfig() if path is None else settings.load(DaemonConfig, path)
