"""What lblc and lblcr need of the control plane: where members stand, and how long to remember."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lvsxdp import records
from lvsxdp.book import ServicePlace
from lvsxdp.model import Scheduler, Settings
from lvsxdp.scheduling import Member
from lvsxdp.schema import Schema
from lvsxdp.writes import Store, Write

SCHEDULERS = frozenset({Scheduler.LBLC, Scheduler.LBLCR})


def place_rows(schema: Schema, place: ServicePlace, members: Sequence[Member]) -> dict[int, bytes]:
    """Rows of member_places: where each backend stands in the list, in this generation's half."""
    half = schema.flat["member_places"].rows // 2
    start = half if place.generation & 1 else 0
    return {
        start + place.backends[member.name].id: records.number(number)
        for number, member in enumerate(members)
    }


def expiration_writes(schema: Schema, old: Settings, new: Settings, first: bool) -> Iterator[Write]:
    """How long a destination is remembered that nobody asks for."""
    for name in ("lblc_expiration", "lblcr_expiration"):
        seconds: int = getattr(new, name)
        if first or seconds != getattr(old, name):
            yield Store("switches", schema.enums["switch_word"][name], seconds * schema.hz)
