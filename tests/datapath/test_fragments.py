"""Fragments: the first goes by its ports, the others follow it, by every method and both ways."""

from __future__ import annotations

from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, UDP, fragment
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment, fragment6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Raw

from tests.datapath.harness import BACKENDS, CLIENTS, ROUTER_MAC, Datapath

CLIENT = {4: "172.31.0.21", 6: "2001:db8:0:1::21"}
VIP = {4: "192.0.2.10", 6: "2001:db8::10"}
BACKEND = {4: "10.0.0.11", 6: "2001:db8:0:2::11"}
LIFE = 30


def services(forward: str, version: int) -> str:
    port = ", port: 5300" if forward == "nat" else ""
    return f"""
services:
  - {{protocol: udp, address: "{VIP[version]}", port: 53, scheduler: rr, forward: {forward},
     backends: [{{address: "{BACKEND[version]}"{port}}}]}}
"""


def datagram(
    version: int, ends: tuple[str, str], ports: tuple[int, int], hops: int = 64, number: int = 7
) -> Any:
    """A whole packet with 3000 bytes in it; its checksum is right."""
    source, destination = ends
    body = UDP(sport=ports[0], dport=ports[1]) / Raw(bytes(range(250)) * 12)
    if version == 4:
        return IP(bytes(IP(src=source, dst=destination, ttl=hops, id=number) / body))
    header = IPv6(src=source, dst=destination, hlim=hops) / IPv6ExtHdrFragment(id=number)
    whole = IPv6(bytes(IPv6(src=source, dst=destination, hlim=hops) / body))
    return header / whole.payload


def pieces(version: int, whole: Any) -> list[Any]:
    """Its fragments."""
    if version == 4:
        return [IP(bytes(each)) for each in fragment(whole, 1400)]
    return [IPv6(bytes(each)) for each in fragment6(whole, 1448)]


def request(version: int, **fields: Any) -> list[Any]:
    """What the client sends."""
    return pieces(version, datagram(version, (CLIENT[version], VIP[version]), (1001, 53), **fields))


def delivered(version: int, forward: str, **fields: Any) -> list[Any]:
    """What the backend is to get."""
    ends, ports = (CLIENT[version], VIP[version]), (1001, 53)
    if forward == "nat":
        ends, ports = (CLIENT[version], BACKEND[version]), (1001, 5300)
    return pieces(version, datagram(version, ends, ports, hops=63, **fields))


def to_backend(datapath: Datapath, version: int, packet: Any) -> bytes:
    return bytes(Ether(src=datapath.mac["lb1"], dst=BACKENDS[BACKEND[version]]) / packet)


CASES = [(version, forward) for version in (4, 6) for forward in ("dr", "nat")]


@pytest.mark.parametrize(("version", "forward"), CASES)
def test_all_fragments_go_to_one_backend(datapath: Datapath, version: int, forward: str) -> None:
    datapath.apply(services(forward, version))
    sent, expected = request(version), delivered(version, forward)
    assert len(sent) == 3
    for there, wanted in zip(sent, expected, strict=True):
        got = datapath.deliver(there)
        assert (got.action, got.frame) == ("redirect", to_backend(datapath, version, wanted))
    # another order of the later ones, and twice
    for place in (2, 1, 2):
        got = datapath.deliver(sent[place])
        wanted = to_backend(datapath, version, expected[place])
        assert (got.action, got.frame) == ("redirect", wanted)
    for there, wanted in zip(request(version, number=8), sent, strict=True):
        got = datapath.send_tc(datapath.to_host(there))
        assert got.action == "redirect"
        wanted = delivered(version, forward, number=8)[sent.index(wanted)]
        assert got.frame[14:] == bytes(wanted)
    assert datapath.reasons() == {"forwarded": 9}
    (connection,) = datapath.connections()
    assert connection["virtual"].endswith(":53")


@pytest.mark.parametrize("version", [4, 6])
def test_an_answer_in_fragments_goes_to_the_client_from_the_virtual_end(
    datapath: Datapath, version: int
) -> None:
    datapath.apply(services("nat", version))
    datapath.deliver(request(version)[0])
    ends = (BACKEND[version], CLIENT[version])
    for number, by_kernel in ((21, False), (22, True)):
        answer = pieces(version, datagram(version, ends, (5300, 1001), number=number))
        virtual = (VIP[version], CLIENT[version])
        wanted = pieces(version, datagram(version, virtual, (53, 1001), hops=63, number=number))
        for back, expected in zip(answer, wanted, strict=True):
            frame = Ether(src=BACKENDS[BACKEND[version]], dst=datapath.mac["lb1"]) / back
            if by_kernel:
                assert datapath.send_tc(frame, "lb1").frame[14:] == bytes(expected)
                continue
            datapath.confirm()
            got = datapath.send(frame, "lb1")
            link = Ether(src=datapath.mac["lb0"], dst=CLIENTS[CLIENT[version]])
            assert (got.action, got.frame) == ("redirect", bytes(link / expected))
    assert datapath.reasons() == {"forwarded": 1, "answered": 6}


@pytest.mark.parametrize("version", [4, 6])
def test_a_tunnel_takes_each_fragment_by_itself(datapath: Datapath, version: int) -> None:
    datapath.apply(services("tunnel", version))
    for there, inner in zip(request(version), delivered(version, "dr"), strict=True):
        for got in (datapath.deliver(there), datapath.send_tc(datapath.to_host(there))):
            start = 14 + (20 if version == 4 else 40)
            assert (got.action, got.frame[start:]) == ("redirect", bytes(inner))


@pytest.mark.parametrize("version", [4, 6])
def test_a_tunnels_checksum_is_over_the_fragment_that_is_in_it(
    datapath: Datapath, version: int
) -> None:
    text = services("tunnel", version)
    datapath.apply(
        text.replace("tunnel,", "tunnel, tunnel: {type: gue, port: 6080, checksum: csum},")
    )
    for there, inner in zip(request(version), delivered(version, "dr"), strict=True):
        for got in (datapath.deliver(there), datapath.send_tc(datapath.to_host(there))):
            outer = (IP if version == 4 else IPv6)(got.frame[14:])
            assert bytes(outer[UDP].payload)[4:] == bytes(inner)
            found = outer[UDP].chksum
            del outer[UDP].chksum
            assert type(outer)(bytes(outer))[UDP].chksum == found


@pytest.mark.parametrize("version", [4, 6])
def test_what_comes_before_its_first_goes_up_and_is_counted(
    datapath: Datapath, version: int
) -> None:
    datapath.apply(services("dr", version))
    sent = request(version)
    for there in sent[1:]:
        for got in (datapath.deliver(there), datapath.send_tc(datapath.to_host(there))):
            assert (got.action, got.frame) == ("pass", bytes(datapath.to_host(there)))
    assert datapath.reasons() == {"fragment_early": 4}
    assert datapath.deliver(sent[0]).action == "redirect"
    assert datapath.deliver(sent[1]).action == "redirect"


@pytest.mark.parametrize("version", [4, 6])
def test_the_first_is_followed_for_30_seconds(datapath: Datapath, version: int) -> None:
    datapath.apply(services("dr", version))
    sent = request(version)
    datapath.deliver(sent[0])
    datapath.later(LIFE - 1)
    assert datapath.deliver(sent[1]).action == "redirect"
    datapath.later(1)
    assert datapath.deliver(sent[1]).action == "pass"
    assert datapath.reasons() == {"forwarded": 2, "fragment_early": 1}


@pytest.mark.parametrize("version", [4, 6])
def test_fragments_of_other_traffic_are_never_touched(datapath: Datapath, version: int) -> None:
    datapath.apply(services("nat", version))
    client, virtual, backend = CLIENT[version], VIP[version], BACKEND[version]
    # another port, another protocol, another host; and what a backend sends by itself
    other_port = pieces(version, datagram(version, (client, virtual), (1001, 54)))
    strange = {4: "192.0.2.99", 6: "2001:db8::99"}[version]
    elsewhere = pieces(version, datagram(version, (client, strange), (1001, 53), number=3))
    by_itself = pieces(version, datagram(version, (backend, client), (5300, 9), number=4))
    frames = [*other_port, *elsewhere]
    if version == 4:
        frames += fragment(IP(src=client, dst=virtual, id=5) / ICMP() / bytes(3000), 1400)
    for packet in frames:
        for got in (datapath.deliver(packet), datapath.send_tc(datapath.to_host(packet))):
            assert (got.action, got.frame) == ("pass", bytes(datapath.to_host(packet)))
    for packet in by_itself:
        frame = Ether(src=BACKENDS[backend], dst=datapath.mac["lb1"]) / packet
        got = datapath.send(frame, "lb1")
        assert (got.action, got.frame) == ("pass", bytes(frame))


def test_fragments_of_two_senders_with_one_number_do_not_meet(datapath: Datapath) -> None:
    datapath.apply(services("dr", 4))
    first = request(4)
    datapath.deliver(first[0])
    for source, protocol in (("172.31.0.22", 17), ("172.31.0.21", 6)):
        stranger = first[1].copy()
        stranger.src, stranger.proto, stranger.chksum = source, protocol, None
        assert datapath.deliver(stranger).action == "pass"
    assert datapath.reasons() == {"forwarded": 1, "fragment_early": 2}


@pytest.mark.parametrize("version", [4, 6])
def test_a_removed_backend_gets_no_later_fragment(datapath: Datapath, version: int) -> None:
    datapath.apply(services("dr", version))
    sent = request(version)
    datapath.deliver(sent[0])
    other = {4: "10.0.0.12", 6: "2001:db8:0:2::12"}[version]
    datapath.apply(services("dr", version).replace(BACKEND[version], other))
    assert datapath.deliver(sent[1]).action == "drop"
    assert datapath.reasons() == {"forwarded": 1, "backend_gone": 1}


@pytest.mark.parametrize("version", [4, 6])
def test_the_first_alone_is_answered_at_its_end(datapath: Datapath, version: int) -> None:
    datapath.apply(services("dr", version))
    datapath.deliver(request(version)[0])
    for place, action in ((0, "redirect"), (1, "drop")):
        dying = request(version, hops=1)[place]
        for got in (datapath.deliver(dying), datapath.send_tc(datapath.to_host(dying))):
            assert got.action == action
            assert action == "drop" or got.frame[:6].hex(":") == ROUTER_MAC
    assert datapath.reasons() == {"forwarded": 1, "ttl_exceeded": 4}


@pytest.mark.parametrize("version", [4, 6])
def test_a_first_fragment_without_all_of_its_ports_header_goes_up(
    datapath: Datapath, version: int
) -> None:
    datapath.apply(services("dr", version))
    tiny: Any
    if version == 4:
        tiny = IP(src=CLIENT[4], dst=VIP[4], flags="MF", proto=17, id=7) / Raw(bytes(4))
    else:
        tiny = IPv6(src=CLIENT[6], dst=VIP[6]) / IPv6ExtHdrFragment(nh=17, m=1) / Raw(bytes(4))
    assert datapath.deliver(tiny).action == "pass"
    assert datapath.reasons() == {"malformed": 1}


def test_udp_without_a_checksum_stays_without_in_fragments(datapath: Datapath) -> None:
    datapath.apply(services("nat", 4))
    whole = datagram(4, (CLIENT[4], VIP[4]), (1001, 53))
    whole[UDP].chksum = 0
    for there in pieces(4, IP(bytes(whole))):
        got = datapath.send_tc(datapath.to_host(there))
        assert got.action == "redirect"
        if there.frag == 0:
            assert got.frame[34 + 6 : 34 + 8] == bytes(2)
            assert got.frame[34 + 2 : 34 + 4] == (5300).to_bytes(2, "big")


@pytest.mark.parametrize("tags", [1, 2])
def test_tags_of_the_road_in_go(datapath: Datapath, tags: int) -> None:
    datapath.apply(services("dr", 4))
    tag = Dot1Q(vlan=5) / Dot1Q(vlan=6) if tags == 2 else Dot1Q(vlan=5)
    for there, wanted in zip(request(4), delivered(4, "dr"), strict=True):
        frame = Ether(src=ROUTER_MAC, dst=datapath.mac["lb0"]) / tag / there
        assert datapath.send(frame).frame == to_backend(datapath, 4, wanted)
        assert datapath.send_tc(frame).frame[14:] == bytes(wanted)
