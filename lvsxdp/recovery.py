"""Finishes or undoes what a command was in the middle of when it was killed."""

from __future__ import annotations

import dataclasses

from lvsxdp import backup, journal, linking, swapping
from lvsxdp.controller import Balancer
from lvsxdp.network import Network


def recover(balancer: Balancer, net: Network) -> None:
    """Brings maps, interfaces and record together again; says what it did.

    A change that had begun to take effect is finished, anything else undone.  The steps may be
    done twice, so that this may be killed, too.
    """
    begun = journal.next_of(balancer.where)
    if begun is not None:
        if begun.swap:
            swapping.finish(balancer, net, begun)
        else:
            balancer.finish(begun.state, begun.writes, net)
        balancer.say("finished a change that an earlier command had begun")
    elif journal.is_preparing(balancer.where):
        balancer.undo()
        balancer.say("undid a change that an earlier command had prepared")
    journal.end_preparing(balancer.where)
    _mend_links(balancer, net)


def _mend_links(balancer: Balancer, net: Network) -> None:
    """Takes our programs off interfaces that are not on record, and off those half detached."""
    touched = journal.links_of(balancer.where)
    on_record = {a.ifindex: a for a in balancer.state.attachments}
    for link in [link for link in net.links() if link.index in touched]:
        attached = on_record.get(link.index)
        if attached and linking.is_whole(balancer, net, link, attached):
            continue
        had_clsact = touched[link.index] and not (attached and attached.made_clsact)
        linking.clean(balancer, net, link, clsact=not had_clsact)
        on_record.pop(link.index, None)
        balancer.say(f"{link.name}: took off what an earlier command had half attached or detached")
    mended = [a for a in balancer.state.attachments if a.ifindex in on_record]
    if mended != balancer.state.attachments:
        balancer.state = dataclasses.replace(balancer.state, attachments=mended)
        backup.put_on_record(balancer.where, balancer.state)
    if touched:
        balancer.refresh_network(net)
    journal.forget_links(balancer.where)
