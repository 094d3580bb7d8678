"""Puts the programs on interfaces, each whole or not at all, and takes them off."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence

from lvsxdp import backup, journal, maps, network
from lvsxdp.controller import Balancer
from lvsxdp.errors import ConflictError, DatapathError, LvsxdpError
from lvsxdp.network import Link, Network
from lvsxdp.state import Attachment

AUTO = "auto"
# What is pinned -> the filter chain that it is on.
CHAINS = {"tc_entry": network.INGRESS, "tc_egress": network.EGRESS}


def refuse_occupied(
    net: Network, link: Link, ours: tuple[int, Mapping[int, int]] = (0, {})
) -> None:
    """Raises ConflictError for an interface that another program than ours occupies.

    `ours` are the ids of XDP's program and of TC's by chain.
    """
    if link.program not in (0, ours[0]):
        name = maps.program_name(link.program)
        raise ConflictError(
            f"{link.name} has an XDP program already: {name}, id {link.program} "
            "(--force replaces it)"
        )
    for chain in CHAINS.values():
        other = net.tc_program(link, chain)
        if other and other[0] != ours[1].get(chain):
            raise ConflictError(
                f"{link.name} has a tc filter at priority {network.TC_PRIORITY} already: "
                f"{other[1]}, id {other[0]} (--force replaces it)"
            )


def attach_links(
    balancer: Balancer,
    net: Network,
    links: Sequence[Link],
    modes: Mapping[str, str],
    force: bool,
    say: Callable[[str], None],
    instead: Sequence[Attachment] = (),
) -> None:
    """Attaches each link, in its mode by name, else in the best that there is; or none of them.

    `instead` are attachments on record that have lost programs, and that these take the place of.
    """
    if not links:
        return
    before = list(balancer.state.attachments)
    kept = [attached for attached in before if attached not in instead]
    for attached in instead:
        detach_link(balancer, net, attached)
    done: list[Attachment] = []
    with journal.links(balancer.where, {link.index: net.has_clsact(link) for link in links}):
        try:
            for link in links:
                mode = modes.get(link.name, AUTO)
                done.append(_attach_link(balancer, net, link, mode, force, say))
                balancer.state.attachments = [*kept, *done]
                balancer.refresh_network(net)
            backup.put_on_record(balancer.where, balancer.state)
        except BaseException:
            for attached in done:
                detach_link(balancer, net, attached)
            balancer.state.attachments = before
            balancer.refresh_network(net)
            journal.forget_links(balancer.where)
            raise


def _attach_link(
    balancer: Balancer,
    net: Network,
    link: Link,
    mode: str,
    force: bool,
    say: Callable[[str], None],
) -> Attachment:
    if link.index >= balancer.map("interfaces").capacity:
        raise DatapathError(
            f"{link.name} has index {link.index}, beyond the table made when lvsxdp was loaded: "
            "detach --all, then attach again"
        )
    had = net.has_clsact(link)
    try:
        _attach_filters(balancer, net, link, force)
        used, program = _attach_xdp(balancer, net, link, mode, force, say)
    except LvsxdpError:
        _detach_filters(balancer, net, link)
        if not had:
            net.remove_clsact(link)
        raise
    made = not had
    return Attachment(link.name, link.index, used, program, made)


def _attach_filters(balancer: Balancer, net: Network, link: Link, force: bool) -> None:
    """Puts what there is for TC on its chains."""
    for name, chain in CHAINS.items():
        if force and net.tc_program(link, chain):
            net.detach_tc(link, chain)
        if balancer.has_program(name):
            program = balancer.program(name)
            try:
                net.attach_tc(link, program, chain)
            finally:
                os.close(program)


def _detach_filters(balancer: Balancer, net: Network, link: Link) -> None:
    """Takes off what of TC's is ours."""
    _, ours = program_ids(balancer)
    for chain in CHAINS.values():
        found = net.tc_program(link, chain)
        if found and found[0] in ours.values():
            net.detach_tc(link, chain)


def _attach_xdp(
    balancer: Balancer,
    net: Network,
    link: Link,
    mode: str,
    force: bool,
    say: Callable[[str], None],
) -> tuple[str, int]:
    """The mode that was taken and the id of the program that serves in it."""
    entry = balancer.program("tc_entry" if mode == "tc" else "xdp_entry")
    try:
        program = maps.program_info(entry)[0]
        for choice in ("native", "generic") if mode == AUTO else (mode,):
            if choice == "tc":
                return choice, program
            try:
                _attach_in(choice, net, link, entry, force, say)
                return choice, program
            except DatapathError as err:
                if mode != AUTO:
                    raise
                say(f"{link.name}: {err}")
    finally:
        os.close(entry)
    say(f"{link.name}: XDP is not possible here, tc serves")
    return _attach_xdp(balancer, net, link, "tc", force, say)


def _attach_in(
    mode: str, net: Network, link: Link, entry: int, force: bool, say: Callable[[str], None]
) -> None:
    """Attaches in this mode of XDP; a refusal comes with the commands that mend it."""
    if mode == "native" and network.may_be_reset(link):
        say(f"note: {link.name}: native mode; its driver may reset the link, for seconds perhaps")
    try:
        net.attach_xdp(link, entry, mode, force=force)
    except DatapathError as err:
        if mode != "native":
            raise
        from lvsxdp import device, driver_refusals

        found = device.settings(link.name, link.mtu)
        raise DatapathError(driver_refusals.explain(link.name, str(err), found)) from err


def detach_links(balancer: Balancer, net: Network, attached: Sequence[Attachment]) -> None:
    """Takes off what was attached, and off the record."""
    if not attached:
        return
    gone = {a.ifindex for a in attached}
    with journal.links(balancer.where, own_clsact(attached)):
        for each in attached:
            detach_link(balancer, net, each)
        kept = [a for a in balancer.state.attachments if a.ifindex not in gone]
        balancer.state.attachments = kept
        balancer.refresh_network(net)
        backup.put_on_record(balancer.where, balancer.state)


def own_clsact(attachments: Iterable[Attachment]) -> dict[int, bool]:
    """Whether each interface had its clsact qdisc before us."""
    return {attached.ifindex: not attached.made_clsact for attached in attachments}


def detach_link(balancer: Balancer, net: Network, attached: Attachment) -> None:
    """Takes off what was attached, where it is still there and still ours."""
    link = next((found for found in net.links() if found.index == attached.ifindex), None)
    if link is not None:
        clean(balancer, net, link, clsact=attached.made_clsact)


def are_whole(balancer: Balancer) -> bool:
    """Whether all interfaces on record have name and programs; quickly, without pyroute2."""
    xdp, tc = program_ids(balancer)
    return all(_has_all(attached, xdp, tc) for attached in balancer.state.attachments)


def _has_all(attached: Attachment, xdp: int, tc: Mapping[int, int]) -> bool:
    try:
        name = socket.if_indextoname(attached.ifindex)
    except OSError:
        return False
    if name != attached.interface:
        return False
    if any(network.tc_program(attached.ifindex, chain) != wanted for chain, wanted in tc.items()):
        return False
    return attached.mode == "tc" or network.xdp_program(attached.ifindex, attached.mode) == xdp


def is_whole(balancer: Balancer, net: Network, link: Link, attached: Attachment) -> bool:
    """Whether a link has all the programs that are on record of it."""
    xdp, tc = program_ids(balancer)
    if link.index != attached.ifindex:
        return False
    if any((net.tc_program(link, chain) or (0, ""))[0] != wanted for chain, wanted in tc.items()):
        return False
    return attached.mode == "tc" or (attached.mode, xdp) == (link.mode, link.program)


def clean(balancer: Balancer, net: Network, link: Link, *, clsact: bool) -> None:
    """Takes what is ours off a link, whatever is on record; the `clsact` qdisc, too, if it is."""
    xdp, _ = program_ids(balancer)
    if link.program == xdp:
        entry = balancer.program("xdp_entry")
        try:
            net.detach_xdp(link, link.mode, entry)
        finally:
            os.close(entry)
    _detach_filters(balancer, net, link)
    if clsact:
        net.remove_clsact(link)


def program_ids(balancer: Balancer) -> tuple[int, dict[int, int]]:
    """The ids of the programs that interfaces have: XDP's, and TC's by chain."""
    found = {
        chain: _program_id(balancer, name)
        for name, chain in CHAINS.items()
        if balancer.has_program(name)
    }
    return _program_id(balancer, "xdp_entry"), found


def _program_id(balancer: Balancer, name: str) -> int:
    entry = balancer.program(name)
    try:
        return maps.program_info(entry)[0]
    finally:
        os.close(entry)
