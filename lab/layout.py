"""The laboratory's layout as tables: namespaces, cables, addresses, MACs and routes.

    c1 ---- rt ---- front (172.31.0.0/24) ---- lb, lb2      clients come in here
    c2 ----'  '---- back  (10.0.0.0/24) ------ lb, lb2, b1, b2, b3

`front` and `back` are bridges in the namespace `sw`. Backends answer clients through `rt` itself.
"""

from collections.abc import Iterator
from dataclasses import dataclass

CLIENTS = ("c1", "c2")
BALANCERS = ("lb", "lb2")
BACKENDS = ("b1", "b2", "b3")
ROLES = (*CLIENTS, "rt", "sw", *BALANCERS, *BACKENDS)

VIP4 = "192.0.2.10"
VIP6 = "2001:db8::10"
BACKEND4 = {"b1": "10.0.0.11", "b2": "10.0.0.12", "b3": "10.0.0.13"}
BACKEND6 = {"b1": "2001:db8:0:2::11", "b2": "2001:db8:0:2::12", "b3": "2001:db8:0:2::13"}


@dataclass(frozen=True)
class End:
    """One end of a cable: a device in a namespace."""

    ns: str
    dev: str
    mac: str
    addresses: tuple[str, ...]


@dataclass(frozen=True)
class Cable:
    """A veth pair: from `end` to `other`, or into the bridge `segment` as the port `port`."""

    end: End
    other: End | None = None
    segment: str = ""

    @property
    def port(self) -> str:
        """The name of the bridge port, such as `back-b1`."""
        return f"{self.segment}-{self.end.ns}"


@dataclass(frozen=True)
class Route:
    """A route of one namespace, written as `ip route` takes it."""

    ns: str
    words: str


def roles(*, second_balancer: bool) -> tuple[str, ...]:
    """Return the namespaces of a laboratory with one balancer or with two."""
    return tuple(ns for ns in ROLES if second_balancer or ns != "lb2")


def _mac(net: str, host: str) -> str:
    return f"02:00:00:00:{net}:{host}"


def _client(ns: str, hosts: tuple[str, ...], net4: str, net6: str) -> Cable:
    addresses = tuple(a for h in hosts for a in (f"{net4}.{h}/24", f"{net6}::{h}/64"))
    router = End("rt", ns, _mac(ns, "01"), (f"{net4}.1/24", f"{net6}::1/64"))
    return Cable(End(ns, "eth0", _mac(ns, "10"), addresses), other=router)


def _front(ns: str, dev: str, host4: str, host6: str) -> Cable:
    addresses = (f"172.31.0.{host4}/24", f"2001:db8:0:1::{host6}/64")
    return Cable(End(ns, dev, _mac("0f", host6.zfill(2)), addresses), segment="front")


def _back(ns: str, dev: str, host4: str, host6: str) -> Cable:
    addresses = (f"10.0.0.{host4}/24", f"2001:db8:0:2::{host6}/64")
    return Cable(End(ns, dev, _mac("0b", host6.zfill(2)), addresses), segment="back")


def cables(members: tuple[str, ...]) -> tuple[Cable, ...]:
    """Return every cable between the namespaces `members`."""
    every = (
        _client("c1", ("10", "77"), "198.51.100", "2001:db8:1"),
        _client("c2", ("10",), "203.0.113", "2001:db8:2"),
        _front("rt", "front", "254", "fe"),
        _back("rt", "back", "254", "fe"),
        *(_front(ns, "lb0", host, host) for ns, host in (("lb", "1"), ("lb2", "2"))),
        *(_back(ns, "lb1", host, host) for ns, host in (("lb", "1"), ("lb2", "2"))),
        *(_back(ns, "eth0", f"1{ns[1]}", f"1{ns[1]}") for ns in BACKENDS),
    )
    return tuple(cable for cable in every if cable.end.ns in members)


def ends(members: tuple[str, ...]) -> Iterator[End]:
    """Yield every addressed device of `members`; bridge ports are not among them."""
    for cable in cables(members):
        yield cable.end
        if cable.other:
            yield cable.other


def routes(members: tuple[str, ...]) -> tuple[Route, ...]:
    """Return the default routes of all but the router, which is on every network itself."""
    gateways = {
        "c1": ("198.51.100.1", "2001:db8:1::1"),
        "c2": ("203.0.113.1", "2001:db8:2::1"),
        **dict.fromkeys(BALANCERS, ("172.31.0.254", "2001:db8:0:1::fe")),
        **dict.fromkeys(BACKENDS, ("10.0.0.254", "2001:db8:0:2::fe")),
    }
    return tuple(
        Route(ns, f"default via {gateway}") for ns in members for gateway in gateways.get(ns, ())
    )


def mac(ns: str, dev: str) -> str:
    """Return the MAC of a device, such as `mac("b1", "eth0")`; KeyError if there is none."""
    return {(end.ns, end.dev): end.mac for end in ends(ROLES)}[ns, dev]


def vip_device(ns: str) -> str:
    """Return where a namespace holds a VIP: a balancer to the front, a backend on `lo`."""
    return "lb0" if ns in BALANCERS else "lo"


def host_prefix(address: str) -> str:
    """Return the address as a prefix of its own: /32, IPv6 /128."""
    return f"{address}/{128 if ':' in address else 32}"
