"""What the programs know of each interface: its MAC, and how XDP sends what leaves by it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lvsxdp import network, records
from lvsxdp.network import Link
from lvsxdp.schema import Schema


def lower_of(link: Link, links: Mapping[int, Link]) -> Link | None:
    """The interface by which XDP sends a VLAN device's frames with its tag; None where TC sends."""
    lower = links.get(link.lower) if link.vlan is not None else None
    return lower if lower and network.can_transmit(lower) else None


def rows(schema: Schema, links: Iterable[Link], modes: Mapping[int, str]) -> dict[int, bytes]:
    """The row of each interface by its index; `modes` is how those are attached that are.

    veth queues what XDP_TX sends, and where no XDP program is at its far end, which can be in any
    namespace, nothing tells that end of it (Linux 6.18).

    TC sends what leaves by VLAN devices while XDP is attached in generic mode somewhere: there the
    tag by which a packet came may stand beside the frame, out of sight, and would be sent with it.
    """
    layout, flag = schema.values["interfaces"], schema.enums["interface_flag"]
    known = {link.index: link for link in links}
    is_tagging = "generic" not in modes.values()
    found = {}
    for link in known.values():
        lower, mode = lower_of(link, known) if is_tagging else None, modes.get(link.index, "tc")
        found[link.index] = layout.encode(
            mac=records.mac_word(link.mac),
            lower=lower.index if lower else 0,
            vlan=(link.vlan or 0) if lower else 0,
            flags=flag["transmit"] * network.can_transmit(link)
            | flag["no_tx"] * (link.kind == "veth")
            | flag["xdp"] * (mode != "tc")
            | flag["generic"] * (mode == "generic"),
        )
    return found


def sender(schema: Schema, row: bytes, link: Link) -> int:
    """The index of the interface that the programs send by, as a link's row has it; 0: TC sends."""
    layout, flag = schema.values["interfaces"], schema.enums["interface_flag"]
    if layout.number(row, "flags") & flag["transmit"]:
        return link.index
    is_known = layout.number(row, "mac") == records.mac_word(link.mac)
    return layout.number(row, "lower") if is_known else 0


def turns(schema: Schema, row: bytes) -> bool:
    """XDP_TX is sure to send by the interface that the row is of."""
    flags = schema.values["interfaces"].number(row, "flags")
    return not flags & schema.enums["interface_flag"]["no_tx"]


def gone(table: bytes, size: int, present: Iterable[int]) -> list[int]:
    """The indices of rows that say something and are of no interface that is present."""
    nothing, here = bytes(size), set(present)
    return [
        start // size
        for start in range(0, len(table), size)
        if table[start : start + size] != nothing and start // size not in here
    ]
