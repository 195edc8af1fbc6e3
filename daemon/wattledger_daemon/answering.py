"""What a request took so far: what is booked of it, and a preview of what is not."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from wattledger.errors import UnreachableError
from wattledger.records import NS_PER_S, Activity, FinishedRequest, Page, Posting
from wattledger.store.named import NamedRequest, RequestKey, RequestLookup, the_meant
from wattledger_daemon.grams import Grams
from wattledger_daemon.heart.accountant import Accountant
from wattledger_daemon.questions import PACE_NS, Answer, Question, Questions

_SETTLED_NS = 600 * NS_PER_S
"""After it nothing can restate a window: the accountant's horizon."""

_NEXT_NS = 3 * PACE_NS // 4


Key = tuple[str, str]
"""A request's own id, and its engine."""


class _Index:
    """Keys found by what an id may mean."""

    def __init__(self, keys: Iterable[Key]) -> None:
        self._keys = sorted(keys)

    def meant(self, question: Question) -> list[Key]:
        """All that a question may mean, the likely ones too."""
        names = question.names
        spans = [(name, name + "\0") for name in names.plain] + list(names.ranges())
        found: dict[Key, None] = {}
        for low, high in spans:
            first, stop = (bisect_left(self._keys, (edge,)) for edge in (low, high))
            found.update(dict.fromkeys(self._keys[first:stop]))
        return [
            (name, engine)
            for name, engine in found
            if question.engine in ("", engine) and (names.is_sure(name) or names.is_likely(name))
        ]


class Ahead:
    """Requests in pages that are not booked yet, found by name."""

    def __init__(self, pages: Sequence[Page]) -> None:
        self._postings: dict[Key, list[Posting]] = {}
        self._finishes: dict[Key, list[FinishedRequest]] = {}
        for page in pages:
            for posting in page.request_postings:
                key = (posting.request or "", posting.account.engine or "")
                self._postings.setdefault(key, []).append(posting)
            for finish in page.finished:
                self._finishes.setdefault((finish.request, finish.engine), []).append(finish)
        self._index = _Index({*self._postings, *self._finishes})

    def meant(self, question: Question) -> list[Key]:
        """All that a question may mean, the likely ones too."""
        return self._index.meant(question)

    def add(self, key: Key, booked: NamedRequest) -> NamedRequest:
        """What is booked of a request and what is not, together."""
        postings = self._postings.get(key, [])
        finishes = self._finishes.get(key, [])
        amounts = [posting.amounts for posting in postings]
        prefill_tokens = booked.prefill_tokens + sum(a.prefill_tokens for a in amounts)
        decode_tokens = sum(a.decode_tokens for a in amounts)
        ends_ns = [booked.last_ns, *(posting.end_ns for posting in postings)]
        found = replace(
            booked,
            prefill_tokens=prefill_tokens,
            prefill_uj=booked.prefill_uj + _energy_uj(postings, Activity.PREFILL),
            decode_uj=booked.decode_uj + _energy_uj(postings, Activity.DECODE),
            methods=booked.methods | {posting.account.method for posting in postings},
            qualities=booked.qualities | {posting.account.quality for posting in postings},
            last_ns=max(ends_ns),
        )
        if finishes:
            return _finished(found, booked, finishes)
        if booked.finished_ns is not None:
            return found
        if postings:
            account = postings[-1].account
            found = replace(found, model=account.model, workload=account.workload, job=account.job)
        return replace(
            found,
            prompt_tokens=prefill_tokens,
            decode_tokens=booked.decode_tokens + decode_tokens,
        )


def _energy_uj(postings: Iterable[Posting], activity: Activity) -> int:
    return sum(p.amounts.energy_uj for p in postings if p.account.activity is activity)


def _finished(
    found: NamedRequest, booked: NamedRequest, finishes: Sequence[FinishedRequest]
) -> NamedRequest:
    """With the engine's own figures; an id that finished before has those as well."""
    last = max(finishes, key=lambda finish: finish.finished_ns)
    again = booked.finished_ns is not None
    return replace(
        found,
        model=last.model,
        workload=last.workload,
        job=last.job,
        finished_ns=last.finished_ns,
        prompt_tokens=booked.prompt_tokens * again + sum(f.prompt_tokens for f in finishes),
        cached_tokens=booked.cached_tokens * again + sum(f.cached_tokens for f in finishes),
        decode_tokens=booked.decode_tokens * again + sum(f.decode_tokens for f in finishes),
    )


class Answering:
    """Answers what waits in the box; the pipeline thread's, after it has booked."""

    def __init__(
        self,
        questions: Questions,
        accountant: Accountant,
        ledger: RequestLookup,
        grams: Grams,
        clock: Callable[[], int],
        *,
        spent: Callable[[], int] = time.thread_time_ns,
    ) -> None:
        """Prepare to answer; `spent` tells the processor time of the calling thread."""
        self._questions = questions
        self._accountant = accountant
        self._ledger = ledger
        self._grams = grams
        self._clock = clock
        self._spent = spent

    def turn(self, now_ns: int) -> None:
        """Answer those whose time has come; the others wait on."""
        due_ns = self._questions.due_ns
        if due_ns is None or due_ns > now_ns:
            return
        began_ns = self._spent()
        waiting, ready = self._sort(self._questions.take(), now_ns)
        if ready:
            # Up to this moment, in which what was just taken in has ended.
            ahead = Ahead(self._accountant.preview(self._clock() + 1))
            for question in ready:
                self._answer(question, ahead, now_ns)
        self._questions.back(waiting)
        self._questions.answered(self._spent() - began_ns)

    def fail(self, error: Exception) -> None:
        """The books cannot be asked now."""
        for question in self._questions.take():
            question.fail(error)

    def _sort(
        self, questions: Sequence[Question], now_ns: int
    ) -> tuple[list[Question], list[Question]]:
        """Those that wait for an end that is not known yet, and those to be answered now."""
        waiting: list[Question] = []
        ready: list[Question] = []
        ended = _Index(self._ended() if questions else ())
        for question in questions:
            # Later than the next turn would be too late.
            done = (
                question.until_ns - now_ns <= _NEXT_NS
                or ended.meant(question)
                or self._is_booked(question)
            )
            (ready if done else waiting).append(question)
        return waiting, ready

    def _ended(self) -> set[Key]:
        """Requests whose end is told and metered, though not booked."""
        until_ns = self._accountant.metered_until_ns
        return {
            (finish.request, finish.engine)
            for finish in self._accountant.unbooked_finishes()
            if until_ns is None or finish.t_ns <= until_ns
        }

    def _is_booked(self, question: Question) -> bool:
        """Whether its end is booked. Looked up once: what ends later ends in what is not."""
        if question.looked:
            return False
        question.looked = True
        try:
            booked = self._ledger.named(question.names)
        except UnreachableError:
            return False
        return any(
            item.finished_ns is not None and question.engine in ("", item.key.engine)
            for item in booked
        )

    def _answer(self, question: Question, ahead: Ahead, now_ns: int) -> None:
        clock = self._accountant.clock
        try:
            booked = self._ledger.named(question.names)
        except UnreachableError as error:
            question.fail(error)
            return
        ours: dict[Key, NamedRequest] = {}
        others: list[NamedRequest] = []
        for item in booked:
            if (item.key.host, item.key.boot_id) == (clock.host, clock.boot_id):
                ours[item.key.request, item.key.engine] = item
            else:
                others.append(item)
        unbooked = ahead.meant(question)
        for request, engine in unbooked:
            key = RequestKey(clock.host, clock.boot_id, engine, request)
            held = ours.get((request, engine), NamedRequest(key))
            ours[request, engine] = ahead.add((request, engine), held)
        utc_ns = clock.epoch_ns + now_ns
        answers = [self._told(item, utc_ns, open_=at in unbooked) for at, item in ours.items()]
        answers += [self._told(item, utc_ns, open_=False) for item in others]
        question.settle(_latest_first(question, answers))

    def _told(self, item: NamedRequest, utc_ns: int, *, open_: bool) -> Answer:
        """An answer; what has no end is open until nothing of it can be restated any more.

        An end that the meters have not reached is none yet: its energy would be too little.
        """
        until_ns = self._accountant.metered_until_ns
        if open_ and item.finished_ns is not None and until_ns is not None:
            ended_ns = item.finished_ns - self._accountant.clock.epoch_ns
            item = replace(item, finished_ns=None) if ended_ns > until_ns else item
        runs = item.finished_ns is None and utc_ns - item.last_ns < _SETTLED_NS
        grams = self._grams.of(item.energy_uj, item.finished_ns or utc_ns)
        return Answer(item, open_ or runs, grams)


def _latest_first(question: Question, answers: Sequence[Answer]) -> list[Answer]:
    """Those that are meant; one that runs is later than any that has finished."""
    meant = the_meant(question.names, [answer.request.key.request for answer in answers])
    chosen = [
        answer
        for answer in answers
        if answer.request.key.request in meant
        and question.engine in ("", answer.request.key.engine)
    ]
    return sorted(chosen, key=lambda answer: _age(answer.request), reverse=True)


def _age(item: NamedRequest) -> tuple[bool, int]:
    return item.finished_ns is None, item.finished_ns or item.last_ns
