"""The harness: compiled programs in a namespace, run on one crafted packet at a time."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import struct
import subprocess
from collections.abc import Iterator
from typing import Any

from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.layers.sctp import SCTP

from lvsxdp import config, entries, interfaces, maps, network, records, views
from lvsxdp.controller import Balancer
from lvsxdp.model import Capacity, Config
from lvsxdp.network import Network

# Two runs at once, each by its process, do not meet.
NAMESPACE = f"lvxtest-{os.getpid()}"
ROUTER_MAC = "02:00:00:00:00:fe"
BACKENDS = {f"10.0.0.{n}": f"02:00:00:00:01:{n:02x}" for n in range(11, 31)}
BACKENDS |= {f"2001:db8:0:2::{n:x}": f"02:00:00:00:06:{n:02x}" for n in range(0x11, 0x18)}
# these are behind lb0 itself: packets to them leave where they came from
NEAR = {"172.31.0.11": "02:00:00:00:02:0b", "172.31.0.12": "02:00:00:00:02:0c"}
# clients to whom answers of backends by nat go
CLIENTS = {"172.31.0.21": "02:00:00:00:03:15", "2001:db8:0:1::21": "02:00:00:00:03:16"}
VIPS = ("192.0.2.10/32", "192.0.2.11/32", "2001:db8::10/128", "2001:db8::11/128")
ACTIONS = {0: "aborted", 1: "drop", 2: "pass", 3: "tx", 4: "redirect"}
TC_ACTIONS = {-1: "pass", 2: "drop", 7: "redirect"}
UNREACHABLE_METRIC = "4278198272"


def ip(*arguments: str, namespace: str = NAMESPACE) -> None:
    """Runs `ip` inside the tests' namespace."""
    subprocess.run(["ip", "-n", namespace, *arguments], check=True, capture_output=True, text=True)


def build_namespace(name: str = NAMESPACE) -> None:
    """A namespace with a client side lb0, a backend side lb1, addresses and fixed neighbours."""
    run = functools.partial(ip, namespace=name)
    remove_namespace(name)
    subprocess.run(["ip", "netns", "add", name], check=True)
    run("link", "set", "lo", "up")
    for name in ("lb0", "lb1"):
        run("link", "add", name, "type", "veth", "peer", "name", f"{name}p")
        # a peer with an IPv6 address would ask for routers, and its packets would be counted
        run("link", "set", f"{name}p", "addrgenmode", "none")
        run("link", "set", name, "up")
        run("link", "set", f"{name}p", "up")
    run("addr", "add", "172.31.0.1/24", "dev", "lb0")
    run("addr", "add", "10.0.0.1/24", "dev", "lb1")
    run("addr", "add", "2001:db8:0:1::1/64", "dev", "lb0", "nodad")
    run("addr", "add", "2001:db8:0:2::1/64", "dev", "lb1", "nodad")
    for vip in VIPS:
        run("addr", "add", vip, "dev", "lb0", *(["nodad"] if ":" in vip else []))
    # what README recommends: without any route the FIB cannot tell "not here" from "here"
    run("route", "add", "unreachable", "default", "metric", UNREACHABLE_METRIC)
    run("-6", "route", "add", "unreachable", "default", "metric", UNREACHABLE_METRIC)
    for device, neighbours in (("lb1", BACKENDS), ("lb0", NEAR), ("lb0", CLIENTS)):
        for address, mac in neighbours.items():
            run("neigh", "add", address, "lladdr", mac, "dev", device, "nud", "permanent")


def remove_namespace(name: str = NAMESPACE) -> None:
    """Removes the namespace; nothing to do is fine."""
    subprocess.run(["ip", "netns", "del", name], capture_output=True)


@contextlib.contextmanager
def inside(name: str) -> Iterator[None]:
    """This process in a network namespace, and back."""
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    network.enter_namespace(name)
    try:
        yield
    finally:
        network._set_namespace(home, network.CLONE_NEWNET, "going back")
        os.close(home)


def _layers(transport: type[Any], client: str, virtual: str, fields: dict[str, Any]) -> Any:
    """An IP packet between two ends that are written address:port, IPv6's in brackets."""
    (source, sport), (destination, dport) = (
        (address.strip("[]"), int(port))
        for address, _, port in (end.rpartition(":") for end in (client, virtual))
    )
    network_layer = IPv6 if ":" in destination else IP
    ip_packet = network_layer(src=source, dst=destination)
    return ip_packet / transport(sport=sport, dport=dport, **fields)


def tcp(client: str, virtual: str, flags: str = "S") -> Any:
    """A TCP packet from a client to a VIP."""
    return _layers(TCP, client, virtual, {"flags": flags})


def sctp(client: str, virtual: str, *chunks: Any) -> Any:
    """An SCTP packet of these chunks from a client to a VIP."""
    packet = _layers(SCTP, client, virtual, {})
    for chunk in chunks:
        packet /= chunk
    return packet


def udp(client: str, virtual: str) -> Any:
    """A UDP packet from a client to a VIP."""
    return _layers(UDP, client, virtual, {})


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What became of a packet: the action, the frame that leaves, and what TC is told."""

    action: str
    frame: bytes
    handover: dict[str, Any] | None = None


@dataclasses.dataclass
class Datapath:
    """The running programs, a way to send them packets, and their clock."""

    balancer: Balancer
    net: Network
    clock: int = 0

    def __post_init__(self) -> None:
        self.capacity: Capacity = self.balancer.state.config.capacity
        links = {link.name: link for link in self.net.links()}
        self.ifindex = {name: link.index for name, link in links.items()}
        self.mac = {name: link.mac for name, link in links.items()}
        self.entry = {hook: self.balancer.program(f"{hook}_entry") for hook in ("xdp", "tc")}

    # ------------------------------------------------------------------------------- set-up

    def apply(self, text: str) -> Config:
        """Brings the balancer to a configuration, and its backends' next hops to confirmed."""
        loaded = dataclasses.replace(config.load(text)[0], capacity=self.capacity)
        self.balancer.apply(loaded, self.net)
        self.confirm()
        return loaded

    def confirm(self) -> None:
        """Notes every next hop as confirmed now, so that no packet takes the kernel's road."""
        stamp = struct.pack("<Q", self.balancer.clock())
        for place in self.balancer.state.book.services.values():
            for backend in place.backends.values():
                self.balancer.map("nexthop_probes").update(records.number(backend.id), stamp)
        ways = self.balancer.map("way_probes")
        ways.write(0, stamp * ways.capacity)

    def clear(self) -> None:
        """Nothing configured, no entries, nothing counted."""
        self.balancer.apply(Config(capacity=self.capacity), self.net)
        tables = (*views.CONNECTIONS, *views.PERSISTENCE)
        self.balancer.reap(views.places(self.balancer, tables), force=True)
        fragments = self.balancer.map("fragments")
        for key in [key for key, _ in fragments.items()]:
            fragments.delete(key)
        reasons = self.balancer.map("reasons")
        for number in range(reasons.capacity):
            reasons.update(records.number(number), bytes(reasons.stride * reasons.cpus))

    def advance(self, seconds: float) -> None:
        """Moves the programs' clock."""
        self.clock += round(seconds * self.balancer.schema.hz)
        self.balancer.map("switches").store_word(2, self.clock)

    def later(self, seconds: float) -> None:
        """Moves the clock, with every next hop confirmed as by other traffic."""
        self.advance(seconds)
        self.confirm()

    @contextlib.contextmanager
    def taken_for_vlan(self, name: str, lower: str, vlan: int, mac: str = "") -> Iterator[None]:
        """The interface's row as if it were a VLAN device, which not every kernel has."""
        modes = {attached.ifindex: attached.mode for attached in self.balancer.state.attachments}
        links = {link.name: link for link in self.net.links()}
        links[name] = dataclasses.replace(
            links[name],
            mac=mac or links[name].mac,
            kind="vlan",
            lower=links[lower].index,
            vlan=vlan,
        )
        rows = interfaces.rows(self.balancer.schema, links.values(), modes)
        with self._row(links[name].index, rows[links[name].index]):
            yield

    @contextlib.contextmanager
    def taken_for_nic(self, name: str) -> Iterator[None]:
        """The interface's row as if it were a real one, which sends back what it got by XDP_TX."""
        modes = {attached.ifindex: attached.mode for attached in self.balancer.state.attachments}
        links = {link.name: link for link in self.net.links()}
        links[name] = dataclasses.replace(links[name], kind="")
        rows = interfaces.rows(self.balancer.schema, links.values(), modes)
        with self._row(links[name].index, rows[links[name].index]):
            yield

    @contextlib.contextmanager
    def _row(self, index: int, row: bytes) -> Iterator[None]:
        table = self.balancer.map("interfaces")
        before = table.look_up(records.number(index)) or b""
        table.update(records.number(index), row)
        try:
            yield
        finally:
            table.update(records.number(index), before)

    # ------------------------------------------------------------------------------ packets

    def to_host(self, packet: Any, interface: str = "lb0") -> Any:
        """The packet in a frame from the router to the balancer."""
        return Ether(src=ROUTER_MAC, dst=self.mac[interface]) / packet

    def deliver(self, packet: Any) -> Verdict:
        """Runs the XDP entry on an IP packet that the router sends to lb0."""
        return self.send(self.to_host(packet))

    def backend_for(self, packet: Any) -> str | None:
        """The backend that gets an IP packet that the router sends to lb0."""
        return self.backend_of(self.deliver(packet))

    def backend_for_soon(self, packet: Any) -> str | None:
        """The same, however long the machine has taken since the last packet."""
        self.confirm()
        return self.backend_for(packet)

    def send(self, packet: Any, interface: str = "lb0") -> Verdict:
        """Runs the XDP entry on a frame that arrives at an interface."""
        frame = bytes(packet)
        run = maps.run_program(self.entry["xdp"], frame, ifindex=self.ifindex[interface])
        return Verdict(ACTIONS[run.verdict], *self._split(run.data, run.metadata))

    def send_tc(self, packet: Any, interface: str = "lb0", mark: int = 0) -> Verdict:
        """Runs the TC entry on a frame as if no XDP program were there."""
        run = self.run_tc(packet, interface, mark)
        action = run.verdict - 2**32 if run.verdict >= 2**31 else run.verdict
        return Verdict(TC_ACTIONS[action], run.data)

    def run_tc(self, packet: Any, interface: str = "lb0", mark: int = 0) -> maps.Run:
        """The same, and what the kernel says of the run."""
        context = bytearray(192)
        struct.pack_into("<I", context, 8, mark)
        struct.pack_into("<I", context, 40, self.ifindex[interface])
        with self._without_xdp(interface):
            return maps.run_program(self.entry["tc"], bytes(packet), context=bytes(context))

    @contextlib.contextmanager
    def _without_xdp(self, interface: str) -> Iterator[None]:
        """The interface's row as `--mode tc` writes it."""
        table, layout = self.balancer.map("interfaces"), self.balancer.schema.values["interfaces"]
        key = records.number(self.ifindex[interface])
        row = table.look_up(key) or b""
        flags = layout.number(row, "flags") & ~self.balancer.schema.enums["interface_flag"]["xdp"]
        table.update(key, layout.encode(mac=layout.number(row, "mac"), flags=flags))
        try:
            yield
        finally:
            table.update(key, row)

    def _split(self, data: bytes, metadata: int) -> tuple[bytes, dict[str, Any] | None]:
        if not metadata:
            return data, None
        names = ("magic", "reason", "mark", "backend", "service")
        handover: dict[str, Any] = dict(zip(names, struct.unpack_from("<5I", data), strict=True))
        reasons = {n: name for name, n in self.balancer.schema.enums["reason"].items()}
        handover["reason"] = reasons[handover["reason"]]
        del handover["magic"]
        return data[metadata:], handover

    # -------------------------------------------------------------------------------- reads

    def transition(
        self, protocol: int, view: str, state: str, event: str, *, secure: bool = False
    ) -> tuple[str, int, bool]:
        """What an event makes of a state: the next one, its seconds, whether that is active."""
        enums = self.balancer.schema.enums
        asked = (protocol, enums["view"][view], secure, enums["state"][state])
        packet = struct.pack("<5I", *asked, enums["event"][event]).ljust(64, b"\0")
        descriptor = self.balancer.program("transition")
        try:
            run = maps.run_program(descriptor, packet)
        finally:
            os.close(descriptor)
        following, jiffies, active = struct.unpack_from("<3I", run.data, 20)
        names = {number: name for name, number in enums["state"].items()}
        return names[following], jiffies // self.balancer.schema.hz, bool(active)

    def backend_of(self, verdict: Verdict) -> str | None:
        """The backend that a forwarded frame goes to, by its destination MAC.

        None where nobody gets it; an ICMP error goes back to the router.
        """
        if verdict.action not in ("tx", "redirect"):
            return None
        if verdict.frame[:6].hex(":") == ROUTER_MAC:
            return None
        macs = {mac: address for address, mac in {**BACKENDS, **NEAR}.items()}
        return macs[verdict.frame[:6].hex(":")]

    def reasons(self) -> dict[str, int]:
        """Packets by reason."""
        return self.balancer.reasons()

    def connections(self) -> list[dict[str, Any]]:
        """What `connection list` shows."""
        rows = views.connections(self.balancer)
        return [dict(entries.as_row(entries.CONNECTION, row)) for row in rows]

    def persistence(self) -> list[dict[str, Any]]:
        """What `persistence list` shows."""
        rows = views.persistence(self.balancer)
        return [dict(entries.as_row(entries.PERSISTENCE, row)) for row in rows]

    def backends(self) -> dict[str, dict[str, Any]]:
        """What `backend list` shows, by address."""
        return {row["address"]: row for row in views.backends(self.balancer, self.net)}

    def set_sysctl(self, name: str, value: int) -> None:
        """Sets a sysctl of the test's namespace."""
        network.set_sysctl(name, str(value))
