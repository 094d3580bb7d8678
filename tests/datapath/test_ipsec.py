"""ESP and AH: they follow the key exchange of the same two ends, and open nothing themselves."""

from __future__ import annotations

import math
from typing import Any

import pytest
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from tests.datapath.harness import BACKENDS, Datapath, udp

A, B = "10.0.0.11", "10.0.0.12"
GATEWAY = f"""
services:
  - {{protocol: udp, address: 192.0.2.10, port: 500, scheduler: rr,
     backends: [{{address: {A}}}, {{address: {B}}}]}}
  - {{protocol: udp, address: "2001:db8::10", port: 500, scheduler: rr,
     backends: [{{address: "2001:db8:0:2::11"}}]}}
"""
EXCHANGE = udp("198.51.100.7:500", "192.0.2.10:500")
ESP, AH = 50, 51


def sealed(protocol: int, client: str = "198.51.100.7") -> Any:
    """A packet of one of the two protocols."""
    return IP(src=client, dst="192.0.2.10", proto=protocol) / Raw(b"\5" * 24)


def left(datapath: Datapath) -> list[tuple[str, int]]:
    """Each connection's client and whole seconds left."""
    return [(row["client"], math.ceil(row["expires_in"])) for row in datapath.connections()]


@pytest.mark.parametrize("protocol", [ESP, AH])
def test_they_go_where_the_key_exchange_went_and_arm_it_again(
    datapath: Datapath, protocol: int
) -> None:
    datapath.apply(GATEWAY)
    assert datapath.backend_for(EXCHANGE) == B
    datapath.later(200)
    datapath.confirm()
    verdict = datapath.deliver(sealed(protocol))
    assert datapath.backend_of(verdict) == B
    expected = IP(bytes(sealed(protocol)))
    expected.ttl -= 1
    del expected.chksum
    assert verdict.frame[14:] == bytes(expected)
    assert left(datapath) == [("198.51.100.7:500", 300)]


@pytest.mark.parametrize("protocol", [ESP, AH])
def test_without_a_key_exchange_they_go_up_untouched(datapath: Datapath, protocol: int) -> None:
    datapath.apply(GATEWAY)
    datapath.backend_for(udp("198.51.100.7:501", "192.0.2.10:500"))
    datapath.backend_for(udp("198.51.100.8:500", "192.0.2.10:500"))
    verdict = datapath.deliver(sealed(protocol))
    assert (verdict.action, verdict.handover) == ("pass", None)
    assert datapath.reasons() == {"forwarded": 2, "other_protocol": 1}


def test_after_the_exchanges_end_they_go_up(datapath: Datapath) -> None:
    datapath.apply(GATEWAY)
    datapath.backend_for(EXCHANGE)
    datapath.later(301)
    assert datapath.backend_for(sealed(ESP)) is None
    assert datapath.connections() == []


def test_no_mark_is_theirs(datapath: Datapath) -> None:
    datapath.apply("marks: [{mark: 7, protocol: udp, address: 192.0.2.10, port: 500}]")
    verdict = datapath.deliver(sealed(ESP))
    assert (verdict.action, verdict.handover) == ("pass", None)


def test_under_a_mark_they_follow_as_well(datapath: Datapath) -> None:
    datapath.apply(f"""
marks: [{{mark: 7, protocol: udp, address: 192.0.2.10, ports: 400-600}}]
services: [{{mark: 7, scheduler: rr, persistence: 300, backends: [{{address: {A}}}]}}]
""")
    assert datapath.backend_for(EXCHANGE) == A
    assert [datapath.backend_for(sealed(protocol)) for protocol in (ESP, AH)] == [A, A]


def test_esp_over_ipv6(datapath: Datapath) -> None:
    datapath.apply(GATEWAY)
    packet = IPv6(src="2001:db8:1::7", dst="2001:db8::10", nh=ESP) / Raw(b"\5" * 24)
    assert datapath.backend_for(packet) is None
    exchange = udp("[2001:db8:1::7]:500", "[2001:db8::10]:500")
    found = [datapath.backend_for(each) for each in (exchange, packet)]
    assert found == ["2001:db8:0:2::11"] * 2


@pytest.mark.parametrize("hook", ["xdp", "tc"])
@pytest.mark.parametrize("protocol", [ESP, AH])
def test_by_nat_they_get_another_address_and_nothing_else(
    datapath: Datapath, protocol: int, hook: str
) -> None:
    """What stands where others have ports and checksums is their own."""
    datapath.apply(GATEWAY.replace("rr,", "rr, forward: nat,", 1))
    client = "172.31.0.21"
    datapath.backend_for(udp(f"{client}:500", "192.0.2.10:500"))
    send = datapath.send if hook == "xdp" else datapath.send_tc
    there = send(datapath.to_host(sealed(protocol, client)))
    expected = IP(src=client, dst=B, proto=protocol, ttl=63) / Raw(b"\5" * 24)
    assert (there.action, there.frame[14:]) == ("redirect", bytes(expected))
    answer = IP(src=B, dst=client, proto=protocol) / Raw(b"\6" * 24)
    back = send(Ether(src=BACKENDS[B], dst=datapath.mac["lb1"]) / answer, "lb1")
    expected = IP(src="192.0.2.10", dst=client, proto=protocol, ttl=63) / Raw(b"\6" * 24)
    assert (back.action, back.frame[14:]) == ("redirect", bytes(expected))
