"""Mark rules: the data plane gives each packet the mark of the first rule that matches."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from scapy.layers.l2 import Dot1Q, Ether

from lvsxdp import config, maps, marks
from lvsxdp.errors import ConflictError
from lvsxdp.model import Config, MarkRule, Ports, Protocol
from tests.datapath.harness import ROUTER_MAC, Datapath, tcp, udp

OTHER_MAC = "02:00:00:00:00:fd"
ADDRESSES = ("192.0.2.10", "192.0.2.11", "192.0.2.200", "2001:db8::10", "2001:db8::11")
SOURCES = ("198.51.100.7", "203.0.113.9", "2001:db8:1::7", "2001:db8:2::9")
NETWORKS = (
    "192.0.2.10/32", "192.0.2.11/32", "192.0.2.0/25", "192.0.2.0/24", "0.0.0.0/0",
    "2001:db8::10/128", "2001:db8::11/128", "2001:db8::/127", "2001:db8::/64", "::/0",
)  # fmt: skip
SOURCE_NETWORKS = ("198.51.100.0/24", "203.0.113.9/32", "2001:db8:1::/48", "2001:db8:2::9/128")
PORTS = (Ports(80, 80), Ports(443, 443), Ports(80, 443), Ports(1024, 65535), Ports(0, 65535))
MARKS = (0, 1, 2, 7, 2**31, 2**32 - 1)
VLANS = (0, 5, 4094)
PROTOCOLS = (
    (Protocol.TCP,),
    (Protocol.UDP,),
    (Protocol.SCTP,),
    (Protocol.UDP, Protocol.SCTP),
    (Protocol.TCP, Protocol.UDP, Protocol.SCTP),
)


def some(values: tuple[Any, ...]) -> st.SearchStrategy[tuple[Any, ...]]:
    """None, one or two of the values."""
    return st.lists(st.sampled_from(values), max_size=2, unique=True).map(tuple)


def rarely(values: tuple[Any, ...]) -> st.SearchStrategy[tuple[Any, ...]]:
    """Mostly none of the values."""
    return st.one_of(st.just(()), st.just(()), some(values))


RULES = st.lists(
    st.builds(
        MarkRule,
        mark=st.sampled_from(MARKS),
        protocols=st.sampled_from(PROTOCOLS),
        addresses=some(tuple(map(ipaddress.ip_network, NETWORKS))),
        ports=some(PORTS),
        sources=rarely(tuple(map(ipaddress.ip_network, SOURCE_NETWORKS))),
        source_macs=rarely((ROUTER_MAC, OTHER_MAC)),
        interfaces=rarely(("lb0", "lb1")),
        vlans=rarely(VLANS),
    ),
    max_size=8,
).map(tuple)


@st.composite
def packets(draw: st.DrawFn) -> marks.Packet:
    """A packet whose addresses are of one family."""
    destination = ipaddress.ip_address(draw(st.sampled_from(ADDRESSES)))
    sources = [a for s in SOURCES if (a := ipaddress.ip_address(s)).version == destination.version]
    return marks.Packet(
        protocol=draw(st.sampled_from((Protocol.TCP, Protocol.UDP))),
        source=draw(st.sampled_from(sources)),
        destination=destination,
        port=draw(st.sampled_from((79, 80, 81, 443, 1023, 1024, 65535))),
        interface=draw(st.sampled_from(("lb0", "lb1"))),
        vlan=draw(st.sampled_from((None, None, *VLANS))),
        source_mac=draw(st.sampled_from((ROUTER_MAC, OTHER_MAC))),
    )


def frame_of(datapath: Datapath, packet: marks.Packet) -> Any:
    """The frame that a packet is on the wire."""
    make = tcp if packet.protocol is Protocol.TCP else udp
    tag = Ether(src=packet.source_mac, dst=datapath.mac[packet.interface])
    if packet.vlan is not None:
        tag /= Dot1Q(vlan=packet.vlan)
    return tag / make(f"[{packet.source}]:1001", f"[{packet.destination}]:{packet.port}")


def mark_seen(datapath: Datapath, packet: marks.Packet) -> int | None:
    """The mark that the data plane gives a packet to no service; None: no rule matched."""
    before = datapath.reasons().get("mark_excluded", 0)
    verdict = datapath.send(frame_of(datapath, packet), packet.interface)
    assert verdict.action == "pass"
    if verdict.handover:
        return int(verdict.handover["mark"])
    return 0 if datapath.reasons().get("mark_excluded", 0) > before else None


def rows_fit(rules: tuple[MarkRule, ...]) -> bool:
    """The rules need no more ordered rows than there are."""
    try:
        marks.expand(rules)
    except ConflictError:
        return False
    return True


# the exact rule is found by hash, and yet the wider one before it wins
OVERLAPPING = (
    MarkRule(1, addresses=(ipaddress.ip_network("192.0.2.0/24"),)),
    MarkRule(2, addresses=(ipaddress.ip_network("192.0.2.10/32"),), ports=(Ports(80, 80),)),
)
TO_PORT_80 = marks.Packet(
    protocol=Protocol.TCP,
    source=ipaddress.ip_address("198.51.100.7"),
    destination=ipaddress.ip_address("192.0.2.10"),
    port=80,
    interface="lb0",
    vlan=None,
    source_mac=ROUTER_MAC,
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rules=RULES, sent=st.lists(packets(), min_size=1, max_size=8))
@example(rules=OVERLAPPING, sent=[TO_PORT_80])
def test_the_data_plane_gives_every_packet_the_mark_of_the_first_rule_that_matches(
    datapath: Datapath, rules: tuple[MarkRule, ...], sent: list[marks.Packet]
) -> None:
    assume(rows_fit(rules))
    datapath.balancer.apply(Config(marks=rules), datapath.net)
    expected = [marks.first_match(rules, packet) for packet in sent]
    assert [mark_seen(datapath, packet) for packet in sent] == expected


def test_64_ordered_rules_are_all_looked_at(datapath: Datapath) -> None:
    rows = (f"{{mark: {n}, address: any, port: {n}-{n + 1}}}" for n in range(1, 128, 2))
    datapath.apply(f"marks: [{', '.join(rows)}]")
    seen = [
        verdict.handover["mark"] if verdict.handover else None
        for port in (1, 2, 63, 127, 128, 129)
        if (verdict := datapath.deliver(udp("198.51.100.7:1001", f"192.0.2.10:{port}")))
    ]
    assert seen == [1, 1, 63, 127, 127, None]


# --------------------------------------------------------------------------- changing the rules

# neither has anything in common with the other but that packets to port 80 are marked
OLD = """
marks:
  - {mark: 1, address: 192.0.2.11, port: 80}
  - {mark: 1, address: 192.0.2.0/24, port: 80}
"""
NEW = "marks: [{mark: 2, address: 192.0.2.10, port: 80}]"


@contextlib.contextmanager
def traffic(send: Callable[[], object]) -> Iterator[None]:
    """Calls `send` again and again beside the test, on all CPUs that there are."""
    stopping = threading.Event()

    def run() -> None:
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
        while not stopping.is_set():
            send()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()


def test_a_packet_sees_the_old_rules_or_the_new_ones(datapath: Datapath) -> None:
    frame = bytes(datapath.to_host(tcp("198.51.100.7:1001", "192.0.2.10:80")))
    seen: list[dict[str, int] | None] = []
    rule_sets = [config.load(text)[0] for text in (OLD, NEW)]
    datapath.balancer.apply(rule_sets[0], datapath.net)
    with traffic(lambda: seen.append(datapath.send(frame).handover)):
        for turn in range(1, 51):
            datapath.balancer.apply(rule_sets[turn % 2], datapath.net)
    assert {handover["mark"] if handover else None for handover in seen} == {1, 2}


def test_no_packet_falls_between_the_old_rules_and_the_new_ones(datapath: Datapath) -> None:
    frame = bytes(datapath.to_host(tcp("198.51.100.7:1001", "192.0.2.10:80")))
    rule_sets = [config.load(re.sub(r"mark: \d", "mark: 0", text))[0] for text in (OLD, NEW)]
    entry, ifindex = datapath.entry["xdp"], datapath.ifindex["lb0"]
    datapath.balancer.apply(rule_sets[0], datapath.net)
    with traffic(lambda: maps.run_program(entry, frame, ifindex=ifindex, repeat=10000)):
        for turn in range(1, 201):
            datapath.balancer.apply(rule_sets[turn % 2], datapath.net)
    assert list(datapath.reasons()) == ["mark_excluded"]
