"""Tables of schedulers, and where packets fall in them, met by packets themselves.

Where a packet falls is seen by other tables that are put in the place of the scheduler's own: one
in which the server tells the slot's lower digit, and one in which it tells the higher.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections import Counter

from tests.vectors.lab import Flow, Lab
from tests.vectors.runs import Failed, Run, perform
from tests.vectors.schedulers import HASHED
from tests.vectors.services import VIPS, Mark, Server, Service
from tests.vectors.steps import Bucket, Table, Transitions, Walk
from tests.vectors.words import PROTOCOLS, Kind

BASE = 64
MH_SLOTS = HASHED["mh"]
# ports by which two clients that hash alike are told from two that do so once
PROBES = (1, 257, 20000, 54321)


@perform.register
def _(act: Table, run: Run) -> None:
    (service,) = run.lab.services
    letters = "".join(run.lab.slots(service, HASHED[service.scheduler]))
    if not letters.startswith(act.first):
        raise Failed(act.first, letters[: len(act.first)])
    owners = dict(sorted(Counter(letters).items()))
    if act.owners and owners != act.owners:
        raise Failed(dict(act.owners), owners)
    digest = hashlib.sha256(letters.encode()).hexdigest()
    if act.sha256 is not None and digest != act.sha256:
        raise Failed(f"letters of sha256 {act.sha256}", digest)


@perform.register
def _(act: Walk, run: Run) -> None:
    """The table that the server shares with a partner whose walk is known, slot by slot."""
    (service,) = run.lab.services
    expected = _shared([(act.server.name, act.start, act.step), act.partner])
    got = "".join(run.lab.slots(service, MH_SLOTS))
    if got != expected:
        slot = next(n for n in range(MH_SLOTS) if got[n] != expected[n])
        raise Failed(f"slot {slot} of the two walks is {expected[slot]}'s", f"{got[slot]}'s")


def _shared(walks: list[tuple[str, int, int]]) -> str:
    """Who has each slot where these walk in turns, each to the next slot that is free."""
    owners: dict[int, str] = {}
    places = {name: start % MH_SLOTS for name, start, _ in walks}
    while len(owners) < MH_SLOTS:
        for name, _, step in walks[: MH_SLOTS - len(owners)]:
            while places[name] in owners:
                places[name] = (places[name] + step) % MH_SLOTS
            owners[places[name]] = name
    return "".join(owners[slot] for slot in range(MH_SLOTS))


# ------------------------------------------------------------------------------------------ buckets


@perform.register
def _(act: Bucket, run: Run) -> None:
    if act.scheduler == "fold":
        _compare_fold(act, run.lab)
        return
    if act.scheduler == "mh_h1":
        expected, scheduler = act.bucket % MH_SLOTS, "mh"
    else:
        expected, scheduler = act.bucket, act.scheduler
    got = slot_of(run.lab, scheduler, act.flags, act.address, act.port)
    if got != expected:
        raise Failed(f"slot {expected}", got)


def _compare_fold(act: Bucket, lab: Lab) -> None:
    """The client's slots are those of the IPv4 client whose address is the folded number."""
    other = str(ipaddress.IPv4Address(act.bucket))
    for port in PROBES:
        slots = [slot_of(lab, "mh", ("mh-port",), each, port) for each in (act.address, other)]
        if slots[0] != slots[1]:
            raise Failed(f"the slot of {other} port {port}, {slots[1]}", slots[0])


def slot_of(lab: Lab, scheduler: str, flags: tuple[str, ...], address: str, port: int) -> int:
    """The slot of a scheduler's table that a packet of this client (dh: to it) falls in."""
    family = "ipv6" if ":" in address else "ipv4"
    service = _service(scheduler, flags, family)
    if lab.services != (service,):
        lab.services, lab.marks = (service,), (Mark(1),)
        lab.settings["require_local"] = 0
        lab.apply()
    ends = (address, VIPS[family])
    if scheduler == "dh":
        ends = (("2001:db8:1::1" if family == "ipv6" else "10.0.0.1"), address)
    found = 0
    for digit in (0, 1):
        places = [n // BASE**digit % BASE for n in range(HASHED[scheduler])]
        lab.write_slots(service, places)
        lab.forget()
        flow = Flow(Kind("tcp", "S"), (ends[0], port or 20000), (ends[1], 80))
        sent = lab.send(flow, local=False)
        if sent.server is None or not sent.server.isdigit():
            raise Failed("a server", sent.became)
        found += (BASE - 1 - int(sent.server)) * BASE**digit
    return found


def _service(scheduler: str, flags: tuple[str, ...], family: str) -> Service:
    """A service of 64 servers whose names are their places in the file: the last heads the list."""
    base = int(ipaddress.ip_address("2001:db8:2:1::" if family == "ipv6" else "192.168.100.0"))
    kind = ipaddress.IPv6Address if family == "ipv6" else ipaddress.IPv4Address
    servers = tuple(Server(str(n), str(kind(base + n + 1))) for n in range(BASE))
    return Service("tcp", VIPS[family], 80, 1, scheduler, flags, servers=servers)


# -------------------------------------------------------------------------------------- transitions


@perform.register
def _(act: Transitions, run: Run) -> None:
    """Every cell of a row: the next state, the seconds that it lasts, whether it is active."""
    expected, got = [], []
    for present, after, seconds, active in act.cells:
        expected.append((after, seconds, active))
        got.append(_transition(run.lab, act, present))
    wrong = [
        (cell[0], want, found)
        for cell, want, found in zip(act.cells, expected, got, strict=True)
        if want != found
    ]
    if wrong:
        raise Failed(
            "; ".join(f"{name} -> {_told(want)}" for name, want, _ in wrong),
            "; ".join(f"{name} -> {_told(found)}" for name, _, found in wrong),
        )


def _told(cell: tuple[str, int, bool]) -> str:
    return f"{cell[0]} {cell[1]} s{' active' if cell[2] else ''}"


def _transition(lab: Lab, act: Transitions, present: str) -> tuple[str, int, bool]:
    prefix = "sctp_" if act.protocol == "sctp" else ""
    name = prefix + present.lower().replace("-", "_")
    after, seconds, active = lab.datapath.transition(
        PROTOCOLS[act.protocol], act.view, name, act.event, secure=act.secure
    )
    return after.removeprefix(prefix).upper().replace("_" if prefix else "-", "-"), seconds, active
