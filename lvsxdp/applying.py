"""Brings a running balancer to a configuration, rows and interfaces, and tells what that is."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping

from lvsxdp import changes, controller, features, linking
from lvsxdp.controller import Balancer
from lvsxdp.errors import ConflictError, LvsxdpError
from lvsxdp.features import Feature
from lvsxdp.model import Config
from lvsxdp.network import Link, Network
from lvsxdp.state import Attachment

Say = Callable[[str], None]
Guard = Callable[[], contextlib.AbstractContextManager[None]]


@dataclasses.dataclass(frozen=True, slots=True)
class How:
    """How a balancer is brought to a configuration.

    `undrain` ends drains and `detach` takes interfaces off that it does not name; `force` takes
    the place of other programs, and `covering` the packets of listeners; `by_hand` is as in
    Balancer.apply; `modes` are interfaces'.
    """

    dry_run: bool = False
    undrain: bool = False
    detach: bool = False
    force: bool = False
    covering: bool = False
    by_hand: bool = False
    modes: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """What a balancer is to become, and what has to be done for it.

    `by_hand` are lines for what was changed since the last apply, `lines` those for what will be,
    `warnings` those for what will not.  `attach` are the links that get our programs, `mend` the
    attachments on record of those of them that have lost theirs, `detach` the attachments that go.
    """

    config: Config
    by_hand: list[str]
    lines: list[str]
    warnings: list[str]
    missing: frozenset[Feature]
    attach: tuple[Link, ...]
    mend: tuple[Attachment, ...]
    detach: tuple[Attachment, ...]


def bring(
    balancer: Balancer,
    net: Network,
    read: Config,
    how: How,
    *,
    sources: Mapping[str, str] | None = None,
    say: Say = lambda _: None,
    tell: Say = lambda _: None,
    guard: Guard = contextlib.nullcontext,
) -> bool:
    """Brings the balancer to what was read; whether anything changed.

    What will be is told first, and what is noticed said; the change is made inside `guard`.
    """
    todo = plan(balancer, net, read, how)
    for line in () if how.by_hand else todo.by_hand:
        say(f"changed by hand since the last apply: {line}")
    for line in todo.lines or ["nothing to do"]:
        tell(line)
    if todo.missing:
        tell(f"features: {features.names(todo.missing)} to be compiled in")
    for warning in todo.warnings:
        say(f"warning: {warning}")
    if changes.brings_rules_or_services(balancer.state.config, todo.config):
        from lvsxdp import listening

        known, covering = balancer.state.config, how.covering
        listening.refuse_covered(known, todo.config, net.addresses, force=covering)
    if how.dry_run:
        return False
    # an interface that was detached, and that the file does not ask for, is missed no more
    missed = todo.config.interfaces != balancer.state.config.interfaces
    missed |= balancer.state.book.unprivileged_port != controller.unprivileged_port()
    if not (todo.lines or balancer.state.applied or missed):
        # the host may be another than it was
        balancer.follow_network(net)
        balancer.write_routes(net)
        return False
    kept = None if sources is None else changes.kept_sources(sources, read, todo.config)
    with guard():
        _perform(balancer, net, todo, how, kept, say)
    return True


def plan(balancer: Balancer, net: Network, read: Config, how: How) -> Plan:
    """What bringing the balancer to what was read takes.

    ConflictError where it cannot become that.
    """
    named = {a.interface for a in balancer.state.attachments}
    # most often nothing is to be done on any, and asking for them takes as long as all the rest
    settled = linking.are_whole(balancer) and named.issuperset(read.interfaces)
    links = [] if settled else net.links()
    follow_names(balancer, links)
    before = running(balancer)
    wanted = changes.follow(before, read, undrain=how.undrain, detach=how.detach)
    here = {link.name: link for link in links}
    fresh = [name for name in wanted.interfaces if name not in before.interfaces]
    absent = [name for name in fresh if name not in here]
    if absent and how.detach:
        # it may be one that is attached, by its former name
        net.link(absent[0])
    stays = tuple(name for name in wanted.interfaces if name not in absent)
    wanted = dataclasses.replace(wanted, interfaces=stays)
    for name in () if how.force else (name for name in fresh if name in here):
        linking.refuse_occupied(net, here[name])
    mended, lost = ([], []) if settled else _mendable(balancer, net, links, wanted, how.force)
    return Plan(
        config=wanted,
        by_hand=changes.describe(balancer.state.applied or balancer.state.config, before),
        lines=[
            *changes.describe(before, wanted),
            *(f"interface {link.name}: to be attached again" for _, link in mended),
        ],
        warnings=[*lost, *(f"there is no interface {n} here, to attach" for n in absent)],
        missing=balancer.missing(wanted),
        attach=(*(link for _, link in mended), *(here[n] for n in fresh if n in here)),
        mend=tuple(attachment for attachment, _ in mended),
        detach=tuple(a for a in balancer.state.attachments if a.interface not in stays),
    )


def running(balancer: Balancer) -> Config:
    """The configuration that runs, with the interfaces that are attached."""
    names = tuple(a.interface for a in balancer.state.attachments)
    return dataclasses.replace(balancer.state.config, interfaces=names)


def follow_names(balancer: Balancer, links: list[Link]) -> None:
    """Has the attachments on record go by the names that their interfaces have now."""
    names = {link.index: link.name for link in links}
    balancer.state.attachments = [
        dataclasses.replace(a, interface=names.get(a.ifindex, a.interface))
        for a in balancer.state.attachments
    ]


def _mendable(
    balancer: Balancer, net: Network, links: list[Link], wanted: Config, force: bool
) -> tuple[list[tuple[Attachment, Link]], list[str]]:
    """The attachments that are to stay and have lost programs: those that can be made again, each
    with the interface that has its place now, and a line for each that cannot."""
    mended, lost = [], []
    for attachment in balancer.state.attachments:
        link = _link_of(attachment, links)
        if attachment.interface not in wanted.interfaces:
            continue
        if link is None:
            name = attachment.interface
            lost.append(f"{name} was attached and is gone: apply again when it is back")
        elif not linking.is_whole(balancer, net, link, attachment):
            try:
                if not force:
                    linking.refuse_occupied(net, link, linking.program_ids(balancer))
                mended.append((attachment, link))
            except ConflictError as err:
                lost.append(f"not attached again: {err}")
    return mended, lost


def _link_of(attachment: Attachment, links: list[Link]) -> Link | None:
    """The attachment's interface, or the one that has come in its place under its name."""
    by_index = {link.index: link for link in links}
    by_name = {link.name: link for link in links}
    return by_index.get(attachment.ifindex) or by_name.get(attachment.interface)


def _perform(
    balancer: Balancer,
    net: Network,
    todo: Plan,
    how: How,
    sources: Mapping[str, str] | None,
    say: Say,
) -> None:
    """Interfaces come first, as they may refuse; what came is taken off again if the rest fails."""
    modes = {**{a.interface: a.mode for a in todo.mend}, **how.modes}
    linking.attach_links(balancer, net, todo.attach, modes, how.force, say, todo.mend)
    try:
        balancer.apply(todo.config, net, by_hand=how.by_hand, sources=sources)
    except LvsxdpError:
        fresh = {link.index for link in todo.attach[len(todo.mend) :]}
        come = [a for a in balancer.state.attachments if a.ifindex in fresh]
        linking.detach_links(balancer, net, come)
        raise
    linking.detach_links(balancer, net, todo.detach)
