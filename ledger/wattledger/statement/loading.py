"""The loaded view: the joules and grams of idle, spread over those who used the device.

Per host and device and over the whole reported window, by device-seconds. Users are `prefill`,
`decode`, `engine_idle`, `process`, and what an engine or job left `unattributed`; what nobody is
named for stays a line of its own and takes no share. What is spread keeps its own quality and
intensity tier. A user's hours or days take their share by the time they used, whenever it was
idle: so groups of any keys add up to the same, and one cut two ways may differ by a microjoule of
rounding. Source: accounting.md, 4.3.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from wattledger.apportion import apportion
from wattledger.records import Activity, Amounts
from wattledger.statement.lines import (
    AMOUNT_NAMES,
    Line,
    LineKey,
    add_amounts,
    add_grams,
)
from wattledger.statement.query import GroupKey


def loaded(lines: Iterable[Line], by: Sequence[str]) -> list[Line]:
    """All lines with idle spread over the users of its device; it stays where there are none."""
    result: list[Line] = []
    for members in _by_device(lines).values():
        idle, users, others = _sides(members)
        users_ns = _device_ns(users)
        spread = _shares(idle, users, users_ns, by) if users_ns else idle
        result += [*users, *others, *spread]
    return result


def loaded_claims(lines: Iterable[Line], claims: Iterable[Line], by: Sequence[str]) -> list[Line]:
    """Finer copies of some users' lines, with the part of idle that their device time claims.

    `lines` are everybody's, from which idle and all users' time are told; `claims` the copies.
    """
    everybody = _by_device(lines)
    result: list[Line] = []
    for device, members in _by_device(claims).items():
        idle, users, _ = _sides(everybody.get(device, []))
        users_ns = max(_device_ns(users), _device_ns(members))
        result += members
        if users_ns:
            result += _shares(idle, members, users_ns, by)
    return result


def _by_device(lines: Iterable[Line]) -> dict[tuple[str, str], list[Line]]:
    devices: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        devices.setdefault((line.key.host, line.key.device), []).append(line)
    return devices


def _sides(members: Sequence[Line]) -> tuple[list[Line], list[Line], list[Line]]:
    idle = [line for line in members if line.key.activity is Activity.IDLE]
    rest = [line for line in members if line.key.activity is not Activity.IDLE]
    users = [line for line in rest if _is_use(line)]
    return idle, users, [line for line in rest if not _is_use(line)]


def _is_use(line: Line) -> bool:
    return line.key.activity is not Activity.UNATTRIBUTED or line.key.owned


def _device_ns(lines: Iterable[Line]) -> int:
    return sum(line.amounts.device_ns for line in lines)


def _shares(
    idle: Iterable[Line], users: Sequence[Line], users_ns: int, by: Sequence[str]
) -> list[Line]:
    """Each pool of idle cut by the users' device time; time of users not here keeps its part."""
    ordered = sorted(users, key=lambda line: str(line.key))
    weights = {index: float(line.amounts.device_ns) for index, line in enumerate(ordered)}
    absent_ns = users_ns - _device_ns(users)
    if absent_ns:
        weights[len(ordered)] = float(absent_ns)
    result: list[Line] = []
    for members in _pools(idle).values():
        amounts = add_amounts(line.amounts for line in members)
        grams = add_grams(line.grams for line in members)
        parts = {name: apportion(getattr(amounts, name), weights) for name in AMOUNT_NAMES}
        for index, user in enumerate(ordered):
            result.append(
                Line(
                    _taking(user.key, members[0].key, by),
                    Amounts(*(parts[name][index] for name in AMOUNT_NAMES)),
                    grams.scaled(user.amounts.device_ns / users_ns),
                )
            )
    return result


def _pools(idle: Iterable[Line]) -> dict[tuple[object, ...], list[Line]]:
    pools: dict[tuple[object, ...], list[Line]] = {}
    for line in sorted(idle, key=lambda line: str(line.key)):
        key = line.key
        pools.setdefault(
            (key.quality, key.static_known, key.tier, key.source, key.in_service), []
        ).append(line)
    return pools


def _taking(user: LineKey, idle: LineKey, by: Sequence[str]) -> LineKey:
    """The user's line, with what tells where the idle energy came from."""
    labels = tuple(
        idle.quality.value if name == GroupKey.QUALITY else label
        for name, label in zip(by, user.by, strict=True)
    )
    return replace(
        user,
        by=labels,
        quality=idle.quality,
        static_known=idle.static_known,
        tier=idle.tier,
        source=idle.source,
        in_service=idle.in_service,
    )
