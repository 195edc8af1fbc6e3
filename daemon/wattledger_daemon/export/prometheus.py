"""`/metrics`: the figures in Prometheus' text format or as OpenMetrics.

Names end in their base unit and, for counters, in `_total` (prometheus.io, "Metric and label
naming"). Job ids, request ids and pids are no labels: each would be a series for ever.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from http import HTTPStatus

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.registry import Collector

from wattledger.records import UJ_PER_J
from wattledger_daemon.export.figures import Figures, Source
from wattledger_daemon.export.http import Answer, Request
from wattledger_daemon.export.totals import Quantity, Series
from wattledger_daemon.sampling import SensorHealth, SensorState

_TEXT = "text/plain; version=0.0.4; charset=utf-8"
_OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
_PATH = "/metrics"

_ENERGY = ("device", "kind", "workload", "engine", "model", "activity", "quality")
_DEVICE = ("device", "kind")
_OWNER = ("workload", "engine", "model")

# Quantity, name without `_total`, unit, labels, divisor, help.
_COUNTERS: tuple[tuple[Quantity, str, str, tuple[str, ...], int, str], ...] = (
    (
        Quantity.ENERGY_UJ,
        "wattledger_energy_joules",
        "joules",
        _ENERGY,
        UJ_PER_J,
        "Energy booked since the daemon began, by who caused it.",
    ),
    (
        Quantity.METERED_UJ,
        "wattledger_metered_energy_joules",
        "joules",
        _DEVICE,
        UJ_PER_J,
        "Energy of a device as its meter saw it; kind node is the whole machine once more.",
    ),
    (
        Quantity.PREFILL_TOKENS,
        "wattledger_prefill_tokens",
        "",
        _OWNER,
        1,
        "Prompt tokens computed.",
    ),
    (
        Quantity.CACHED_TOKENS,
        "wattledger_cached_tokens",
        "",
        _OWNER,
        1,
        "Prompt tokens taken from a cache, of requests that finished.",
    ),
    (Quantity.DECODE_TOKENS, "wattledger_decode_tokens", "", _OWNER, 1, "Tokens generated."),
    (Quantity.REQUESTS, "wattledger_requests", "", _OWNER, 1, "Requests finished."),
    (
        Quantity.GAPS,
        "wattledger_device_gaps",
        "",
        _DEVICE,
        1,
        "Stretches in which a device's meter gave nothing.",
    ),
    (Quantity.RESETS, "wattledger_device_resets", "", _DEVICE, 1, "Resets of a device's counter."),
    (Quantity.WRAPS, "wattledger_device_wraps", "", _DEVICE, 1, "Wraps of a device's counter."),
    (
        Quantity.LATE_EVENTS,
        "wattledger_late_events",
        "",
        (),
        1,
        "Engine events that came after their window was booked.",
    ),
    (
        Quantity.DUPLICATE_EVENTS,
        "wattledger_duplicate_events",
        "",
        (),
        1,
        "Engine events that came twice and count once.",
    ),
    (
        Quantity.DROPPED_EVENTS,
        "wattledger_dropped_events",
        "",
        (),
        1,
        "Engine events lost before they could be booked.",
    ),
)


class Page:
    """Answers scrapes; a page is made once per turn and form, however many ask for it."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._made: dict[tuple[str, bool], bytes] = {}
        self._made_of: Figures | None = None

    def answer(self, request: Request) -> Answer:
        """The answer to one request."""
        if request.path != _PATH:
            return _told(HTTPStatus.NOT_FOUND, f"metrics are at {_PATH}")
        if request.method not in ("GET", "HEAD"):
            return _told(HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD", ("Allow", "GET, HEAD"))
        figures = self._source()
        if figures is None:
            return _told(HTTPStatus.SERVICE_UNAVAILABLE, "nothing yet: ask again in a second")
        openmetrics = "application/openmetrics-text" in request.headers.get("accept", "")
        zipped = _takes_gzip(request.headers.get("accept-encoding", ""))
        headers = [("Content-Type", _OPENMETRICS if openmetrics else _TEXT)]
        if zipped:
            headers.append(("Content-Encoding", "gzip"))
        body = self._page(figures, openmetrics=openmetrics, zipped=zipped)
        return Answer(HTTPStatus.OK, (*headers, ("Vary", "Accept, Accept-Encoding")), body)

    def _page(self, figures: Figures, *, openmetrics: bool, zipped: bool) -> bytes:
        if self._made_of is not figures:
            self._made, self._made_of = {}, figures
        key = (_OPENMETRICS if openmetrics else _TEXT, zipped)
        page = self._made.get(key)
        if page is None:
            page = render(figures, openmetrics=openmetrics)
            page = gzip.compress(page, 1, mtime=0) if zipped else page
            self._made[key] = page
        return page


def render(figures: Figures, *, openmetrics: bool = False) -> bytes:
    """The figures as one page of text."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(figures))
    generate: Callable[[CollectorRegistry], bytes] = generate_latest
    if openmetrics:
        generate = generate_openmetrics
    return generate(registry)


class _Families(Collector):
    """All metrics of one moment."""

    def __init__(self, figures: Figures) -> None:
        self._figures = figures

    def describe(self) -> Iterator[Metric]:
        """Nothing: the registry is this collector's own."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Every metric that has something to say."""
        yield from _counters(self._figures)
        yield from _devices(self._figures)
        yield from _sensors(self._figures.sensors())
        yield from _daemon(self._figures)


def _counters(figures: Figures) -> Iterator[Metric]:
    totals: dict[Quantity, list[tuple[Series, int]]] = {}
    for series, value in figures.standing.totals:
        totals.setdefault(series.quantity, []).append((series, value))
    for quantity, name, unit, labels, divisor, text in _COUNTERS:
        family = CounterMetricFamily(name, text, labels=labels, unit=unit)
        for series, value in totals.get(quantity, ()):
            family.add_metric([getattr(series, key) for key in labels], value / divisor)
        yield family


def _devices(figures: Figures) -> Iterator[Metric]:
    ahead = GaugeMetricFamily(
        "wattledger_energy_ahead_joules",
        "By how much wattledger_energy_joules_total stands above the books after a late event.",
        labels=_DEVICE,
        unit="joules",
    )
    for device, kind, ahead_uj in figures.standing.ahead_uj:
        ahead.add_metric([device, kind], ahead_uj / UJ_PER_J)
    yield ahead
    power = GaugeMetricFamily(
        "wattledger_device_power_watts",
        "Mean power of a device over the last second or so.",
        labels=("device", "kind", "model", "quality"),
        unit="watts",
    )
    for *labels, power_w in figures.powers():
        power.add_metric([str(value) for value in labels], float(power_w))
    yield power


_SENSOR_COUNTERS: tuple[tuple[str, str, Callable[[SensorHealth], int]], ...] = (
    ("wattledger_sensor_reads", "Reads that worked.", lambda sensor: sensor.reads),
    ("wattledger_sensor_failures", "Reads that failed.", lambda sensor: sensor.failures),
    (
        "wattledger_sensor_skipped_reads",
        "Reads that were due while one before them took too long.",
        lambda sensor: sensor.skipped,
    ),
    (
        "wattledger_sensor_throttles",
        "Times that a sensor was slowed down for being costly.",
        lambda sensor: sensor.throttles,
    ),
)
_SENSOR_GAUGES: tuple[tuple[str, str, str, Callable[[SensorHealth], float]], ...] = (
    (
        "wattledger_sensor_running",
        "",
        "1 where the sensor reads, 0 where it cannot.",
        lambda sensor: float(sensor.state is SensorState.RUNNING),
    ),
    (
        "wattledger_sensor_read_seconds",
        "seconds",
        "How long the last read took.",
        lambda sensor: sensor.last_duration_s,
    ),
    (
        "wattledger_sensor_longest_read_seconds",
        "seconds",
        "How long the longest read took.",
        lambda sensor: sensor.longest_duration_s,
    ),
)


def _sensors(sensors: dict[str, SensorHealth]) -> Iterator[Metric]:
    for name, text, count in _SENSOR_COUNTERS:
        counter = CounterMetricFamily(name, text, labels=("sensor",))
        for sensor, health in sensors.items():
            counter.add_metric([sensor], count(health))
        yield counter
    for name, unit, text, gauge_of in _SENSOR_GAUGES:
        gauge = GaugeMetricFamily(name, text, labels=("sensor",), unit=unit)
        for sensor, health in sensors.items():
            gauge.add_metric([sensor], gauge_of(health))
        yield gauge


def _daemon(figures: Figures) -> Iterator[Metric]:
    snapshot = figures.snapshot
    yield CounterMetricFamily(
        "wattledger_windows_booked", "Windows booked.", value=snapshot.windows_booked
    )
    yield CounterMetricFamily(
        "wattledger_unseen_restatements",
        "Late corrections to windows of an earlier run: in the ledger, not in these counters.",
        value=figures.standing.unseen,
    )
    yield GaugeMetricFamily(
        "wattledger_queue_records",
        "Records that wait for the pipeline.",
        value=snapshot.queue_depth,
    )
    yield GaugeMetricFamily(
        "wattledger_uptime_seconds",
        "Seconds since the daemon began.",
        value=figures.uptime_s,
        unit="seconds",
    )
    version = {"version": figures.identity.version}
    yield InfoMetricFamily("wattledger_build", "The daemon's version.", value=version)


def _takes_gzip(accept_encoding: str) -> bool:
    """Whether the caller takes gzip (RFC 9110, section 12.5.3)."""
    for part in accept_encoding.split(","):
        coding, _, weight = part.strip().partition(";")
        if coding.strip().lower() == "gzip":
            return weight.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False


def _told(status: HTTPStatus, text: str, *headers: tuple[str, str]) -> Answer:
    plain = ("Content-Type", "text/plain; charset=utf-8")
    return Answer(status, (plain, *headers), f"wattledgerd: {text}\n".encode())
