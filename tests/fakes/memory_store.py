"""A ledger in a list: the `Store` protocol, told as plainly as it can be."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from math import isfinite

from wattledger.apportion import between
from wattledger.records import (
    QUALITY_ORDER,
    Account,
    Activity,
    Amounts,
    Device,
    DeviceKind,
    FinishedRequest,
    Page,
    Posting,
    SelfMetric,
    StaticBasis,
)
from wattledger.store.protocol import (
    Books,
    DeviceBook,
    Filters,
    ImportedEntry,
    RequestEnergy,
    Slice,
    SliceSet,
    glob_match,
)

Row = tuple[str, Device, Posting]
SliceKey = tuple[int, str, Device, Account, str | None]
NO_FILTERS = Filters()


class MemoryNotebook:
    """The `Notebook` protocol in two dictionaries."""

    def __init__(self) -> None:
        self._metrics: dict[tuple[int, str, str], SelfMetric] = {}
        self._learned: dict[tuple[str, str, DeviceKind, str | None], tuple[int, Device]] = {}

    def note(self, metrics: Iterable[SelfMetric]) -> None:
        for metric in metrics:
            if isfinite(metric.value):
                self._metrics[metric.t_ns, metric.part, metric.name] = metric

    def noted(self, start_ns: int, end_ns: int) -> list[SelfMetric]:
        return [self._metrics[key] for key in sorted(self._metrics) if start_ns <= key[0] < end_ns]

    def learn(self, host: str, devices: Iterable[Device], learned_ns: int) -> None:
        for device in devices:
            key = (host, device.device, device.kind, device.model)
            self._learned.pop(key, None)
            if device.static_w is not None:
                known = Device(device.device, device.kind, device.model, device.static_w)
                known = replace(known, static_basis=StaticBasis.LEARNED)
                self._learned[key] = (learned_ns, known)

    def learned(self, host: str) -> list[Device]:
        found = [
            (key[1], learned_ns, device.model or "", device)
            for key, (learned_ns, device) in self._learned.items()
            if key[0] == host
        ]
        return [row[-1] for row in sorted(found, key=lambda row: row[:3])]


class MemoryStore(MemoryNotebook):
    """Pages and imported entries; an import is its own meter."""

    def __init__(self, pages: Iterable[Page] = (), imports: Iterable[ImportedEntry] = ()) -> None:
        super().__init__()
        self._pages: dict[object, Page] = {}
        self._imports: dict[object, ImportedEntry] = {}
        for page in pages:
            self.book(page)
        self.post(imports)

    def book(self, page: Page) -> bool:
        key = (page.clock, page.start_ns)
        changed = self._pages.get(key) != page
        self._pages[key] = page
        return changed

    def book_all(self, pages: Iterable[Page]) -> int:
        return sum(self.book(page) for page in pages)

    def post(self, entries: Iterable[ImportedEntry]) -> int:
        changed = 0
        for entry in entries:
            posting = entry.posting
            key = (
                entry.host,
                entry.device.device,
                posting.start_ns,
                posting.end_ns,
                posting.account,
            )
            changed += self._imports.get(key) != entry
            self._imports[key] = entry
        return changed

    def slices(self, edges_ns: Sequence[int], filters: Filters = NO_FILTERS) -> SliceSet:
        sums: dict[SliceKey, Amounts] = {}
        prorated = False
        for host, device, posting in self._rows(copies=bool(filters.request)):
            if not self._asked(host, device, posting, filters):
                continue
            inside = bisect.bisect_right(edges_ns, posting.start_ns)
            prorated |= inside < bisect.bisect_left(edges_ns, posting.end_ns)
            for at, (from_ns, to_ns) in enumerate(pairwise(edges_ns)):
                if posting.start_ns < to_ns and from_ns < posting.end_ns:
                    key = (at, host, device, posting.account, posting.request)
                    cut = _cut(posting, from_ns, to_ns)
                    sums[key] = _plus(sums.get(key, Amounts()), cut)
        found = [
            Slice(edges_ns[at], edges_ns[at + 1], host, device, account, amounts, request)
            for (at, host, device, account, request), amounts in sums.items()
        ]
        return SliceSet(tuple(found), prorated)

    def books(self, start_ns: int, end_ns: int) -> Books:
        found: dict[tuple[str, Device], list[int]] = {}
        window = (start_ns, end_ns)
        for host, device, posting in self._rows(copies=False):
            if posting.start_ns < end_ns and start_ns < posting.end_ns:
                cut = _cut(posting, *window)
                sums = found.setdefault((host, device), [0] * 7)
                sums[1] += cut.energy_uj
                sums[3] += cut.device_ns
        for entry in self._imports.values():
            cut = _cut(entry.posting, *window)
            if (entry.host, entry.device) in found:
                found[entry.host, entry.device][0] += cut.energy_uj
                found[entry.host, entry.device][2] += cut.device_ns
        pages = [page for page in self._pages.values() if start_ns <= page.start_ns < end_ns]
        for page in self._pages.values():
            devices = {device.device: device for device in page.devices}
            for met in page.metered:
                if met.start_ns >= end_ns or start_ns >= met.end_ns:
                    continue
                sums = found.setdefault((page.clock.host, devices[met.device]), [0] * 7)
                span = (met.start_ns, met.end_ns)
                sums[0] += between(met.energy_uj, *span, *window)
                sums[2] += between(met.device_ns, *span, *window)
                for column, count in enumerate((met.gaps, met.resets, met.wraps), start=4):
                    sums[column] += count
        return Books(
            tuple(DeviceBook(host, device, *sums) for (host, device), sums in found.items()),
            sum(page.late for page in pages),
            sum(page.duplicates for page in pages),
            sum(page.dropped for page in pages),
        )

    def requests(
        self, start_ns: int, end_ns: int, filters: Filters = NO_FILTERS
    ) -> list[RequestEnergy]:
        told: dict[tuple[str, str, str, str], list[FinishedRequest]] = {}
        for page in self._pages.values():
            for finish in page.finished:
                if start_ns <= finish.finished_ns < end_ns:
                    key = (page.clock.host, page.clock.boot_id, finish.engine, finish.request)
                    told.setdefault(key, []).append(finish)
        found = []
        for (host, *_), finishes in told.items():
            owners = dict.fromkeys((finish.workload, finish.job) for finish in finishes)
            for owner in owners:
                own = [finish for finish in finishes if (finish.workload, finish.job) == owner]
                merged = _merged(sorted(own, key=lambda finish: finish.finished_ns))
                if self._finish_asked(host, merged, filters):
                    only = owner if len(owners) > 1 else None
                    found.append(self._request_energy(host, merged, only))
        return sorted(found, key=lambda r: (-r.energy_uj, r.finish.engine, r.finish.request))

    def close(self) -> None:
        self._pages.clear()
        self._imports.clear()

    def _rows(self, *, copies: bool) -> Iterator[Row]:
        for page in self._pages.values():
            devices = {device.device: device for device in page.devices}
            for posting in page.request_postings if copies else page.postings:
                yield page.clock.host, devices[posting.device], posting
        if not copies:
            for entry in self._imports.values():
                yield entry.host, entry.device, entry.posting

    @staticmethod
    def _asked(host: str, device: Device, posting: Posting, filters: Filters) -> bool:
        return (
            device.kind is not DeviceKind.NODE
            and glob_match(filters.host, host)
            and glob_match(filters.request, posting.request)
            and filters.match_account(posting.account)
        )

    @staticmethod
    def _finish_asked(host: str, finish: FinishedRequest, filters: Filters) -> bool:
        return (
            glob_match(filters.host, host)
            and glob_match(filters.request, finish.request)
            and glob_match(filters.job, finish.job)
            and glob_match(filters.engine, finish.engine)
            and glob_match(filters.model, finish.model)
            and glob_match(filters.workload, finish.workload)
        )

    def _request_energy(
        self, host: str, finish: FinishedRequest, only: tuple[str | None, str | None] | None
    ) -> RequestEnergy:
        rows = [
            posting
            for where, _, posting in self._rows(copies=True)
            if where == host
            and (posting.account.engine, posting.request) == (finish.engine, finish.request)
            and only in (None, (posting.account.workload, posting.account.job))
        ]
        phase_uj = {
            phase: sum(p.amounts.energy_uj for p in rows if p.account.activity is phase)
            for phase in (Activity.PREFILL, Activity.DECODE)
        }
        return RequestEnergy(
            host,
            finish,
            phase_uj[Activity.PREFILL],
            phase_uj[Activity.DECODE],
            rows[0].account.method,
            max((p.account.quality for p in rows), key=QUALITY_ORDER.index),
        )


def _merged(finishes: Sequence[FinishedRequest]) -> FinishedRequest:
    return replace(
        finishes[-1],
        prompt_tokens=sum(finish.prompt_tokens for finish in finishes),
        cached_tokens=sum(finish.cached_tokens for finish in finishes),
        decode_tokens=sum(finish.decode_tokens for finish in finishes),
    )


def _cut(posting: Posting, from_ns: int, to_ns: int) -> Amounts:
    span = (posting.start_ns, posting.end_ns, from_ns, to_ns)
    amounts = posting.amounts
    return Amounts(
        between(amounts.static_uj, *span),
        between(amounts.dynamic_uj, *span),
        between(amounts.device_ns, *span),
        between(amounts.prefill_tokens, *span),
        between(amounts.cached_tokens, *span),
        between(amounts.decode_tokens, *span),
        between(amounts.requests, *span),
    )


def _plus(left: Amounts, right: Amounts) -> Amounts:
    return Amounts(
        left.static_uj + right.static_uj,
        left.dynamic_uj + right.dynamic_uj,
        left.device_ns + right.device_ns,
        left.prefill_tokens + right.prefill_tokens,
        left.cached_tokens + right.cached_tokens,
        left.decode_tokens + right.decode_tokens,
        left.requests + right.requests,
    )
