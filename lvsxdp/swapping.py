"""Swaps the programs for ones with more features, between two packets and with all state kept."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lvsxdp import features, journal, loading, maps
from lvsxdp.controller import GRACE, Balancer
from lvsxdp.features import Feature
from lvsxdp.journal import Next
from lvsxdp.loading import Build
from lvsxdp.network import Link, Network
from lvsxdp.state import Attachment, State

PINS = ("xdp_programs", "xdp_entry", "tc_programs", "tc_entry")
# What is pinned under each name, held by a descriptor.
Set = Mapping[str, int]


def widen(balancer: Balancer, net: Network, missing: frozenset[Feature]) -> None:
    """Compiles in what is missing, and puts the new programs in the place of those that run.

    Raises an LvsxdpError that names the step; then everything is as it was.
    """
    begun = time.monotonic()
    pins = balancer.where.pins
    fresh = pins.with_name(f"{pins.name}{loading.UNFINISHED}")
    wanted = balancer.state.features | missing
    loading.remove_pins(fresh)
    fresh.mkdir()
    try:
        described = loading.load_wider(
            fresh, pins, balancer.state.described, wanted, balancer.build or Build()
        )
        _swap(balancer, net, fresh, described)
    finally:
        loading.remove_pins(fresh)
    balancer.say(f"compiled in {features.names(missing)} ({time.monotonic() - begun:.1f} s)")


def _swap(balancer: Balancer, net: Network, fresh: Path, described: dict[str, Any]) -> None:
    """Attachments, pins and record go over to the programs in `fresh`, or none of them does."""
    where = balancer.where
    with _opened(where.pins) as old, _opened(fresh) as new:
        wanted = _wanted(balancer.state, old, new, described)
        with contextlib.ExitStack() as undo:
            undo.callback(journal.forget_next, where)
            journal.begin_next(where, wanted, (), swap=True)
            _swap_attached(balancer, net, old, new, undo)
            for name in PINS:
                (fresh / name).rename(where.pins / name)
                undo.callback(_pin_again, old[name], fresh / name, where.pins / name)
            journal.end_next(where)
            undo.pop_all()
        balancer.state = wanted
        # the old array loses its programs with its last descriptor, and a packet may be in it yet
        time.sleep(GRACE)


def finish(balancer: Balancer, net: Network, begun: Next) -> None:
    """Finishes an exchange that was interrupted: the programs that are not pinned yet are in use.

    Interfaces come before pins, so that those that still have the old programs are found by them.
    """
    where = balancer.where
    fresh = where.pins.with_name(f"{where.pins.name}{loading.UNFINISHED}")
    left = [name for name in PINS if (fresh / name).exists()]
    if left == list(PINS):
        with _opened(where.pins) as old, _opened(fresh) as new, contextlib.ExitStack() as undo:
            _swap_attached(balancer, net, old, new, undo)
            undo.pop_all()
    for name in left:
        (fresh / name).rename(where.pins / name)
    balancer.state = begun.state
    journal.end_next(where)
    loading.remove_pins(fresh)


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[Set]:
    with contextlib.ExitStack() as stack:
        opened = {}
        for name in PINS:
            opened[name] = maps.open_pin(folder / name)
            stack.callback(os.close, opened[name])
        yield opened


def _swap_attached(
    balancer: Balancer, net: Network, old: Set, new: Set, undo: contextlib.ExitStack
) -> None:
    """Replaces our programs on each interface; what others put there stays.

    TC first: what the wider XDP program hands over, the narrower TC program may not know.
    """
    links = {link.index: link for link in net.links()}
    attached = [(links[a.ifindex], a) for a in balancer.state.attachments if a.ifindex in links]
    for link, _ in attached:
        _swap_tc(net, link, old, new, undo)
    for link, attachment in attached:
        _swap_xdp(net, link, attachment, old, new, undo)


def _swap_tc(net: Network, link: Link, old: Set, new: Set, undo: contextlib.ExitStack) -> None:
    found = net.tc_program(link)
    if found is None or found[0] != maps.program_info(old["tc_entry"])[0]:
        return
    net.replace_tc(link, new["tc_entry"])
    undo.callback(net.replace_tc, link, old["tc_entry"])


def _swap_xdp(
    net: Network,
    link: Link,
    attachment: Attachment,
    old: Set,
    new: Set,
    undo: contextlib.ExitStack,
) -> None:
    if attachment.mode == "tc" or link.program != attachment.program:
        return
    net.replace_xdp(link, attachment.mode, new["xdp_entry"], old["xdp_entry"])
    undo.callback(net.replace_xdp, link, attachment.mode, old["xdp_entry"], new["xdp_entry"])


def _pin_again(descriptor: int, beside: Path, path: Path) -> None:
    maps.pin(descriptor, beside)
    beside.rename(path)


def _wanted(known: State, old: Set, new: Set, described: dict[str, Any]) -> State:
    """The state with the new programs' ids and features."""
    ids = {maps.program_info(old[n])[0]: maps.program_info(new[n])[0] for n in PINS if "entry" in n}
    attachments = [
        dataclasses.replace(a, program=ids.get(a.program, a.program)) for a in known.attachments
    ]
    return dataclasses.replace(known, attachments=attachments, described=described)
