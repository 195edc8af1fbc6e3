"""Makes batches of what a scraped engine did, as its own reporter would. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from wattledger_collectors.scrape.counting import Told
from wattledger_proto.v1 import collect_pb2


@dataclass(frozen=True, slots=True)
class EngineLabels:
    """What the registration says of an engine, but its processes and its model."""

    engine: str
    kind: str
    workload: str = ""
    job: str = ""


class ScrapePress:
    """One engine's batches, numbered from 1; `begun_ns` tells this source from an earlier one.

    All its tokens are nobody's in particular: the request "".
    """

    def __init__(self, labels: EngineLabels, boot_id: str, begun_ns: int) -> None:
        self._labels = labels
        self._boot_id = boot_id
        self._source = f"scrape/{labels.engine}/{begun_ns}"
        self._sequence = 0
        self._totals = collect_pb2.Totals()
        self.dropped_events = 0

    @property
    def source(self) -> str:
        """The name of the source."""
        return self._source

    def batch(self, told: Told, model: str, pids: tuple[int, ...]) -> collect_pb2.Batch:
        """What two looks said together; where that is nothing, a question that says who asks."""
        batch = collect_pb2.Batch(
            source=self._source,
            boot_id=self._boot_id,
            engine=collect_pb2.EngineRegistration(
                engine=self._labels.engine,
                kind=self._labels.kind,
                model=model,
                pids=pids,
                workload=self._labels.workload,
                job=self._labels.job,
                coarse=True,
            ),
            request_ids=[""] if told.work or told.finished else [],
        )
        self._add(batch, told)
        if told.work or told.finished:
            self._sequence += 1
            batch.sequence = self._sequence
        batch.totals.CopyFrom(self._totals)
        return batch

    def refused(self, batch: collect_pb2.Batch) -> None:
        """Count a batch as dropped that the daemon itself will not take; its number is free."""
        self.dropped_events += len(batch.steps) + len(batch.finishes)
        self._sequence -= 1

    def _add(self, batch: collect_pb2.Batch, told: Told) -> None:
        totals = self._totals
        for work in told.work:
            totals.steps += 1
            step = batch.steps.add(
                sequence=totals.steps, start_ns=work.start_ns, end_ns=work.end_ns
            )
            if work.prefill_tokens or work.decode_tokens:
                step.requests.append(0)
                step.prefill_tokens.append(work.prefill_tokens)
                step.decode_tokens.append(work.decode_tokens)
                step.context_tokens.append(0)
                totals.prefill_tokens += work.prefill_tokens
                totals.decode_tokens += work.decode_tokens
        if told.finished is not None:
            ended = told.finished
            totals.finishes += ended.requests
            batch.finishes.add(
                request=0,
                t_ns=ended.t_ns,
                prompt_tokens=ended.prompt_tokens,
                cached_tokens=ended.cached_tokens,
                decode_tokens=ended.decode_tokens,
                count=ended.requests,
            )
