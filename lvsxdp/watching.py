"""Has the kernel tell of packets that it lost after XDP had sent them: `bpf/watch.h`."""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lvsxdp import kernel_types, maps, network
from lvsxdp.bytecode import Compiled, Links
from lvsxdp.errors import DatapathError
from lvsxdp.network import Link

if TYPE_CHECKING:
    from lvsxdp.controller import Balancer

# Function -> the tracepoint at which it runs.
TRACEPOINTS = {
    "watch_redirect": "xdp_redirect_err",
    "watch_devmap": "xdp_devmap_xmit",
    "watch_bulk": "xdp_bulk_tx",
    "watch_exception": "xdp_exception",
}
# What the programs read: in the order of their numbers in watch.h.
FIELDS = (
    ("net_device", "ifindex"),
    ("net_device", "nd_net"),
    ("net", "net_cookie"),
    ("bpf_prog", "aux"),
    ("bpf_prog_aux", "name"),
)
# How the names of programs at a hook begin: maps.load_program("entry", ...).
NAME = b"lvsxdp_e"
OLDER = "an older lvsxdp loaded the programs; detach --all, then attach"


def watch(pins: Path, compiled: Compiled, links: Links) -> str:
    """Pins the programs at their tracepoints in `pins`; why that is not possible, "" if it is."""
    try:
        with contextlib.ExitStack() as opened:
            links = Links(links.maps, links.flat, (*links.keys, *_numbers()))
            kind = maps.ProgramType.RAW_TRACEPOINT
            for function, program in compiled.load_all(list(TRACEPOINTS), kind, links).items():
                opened.callback(os.close, program)
                link = maps.open_tracepoint(TRACEPOINTS[function], program)
                opened.callback(os.close, link)
                maps.pin(link, pins / function)
    except DatapathError as err:
        for function in TRACEPOINTS:
            (pins / function).unlink(missing_ok=True)
        return str(err)
    return ""


def _numbers() -> tuple[int, ...]:
    """The numbers in watch.h: offsets, this namespace's cookie, our programs' name."""
    cookie, name = network.namespace_cookie(), int.from_bytes(NAME, "little")
    return (*kernel_types.offsets(FIELDS), cookie, name)


# --------------------------------------------------------------------------------- what was lost


def losses(balancer: Balancer, links: Mapping[int, Link]) -> dict[str, int]:
    """Packets lost on their way out, by interface: those that lost any since the tables are there.

    An interface that is gone is called by its index; those beyond the table are one, `others`.
    """
    if "redirect_failures" not in balancer.schema.flat:
        return {}
    failures = balancer.map("redirect_failures")
    words = struct.unpack(f"<{failures.capacity}Q", failures.memory()[: 8 * failures.capacity])
    return {_name(links, index): count for index, count in enumerate(words) if count}


def _name(links: Mapping[int, Link], index: int) -> str:
    if not index:
        return "others"
    return links[index].name if index in links else str(index)


def warnings(balancer: Balancer, links: Mapping[int, Link]) -> list[str]:
    """A line for each interface that lost packets, with the likely remedy."""
    known = {link.name: link for link in links.values()}
    return unwatched(balancer) + [
        f"{name} lost {count} packets that XDP had sent out of it (redirect_failed): "
        f"{_remedy(known.get(name), name)}"
        for name, count in losses(balancer, links).items()
    ]


def unwatched(balancer: Balancer) -> list[str]:
    """What is said where the kernel does not tell of failed redirects."""
    reason = balancer.state.described.get("unwatched", OLDER)
    return [f"failed redirects are not counted (redirect_failed): {reason}"] if reason else []


def _remedy(link: Link | None, name: str) -> str:
    if link is None:
        return "interfaces that are gone: ip route shows where backends' routes lead now"
    if not link.is_up:
        return f"it is down: ip link set {name} up"
    if link.kind == "veth":
        return "its far end needs GRO (ethtool -K DEV gro on, there) and an MTU that is not smaller"
    return (
        f"its ring may have been full (ethtool -G {name}), or its driver sends for XDP only "
        f"where a program is attached to it, too: lvsxdp attach {name}"
    )
