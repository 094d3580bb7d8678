"""Swaps the programs for others, between two packets and with all that they share kept."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from lvsxdp import backup, features, journal, loading, maps, network
from lvsxdp.controller import GRACE, Balancer
from lvsxdp.features import Feature
from lvsxdp.journal import Next
from lvsxdp.loading import Build
from lvsxdp.network import Link, Network
from lvsxdp.state import Attachment, Folders, State

HOOK_PINS = ("xdp_programs", "xdp_entry", "tc_programs", "tc_entry")
# What is pinned under each name, held by a descriptor.
Set = Mapping[str, int]


def widen(balancer: Balancer, net: Network, missing: frozenset[Feature]) -> None:
    """Compiles in what is missing, and puts the new programs in the place of those that run.

    Raises an LvsxdpError that names the step; then everything is as it was.
    """
    begun = time.monotonic()
    known = balancer.state
    wanted = known.features | missing

    def load(fresh: Path) -> State:
        pins, build = balancer.where.pins, balancer.build or Build()
        described = loading.load_wider(fresh, pins, known.config, known.described, wanted, build)
        return dataclasses.replace(known, described=described)

    exchange(balancer, net, load)
    balancer.say(f"compiled in {features.names(missing)} ({time.monotonic() - begun:.1f} s)")


def exchange(balancer: Balancer, net: Network, load: Callable[[Path], State]) -> None:
    """Puts what `load` pins in a folder, programs and maps, in the place of what runs.

    `load` gives the state that is then on record, but for the programs' ids.  Raises an
    LvsxdpError that names the step; then everything is as it was.
    """
    fresh = unfinished(balancer.where)
    loading.remove_pins(fresh)
    fresh.mkdir()
    try:
        _swap(balancer, net, fresh, load(fresh))
    finally:
        loading.remove_pins(fresh)


def unfinished(where: Folders) -> Path:
    """The folder of pins that are to take the place of those in use."""
    return where.pins.with_name(f"{where.pins.name}{loading.UNFINISHED}")


def _swap(balancer: Balancer, net: Network, fresh: Path, loaded: State) -> None:
    """Attachments, pins and record go over to what is in `fresh`, or none of them does."""
    where = balancer.where
    with _opened(where.pins) as old, _opened(fresh) as new:
        wanted = _wanted(loaded, old, new)
        with contextlib.ExitStack() as undo:
            undo.callback(journal.forget_next, where)
            journal.begin_next(where, wanted, (), swap=True)
            _swap_attached(balancer, net, old, new, undo)
            for name in new:
                (fresh / name).rename(where.pins / name)
                undo.callback(_pin_again, old.get(name), fresh / name, where.pins / name)
            journal.end_next(where)
            undo.pop_all()
        backup.keep(where)
        _take_over(balancer, wanted)
        # the old array loses its programs with its last descriptor, and a packet may be in it yet
        time.sleep(GRACE)


def finish(balancer: Balancer, net: Network, begun: Next) -> None:
    """Finishes an exchange that was interrupted: what is not pinned in its place yet is in use.

    Interfaces come before pins, so that those that still have the old programs are found by them.
    """
    where = balancer.where
    fresh = unfinished(where)
    left = [path.name for path in fresh.iterdir()] if fresh.is_dir() else []
    if set(left).issuperset(HOOK_PINS):
        with _opened(where.pins) as old, _opened(fresh) as new, contextlib.ExitStack() as undo:
            _swap_attached(balancer, net, old, new, undo)
            undo.pop_all()
    for name in left:
        (fresh / name).rename(where.pins / name)
    journal.end_next(where)
    backup.keep(where)
    _take_over(balancer, begun.state)
    loading.remove_pins(fresh)


def _take_over(balancer: Balancer, wanted: State) -> None:
    """From here on the balancer is the new one; pins that it does not know go."""
    balancer.take_over(wanted)
    known = loading.pinned_names(wanted.described)
    for path in balancer.where.pins.iterdir():
        if path.name not in known:
            path.unlink()


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[Set]:
    with contextlib.ExitStack() as stack:
        opened = {}
        for name in sorted(path.name for path in folder.iterdir()):
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
    _swap_egress(net, link, old.get("tc_egress"), new.get("tc_egress"), undo)


def _swap_egress(
    net: Network, link: Link, old: int | None, new: int | None, undo: contextlib.ExitStack
) -> None:
    """The same of what some versions have on the way out, and others not."""
    chain = network.EGRESS
    found = net.tc_program(link, chain)
    is_ours = found is not None and old is not None and found[0] == maps.program_info(old)[0]
    if is_ours and new is not None and old is not None:
        net.replace_tc(link, new, chain)
        undo.callback(net.replace_tc, link, old, chain)
    elif is_ours and old is not None:
        net.detach_tc(link, chain)
        undo.callback(net.attach_tc, link, old, chain)
    elif new is not None and found is None:
        net.attach_tc(link, new, chain)
        undo.callback(net.detach_tc, link, chain)


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


def _pin_again(descriptor: int | None, beside: Path, path: Path) -> None:
    """Puts back what was pinned at `path`, where anything was."""
    if descriptor is None:
        path.unlink()
        return
    maps.pin(descriptor, beside)
    beside.rename(path)


def _wanted(loaded: State, old: Set, new: Set) -> State:
    """The state with the new programs' ids."""
    ids = {
        maps.program_info(old[name])[0]: maps.program_info(new[name])[0]
        for name in HOOK_PINS
        if name.endswith("_entry")
    }
    attachments = [
        dataclasses.replace(a, program=ids.get(a.program, a.program)) for a in loaded.attachments
    ]
    return dataclasses.replace(loaded, attachments=attachments)
