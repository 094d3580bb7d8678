"""When the twins may be compared: IPVS's timers run late, and by how much nobody can say.

The kernel's timer wheel fires a timer of up to 16 s within 0.3 s, of up to 129 s within 2.1 s and
of up to 1032 s within 16.4 s after its time; lvsxdp's ends are exact.  So no step is made while an
end is near, and none that would leave it to the wheel whether a client's last connection outlives
a tick of the client's template.
"""

from __future__ import annotations

import dataclasses
import ipaddress
from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol, TypeVar

from tests.twin.compare import REARM, Snapshot, TemplateKey, usable
from tests.twin.script import Flow, Send

# An end is near.
NEAR = 1.5
# What is alone is about to go, or should have gone: IPVS shows 0 s of what is late.
LATE = {16: 0.3, 129: 2.1, 1032: 16.4}
# A connection tells its template once a second until when it lives.
TOLD = 1.1
LONGEST = 900


def lateness(timeout: float) -> float:
    """By how many seconds the kernel's timer of so many may run late."""
    return next((late for most, late in LATE.items() if timeout <= most), max(LATE.values()))


def is_settled(judge: Snapshot, twin: Snapshot) -> bool:
    """Whether no end is near and nothing is on its way out of one of the twins."""
    connections = _pairs(judge.connections, twin.connections)
    templates = _pairs(usable(judge), usable(twin))
    far = (left > NEAR for pair in (*connections, *templates) for left in pair)
    ticked = (abs(ours - theirs) > REARM / 2 for theirs, ours in templates)
    return all(far) and not any(ticked)


def may_settle(judge: Snapshot, twin: Snapshot, drift: float) -> bool:
    """Whether all that one twin alone has is on its way out."""
    alone = [
        *_alone(judge.connections, twin.connections),
        *_alone(usable(judge), usable(twin)),
    ]
    return all(left <= NEAR + drift for left in alone)


Key = TypeVar("Key")


class Timed(Protocol):
    """An entry with seconds left to live."""

    @property
    def left(self) -> float: ...


def _pairs(judge: Mapping[Key, Timed], twin: Mapping[Key, Timed]) -> list[tuple[float, float]]:
    """Seconds left under IPVS and lvsxdp; 0 where there is none."""
    return [(_left(judge, key), _left(twin, key)) for key in {*judge, *twin}]


def _left(entries: Mapping[Key, Timed], key: Key) -> float:
    return entries[key].left if key in entries else 0.0


def _alone(judge: Mapping[Key, Timed], twin: Mapping[Key, Timed]) -> Iterator[float]:
    for mine, yours in ((judge, twin), (twin, judge)):
        for key in mine.keys() - yours.keys():
            yield mine[key].left


@dataclasses.dataclass(frozen=True, slots=True)
class Tie:
    """A template whose fate at a tick is up to the wheel, and the last of its connections."""

    key: TemplateKey
    flow: str

    def keep(self) -> Send:
        """A packet by which the connection lives longer."""
        flow = Flow.parse(*self.flow.split())
        return Send(flow, {"tcp": "A", "udp": "-", "sctp": "DATA"}[flow.protocol])


def ties(
    judge: Snapshot, twin: Snapshot, masks: Mapping[str, Iterable[int]], horizon: float
) -> Iterator[Tie]:
    """The templates whose fate is decided within so many seconds, and not for certain.

    `masks` are all netmasks that each service has had: a template was made by one of them.
    """
    for key, template in usable(judge).items():
        service, client = key
        held = [
            (judge.connections[flow].left, flow, found.state)
            for flow, found in twin.connections.items()
            if found.service == service and flow in judge.connections
            if any(_is_of(flow, client, mask) for mask in masks[service])
        ]
        if not held:
            continue
        end, flow, state = max(held)
        ours = twin.templates[key].left if key in twin.templates else template.left
        if _is_tie(min(ours, template.left), abs(ours - template.left), end, state, horizon):
            yield Tie(key, flow)


def _is_of(flow: str, network: str, mask: int) -> bool:
    client = Flow.parse(*flow.split()).client
    return int(client) & mask == int(ipaddress.ip_address(network))


def _is_tie(left: float, drift: float, end: float, state: str, horizon: float) -> bool:
    """Whether the connection's end and a tick, first after `left`, may come in either order."""
    late = lateness(LONGEST if state in ("ESTABLISHED", "UDP") else 2 * REARM)
    first, last = end - TOLD, end + 1 + late
    tick, spread = left, 1 + drift + lateness(REARM)
    while tick <= min(last, horizon):
        if tick + spread >= first:
            return True
        tick, spread = tick + REARM, spread + lateness(REARM)
    return False
