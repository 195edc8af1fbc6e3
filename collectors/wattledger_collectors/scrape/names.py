"""A scraper that is a table of metric names: what most engines need."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from wattledger_collectors.scrape.protocol import Kind, Reading, ScrapeError, Series, model_of
from wattledger_collectors.scrape.text import Sample, samples

_STARTED = "process_start_time_seconds"
"""What most client libraries tell of themselves; told, it shows any restart."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric's name without `_total`, and the labels that a series of it must have."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)

    def fits(self, sample: Sample) -> bool:
        """Whether a sample is one of its series."""
        return sample.name == self.name and self.labels.items() <= sample.labels.items()


@dataclass(frozen=True, slots=True)
class Source:
    """Metrics that together tell an engine's tokens, each by what it counts."""

    metrics: Mapping[Kind, Metric]


@dataclass(frozen=True, slots=True)
class NamesScraper:
    """Reads one page by its names.

    `sources` are ways to tell the tokens, best first; `finished` and `running` (a gauge) hold for
    all of them. `replica_labels` and `epoch_label` as in `Series`; `model_label` names the model.
    """

    kind: str
    mend: str
    sources: tuple[Source, ...]
    finished: Metric | None = None
    running: Metric | None = None
    replica_labels: tuple[str, ...] = ()
    epoch_label: str = ""
    model_label: str = ""
    launchers: tuple[str, ...] = ()

    def pages(self, url: str) -> tuple[str, ...]:
        """The page of the config alone."""
        return (url,)

    def read(self, bodies: tuple[bytes, ...]) -> Reading:
        """The page as counters; raises ScrapeError."""
        (body,) = bodies
        metrics = [metric for _, _, metric in self._wanted()]
        names = {metric.name for metric in metrics}
        names.add(_STARTED)
        if self.running is not None:
            names.add(self.running.name)
        found = samples(body, names)
        counters: dict[Series, float] = {}
        tiers: set[int] = set()
        for sample in found:
            fitting = [(k, t) for k, t, metric in self._wanted() if metric.fits(sample)]
            for kind, tier in fitting:
                self._add(counters, self._series(kind, tier, sample), sample)
            # What several sources share tells of none of them.
            if len(fitting) == 1 and fitting[0][0] is not Kind.FINISHED:
                tiers.add(fitting[0][1])
        models = (sample.labels.get(self.model_label, "") for sample in found)
        return Reading(
            counters,
            min(tiers, default=None),
            self._running(found),
            model_of(models),
            max((sample.value for sample in found if sample.name == _STARTED), default=0.0),
        )

    def _wanted(self) -> Iterator[tuple[Kind, int, Metric]]:
        for tier, source in enumerate(self.sources):
            for kind, metric in source.metrics.items():
                yield kind, tier, metric
        if self.finished is not None:
            yield Kind.FINISHED, 0, self.finished

    def _series(self, kind: Kind, tier: int, sample: Sample) -> Series:
        replicas = self.replica_labels
        own = ((name, value) for name, value in sample.labels.items() if name not in replicas)
        replica = ",".join(sample.labels.get(name, "") for name in replicas)
        epoch = sample.labels.get(self.epoch_label, "") if self.epoch_label else ""
        return Series(kind, tier, tuple(sorted(own)), replica, epoch)

    def _add(self, counters: dict[Series, float], series: Series, sample: Sample) -> None:
        if series in counters:
            raise ScrapeError(f"{sample.name} has two series that cannot be told apart")
        counters[series] = sample.value

    def _running(self, found: list[Sample]) -> int | None:
        if self.running is None:
            return None
        seen: dict[tuple[tuple[str, str], ...], float] = {}
        for sample in filter(self.running.fits, found):
            key = self._series(Kind.FINISHED, 0, sample).labels
            seen[key] = max(seen.get(key, 0.0), sample.value)
        return round(sum(seen.values())) if seen else None
