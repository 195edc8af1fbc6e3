"""Rules of the site's config: whose a process is that nobody asked."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from string import Formatter

from wattledger_collectors.workloads.names import user_name
from wattledger_collectors.workloads.places import Place

_CONDITIONS = ("cgroup", "command", "user")
_NAMES = ("workload", "job")
PLACEHOLDERS = ("unit", "user", "container", "pod")


@dataclass(frozen=True, slots=True)
class Rule:
    """Processes that fulfil every given condition belong to `workload` and `job`.

    `cgroup` and `command` are globs (`*` crosses slashes), `user` is a name or a uid. The names
    may hold {unit}, {user}, {container} and {pod}; one that a process lacks leaves that name
    to the next way of finding it.
    """

    cgroup: str | None = None
    command: str | None = None
    user: str | None = None
    workload: str | None = None
    job: str | None = None

    @property
    def of_groups(self) -> bool:
        """Whether the path alone decides, so that whole control groups are matched."""
        return self.command is None and self.user is None

    def matches(self, paths: Iterable[str], command: str | None, uid: int | None) -> bool:
        """Whether a process in these control groups fulfils every condition."""
        if self.cgroup is not None and not any(fnmatchcase(p, self.cgroup) for p in paths):
            return False
        if self.command is not None and not fnmatchcase(command or "", self.command):
            return False
        return self.user is None or (uid is not None and self.user in {str(uid), user_name(uid)})


def first_match(
    rules: Iterable[Rule], paths: Iterable[str], command: str | None, uid: int | None
) -> Rule | None:
    """The first rule, in the order of the config, that a process fulfils."""
    known = tuple(paths)
    return next((rule for rule in rules if rule.matches(known, command, uid)), None)


def rule_of(value: object) -> Rule:
    """Read a rule's table from the config; raises ValueError saying what it must be."""
    if not isinstance(value, dict):
        raise ValueError("must be a table of conditions and names")
    known = [field.name for field in fields(Rule)]
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
    for name in _NAMES:
        _check_pattern(name, value.get(name, ""))
    return Rule(**value)


def _check_pattern(name: str, pattern: str) -> None:
    mend = f"must have no braces in {name} but {', '.join(f'{{{p}}}' for p in PLACEHOLDERS)}"
    try:
        parsed = list(Formatter().parse(pattern))
    except ValueError as error:
        raise ValueError(mend) from error
    for _, placeholder, width, conversion in parsed:
        if placeholder is not None and (
            placeholder not in PLACEHOLDERS or width or conversion is not None
        ):
            raise ValueError(mend)


def filled(pattern: str | None, place: Place, uid: int | None) -> str | None:
    """A rule's name for a process; None where it gives none, or lacks what is to be filled in."""
    if pattern is None:
        return None
    user = place.user if uid is None else str(uid)
    values = {
        "unit": place.unit,
        "user": user_name(int(user)) if user is not None else None,
        "container": place.container[:12] if place.container else None,
        "pod": place.pod,
    }
    wanted = {name for _, name, _, _ in Formatter().parse(pattern) if name is not None}
    if any(values[name] is None for name in wanted):
        return None
    return pattern.format_map(values)
