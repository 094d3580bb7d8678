"""Random scripts, the same for the same seed: what administrators, clients and time do."""

from __future__ import annotations

import dataclasses
import ipaddress
import random
from collections.abc import Callable

from lvsxdp.model import (
    ANY_PORT,
    Address,
    AddressKey,
    Backend,
    Family,
    Forward,
    MarkKey,
    MarkRule,
    Persistence,
    Ports,
    Protocol,
    Scheduler,
    SchedulerFlag,
    Service,
    ServiceKey,
)
from tests.twin.script import (
    AddRule,
    DeleteBackend,
    DeleteRule,
    DeleteService,
    Flow,
    PutBackend,
    PutService,
    Send,
    Set,
    Step,
    Wait,
)

VIRTUALS = tuple(map(ipaddress.ip_address, ("192.0.2.10", "192.0.2.11", "2001:db8::10")))
BACKENDS = {
    Family.IPV4: tuple(ipaddress.ip_address(f"10.0.0.{n}") for n in range(11, 41)),
    Family.IPV6: tuple(ipaddress.ip_address(f"2001:db8:0:2::{n:x}") for n in range(11, 41)),
}
# Several clients of each of several networks, so that masks put some together.
NETWORKS = {
    Family.IPV4: ("198.51.100.", "198.51.101.", "203.0.113.", "100.64.7."),
    Family.IPV6: ("2001:db8:a::", "2001:db8:a:1::", "2001:db8:b::"),
}
CLIENTS = {
    family: tuple(ipaddress.ip_address(f"{n}{host}") for n in networks for host in (1, 2, 77, 130))
    for family, networks in NETWORKS.items()
}
MASKS = {
    Family.IPV4: (
        "255.255.255.255",
        "255.255.255.0",
        "255.255.255.128",
        "255.255.0.255",
        "0.0.0.0",
    ),
    Family.IPV6: ("ffff:" * 7 + "ffff", "ffff:ffff:ffff:ffff::", "ffff:ffff:ffff::"),
}
# Times that do not meet the minutes of connections' timeouts, and that the kernel's timers keep.
TIMEOUTS = (5, 10, 17, 33, 45, 70, 100, 110)
WAITS = (1, 2, 4, 7, 11, 18, 26, 40, 55, 75, 95, 130)
# those that IPVS has
METHODS = (Forward.DR, Forward.NAT, Forward.TUNNEL)
WEIGHTS = (0, 1, 1, 1, 2, 3, 4, 5, 10)
MARK = 1
# What it puts together.
MARKED = tuple(
    AddRule(
        MarkRule(
            mark=MARK,
            protocols=(protocol,),
            addresses=(ipaddress.ip_network(virtual),),
            ports=tuple(Ports(*pair) for pair in ports),
        )
    )
    for protocol, virtual, ports in (
        (Protocol.TCP, VIRTUALS[0], ((80, 80), (443, 443))),
        (Protocol.TCP, VIRTUALS[1], ((443, 443),)),
        (Protocol.UDP, VIRTUALS[0], ((443, 443), (7000, 7009))),
        (Protocol.SCTP, VIRTUALS[1], ((80, 80),)),
        (Protocol.TCP, VIRTUALS[2], ((80, 80), (7000, 7009))),
        (Protocol.UDP, VIRTUALS[2], ((443, 443),)),
    )
)
KEYS: tuple[ServiceKey, ...] = (
    MarkKey(MARK, Family.IPV4),
    AddressKey(Protocol.TCP, VIRTUALS[0], 80),
    AddressKey(Protocol.TCP, VIRTUALS[1], 8080),
    AddressKey(Protocol.UDP, VIRTUALS[0], 53),
    AddressKey(Protocol.UDP, VIRTUALS[1], ANY_PORT),
    AddressKey(Protocol.SCTP, VIRTUALS[0], 9000),
    AddressKey(Protocol.TCP, VIRTUALS[1], ANY_PORT),
    MarkKey(MARK, Family.IPV6),
    AddressKey(Protocol.TCP, VIRTUALS[2], 8080),
    AddressKey(Protocol.UDP, VIRTUALS[2], ANY_PORT),
)
# All that do not draw lots.
SCHEDULERS = tuple(s for s in Scheduler if s is not Scheduler.TWOS)
# Where a packet may go: what services are reached by, and what is nobody's.
TARGETS = tuple(
    (protocol, virtual, port)
    for protocol in Protocol
    for virtual in VIRTUALS
    for port in (53, 80, 443, 7003, 8080, 9000)
)

# What is set before anything else: timeouts, as a change later on holds for other connections.
EARLY = (
    *(("timeout_tcp", (40, 900)), ("timeout_tcpfin", (25, 120)), ("timeout_udp", (30, 95, 300))),
    *(("sloppy_tcp", (0, 1)), ("sloppy_sctp", (0, 1)), ("secure_tcp", (0, 3))),
)
SETTINGS = (("expire_quiescent_template", (0, 1)), ("conn_reuse_mode", (0, 1, 2, 3)))
# What a client begins with, and what it sends then.
FIRST = {Protocol.TCP: "S", Protocol.UDP: "-", Protocol.SCTP: "INIT"}
SECOND = {
    Protocol.TCP: ("A", "A", "A", "FA", "FA", "F", "R", "RA", "S", "SA"),
    Protocol.UDP: ("-",),
    Protocol.SCTP: (
        *("COOKIE_ECHO", "COOKIE_ECHO", "DATA", "DATA", "SHUTDOWN", "SHUTDOWN_ACK", "ABORT"),
        *("INIT", "INIT_ACK", "COOKIE_ACK", "SHUTDOWN_DONE", "ERROR"),
    ),
}
HANDSHAKE = {Protocol.TCP: "A", Protocol.SCTP: "COOKIE_ECHO"}
STRAYS = {Protocol.TCP: ("A", "FA", "R", "SR"), Protocol.SCTP: ("DATA", "ABORT", "COOKIE_ECHO")}


@dataclasses.dataclass
class World:
    """What there is after the steps so far."""

    draw: random.Random
    services: dict[ServiceKey, Service] = dataclasses.field(default_factory=dict)
    backends: dict[ServiceKey, dict[Address, Backend]] = dataclasses.field(default_factory=dict)
    rules: list[AddRule] = dataclasses.field(default_factory=lambda: list(MARKED))
    flows: list[Flow] = dataclasses.field(default_factory=list)
    next_port: int = 20000

    # ---------------------------------------------------------------------- administrators

    def service(self, key: ServiceKey, fresh: bool) -> PutService:
        """A service as drawn."""
        scheduler = self.draw.choice(SCHEDULERS)
        own = [flag for flag in SchedulerFlag if flag.scheduler is scheduler]
        flags = tuple(flag for flag in own if self.draw.random() < 0.5)
        any_port = isinstance(key, AddressKey) and key.port == ANY_PORT
        wanted = any_port or self.draw.random() < 0.6
        kept = self.persistence(key.family) if wanted else None
        may = isinstance(key, MarkKey) or key.protocol is Protocol.UDP
        service = Service(
            key=key,
            scheduler=scheduler,
            flags=flags,
            persistence=kept,
            one_packet=may and self.draw.random() < 0.2,
        )
        self.services[key] = service
        return PutService(service, fresh)

    def persistence(self, family: Family) -> Persistence:
        """A time and a mask."""
        timeout = self.draw.choice(TIMEOUTS)
        return Persistence(timeout, ipaddress.ip_address(self.draw.choice(MASKS[family])))

    def add_service(self) -> list[Step]:
        """A service that is not there, with backends."""
        free = [key for key in KEYS if key not in self.backends]
        if not free:
            return []
        key = self.draw.choice(free)
        self.backends[key] = {}
        steps: list[Step] = [self.service(key, True)]
        for _ in range(self.draw.randint(1, 5)):
            steps += self.add_backend(key)
        return steps

    def edit_service(self) -> list[Step]:
        """Another scheduler, time or mask."""
        key = self.draw.choice(list(self.services))
        before = self.services[key]
        step = self.service(key, False)
        return [step] if step.service != before else []

    def delete_service(self) -> list[Step]:
        """A service goes; it may come back, with the same backends or others."""
        if len(self.services) < 2:
            return []
        key = self.draw.choice(list(self.services))
        del self.services[key], self.backends[key]
        return [DeleteService(key)]

    def add_backend(self, key: ServiceKey | None = None) -> list[Step]:
        """A backend that the service has not, or no more."""
        key = key or self.draw.choice(list(self.services))
        free = [a for a in BACKENDS[key.family] if a not in self.backends[key]]
        if not free:
            return []
        return self.put_backend(key, self.backend(self.draw.choice(free[:5])), True)

    def backend(self, address: Address) -> Backend:
        """A weight and a method, and sometimes thresholds."""
        upper = self.draw.randint(1, 6) if self.draw.random() < 0.2 else 0
        return Backend(
            address,
            weight=self.draw.choice(WEIGHTS),
            forward=self.draw.choice(METHODS),
            upper_threshold=upper,
            lower_threshold=self.draw.randint(0, upper),
        )

    def put_backend(self, key: ServiceKey, backend: Backend, fresh: bool) -> list[Step]:
        """The backend as the service has it from now on; nothing where it has it so already."""
        if self.backends[key].get(backend.address) == backend:
            return []
        self.backends[key][backend.address] = backend
        return [PutBackend(key, backend, fresh)]

    def edit_backend(self, quiesce: bool = False) -> list[Step]:
        """Another weight, other thresholds."""
        key = self.draw.choice(list(self.services))
        if not self.backends[key]:
            return []
        before = self.draw.choice(list(self.backends[key].values()))
        after = self.backend(before.address)
        if quiesce:
            after = dataclasses.replace(before, weight=0)
        return self.put_backend(key, after, False)

    def quiesce(self) -> list[Step]:
        """A backend gets no new clients."""
        return self.edit_backend(True)

    def delete_backend(self) -> list[Step]:
        """A backend goes; it may come back."""
        key = self.draw.choice(list(self.services))
        if not self.backends[key]:
            return []
        address = self.draw.choice(list(self.backends[key]))
        del self.backends[key][address]
        return [DeleteBackend(key, address)]

    def set(self) -> list[Step]:
        """A setting gets another value, or the one that it has."""
        name, values = self.draw.choice(SETTINGS)
        return [Set(name, self.draw.choice(values))]

    def set_early(self) -> list[Step]:
        """Some of what is set once; IPVS has its guarded table of states a second later."""
        found = [row for row in EARLY if self.draw.random() < 0.3]
        steps: list[Step] = [Set(name, self.draw.choice(values)) for name, values in found]
        return [*steps, Wait(2)]

    def change_rules(self) -> list[Step]:
        """A rule goes, or one that went comes back as the last."""
        gone = [step for step in MARKED if step not in self.rules]
        if gone:
            self.rules.append(self.draw.choice(gone))
            return [self.rules[-1]]
        number = self.draw.randint(1, len(self.rules))
        del self.rules[number - 1]
        return [DeleteRule(number)]

    # ------------------------------------------------------------------------------ clients

    def open(self) -> list[Step]:
        """Connections or datagrams of a client to what a service is reached by."""
        protocol, virtual, port = self.draw.choice(self.targets())
        count = self.draw.choice((1, 1, 1, 2, 3, 5))
        client = self.draw.choice(CLIENTS[Family.of(virtual)])
        flow = Flow(protocol, client, self.next_port, virtual, port)
        self.next_port += count
        step = Send(flow, FIRST[protocol], count)
        self.flows += step.flows
        return [step]

    def targets(self) -> list[tuple[Protocol, Address, int]]:
        """Where services are reached, and, more seldom, where none is."""
        found = [target for target in TARGETS if self.draw.random() < 0.05]
        for key in self.services:
            if isinstance(key, MarkKey):
                found += [target for step in self.rules for target in _marked(step.rule)]
            else:
                port = key.port or self.draw.choice((53, 443, 9000))
                found += [(key.protocol, key.address, port)] * 3
        return found or list(TARGETS)

    def go_on(self) -> list[Step]:
        """A packet of a flow, most often one of the last."""
        if not self.flows:
            return []
        flow = self.draw.choice(self.flows[-12:] if self.draw.random() < 0.7 else self.flows)
        return [Send(flow, self.draw.choice(SECOND[flow.protocol]))]

    def shake_hands(self) -> list[Step]:
        """A connection is opened and, with its client's second packet, made."""
        steps = self.open()
        made: list[Step] = []
        for step in steps:
            if isinstance(step, Send) and step.flow.protocol in HANDSHAKE:
                made.append(Send(step.flow, HANDSHAKE[step.flow.protocol], step.count))
        return steps + made

    def stray(self) -> list[Step]:
        """A packet that opens nothing."""
        step = self.open()[0]
        if not isinstance(step, Send) or step.flow.protocol not in STRAYS:
            return []
        flags = self.draw.choice(STRAYS[step.flow.protocol])
        return [dataclasses.replace(step, flags=flags, count=1)]

    def wait(self) -> list[Step]:
        """Time passes."""
        return [Wait(self.draw.choice(WAITS))]


def _marked(rule: MarkRule) -> list[tuple[Protocol, Address, int]]:
    """What is reached by a rule: its first port and its last."""
    (protocol,), (network,) = rule.protocols, rule.addresses
    ports = rule.ports[0].first, rule.ports[-1].last
    return [(protocol, network.network_address, port) for port in ports]


MOVES: dict[Callable[[World], list[Step]], int] = {
    World.open: 22,
    World.shake_hands: 14,
    World.go_on: 22,
    World.stray: 2,
    World.wait: 14,
    World.edit_backend: 6,
    World.quiesce: 4,
    World.add_backend: 5,
    World.delete_backend: 4,
    World.edit_service: 3,
    World.add_service: 2,
    World.delete_service: 1,
    World.set: 2,
    World.change_rules: 1,
}


def script(seed: int, length: int) -> tuple[Step, ...]:
    """The script of a seed: rules and services first, then `length` steps."""
    world = World(random.Random(seed))
    steps: list[Step] = [*world.set_early(), *MARKED]
    for _ in range(world.draw.randint(1, 3)):
        steps += world.add_service()
    length += len(steps)
    while len(steps) < length:
        (move,) = world.draw.choices(list(MOVES), list(MOVES.values()))
        steps += move(world)
    return tuple(steps[:length])
