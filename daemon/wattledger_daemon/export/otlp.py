"""Sends the figures to an OpenTelemetry receiver, OTLP over HTTP with protobuf.

Names are those of the OpenTelemetry semantic conventions 1.44 where one fits: `hw.energy`,
`hw.power`, `hw.host.energy` and `hw.host.power` with `hw.id`, `hw.type` and `hw.name`. The
conventions have no counter of a server's tokens (`gen_ai.client.token.usage` is a client's
histogram per request), so tokens and shares of energy are `wattledger.*`.

Totals are cumulative: what a receiver that was away has missed, the next export brings.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.metrics import (
    Counter,
    Histogram,
    MeterProvider,
    MetricsTimeoutError,
    ObservableCounter,
    ObservableGauge,
    ObservableUpDownCounter,
    UpDownCounter,
)
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    MetricExportResult,
    MetricReader,
    MetricsData,
)
from opentelemetry.sdk.resources import Resource
from requests import HTTPError, Response, Session

from wattledger.records import UJ_PER_J, DeviceKind
from wattledger_daemon.export.figures import Figures, Identity, Source
from wattledger_daemon.export.totals import Quantity, Series
from wattledger_daemon.logs import event

if TYPE_CHECKING:
    from opentelemetry.metrics import Meter

_LOG = logging.getLogger(__name__)
_TIMEOUT_S = 5.0
_STOP_S = 0.8
_SERIES = 100_000
"""The SDK's own bound on series of one instrument, 2,000, is less than ours."""

_HW_TYPE: Final[Mapping[str, str]] = {
    DeviceKind.GPU: "gpu",
    DeviceKind.CPU: "cpu",
    DeviceKind.DRAM: "memory",
}
_TOKENS: Final = (
    (Quantity.PREFILL_TOKENS, "prefill", "input"),
    (Quantity.CACHED_TOKENS, "cached", "input"),
    (Quantity.DECODE_TOKENS, "decode", "output"),
)
_CUMULATIVE: Final[dict[type, AggregationTemporality]] = dict.fromkeys(
    (
        Counter,
        Histogram,
        ObservableCounter,
        ObservableGauge,
        ObservableUpDownCounter,
        UpDownCounter,
    ),
    AggregationTemporality.CUMULATIVE,
)


class Sender:
    """One thread that exports every `period_s` seconds, and a last time when it is stopped."""

    def __init__(
        self,
        endpoint: str,
        headers: Mapping[str, str],
        identity: Identity,
        source: Source,
        period_s: float,
    ) -> None:
        self._endpoint = metrics_url(endpoint)
        self._period_s = period_s
        self._source = source
        # The exporter would log each try, and more than once: its state is told here instead.
        logging.getLogger("opentelemetry.exporter").setLevel(logging.CRITICAL + 1)
        self._failing = False
        self._reason = ""
        session = Session()
        session.hooks["response"].append(self._refused)
        self._exporter = OTLPMetricExporter(
            self._endpoint,
            headers=dict(headers),
            timeout=_TIMEOUT_S,
            session=session,
            preferred_temporality=_CUMULATIVE,
        )
        self._reader = _Reader(self._export)
        self._provider = MeterProvider(
            [self._reader], resource=_resource(identity), shutdown_on_exit=False
        )
        self._instruments = Instruments(self._provider.get_meter("wattledger", identity.version))
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="otlp", daemon=True)

    def start(self) -> None:
        """Begin to export, on a thread of its own."""
        self._thread.start()

    def stop(self) -> None:
        """Export a last time and end; a receiver that hangs is left, well within a second."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(_STOP_S)
        self._exporter.shutdown()

    def _run(self) -> None:
        while not self._stopping.wait(self._period_s):
            self._turn()
        self._turn()

    def _turn(self) -> None:
        figures = self._source()
        if figures is not None:
            # One set of figures for all instruments, whatever is booked meanwhile.
            self._instruments.figures = figures
            # The SDK takes a stepped wall clock for a timeout; the next turn tells all the same.
            with suppress(MetricsTimeoutError):
                self._reader.collect()

    def _export(self, data: MetricsData) -> None:
        self._reason = "it cannot be reached"
        worked = self._exporter.export(data) is MetricExportResult.SUCCESS
        if worked and self._failing:
            _LOG.warning(event("otlp_works_again", endpoint=self._endpoint))
        elif not worked and not self._failing and not self._stopping.is_set():
            fields = {"endpoint": self._endpoint, "reason": self._reason}
            _LOG.warning(event("otlp_failing", **fields))
        self._failing = not worked

    def _refused(self, response: Response, *_: object, **__: object) -> None:
        """Note why a receiver refuses; a redirect is one, lest a token go elsewhere."""
        if response.status_code >= 300:
            self._reason = f"HTTP {response.status_code}"
        if 300 <= response.status_code < 400:
            response.close()
            raise HTTPError(self._reason)


def metrics_url(endpoint: str) -> str:
    """Where an endpoint takes metrics (OTLP specification, "Endpoint URLs for OTLP/HTTP")."""
    base = endpoint.rstrip("/")
    return base if base.endswith("/v1/metrics") else f"{base}/v1/metrics"


class _Reader(MetricReader):
    """Hands what is collected straight on; the caller's thread does it all."""

    def __init__(self, hand_on: Callable[[MetricsData], None]) -> None:
        super().__init__(
            preferred_temporality=_CUMULATIVE,
            cardinality_limits={ObservableCounter: _SERIES, ObservableGauge: _SERIES},
        )
        self._hand_on = hand_on

    def _receive_metrics(
        self, metrics_data: MetricsData, timeout_millis: float = 10_000, **_: object
    ) -> None:
        self._hand_on(metrics_data)

    def shutdown(self, timeout_millis: float = 30_000, **_: object) -> None:
        """Nothing: it holds nothing."""


def _resource(identity: Identity) -> Resource:
    return Resource.create(
        {
            "service.name": "wattledger",
            "service.version": identity.version,
            "service.instance.id": identity.instance_id,
            "host.name": identity.host,
        }
    )


Observed = Iterable[tuple[float, dict[str, str]]]


class Instruments:
    """The instruments of one meter, over the `figures` last put in."""

    def __init__(self, meter: Meter) -> None:
        self.figures: Figures | None = None
        self._meter = meter
        self._counter("hw.energy", "J", "Energy consumed by the component.", _hw_energy)
        self._counter("hw.host.energy", "J", "Energy of the entire physical host.", _host_energy)
        self._counter("wattledger.energy", "J", "Energy by who caused it.", _energy)
        self._counter("wattledger.tokens", "{token}", "Tokens by phase.", _tokens)
        self._counter("wattledger.requests", "{request}", "Requests finished.", _requests)
        for quantity in (Quantity.GAPS, Quantity.RESETS, Quantity.WRAPS):
            name, text = f"wattledger.device.{quantity}", f"{quantity.capitalize()} of a meter."
            self._counter(name, "{event}", text, _devices_of(quantity))
        for quantity in (
            Quantity.LATE_EVENTS,
            Quantity.DUPLICATE_EVENTS,
            Quantity.DROPPED_EVENTS,
        ):
            name, text = f"wattledger.events.{quantity}", f"Engine events: {quantity}."
            self._counter(name, "{event}", text, _events_of(quantity))
        self._counter(
            "wattledger.sensor.failures", "{read}", "Reads that failed.", _sensor_failures
        )
        self._gauge("hw.power", "W", "Power of the component.", _hw_power)
        self._gauge("hw.host.power", "W", "Power of the entire physical host.", _host_power)
        self._gauge("wattledger.energy.ahead", "J", "wattledger.energy above the books.", _ahead)
        self._gauge("wattledger.queue", "{record}", "Records that wait.", _queue)
        self._gauge("wattledger.uptime", "s", "Seconds since the daemon began.", _uptime)

    def _counter(
        self, name: str, unit: str, text: str, read: Callable[[Figures], Observed]
    ) -> None:
        self._meter.create_observable_counter(name, [self._observer(read)], unit, text)

    def _gauge(self, name: str, unit: str, text: str, read: Callable[[Figures], Observed]) -> None:
        self._meter.create_observable_gauge(name, [self._observer(read)], unit, text)

    def _observer(
        self, read: Callable[[Figures], Observed]
    ) -> Callable[[CallbackOptions], Iterator[Observation]]:
        def observe(_: CallbackOptions) -> Iterator[Observation]:
            if self.figures is not None:
                for value, attributes in read(self.figures):
                    yield Observation(value, _known(attributes))

        return observe


def _known(attributes: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in attributes.items() if value}


def _owner(series: Series) -> dict[str, str]:
    return {
        "wattledger.workload": series.workload,
        "wattledger.engine": series.engine,
        "gen_ai.response.model": series.model,
    }


def _hw(device: str, kind: str) -> dict[str, str]:
    return {"hw.id": device, "hw.type": _HW_TYPE.get(kind, "")}


def _hw_energy(figures: Figures) -> Observed:
    for series, energy_uj in figures.of(Quantity.METERED_UJ):
        if series.kind != DeviceKind.NODE:
            yield energy_uj / UJ_PER_J, _hw(series.device, series.kind)


def _host_energy(figures: Figures) -> Observed:
    for series, energy_uj in figures.of(Quantity.METERED_UJ):
        if series.kind == DeviceKind.NODE:
            yield energy_uj / UJ_PER_J, _hw(series.device, series.kind)


def _energy(figures: Figures) -> Observed:
    for series, energy_uj in figures.of(Quantity.ENERGY_UJ):
        yield (
            energy_uj / UJ_PER_J,
            _hw(series.device, series.kind)
            | _owner(series)
            | {
                "wattledger.activity": series.activity,
                "wattledger.quality": series.quality,
            },
        )


def _tokens(figures: Figures) -> Observed:
    for quantity, phase, token_type in _TOKENS:
        for series, tokens in figures.of(quantity):
            named = {"wattledger.phase": phase, "gen_ai.token.type": token_type}
            yield tokens, _owner(series) | named


def _requests(figures: Figures) -> Observed:
    for series, requests in figures.of(Quantity.REQUESTS):
        yield requests, _owner(series)


def _devices_of(quantity: Quantity) -> Callable[[Figures], Observed]:
    def read(figures: Figures) -> Observed:
        for series, count in figures.of(quantity):
            yield count, _hw(series.device, series.kind)

    return read


def _events_of(quantity: Quantity) -> Callable[[Figures], Observed]:
    return lambda figures: ((count, {}) for _, count in figures.of(quantity))


def _sensor_failures(figures: Figures) -> Observed:
    for name, sensor in figures.sensors().items():
        yield sensor.failures, {"wattledger.sensor": name}


def _hw_power(figures: Figures) -> Observed:
    for device, kind, model, quality, power_w in figures.powers():
        if kind != DeviceKind.NODE:
            named = {"hw.name": model, "wattledger.quality": quality}
            yield power_w, _hw(device, kind) | named


def _host_power(figures: Figures) -> Observed:
    for device, kind, _, quality, power_w in figures.powers():
        if kind == DeviceKind.NODE:
            yield power_w, _hw(device, kind) | {"wattledger.quality": quality}


def _ahead(figures: Figures) -> Observed:
    for device, kind, ahead_uj in figures.standing.ahead_uj:
        yield ahead_uj / UJ_PER_J, _hw(device, kind)


def _queue(figures: Figures) -> Observed:
    yield figures.snapshot.queue_depth, {}


def _uptime(figures: Figures) -> Observed:
    yield figures.uptime_s, {}
