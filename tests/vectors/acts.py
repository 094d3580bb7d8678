"""What a case does: packets, time, changes."""

from __future__ import annotations

import dataclasses

from lvsxdp.errors import LvsxdpError
from tests.vectors import commands
from tests.vectors.lab import Flow
from tests.vectors.runs import Failed, Live, Run, perform
from tests.vectors.services import Server, Service
from tests.vectors.steps import (
    Answers,
    Carry,
    Close,
    Continued,
    EditServers,
    Kept,
    Load,
    Picks,
    Reach,
    Reply,
    Send,
    Serve,
    Set,
    Wait,
)
from tests.vectors.words import Kind

# seconds that a connection lives on once its client has ended it
CLOSING = {"tcp": 10, "sctp": 61, "udp": 300}
ENDS = {"tcp": "R", "sctp": "abort"}
# outcomes that the program itself decides; the others are met on the wire
ACTIONS = {"accepted": "pass", "dropped": "drop"}


# -------------------------------------------------------------------------------------------- time


@perform.register
def _(act: Reach, run: Run) -> None:
    if act.seconds > run.lab.seconds:
        run.lab.advance(act.seconds - run.lab.seconds)


@perform.register
def _(act: Wait, run: Run) -> None:
    run.lab.advance(act.seconds)


# ----------------------------------------------------------------------------------------- packets


@perform.register
def _(act: Send, run: Run) -> None:
    flows = []
    for each in act.flows:
        client = run.client(each.packets[0])
        flows.append([run.flow(sent, client) for sent in each.packets])
    last = flows[-1].pop() if act.outcome else None
    got = [letter for each in flows for letter in _send(run, each)]
    if act.servers is not None and tuple(got) != act.servers:
        raise Failed(" ".join(act.servers), " ".join(got))
    if last is not None and act.outcome is not None:
        _meet(run, last, act.outcome)


def _send(run: Run, flows: list[Flow]) -> list[str]:
    """What became of each packet; a client that is refused sends no more."""
    got: list[str] = []
    for flow in flows:
        got.append("-" if got[-1:] == ["-"] else run.send(flow).became)
    return got


@perform.register
def _(act: Picks, run: Run) -> None:
    got = []
    for source, port, virtual in act.clients:
        sent = run.send(Flow(act.kind, (source, port), (virtual, act.port)))
        got.append(sent.became if len(sent.became) == 1 else f"({sent.became})")
    if (found := "".join(got)) != act.letters:
        raise Failed(act.letters, found)


@perform.register
def _(act: Answers, run: Run) -> None:
    _meet(run, run.flow(act.packet, run.client(act.packet)), act.answer)


def _meet(run: Run, flow: Flow, outcome: str) -> None:
    """Compares what becomes of a packet; what a client is to get is met on the wire."""
    if outcome in ACTIONS:
        sent = run.send(flow)
        if sent.verdict.action != ACTIONS[outcome]:
            raise Failed(outcome, sent.became)
        return
    got = run.lab.answer(flow)
    if got != outcome:
        raise Failed(outcome, got)


@perform.register
def _(act: Reply, run: Run) -> None:
    if run.last is None or run.last.server in (None, "-"):
        raise Failed("a connection to be answered", "none")
    run.lab.reply(run.last.flow, act.flags)


@perform.register
def _(act: Kept, run: Run) -> None:
    got = []
    for _ in act.kept:
        client = run.lab.fresh_client(None, run.home.family)
        sent = run.lab.send(Flow(act.kind, client, (run.home.address, run.home.port)))
        if sent.server:
            run.last = sent
        elif sent.verdict.action != "drop":
            raise Failed("a packet that is dropped or that a server gets", sent.became)
        got.append(bool(sent.server))
    if tuple(got) != act.kept:
        raise Failed(" ".join(map(str, act.kept)), " ".join(map(str, got)))


@perform.register
def _(act: Continued, run: Run) -> None:
    if run.last is None:
        raise Failed("a connection that goes on", "none")
    again = dataclasses.replace(run.last.flow, kind=Kind("tcp", "A"))
    servers = [run.lab.send(again).server for _ in range(act.packets)]
    if (kept := servers.count(run.last.server)) != act.kept:
        raise Failed(f"{act.kept} packets", kept)


# --------------------------------------------------------------------------- connections that end


@perform.register
def _(act: Close, run: Run) -> None:
    chosen = [live for live in run.live.values() if live.server == act.server]
    wanted = len(chosen) if act.count is None else act.count
    if len(chosen) < wanted:
        raise Failed(f"{wanted} connections of {act.server}", len(chosen))
    protocols = set()
    for live in chosen[:wanted]:
        protocols.add(live.flow.kind.protocol)
        del run.live[live.flow.key]
        _end(run, live)
    for protocol in protocols if act.gone else ():
        _outwait(run, protocol)


def _end(run: Run, live: Live) -> None:
    """The client ends its connection: by RST, which only an answered TCP connection hears."""
    protocol = live.flow.kind.protocol
    if protocol == "tcp" and not live.opened:
        run.lab.send(dataclasses.replace(live.flow, kind=Kind("tcp", "A")))
    if protocol in ENDS:
        run.lab.send(dataclasses.replace(live.flow, kind=Kind(protocol, ENDS[protocol])))


def _outwait(run: Run, protocol: str) -> None:
    """Time passes until what has ended is gone; other UDP flows go on meanwhile."""
    seconds = CLOSING[protocol]
    if protocol == "udp":
        run.lab.advance(seconds / 2)
        for live in run.live.values():
            if live.flow.kind.protocol == "udp":
                run.lab.send(live.flow)
        seconds -= seconds // 2
    run.lab.advance(seconds)


# ----------------------------------------------------------------------------------------- changes


@perform.register
def _(act: Load, run: Run) -> None:
    run.lab.give_load(act.counts)


@perform.register
def _(act: Set, run: Run) -> None:
    run.lab.settings |= act.values
    run.lab.apply()


@perform.register
def _(act: Serve, run: Run) -> None:
    run.lab.services = act.services
    run.home = act.services[0]
    run.lab.forget()
    run.lab.apply()


@perform.register
def _(act: EditServers, run: Run) -> None:
    (service,) = run.lab.services
    run.lab.services = (_edited(service, act.verb, act.server),)
    run.lab.apply()


def _edited(service: Service, verb: str, server: Server) -> Service:
    others = tuple(each for each in service.servers if each.name != server.name)
    if verb == "edit":
        found = {each.name: each for each in service.servers}
        changed = dataclasses.replace(found[server.name], weight=server.weight)
        if server.upper or server.lower:
            changed = dataclasses.replace(changed, upper=server.upper, lower=server.lower)
        found[server.name] = changed
        others = tuple(found.values())
    elif verb == "add":
        others = (*others, server)
    return dataclasses.replace(service, servers=others)


@perform.register
def _(act: Carry, run: Run) -> None:
    before = run.lab.services
    try:
        run.lab.services = commands.carried_out(act.command, before)
        run.lab.apply()
    except (commands.Refused, LvsxdpError) as err:
        run.lab.services = before
        if not act.refused:
            raise Failed(f"{act.command.text!r} is carried out", err) from None
        return
    if act.refused:
        raise Failed(f"{act.command.text!r} is refused", "it is carried out")
