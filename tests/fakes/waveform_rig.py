"""Known power through a real sensor and the daemon's heart: what was booked beside what was spent.

Time is simulated: the sensor's clock is the rig's, so that an hour takes seconds.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from fakes.waveform import US_PER_S, RaplRegister, Sampler, Wave
from fakes.waveform_host import Gpu, Host, host_of, script_us
from wattledger.records import NS_PER_S, Clock, Metered, Page, Quality
from wattledger_collectors.sensors.protocol import ReadFault
from wattledger_daemon.heart.accountant import Accountant, AccountantSettings

# On the edge of a minute, as windows are.
EPOCH_NS = 1_790_000_040 * NS_PER_S
_UJ_PER_NJ = 1000


@dataclass(frozen=True, slots=True)
class Case:
    """One wave on one instrument. `bar` is the error it must hold, None where it cannot: `why`.

    `hole_s` is the longest pause of the sampler that its meter can know the energy of.
    """

    name: str
    wave: Wave
    instrument: Gpu | RaplRegister
    bar: float | None
    why: str = ""
    hole_s: float = float("inf")


@dataclass(frozen=True, slots=True)
class Group:
    """Cases that one sampler reads, all by one sensor."""

    name: str
    sampler: Sampler
    cases: tuple[Case, ...]
    least_s: int = 600


@dataclass(slots=True)
class Booked:
    """What the pages say of one device."""

    windows: list[tuple[int, int, int]] = field(default_factory=list)
    posted_uj: int = 0
    negative: int = 0
    device_ns: int = 0
    posted_ns: int = 0
    gaps: int = 0
    resets: int = 0
    wraps: int = 0
    by_quality: Counter[Quality] = field(default_factory=Counter)

    @property
    def energy_uj(self) -> int:
        return sum(energy_uj for _, _, energy_uj in self.windows)

    def take(self, metered: Metered) -> None:
        start_us, end_us = (script_us(t - EPOCH_NS) for t in (metered.start_ns, metered.end_ns))
        self.windows.append((start_us, end_us, metered.energy_uj))
        self.negative += metered.energy_uj < 0
        self.device_ns += metered.device_ns
        self.gaps += metered.gaps
        self.resets += metered.resets
        self.wraps += metered.wraps


@dataclass(frozen=True, slots=True)
class Outcome:
    """A case after its run; `holes` are pauses too long for its meter, microseconds."""

    group: Group
    case: Case
    booked: Booked
    polls: tuple[int, ...]
    holes: tuple[tuple[int, int], ...]

    @property
    def truth_uj(self) -> float:
        """Energy between the first poll and the last, without the holes."""
        wave = self.case.wave
        spans = [(self.polls[0], self.polls[-1])]
        nj = sum(wave.energy_nj(end) - wave.energy_nj(start) for start, end in spans)
        nj -= sum(wave.energy_nj(end) - wave.energy_nj(start) for start, end in self.holes)
        return nj / _UJ_PER_NJ

    @property
    def error(self) -> float:
        """Booked over true energy, less one."""
        return self.booked.energy_uj / self.truth_uj - 1

    @property
    def unmetered_s(self) -> float:
        return sum(end - start for start, end in self.holes) / US_PER_S

    @property
    def worst_minute(self) -> float:
        """The largest error of any whole minute that no hole touches."""
        minutes: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
        for start_us, end_us, energy_uj in self.booked.windows:
            minutes[_minute(start_us)].append((start_us, end_us, energy_uj))
        return max((abs(error) for error in map(self._minute_error, minutes.values())), default=0.0)

    def _minute_error(self, windows: list[tuple[int, int, int]]) -> float:
        start_us, end_us = windows[0][0], windows[-1][1]
        touched = any(start < end_us and end > start_us for start, end in self.holes)
        if touched or end_us - start_us < 60 * US_PER_S:
            return 0.0
        wave = self.case.wave
        truth_uj = (wave.energy_nj(end_us) - wave.energy_nj(start_us)) / _UJ_PER_NJ
        return sum(energy_uj for _, _, energy_uj in windows) / truth_uj - 1

    @property
    def quality(self) -> str:
        """Shares by energy, the largest first."""
        total = sum(self.booked.by_quality.values()) or 1
        shares = self.booked.by_quality.most_common()
        if len(shares) == 1:
            return shares[0][0].value
        return ", ".join(f"{quality.value} {uj / total:.1%}" for quality, uj in shares if uj)


def _minute(t_us: int) -> int:
    # Pages are cut on the clock, which began _START_US before the rig's time 0.
    return (t_us + US_PER_S) // (60 * US_PER_S)


def run(group: Group, length_s: int) -> list[Outcome]:
    """Every case of the group over `length_s`, or the group's own least length."""
    with host_of([case.instrument for case in group.cases]) as host:
        books = {device.device: Booked() for device in host.devices}
        polls: list[int] = []
        for page in _pages(host, group.sampler, max(length_s, group.least_s), polls):
            _take(books, page)
        assert len(books) == len(group.cases)
        return [
            Outcome(group, case, booked, tuple(polls), tuple(_holes(polls, case.hole_s)))
            for case, booked in zip(group.cases, books.values(), strict=True)
        ]


def _pages(host: Host, sampler: Sampler, length_s: int, polls: list[int]) -> Iterator[Page]:
    accountant = Accountant(Clock("h1", "boot", EPOCH_NS), AccountantSettings())
    for device in host.devices:
        accountant.observe(device)
    second = 0
    for t_us in sampler.polls(length_s * US_PER_S):
        polls.append(t_us)
        for reading in host.read(t_us):
            assert not isinstance(reading, ReadFault), reading
            accountant.observe(reading)
        if t_us // US_PER_S != second and accountant.latest_ns is not None:
            second = t_us // US_PER_S
            for page in accountant.due(accountant.latest_ns):
                accountant.booked(page)
                yield page
    assert accountant.latest_ns is not None
    yield from accountant.flush(accountant.latest_ns)


def _take(books: dict[str, Booked], page: Page) -> None:
    for metered in page.metered:
        books[metered.device].take(metered)
    for posting in page.postings:
        booked, amounts = books[posting.device], posting.amounts
        booked.posted_uj += amounts.energy_uj
        booked.posted_ns += amounts.device_ns
        booked.negative += min(amounts.static_uj, amounts.dynamic_uj, amounts.device_ns) < 0
        booked.by_quality[posting.account.quality] += amounts.energy_uj


def _holes(polls: Sequence[int], hole_s: float) -> Iterator[tuple[int, int]]:
    for before_us, after_us in pairwise(polls):
        if after_us - before_us > hole_s * US_PER_S:
            yield before_us, after_us
