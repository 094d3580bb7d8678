"""By which interface and road packets leave for a backend, and why by no better one."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

from lvsxdp import changes, interfaces, network, records
from lvsxdp.controller import Balancer
from lvsxdp.model import ANSWERING, Address, Config
from lvsxdp.network import Link, Network

# Backends of which a change asks the kernel.
MOST_ASKED = 64


@dataclasses.dataclass(frozen=True, slots=True)
class Road:
    """How packets leave for a backend: interface and road, None where none do.

    `fault` says why not by a better road, and what mends that; "" where nothing does.
    """

    interface: str | None = None
    name: str | None = None
    fault: str = ""


class Finder:
    """Finds roads on this host as it is now."""

    def __init__(self, balancer: Balancer, net: Network) -> None:
        """Asks for the interfaces."""
        self._net, self._balancer = net, balancer
        self._links = {link.index: link for link in net.links()}
        self._local: set[Address] | None = None
        attached = balancer.state.attachments
        self._is_attached = bool(attached)
        self._modes = {a.ifindex: a.mode for a in attached if a.mode != "tc"}

    def road(self, address: Address) -> Road:
        """The road to a backend."""
        route = self._net.route(address)
        if route is None:
            return Road(fault="" if self._is_local(address) else _no_route(address))
        link = self._links.get(route.ifindex)
        if link is None or not self._is_attached:
            return Road(link.name if link else None)
        fault = self._fault(link, address)
        if not self._modes or fault:
            return Road(link.name, "tc", fault)
        name = "tx" if self._turns(self._sender(link)) else "redirect"
        return Road(link.name, name, self._loss(link))

    def _is_local(self, address: Address) -> bool:
        if self._local is None:
            self._local = set(self._net.addresses())
        return address in self._local

    def _fault(self, link: Link, address: Address) -> str:
        """Why XDP cannot send there, where it is attached at all."""
        if not self._modes:
            return ""
        if not self._sender(link):
            return (
                f"tc forwards, as XDP cannot send out of {link.name} ({link.kind or link.name}): "
                "a route by a device that can is faster"
            )
        # the kernel's FIB answers XDP only while it is on
        forwarding = f"net/ipv{address.version}/conf/lo/forwarding"
        if network.sysctl(forwarding) != "1":
            dotted = forwarding.replace("/", ".")
            return f"tc forwards, as {dotted} is 0: sysctl -w {dotted}=1"
        return ""

    def _sender(self, link: Link) -> int:
        """The index of the interface by which XDP sends what leaves by a link; 0: it cannot."""
        table = self._balancer.map("interfaces")
        if link.index >= table.capacity:
            return 0
        row = table.look_up(records.number(link.index)) or b""
        return interfaces.sender(self._balancer.schema, row, link)

    def _turns(self, ifindex: int) -> bool:
        """What came by the interface is sent back by XDP_TX."""
        row = self._balancer.map("interfaces").look_up(records.number(ifindex)) or b""
        return ifindex in self._modes and interfaces.turns(self._balancer.schema, row)

    def _loss(self, link: Link) -> str:
        """Why what XDP sends out of a link is lost, as far as that can be seen from here."""
        far = self._links.get(link.lower) if link.kind == "veth" else None
        if far is None or far.mode == "native" or "native" not in self._modes.values():
            return ""
        if network.has_gro(far.name):
            return ""
        return (
            f"what XDP sends out of {link.name} is lost, as GRO is off at its far end "
            f"{far.name}: ethtool -K {far.name} gro on"
        )


def _no_route(address: Address) -> str:
    option = "-6 " if address.version == 6 else ""
    return (
        f"no route leads there, so its packets are dropped: ip {option}route add PREFIX via GATEWAY"
    )


def warnings(balancer: Balancer, net: Network, known: Config | None = None) -> list[str]:
    """A line for each fault of the roads to backends that `known`, a configuration, has not."""
    known = known or Config()
    fresh = _fresh(known, balancer.state.config)
    asked = list(itertools.islice(fresh, MOST_ASKED))
    found = _answers(balancer, net, known)
    if not asked:
        return found
    finder, faulty = Finder(balancer, net), dict[str, list[Address]]()
    for address in asked:
        faulty.setdefault(finder.road(address).fault, []).append(address)
    faulty.pop("", None)
    found += [f"{_named(addresses)}: {fault}" for fault, addresses in faulty.items()]
    left = sum(1 for _ in fresh)
    if found and left:
        found.append(f"{left} more new backends were not asked about (backend list)")
    return found


def _answers(balancer: Balancer, net: Network, known: Config) -> list[str]:
    """A line for each reason why what new backends by nat send back reaches no client."""
    found, unattached = list[str](), dict[str, list[Address]]()
    services = changes.others(balancer.state.config, known)
    served = [service for service in services if not service.forwards.isdisjoint(ANSWERING)]
    for family in sorted({service.family for service in served}):
        dotted = f"net.{family}.conf.lo.forwarding"
        if network.sysctl(dotted.replace(".", "/")) != "1":
            found.append(
                f"{dotted} is 0, so no answer of a backend by nat reaches its client: "
                f"sysctl -w {dotted}=1"
            )
    attached = {each.ifindex for each in balancer.state.attachments}
    names = {link.index: link.name for link in net.links()}
    backends = (b for s in served for b in s.backends if b.forward in ANSWERING)
    for backend in itertools.islice(backends, MOST_ASKED if attached else 0):
        route = net.route(backend.address)
        if route is not None and route.ifindex not in attached:
            name = names.get(route.ifindex, str(route.ifindex))
            unattached.setdefault(name, []).append(backend.address)
    return found + [
        f"{_named(addresses)}: answers come by {name}, which is not attached, and reach no client: "
        f"lvsxdp attach {name}"
        for name, addresses in unattached.items()
    ]


def _named(addresses: list[Address]) -> str:
    more = f" and {len(addresses) - 1} more" if len(addresses) > 1 else ""
    return f"backend {addresses[0]}{more}"


def _fresh(known: Config, wanted: Config) -> Iterator[Address]:
    """Addresses of backends that are new in a service, each once."""
    seen = set[Address]()
    # of a service that stays as it is, nothing is read
    before = {service.key: service for service in changes.others(known, wanted)}
    for service in changes.others(wanted, known):
        old = before.get(service.key)
        had = {backend.address for backend in old.backends} if old else set[Address]()
        for backend in service.backends:
            if backend.address not in had and backend.address not in seen:
                seen.add(backend.address)
                yield backend.address
