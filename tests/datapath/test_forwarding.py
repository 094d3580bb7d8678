"""Direct routing: whole frames in and out."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether

from tests.datapath.harness import BACKENDS, NEAR, ROUTER_MAC, Datapath

WEB = """
services:
  - {protocol: tcp, address: 192.0.2.10, port: 80, scheduler: rr, backends: [{address: 10.0.0.11}]}
"""


def to_host(datapath: Datapath, interface: str = "lb0") -> Any:
    """The Ethernet header of a frame from the router to the balancer."""
    return Ether(src=ROUTER_MAC, dst=datapath.mac[interface])


def test_a_new_connection_goes_to_the_backend_with_new_macs_and_one_hop_less(
    datapath: Datapath,
) -> None:
    datapath.apply(WEB)
    packet = IP(src="198.51.100.7", dst="192.0.2.10", ttl=64) / TCP(sport=1001, dport=80, flags="S")
    verdict = datapath.send(to_host(datapath) / packet)
    packet.ttl = 63
    expected = Ether(src=datapath.mac["lb1"], dst=BACKENDS["10.0.0.11"]) / packet
    assert (verdict.action, verdict.frame) == ("redirect", bytes(expected))
    assert datapath.reasons() == {"forwarded": 1}


@pytest.mark.parametrize("is_nic", [True, False], ids=["nic", "veth"])
def test_a_backend_on_the_link_that_the_packet_came_by_is_reached_by_sending_it_back(
    datapath: Datapath, is_nic: bool
) -> None:
    datapath.apply(WEB.replace("10.0.0.11", "172.31.0.11"))
    packet = IP(src="198.51.100.7", dst="192.0.2.10", ttl=64) / TCP(sport=1001, dport=80, flags="S")
    with datapath.taken_for_nic("lb0") if is_nic else contextlib.nullcontext():
        verdict = datapath.send(to_host(datapath) / packet)
    packet.ttl = 63
    expected = Ether(src=datapath.mac["lb0"], dst=NEAR["172.31.0.11"]) / packet
    assert (verdict.action, verdict.frame) == ("tx" if is_nic else "redirect", bytes(expected))


def test_what_comes_by_another_interface_than_the_backends_is_not_sent_back(
    datapath: Datapath,
) -> None:
    datapath.apply(WEB)
    packet = IP(src="198.51.100.7", dst="192.0.2.10") / TCP(sport=1001, dport=80, flags="S")
    ways = ("lb1", "lb0", "lb1")
    with datapath.taken_for_nic("lb1"):
        actions = [datapath.send(to_host(datapath, way) / packet, way).action for way in ways]
    assert actions == ["tx", "redirect", "tx"]


def test_tags_of_the_way_in_are_gone_on_the_way_out(datapath: Datapath) -> None:
    datapath.apply(WEB)
    packet = IP(src="198.51.100.7", dst="192.0.2.10", ttl=64) / TCP(sport=1001, dport=80, flags="S")
    tags = Dot1Q(vlan=10) / Dot1Q(vlan=20)
    verdict = datapath.send(to_host(datapath) / tags / packet)
    packet.ttl = 63
    expected = Ether(src=datapath.mac["lb1"], dst=BACKENDS["10.0.0.11"]) / packet
    assert (verdict.action, verdict.frame) == ("redirect", bytes(expected))


def test_ipv6_is_forwarded_with_one_hop_less(datapath: Datapath) -> None:
    datapath.apply("""
services:
  - protocol: udp
    address: "2001:db8::10"
    port: 53
    backends: [{address: "2001:db8:0:2::11"}]
""")
    packet = (
        IPv6(src="2001:db8:1::7", dst="2001:db8::10", hlim=9) / UDP(sport=5000, dport=53) / b"?"
    )
    verdict = datapath.send(to_host(datapath) / packet)
    packet.hlim = 8
    expected = Ether(src=datapath.mac["lb1"], dst=BACKENDS["2001:db8:0:2::11"]) / packet
    assert (verdict.action, verdict.frame) == ("redirect", bytes(expected))


def test_a_drained_backend_gets_no_new_connection_from_a_port_used_again(
    datapath: Datapath,
) -> None:
    def send(flags: str) -> str | None:
        transport = TCP(sport=1001, dport=80, flags=flags)
        packet = to_host(datapath) / IP(src="198.51.100.7", dst="192.0.2.10") / transport
        return datapath.backend_of(datapath.send(packet))

    backends = "backends: [{address: 10.0.0.11}, {address: 10.0.0.12}]"
    text = WEB.replace("backends: [{address: 10.0.0.11}]", backends)
    datapath.apply(text)
    assert [send("S"), send("A")] == ["10.0.0.12"] * 2
    datapath.apply(text.replace("10.0.0.12}", "10.0.0.12, draining: true}"))
    assert [send("A"), send("FA"), send("S")] == ["10.0.0.12", "10.0.0.12", "10.0.0.11"]


def test_a_packet_too_big_for_the_backends_link_is_handed_to_tc_which_refuses_it(
    datapath: Datapath,
) -> None:
    datapath.apply(WEB)
    transport = TCP(sport=1001, dport=80, flags="S") / bytes(1600)
    packet = to_host(datapath) / IP(src="198.51.100.7", dst="192.0.2.10", flags="DF") / transport
    handed = datapath.send(packet)
    assert handed.action == "pass"
    assert handed.handover is not None and handed.handover["reason"] == "forwarded"
    assert datapath.backend_of(datapath.send_tc(packet)) is None
    assert datapath.reasons() == {"too_big": 1}


def test_tc_sends_to_a_neighbour_that_the_kernel_has_still_to_find(datapath: Datapath) -> None:
    datapath.apply(WEB.replace("10.0.0.11", "10.0.0.99"))
    packet = IP(src="198.51.100.7", dst="192.0.2.10") / TCP(sport=1001, dport=80, flags="S")
    assert datapath.send_tc(to_host(datapath) / packet).action == "redirect"
    assert datapath.reasons() == {"forwarded": 1}
