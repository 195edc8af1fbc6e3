"""Whose a request is: by rules of the site, or by its client's own word. Pure but for a cache.

Names come from clients, who may say anything: they are cut and made printable, and so many a day
are told apart. What a request is once given it keeps, unless its client says otherwise. An id used
again is another request, and one that two reporters give to different clients is nobody's.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from itertools import islice
from typing import NamedTuple

from wattledger.records import NS_PER_S, RequestOwner
from wattledger_collectors.workloads.names import printable

MOST_A_DAY = 10_000
MOST_REMEMBERED = 16_384
MOST_ENGINES = 256
"""Distinct owners told apart in a day; requests of each engine, and engines, that are at hand."""

OTHERS = "(others)"
_DAY_NS = 86_400 * NS_PER_S
_NAMES = ("workload", "job")
_CONDITIONS = ("engine", "model", "request", "tenant")
_HOLE = re.compile(r"\{(\w*)\}")
_TOKEN = re.compile(r"(\*|\?|\{\w+\})")

Owner = tuple[str | None, str | None]
_NOBODY: Owner = (None, None)


class _Told(NamedTuple):
    """Who told of a request, what, and from when on it holds; once finished, of the next of its id.

    Without `source` nothing that is still told of it counts: its reporters contradict each other.
    """

    source: str | None
    word: str
    since_ns: int


class Pattern:
    """A glob in which `{name}` captures: `*` is anything, `?` one character, all else itself.

    Every `*` and `{name}` takes as little as it can, up to the first place where what follows
    fits; `{name}` takes a character at least. What ends the pattern ends the text.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        # Alternately what is literal (with `?`) and what is not: "a*b" is [a, *, b].
        self._literals, self._wild = [""], list[str]()
        for part in filter(None, _TOKEN.split(text)):
            if part == "*" or part.startswith("{"):
                self._wild.append(part.strip("{}"))
                self._literals.append("")
            else:
                self._literals[-1] += part
        self._parts = [re.compile(_literal(part), re.DOTALL) for part in self._literals]
        self.names = frozenset(name for name in self._wild if name != "*")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pattern) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    def match(self, text: str) -> dict[str, str] | None:
        """What is captured of a text; None where it does not fit. Takes time linear in it."""
        first = self._parts[0].match(text)
        if first is None or (not self._wild and first.end() != len(text)):
            return None
        found: dict[str, str] = {}
        at = first.end()
        for number, (name, part) in enumerate(zip(self._wild, self._parts[1:], strict=True), 1):
            least = at + (name != "*")
            if number == len(self._wild):
                # The last literal stands at the very end, and what is before it takes the rest.
                start = len(text) - len(self._literals[-1])
                fits = part.match(text, start) if start >= least else None
            else:
                fits = part.search(text, least)
            if fits is None:
                return None
            if name != "*":
                found[name] = text[at : fits.start()]
            at = fits.end()
        return found


def _literal(part: str) -> str:
    return "".join("." if character == "?" else re.escape(character) for character in part)


@dataclass(frozen=True, slots=True)
class TenantRule:
    """Requests that fulfil every given condition belong to `workload` and `job`.

    `engine` and `model` are globs, `request` a pattern of the request's id, `tenant` one of what
    its client said. The names may hold what either pattern captures, as `{name}`.
    """

    engine: str | None = None
    model: str | None = None
    request: Pattern | None = None
    tenant: Pattern | None = None
    workload: str | None = None
    job: str | None = None

    def captured(self, engine: str, model: str, request: str, tenant: str) -> dict[str, str] | None:
        """What the patterns capture; None where a condition is not fulfilled."""
        if self.engine is not None and not fnmatchcase(engine, self.engine):
            return None
        if self.model is not None and not fnmatchcase(model, self.model):
            return None
        found: dict[str, str] = {}
        for pattern, text in ((self.request, request), (self.tenant, tenant)):
            if pattern is None:
                continue
            captured = pattern.match(text) if text else None
            if captured is None:
                return None
            found |= captured
        return found


def tenant_rule_of(value: object) -> TenantRule:
    """Read a rule's table from the config; raises ValueError saying what it must be."""
    if not isinstance(value, dict):
        raise ValueError("must be a table of conditions and names")
    known = [field.name for field in fields(TenantRule)]
    for key, item in value.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            mend = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
            raise ValueError(f"must have no key {key!r} ({mend})")
        if not isinstance(item, str) or not item.strip() or not item.isprintable():
            raise ValueError(f"must have a non-empty line of text as {key}")
    for wanted in (_CONDITIONS, _NAMES):
        if not any(name in value for name in wanted):
            raise ValueError(f"must have at least one of {', '.join(wanted)}")
    patterns = {key: _pattern_of(key, value[key]) for key in ("request", "tenant") if key in value}
    captured = frozenset[str]().union(*(pattern.names for pattern in patterns.values()))
    if len(captured) < sum(len(pattern.names) for pattern in patterns.values()):
        raise ValueError("must not capture one {name} in both request and tenant")
    for key in _NAMES:
        _check_name(key, value.get(key, ""), captured)
    return TenantRule(**{**value, **patterns})


def _pattern_of(key: str, text: str) -> Pattern:
    if re.search(r"[{}]", _HOLE.sub("", text)) or "{}" in text:
        raise ValueError(f"must have no braces in {key} but around a name, as in {{tenant}}")
    if re.search(r"(\*|\})(\*|\{)", text):
        raise ValueError(f"must have a character between any two of * and {{name}} in {key}")
    names = _HOLE.findall(text)
    if len(set(names)) != len(names):
        raise ValueError(f"must not capture one {{name}} twice in {key}")
    return Pattern(text)


def _check_name(key: str, text: str, captured: frozenset[str]) -> None:
    names = _HOLE.findall(text)
    if re.search(r"[{}]", _HOLE.sub("", text)) or not captured.issuperset(names):
        known = ", ".join(f"{{{name}}}" for name in sorted(captured))
        but = f" but {known}" if known else ", as no pattern captures anything"
        raise ValueError(f"must have no braces in {key}{but}")


class Tenants:
    """Owners of requests, each told once; `folded` counts requests of owners beyond a day's most.

    Without any rule a told tenant is the job. Belongs to whoever holds the sources' lock.
    """

    def __init__(self, rules: Iterable[TenantRule] = (), *, most_a_day: int = MOST_A_DAY) -> None:
        self.folded = 0
        self._rules = tuple(rules)
        self._most_a_day = most_a_day
        self._day = 0
        self._owners: set[Owner] = set()
        # By engine: what each request's client said, "" where nothing; None once it has finished.
        self._known: dict[str, dict[str, str | None]] = {}
        self._told: dict[str, dict[str, _Told]] = {}

    def set_rules(self, rules: Iterable[TenantRule]) -> None:
        """Use other rules for requests that are not known yet."""
        self._rules = tuple(rules)

    def news(
        self,
        engine: tuple[str, str],
        requests: Sequence[str],
        told: Sequence[str],
        now_ns: int,
        *,
        source: str = "",
        begins: Callable[[], Mapping[str, int]] = dict,
    ) -> list[RequestOwner]:
        """Owners of requests that are new here, or of which their client says something new.

        `engine` is its name and model; `told` runs in parallel, or is empty. Nobody in particular
        ("") has no owner. `begins` tells when requests are first spoken of in what `source` says.
        """
        if not told and not self._rules:
            return []
        name, model = engine
        known = self._known.setdefault(name, {})
        fresh = [
            (request, word)
            for request, word in zip(requests, told or [""] * len(requests), strict=True)
            if request and (known.get(request) is None or (word and known[request] != word))
        ]
        begun_ns = begins() if fresh else {}
        found = []
        for request, word in fresh:
            said = _Told(source, word, begun_ns.get(request, now_ns))
            for owner in self._say((name, model, request), said):
                whose = self._bounded((owner.workload, owner.job), now_ns)
                found.append(replace(owner, workload=whose[0], job=whose[1]))
        self._forget_oldest(name)
        return found

    def ended(self, engine: str, requests: Iterable[str], t_ns: int = 0) -> None:
        """These finished at `t_ns`: who bears the same id from now on is another request."""
        known, told = self._known.get(engine, {}), self._told.get(engine, {})
        for request in requests:
            if request in known:
                before = told.get(request)
                # What was withdrawn stays nobody's for as long as it lasted.
                told[request] = _Told("", before.word if before else "", t_ns)
                known[request] = None

    def forget(self, engine: str, requests: Iterable[str]) -> None:
        """Take these for unknown: what was told of them went down on its way."""
        known, told = self._known.get(engine, {}), self._told.get(engine, {})
        for request in requests:
            known.pop(request, None)
            told.pop(request, None)

    def _say(self, whose: tuple[str, str, str], said: _Told) -> list[RequestOwner]:
        """What a new word about a request, or its first, changes."""
        name, _, request = whose
        known, told = self._known[name], self._told.setdefault(name, {})
        before = told.get(request)
        again = request in known and known[request] is None
        if before and before.source is None:
            return []
        owner = self._owner((*whose, said.word))
        former = self._owner((*whose, before.word)) if before else _NOBODY
        if again and before:
            said = said._replace(since_ns=max(said.since_ns, before.since_ns))
        elif before and before.word and before.source != said.source and former != owner:
            # The daemon cannot tell which of the two an energy was of.
            told[request] = before._replace(source=None)
            moments = sorted({before.since_ns, said.since_ns})
            return [RequestOwner(name, request, *_NOBODY, at_ns) for at_ns in moments]
        known.pop(request, None)
        known[request], told[request] = said.word, said
        found = [RequestOwner(name, request, *owner, said.since_ns)]
        if owner == _NOBODY:
            # An id used again may not be the former client's.
            return found if again else []
        return (
            [RequestOwner(name, request, *_NOBODY), *found]
            if again and former == _NOBODY
            else found
        )

    def _owner(self, whose: tuple[str, str, str, str]) -> Owner:
        """(workload, job) by the first rule that fits."""
        if not self._rules:
            return None, _name(whose[3])
        for rule in self._rules:
            captured = rule.captured(*whose)
            if captured is not None:
                return _filled(rule.workload, captured), _filled(rule.job, captured)
        return _NOBODY

    def _bounded(self, owner: Owner, now_ns: int) -> Owner:
        """The owner, or all the others as one where the day has seen enough of them."""
        if owner == _NOBODY:
            return owner
        day = now_ns // _DAY_NS
        if day != self._day:
            self._day, self._owners = day, set()
        if owner not in self._owners:
            if len(self._owners) >= self._most_a_day:
                self.folded += 1
                workload, job = owner
                return None if workload is None else OTHERS, None if job is None else OTHERS
            self._owners.add(owner)
        return owner

    def _forget_oldest(self, engine: str) -> None:
        """Of so many requests the older half may be told again, which changes nothing."""
        known = self._known[engine]
        if len(known) > MOST_REMEMBERED:
            known = dict(islice(known.items(), len(known) // 2, None))
            told = self._told.get(engine, {})
            self._known[engine] = known
            self._told[engine] = {name: said for name, said in told.items() if name in known}
        if len(self._known) > MOST_ENGINES:
            self._known = {engine: self._known[engine]}
            self._told = {engine: self._told.get(engine, {})}


def _filled(pattern: str | None, captured: Mapping[str, str]) -> str | None:
    if pattern is None:
        return None
    return _name(_HOLE.sub(lambda hole: captured[hole[1]], pattern))


def _name(text: str) -> str | None:
    """What a client said, as it may stand in a table."""
    return printable(text.encode(errors="replace"))
