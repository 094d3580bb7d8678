"""What schedulers look up beside the list: tables of sh, dh and mh, places of lblc and lblcr."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

from lvsxdp import locality, scheduling
from lvsxdp.book import ServicePlace
from lvsxdp.model import Service
from lvsxdp.scheduling import Member
from lvsxdp.schema import Schema
from lvsxdp.writes import Rows, Write, runs


def lookup_writes(
    schema: Schema, service: Service, place: ServicePlace, members: Sequence[Member]
) -> Iterator[Write]:
    """What a version's scheduler looks up, written where nothing uses it yet."""
    table = scheduling.slot_table(service, members)
    if place.slots is not None and table:
        yield Rows("slots", place.slots, struct.pack(f"<{len(table)}H", *table))
    if service.scheduler in locality.SCHEDULERS:
        for first, values in runs(locality.place_rows(schema, place, members)):
            yield Rows("member_places", first, b"".join(values))
