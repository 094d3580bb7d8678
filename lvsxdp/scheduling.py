"""What the control plane prepares for the schedulers: list order, tables, wrr's rounds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import TypeVar

from lvsxdp import maglev
from lvsxdp.model import Backend, Scheduler, Service

SH_BUCKETS = 256
# Slots of the tables of those schedulers that have one.
SLOTS = {Scheduler.SH: SH_BUCKETS, Scheduler.DH: SH_BUCKETS, Scheduler.MH: maglev.SLOTS}
# These choose by how many connections backends have.
COUNTING = frozenset(
    {
        *(Scheduler.WLC, Scheduler.LC, Scheduler.SED, Scheduler.NQ, Scheduler.OVF),
        *(Scheduler.TWOS, Scheduler.LBLC, Scheduler.LBLCR),
    }
)
T = TypeVar("T")


@dataclasses.dataclass(frozen=True, slots=True)
class Member:
    """One backend in a list: what names it, and its weight."""

    name: str
    weight: int


@dataclasses.dataclass(frozen=True, slots=True)
class Cursor:
    """Where rr and wrr stand: place of the last pick + 1 (0: the head), and wrr's weight."""

    position: int = 0
    weight: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Rounds:
    """wrr's bounds: a round's weight falls by `step` from `top`; top 0: nobody has a weight."""

    step: int
    top: int


def members_of(backends: Iterable[Backend]) -> tuple[Member, ...]:
    """The list in scheduling order: the last added comes first; drained backends are not in it."""
    present = [Member(str(b), b.weight) for b in backends if not b.draining]
    return tuple(reversed(present))


def goes_by_counts(service: Service) -> bool:
    """Whether who gets a connection depends on how many connections the backends have."""
    return service.scheduler in COUNTING or any(b.upper_threshold for b in service.backends)


def sh_table(weights: Sequence[int]) -> list[int]:
    """For each of sh's 256 buckets the place of its member: max(weight, 1) buckets in a row each.

    Source: ipvs-behaviour, section 5.3.  An empty list gives an empty table.
    """
    if not weights:
        return []
    table: list[int] = []
    while len(table) < SH_BUCKETS:
        for place, weight in enumerate(weights):
            table.extend([place] * min(max(weight, 1), SH_BUCKETS))
    return table[:SH_BUCKETS]


def dh_table(count: int) -> list[int]:
    """For each of dh's 256 buckets the place of its member: one bucket each, whatever it weighs."""
    return sh_table([1] * count)


def slot_table(service: Service, members: Sequence[Member]) -> list[int]:
    """The table of the service's scheduler, as places in its list; empty where it has none."""
    if service.scheduler is Scheduler.SH:
        return sh_table([member.weight for member in members])
    if service.scheduler is Scheduler.DH:
        return dh_table(len(members))
    if service.scheduler is Scheduler.MH:
        # where nobody ever had a weight, all slots are the first's, who takes nobody
        return maglev.table(maglev.servers_of(service)) or [0] * (maglev.SLOTS if members else 0)
    return []


def wrr_rounds(weights: Sequence[int]) -> Rounds:
    """wrr's step (the weights' greatest common divisor) and top."""
    positive = [weight for weight in weights if weight > 0]
    step = math.gcd(*positive) if positive else 1
    return Rounds(step, max(weights, default=0) - (step - 1) if positive else 0)


def wrr_step(weights: Sequence[int], weight: int) -> int:
    """wrr's present weight after one addition, edit or removal left these weights.

    Source: ipvs-behaviour, section 5.1.
    """
    rounds = wrr_rounds(weights)
    if weight > rounds.top or weight == 0:
        return rounds.top
    if rounds.step > 1:
        return weight // rounds.step * rounds.step + 1
    return weight


def first_cursor(members: Sequence[Member]) -> Cursor:
    """Where a scheduler begins that a list is given whole: wrr with its heaviest."""
    return Cursor(0, wrr_rounds([member.weight for member in members]).top)


def next_cursor(
    scheduler: Scheduler, before: Sequence[Member], after: Sequence[Member], cursor: Cursor
) -> Cursor:
    """Where the scheduler stands once the list `before` has become `after`.

    As if the changes had been made one by one: removals, edits, then additions in order.
    """
    if scheduler is Scheduler.RR:
        return Cursor(_rr_position(before, after, cursor.position))
    if scheduler is not Scheduler.WRR:
        return Cursor()
    stages = list(_stages(before, after))
    if not stages:
        return cursor
    weight = cursor.weight
    for stage in stages:
        weight = wrr_step([member.weight for member in stage], weight)
    return Cursor(0, weight)


def _rr_position(before: Sequence[Member], after: Sequence[Member], position: int) -> int:
    """The last pick's new place + 1; where it is gone, its predecessor's."""
    places = {member.name: place for place, member in enumerate(after)}
    for member in reversed(before[:position]):
        if member.name in places:
            return places[member.name] + 1
    return 0


def _stages(before: Sequence[Member], after: Sequence[Member]) -> Iterable[list[Member]]:
    """The list after each single change."""
    weights = {member.name: member.weight for member in after}
    current = list(before)
    for gone in [member for member in before if member.name not in weights]:
        current.remove(gone)
        yield list(current)
    for place, member in enumerate(current):
        if member.weight != weights[member.name]:
            current[place] = Member(member.name, weights[member.name])
            yield list(current)
    present = {member.name for member in before}
    for member in reversed([member for member in after if member.name not in present]):
        current.insert(0, member)
        yield list(current)
