"""Packets that go nowhere: the ICMP error that their client gets, byte for byte, or none."""

from __future__ import annotations

from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6PacketTooBig,
    ICMPv6TimeExceeded,
    IPv6,
    IPv6ExtHdrDestOpt,
)
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether
from scapy.packet import Raw

from lvsxdp import records
from lvsxdp.model import Scheduler
from tests.datapath.harness import ROUTER_MAC, Datapath, Verdict, ip, tcp, udp

A = "10.0.0.11"
A6 = "2001:db8:0:2::11"
CLIENT, VIP = "198.51.100.7:1001", "192.0.2.10:80"
CLIENT6, VIP6 = "[2001:db8:1::7]:5000", "[2001:db8::10]:80"
# as Linux quotes: messages of 576 bytes, and of IPv6's least MTU
MOST, MOST6 = 576 - 28, 1280 - 48
AT_ONCE, A_SECOND = 50, 1000


def services(backend: str = "", backend6: str = "", scheduler: str = "rr") -> str:
    """TCP and UDP services of both families on port 80, each with these backends."""
    return "services:\n" + "\n".join(
        f"  - {{protocol: {protocol}, address: '{vip}', port: 80, scheduler: {scheduler},"
        f" backends: [{backends}]}}"
        for protocol in ("tcp", "udp")
        for vip, backends in (("192.0.2.10", backend), ("2001:db8::10", backend6))
    )


BOTH = services(f"{{address: {A}}}", f"{{address: '{A6}'}}")


def answer(datapath: Datapath, frame: Any, error: Any) -> bytes:
    """The frame that goes back: heads exchanged, `error`, and of the packet what is quoted."""
    inner = frame[IP] if IP in frame else frame[IPv6]
    head = frame.copy()
    head[Ether].src, head[Ether].dst = frame[Ether].dst, frame[Ether].src
    head = bytes(head)[: len(frame) - len(inner)]
    packet = bytes(inner)
    if IP in frame:
        outer = IP(src=inner.dst, dst=inner.src, tos=0xC0 | inner.tos & 0x1E, flags="DF", id=0)
        return head + bytes(outer / error / Raw(packet[:MOST]))
    return head + bytes(IPv6(src=inner.dst, dst=inner.src, hlim=64) / error / Raw(packet[:MOST6]))


UNREACHABLE = ICMP(type=3, code=3)
UNREACHABLE6 = ICMPv6DestUnreach(code=4)


def error_for(frame: Any) -> Any:
    """Port unreachable, in the packet's family."""
    return UNREACHABLE if IP in frame else UNREACHABLE6


def filled(client: str, virtual: str, size: int) -> Any:
    """A UDP packet of so many bytes after its UDP header, no two of them alike in a row."""
    return udp(client, virtual) / Raw(bytes(n * 7 % 251 for n in range(size)))


PACKETS = {
    "syn": tcp(CLIENT, VIP),
    "syn6": tcp(CLIENT6, VIP6),
    "empty": udp(CLIENT, VIP),
    "odd": filled(CLIENT, VIP, 13),
    "odd6": filled(CLIENT6, VIP6, 13),
    "as-much-as-is-quoted": filled(CLIENT, VIP, MOST - 28),
    "a-byte-more": filled(CLIENT, VIP, MOST - 27),
    "large": filled(CLIENT, VIP, 1400),
    "as-much-as-is-quoted6": filled(CLIENT6, VIP6, MOST6 - 48),
    "a-byte-more6": filled(CLIENT6, VIP6, MOST6 - 47),
    "large6": filled(CLIENT6, VIP6, 1400),
    "important": IP(src="198.51.100.7", dst="192.0.2.10", tos=0xB8)
    / TCP(sport=1001, dport=80, flags="S"),
    "options": IP(src="198.51.100.7", dst="192.0.2.10", options=[IPOption_NOP()] * 4)
    / UDP(dport=80),
    "extension": IPv6(src="2001:db8:1::7", dst="2001:db8::10")
    / IPv6ExtHdrDestOpt()
    / UDP(dport=80),
    "wrong-checksum": IP(src="198.51.100.7", dst="192.0.2.10")
    / TCP(sport=1001, dport=80, flags="S", chksum=1),
}


@pytest.mark.parametrize("packet", PACKETS.values(), ids=PACKETS)
def test_a_client_without_a_backend_is_told_that_the_port_is_unreachable(
    datapath: Datapath, packet: Any
) -> None:
    datapath.apply(services())
    frame = datapath.to_host(packet)
    expected = answer(datapath, frame, error_for(frame))
    assert datapath.send(frame) == Verdict("redirect", expected)
    assert datapath.reasons() == {"no_backend": 1}
    assert datapath.send_tc(frame) == Verdict("redirect", expected)
    assert datapath.reasons() == {"no_backend": 2}
    assert datapath.connections() == []


@pytest.mark.parametrize("scheduler", list(Scheduler))
def test_whatever_the_scheduler_is(datapath: Datapath, scheduler: str) -> None:
    for backends in ("", f"{{address: {A}, weight: 0}}"):
        datapath.apply(services(backends, scheduler=scheduler))
        frame = datapath.to_host(tcp(CLIENT, VIP))
        assert datapath.send(frame) == Verdict("redirect", answer(datapath, frame, UNREACHABLE))


@pytest.mark.parametrize(
    "tags",
    [Dot1Q(vlan=10), Dot1AD(vlan=10), Dot1AD(vlan=10) / Dot1Q(vlan=20)],
    ids=["802.1q", "802.1ad", "both"],
)
@pytest.mark.parametrize("packet", [tcp(CLIENT, VIP), tcp(CLIENT6, VIP6)], ids=["ipv4", "ipv6"])
def test_the_answer_has_the_tags_of_the_packet(datapath: Datapath, tags: Any, packet: Any) -> None:
    datapath.apply(services())
    frame = datapath.to_host(tags / packet)
    expected = answer(datapath, frame, error_for(frame))
    assert datapath.send(frame) == Verdict("redirect", expected)


def test_the_padding_of_a_short_frame_is_not_quoted(datapath: Datapath) -> None:
    datapath.apply(services())
    frame = datapath.to_host(udp(CLIENT, VIP))
    expected = answer(datapath, frame, UNREACHABLE)
    padded = bytes(frame) + bytes(range(18))
    assert datapath.send(padded) == Verdict("redirect", expected)
    assert datapath.send_tc(padded) == Verdict("redirect", expected)


def test_a_persistent_service_and_one_by_mark_answer_alike(datapath: Datapath) -> None:
    datapath.apply("""
marks: [{mark: 7, address: 192.0.2.11, port: 80}]
services:
  - {protocol: tcp, address: 192.0.2.10, port: 80, persistence: 60}
  - {mark: 7, family: ipv4, persistence: 60}
""")
    for vip in ("192.0.2.10:80", "192.0.2.11:80"):
        frame = datapath.to_host(tcp(CLIENT, vip))
        assert datapath.send(frame) == Verdict("redirect", answer(datapath, frame, UNREACHABLE))
    assert datapath.persistence() == []


# ---------------------------------------------------------------------------------- the last hop


@pytest.mark.parametrize(
    ("packet", "error"),
    [
        (tcp(CLIENT, VIP), ICMP(type=11, code=0)),
        (tcp(CLIENT6, VIP6), ICMPv6TimeExceeded(code=0)),
    ],
    ids=["ipv4", "ipv6"],
)
def test_a_client_whose_packet_is_at_its_last_hop_is_told_so(
    datapath: Datapath, packet: Any, error: Any
) -> None:
    """Also where the connection is known, and by TC; it is made before the packet is sent."""
    datapath.apply(BOTH)
    for flags, states in (("S", ["SYN_RECV"]), ("A", ["ESTABLISHED"])):
        frame = datapath.to_host(packet.copy())
        frame[TCP].flags = flags
        setattr(frame.payload, "ttl" if IP in frame else "hlim", 1)
        expected = answer(datapath, frame, error)
        assert datapath.send(frame) == Verdict("redirect", expected)
        assert [row["state"] for row in datapath.connections()] == states
        assert datapath.send_tc(frame) == Verdict("redirect", expected)
    assert datapath.reasons() == {"ttl_exceeded": 4}


def test_a_ttl_of_0_is_at_its_last_hop_too(datapath: Datapath) -> None:
    datapath.apply(BOTH)
    packet = tcp(CLIENT, VIP)
    packet.ttl = 0
    frame = datapath.to_host(packet)
    expected = answer(datapath, frame, ICMP(type=11, code=0))
    assert datapath.send(frame) == Verdict("redirect", expected)


# --------------------------------------------------------------------------------------- too big


def test_a_client_whose_packet_is_too_big_is_told_the_mtu(datapath: Datapath) -> None:
    datapath.apply(BOTH)
    ip("link", "set", "lb1", "mtu", "1300")
    try:
        small, packet = filled(CLIENT, VIP, 1272), filled(CLIENT, VIP, 1273)
        for each in (small, packet):
            each[IP].flags = "DF"
        assert datapath.send_tc(datapath.to_host(small)).action == "redirect"
        for each, error in (
            (packet, ICMP(type=3, code=4, nexthopmtu=1300)),
            (filled(CLIENT6, VIP6, 1253), ICMPv6PacketTooBig(mtu=1300)),
        ):
            frame = datapath.to_host(each)
            expected = answer(datapath, frame, error)
            assert datapath.send_tc(frame) == Verdict("redirect", expected)
    finally:
        ip("link", "set", "lb1", "mtu", "1500")
    assert datapath.reasons() == {"forwarded": 1, "too_big": 2}


# ------------------------------------------------------------------------------ who gets no answer

NOBODY = ["0.0.0.0", "0.1.2.3", "127.0.0.1", "224.0.0.5", "240.0.0.1", "255.255.255.255"]
NOBODY6 = ["::", "::1", "ff02::1", "ff05::1:3"]


@pytest.mark.parametrize("source", NOBODY + NOBODY6)
def test_what_no_single_machine_can_have_sent_is_not_answered(
    datapath: Datapath, source: str
) -> None:
    datapath.apply(services())
    packet = tcp(CLIENT, VIP)
    if ":" in source:
        packet = tcp(CLIENT6, VIP6)
    packet.src = source
    frame = datapath.to_host(packet)
    assert datapath.send(frame) == Verdict("drop", bytes(frame))
    assert datapath.send_tc(frame) == Verdict("drop", bytes(frame))
    assert datapath.reasons() == {"no_backend": 2}


@pytest.mark.parametrize("virtual", ["224.1.2.3", "255.255.255.255"])
def test_what_is_sent_to_many_is_not_answered(datapath: Datapath, virtual: str) -> None:
    datapath.apply(f"""
settings: {{require_local: false}}
marks: [{{mark: 7, address: {virtual}, port: 80}}]
services: [{{mark: 7, family: ipv4}}]
""")
    frame = datapath.to_host(tcp(CLIENT, f"{virtual}:80"))
    assert datapath.send(frame) == Verdict("drop", bytes(frame))


def test_a_cpu_answers_so_many_at_once_and_so_many_a_second(datapath: Datapath) -> None:
    datapath.apply(services())
    datapath.advance(2)
    frame = datapath.to_host(tcp(CLIENT, VIP))

    def answered(packets: int) -> int:
        return sum(datapath.send(frame).action == "redirect" for _ in range(packets))

    # a jiffy may pass between two of them, and then brings more
    hz = datapath.balancer.schema.hz
    begun = datapath.balancer.clock()
    first = answered(3 * AT_ONCE)
    passed = datapath.balancer.clock() - begun
    assert AT_ONCE <= first <= min(AT_ONCE + (passed + 1) * A_SECOND // hz, 3 * AT_ONCE)
    assert datapath.reasons() == {"no_backend": 3 * AT_ONCE}


def test_where_xdp_cannot_send_tc_gets_the_packet_to_answer(datapath: Datapath) -> None:
    datapath.apply(services())
    schema, table = datapath.balancer.schema, datapath.balancer.map("interfaces")
    key, layout = records.number(datapath.ifindex["lb0"]), schema.values["interfaces"]
    row = table.look_up(key) or b""
    flags = layout.number(row, "flags") & ~schema.enums["interface_flag"]["transmit"]
    table.update(key, layout.encode(mac=layout.number(row, "mac"), flags=flags))
    try:
        frame = datapath.to_host(tcp(CLIENT, VIP))
        handover = {"reason": "no_backend", "mark": 0, "backend": 0, "service": 0}
        assert datapath.send(frame) == Verdict("pass", bytes(frame), handover)
    finally:
        table.update(key, row)
    assert datapath.reasons() == {}


def test_the_answer_goes_to_the_sender_of_the_frame(datapath: Datapath) -> None:
    datapath.apply(services())
    verdict = datapath.deliver(tcp(CLIENT, VIP))
    assert Ether(verdict.frame).dst == ROUTER_MAC


def test_a_real_interface_sends_the_answer_back_itself(datapath: Datapath) -> None:
    datapath.apply(services())
    frame = datapath.to_host(tcp(CLIENT, VIP))
    with datapath.taken_for_nic("lb0"):
        assert datapath.send(frame) == Verdict("tx", answer(datapath, frame, UNREACHABLE))
