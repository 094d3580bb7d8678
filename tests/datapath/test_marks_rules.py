"""Mark rules: the data plane gives each packet the mark of the first rule that matches."""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from scapy.layers.l2 import Dot1Q, Ether
from scapy.layers.sctp import SCTPChunkInit

from lvsxdp import config, maps, marks
from lvsxdp.model import Config, MarkRule, Ports, Protocol
from tests import drawn_rules
from tests.datapath.harness import ROUTER_MAC, Datapath, sctp, tcp, udp

# TC_ACT_UNSPEC: on to the next filter, and the host.
TC_PASS = 2**32 - 1
# In __sk_buff.
MARK_IN_CONTEXT = 8
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
    tag = Ether(src=packet.source_mac, dst=datapath.mac[packet.interface])
    if packet.vlan is not None:
        tag /= Dot1Q(vlan=packet.vlan)
    ends = f"[{packet.source}]:1001", f"[{packet.destination}]:{packet.port}"
    if packet.protocol is Protocol.SCTP:
        return tag / sctp(*ends, SCTPChunkInit())
    return tag / (tcp if packet.protocol is Protocol.TCP else udp)(*ends)


def mark_seen(datapath: Datapath, packet: marks.Packet) -> int | None:
    """The mark that the data plane gives a packet to no service; None: no rule matched."""
    before = datapath.reasons().get("mark_excluded", 0)
    verdict = datapath.send(frame_of(datapath, packet), packet.interface)
    assert verdict.action == "pass"
    if verdict.handover:
        return int(verdict.handover["mark"])
    return 0 if datapath.reasons().get("mark_excluded", 0) > before else None


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
    datapath.balancer.apply(Config(marks=rules), datapath.net)
    expected = [marks.first_match(rules, packet) for packet in sent]
    assert [mark_seen(datapath, packet) for packet in sent] == expected


# --------------------------------------------------------------------------- very many rules


def tc_mark(datapath: Datapath, packet: marks.Packet) -> int | None:
    """The same mark, as the TC program alone leaves it in the packet: much faster to ask for."""
    before = datapath.reasons().get("mark_excluded", 0)
    run = datapath.run_tc(frame_of(datapath, packet), packet.interface)
    assert run.verdict == TC_PASS
    mark = int.from_bytes(run.context[MARK_IN_CONTEXT : MARK_IN_CONTEXT + 4], "little")
    excluded = datapath.reasons().get("mark_excluded", 0) > before
    return 0 if excluded else mark or None


def compare(datapath: Datapath, rules: tuple[MarkRule, ...], sent: list[marks.Packet]) -> None:
    """Applies the rules, and each packet gets the mark of the first rule that matches."""
    datapath.balancer.apply(Config(marks=rules, capacity=datapath.capacity), datapath.net)
    expected = [marks.first_match(rules, packet) for packet in sent]
    found = [tc_mark(datapath, packet) for packet in sent]
    wrong = [trio for trio in zip(sent, found, expected, strict=True) if trio[1] != trio[2]]
    assert wrong == []


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(seed=st.integers(0, 2**32), count=st.integers(1, 1000))
def test_hundreds_of_rules_are_the_same_to_the_data_plane_as_to_a_plain_search(
    datapath: Datapath, seed: int, count: int
) -> None:
    dice = random.Random(seed)
    rules = drawn_rules.rules(dice, count)
    compare(datapath, rules, [drawn_rules.packet(dice, rules) for _ in range(60)])


def test_ten_thousand_rules_are_the_same_to_the_data_plane_as_to_a_plain_search(
    datapath: Datapath,
) -> None:
    dice = random.Random(7)
    rules = drawn_rules.rules(dice, 10_000)
    sent = [drawn_rules.packet(dice, rules) for _ in range(400)]
    compare(datapath, rules, sent)
    assert len({marks.first_match(rules, packet) for packet in sent}) == 13


@pytest.mark.parametrize("count", [64, 65, 4096, 4097, 16384])
def test_a_packet_that_fits_every_word_of_rules_and_none_but_the_last_rule_finds_it(
    datapath: Datapath, count: int
) -> None:
    """Each dimension by itself fits a rule in every word, so that all words are looked at."""
    one, other = map(ipaddress.ip_network, ("192.0.2.0/25", "192.0.2.128/25"))
    nearly = [
        MarkRule(1, addresses=(one,), ports=(Ports(443, 443),)),
        MarkRule(2, addresses=(other,), ports=(Ports(80, 80),)),
    ]
    last = MarkRule(3, addresses=(one,), ports=(Ports(80, 80),))
    rules = (*(nearly[n % 2] for n in range(count - 1)), last)
    compare(datapath, rules, [TO_PORT_80, dataclasses.replace(TO_PORT_80, port=443)])
    compare(datapath, (*rules[:-1], nearly[0]), [TO_PORT_80])
    assert mark_seen(datapath, dataclasses.replace(TO_PORT_80, port=443)) == 1


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
            # else the other thread hardly ever gets the interpreter's lock
            time.sleep(0.0001)

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
