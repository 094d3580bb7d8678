"""tunnel: whole frames to the backend, outer headers reckoned anew by scapy."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6
from scapy.layers.l2 import GRE, Dot1Q, Ether
from scapy.layers.sctp import SCTP, SCTPChunkData, SCTPChunkInit
from scapy.packet import Raw

from lvsxdp import daemon, tunnels
from tests.datapath.harness import BACKENDS, ROUTER_MAC, Datapath, Verdict, ip

CLIENT = {4: "172.31.0.21", 6: "2001:db8:0:1::21"}
VIP = {4: "192.0.2.10", 6: "2001:db8::10"}
BACKEND = {4: "10.0.0.11", 6: "2001:db8:0:2::11"}
OWN = {4: "10.0.0.1", 6: "2001:db8:0:2::1"}
PROTOCOLS: dict[str, Any] = {"tcp": TCP, "udp": UDP, "sctp": SCTP}
GUE_PORT = 6080
NUMBERS = {4: 4, 6: 41}
ETHERNET = {4: 0x0800, 6: 0x86DD}


@dataclasses.dataclass(frozen=True)
class Kind:
    """A tunnel from the family of a service to that of its backend."""

    inner: int
    outer: int
    type: str = "ipip"
    checksum: str = "nocsum"
    protocol: str = "tcp"

    @property
    def text(self) -> str:
        """The configuration."""
        port = f", port: {GUE_PORT}" if self.type == "gue" else ""
        return f"""
services:
  - protocol: {self.protocol}
    address: "{VIP[self.inner]}"
    port: 80
    forward: tunnel
    tunnel: {{type: {self.type}, checksum: {self.checksum}{port}}}
    backends: [{{address: "{BACKEND[self.outer]}"}}]
"""

    def packet(self, hops: int = 64, service: int = 0x2B, **fields: Any) -> Any:
        """What the client sends, or with less hops what the backend is to find inside."""
        payload = fields.pop("payload", b"odd bytes")
        fragment = fields.pop("flags4", "DF")
        source, destination = CLIENT[self.inner], VIP[self.inner]
        layer: Any = (
            IP(src=source, dst=destination, ttl=hops, tos=service, id=0x1234, flags=fragment)
            if self.inner == 4
            else IPv6(src=source, dst=destination, hlim=hops, tc=service, fl=0xABCDE)
        )
        return layer / PROTOCOLS[self.protocol](sport=1001, dport=80, **fields) / payload

    def first(self) -> Any:
        """What opens a connection."""
        if self.protocol == "sctp":
            return self.packet(payload=SCTPChunkInit())
        opening: dict[str, Any] = {"flags": "S"} if self.protocol == "tcp" else {}
        return self.packet(**opening)

    def later(self, **fields: Any) -> Any:
        """What follows."""
        if self.protocol == "sctp":
            return self.packet(payload=SCTPChunkData(data=b"odd bytes"), **fields)
        more: dict[str, Any] = {"flags": "PA"} if self.protocol == "tcp" else {}
        return self.packet(**more, **fields)

    def shim(self, frame: bytes, inner: bytes) -> Any:
        """What stands between the outer IP header and the packet; gue's source port as it is."""
        if self.type == "gue":
            start = 14 + (20 if self.outer == 4 else 40)
            sport = int.from_bytes(frame[start : start + 2], "big")
            udp = UDP(sport=sport, dport=GUE_PORT)
            if self.checksum == "nocsum":
                udp.chksum = 0
            return udp / Raw(bytes([0, NUMBERS[self.inner], 0, 0]) + inner)
        if self.type == "gre":
            return GRE(
                chksum_present=int(self.checksum == "csum"), proto=ETHERNET[self.inner]
            ) / Raw(inner)
        return Raw(inner)

    def outer_header(self, frame: bytes, inner: Any, service: int, ttl: int) -> Any:
        """The outer IP header, by IPVS's rules; a random identification as it is."""
        number = {"gue": 17, "gre": 47, "ipip": NUMBERS[self.inner]}[self.type]
        if self.outer == 6:
            return IPv6(src=OWN[6], dst=BACKEND[6], nh=number, hlim=ttl, tc=service, fl=0)
        is_whole = self.inner == 4 and inner.flags.DF
        identity = 0 if is_whole else int.from_bytes(frame[18:20], "big")
        flags = "DF" if is_whole else 0
        header = IP(src=OWN[4], dst=BACKEND[4], proto=number, flags=flags, id=identity)
        header.ttl, header.tos = ttl, service
        return header

    def expected(
        self, datapath: Datapath, frame: bytes, sent: Any, *, service: int = 0x2A, ttl: int = 63
    ) -> bytes:
        """The frame that the backend is to get of what was sent."""
        inner = sent.copy()
        if self.inner == 4:
            inner.ttl = ttl
        else:
            inner.hlim = ttl
        header = self.outer_header(frame, inner, service, ttl)
        link = Ether(src=datapath.mac["lb1"], dst=BACKENDS[BACKEND[self.outer]])
        return bytes(link / header / self.shim(frame, bytes(inner)))


KINDS = [
    Kind(inner, outer, kind, checksum, protocol)
    for inner in (4, 6)
    for outer in (4, 6)
    for kind, checksum in (
        ("ipip", "nocsum"),
        ("gue", "nocsum"),
        ("gue", "csum"),
        ("gre", "nocsum"),
        ("gre", "csum"),
    )
    for protocol in PROTOCOLS
]
# Where a packet meets programs that differ.
SOME = [Kind(4, 4), Kind(6, 6), Kind(4, 6), Kind(6, 4, "gue", "csum"), Kind(4, 4, "gre", "csum")]


def is_sent(verdict: Verdict, expected: bytes, *, by_kernel: bool = False) -> None:
    """The frame leaves; in TC the kernel writes its Ethernet header later."""
    start = 14 if by_kernel else 0
    assert (verdict.action, verdict.frame[start:]) == ("redirect", expected[start:])


def both(datapath: Datapath, kind: Kind, sent: Any, **outer: int) -> None:
    """XDP and TC send the packet on as it has to be."""
    got = datapath.deliver(sent)
    is_sent(got, kind.expected(datapath, got.frame, sent, **outer))
    got = datapath.send_tc(datapath.to_host(sent))
    is_sent(got, kind.expected(datapath, got.frame, sent, **outer), by_kernel=True)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_packet_is_wrapped_as_ipvs_does(datapath: Datapath, kind: Kind) -> None:
    datapath.apply(kind.text)
    for sent in (kind.first(), kind.later(), kind.later()):
        got = datapath.deliver(sent)
        is_sent(got, kind.expected(datapath, got.frame, sent))
    for sent in (kind.later(), kind.later(hops=2)):
        got = datapath.send_tc(datapath.to_host(sent))
        ttl = (sent.ttl if kind.inner == 4 else sent.hlim) - 1
        is_sent(got, kind.expected(datapath, got.frame, sent, ttl=ttl), by_kernel=True)
    assert datapath.reasons() == {"forwarded": 5}
    row = datapath.backends()[BACKEND[kind.outer]]
    lengths = [len(kind.first())] + 4 * [len(kind.later())]
    assert (row["connections"], row["packets"], row["bytes"]) == (1, 5, sum(lengths))


@pytest.mark.parametrize("kind", [k for k in KINDS if k.protocol == "udp"], ids=str)
@pytest.mark.parametrize("payload", [b"", b"odd bytes", b"x" * 1300])
def test_udp_without_a_checksum_stays_without(
    datapath: Datapath, kind: Kind, payload: bytes
) -> None:
    datapath.apply(kind.text)
    for _ in range(2):
        sent = kind.packet(chksum=0, payload=payload)
        got = datapath.deliver(sent)
        is_sent(got, kind.expected(datapath, got.frame, sent))
    both(datapath, kind, sent)


@pytest.mark.parametrize("kind", SOME, ids=str)
@pytest.mark.parametrize(
    ("service", "outer"), [(0, 0), (0x28, 0x28), (0xB9, 0xB9), (0xBA, 0xBA), (0xBB, 0xBA)]
)
def test_service_and_congestion_bits_follow(
    datapath: Datapath, kind: Kind, service: int, outer: int
) -> None:
    datapath.apply(kind.text)
    datapath.deliver(kind.first())
    sent = kind.later(service=service)
    both(datapath, kind, sent, service=outer)


@pytest.mark.parametrize("kind", SOME, ids=str)
def test_a_packet_that_may_be_cut_gets_an_identification(datapath: Datapath, kind: Kind) -> None:
    datapath.apply(kind.text)
    datapath.deliver(kind.first())
    found = set()
    for _ in range(8):
        sent = kind.later(flags4=0)
        got = datapath.deliver(sent)
        is_sent(got, kind.expected(datapath, got.frame, sent))
        found.add(got.frame[18:20])
    assert kind.outer == 6 or len(found) > 4


@pytest.mark.parametrize("kind", SOME, ids=str)
@pytest.mark.parametrize("tags", [1, 2])
def test_tags_of_the_road_in_go(datapath: Datapath, kind: Kind, tags: int) -> None:
    datapath.apply(kind.text)
    datapath.deliver(kind.first())
    tag = Dot1Q(vlan=4095) / Dot1Q(vlan=4095) if tags == 2 else Dot1Q(vlan=4095)
    sent = kind.later()
    frame = Ether(src=ROUTER_MAC, dst=datapath.mac["lb0"]) / tag / sent
    got = datapath.send(frame)
    is_sent(got, kind.expected(datapath, got.frame, sent))
    got = datapath.send_tc(frame)
    is_sent(got, kind.expected(datapath, got.frame, sent), by_kernel=True)


@pytest.mark.parametrize("kind", SOME, ids=str)
def test_a_tag_of_the_road_out_comes(datapath: Datapath, kind: Kind) -> None:
    datapath.apply(kind.text)
    with datapath.taken_for_vlan("lb1", "lb0", 7):
        datapath.later(2)
        for sent in (kind.first(), kind.later()):
            got = datapath.deliver(sent)
            plain = got.frame[:12] + got.frame[16:]
            assert got.frame[12:16] == bytes.fromhex("81000007")
            assert plain == kind.expected(datapath, plain, sent)


def test_a_flow_keeps_its_source_port_and_others_have_others(datapath: Datapath) -> None:
    kind = Kind(4, 4, "gue", protocol="udp")
    datapath.apply(kind.text)
    first, count = tunnels.local_ports()
    ports: dict[int, set[int]] = {}
    for client in range(1024, 1056):
        sent = kind.packet()
        sent[UDP].sport = client
        for verdict in (datapath.deliver(sent), datapath.send_tc(datapath.to_host(sent))):
            port = int.from_bytes(verdict.frame[34:36], "big")
            assert first <= port < first + count
            ports.setdefault(client, set()).add(port)
    assert all(len(found) == 1 for found in ports.values())
    assert len(set.union(*ports.values())) > 24


@pytest.mark.parametrize("outer", [4, 6])
def test_the_outer_source_can_be_given(datapath: Datapath, outer: int) -> None:
    kind = Kind(4, outer)
    source = {4: "198.51.100.1", 6: "2001:db8:99::1"}[outer]
    datapath.apply(kind.text.replace("type: ipip", f'type: ipip, source: "{source}"'))
    for sent in (kind.first(), kind.later()):
        got = datapath.deliver(sent)
        assert (IP if outer == 4 else IPv6)(got.frame[14:]).src == source


def test_the_outer_source_follows_the_routes(datapath: Datapath) -> None:
    kind = Kind(4, 4)
    datapath.apply(kind.text)
    datapath.deliver(kind.first())
    ip("addr", "add", "10.0.0.2/24", "dev", "lb1")
    ip("route", "add", "10.0.0.11/32", "dev", "lb1", "src", "10.0.0.2")
    try:
        daemon._sweep_once(datapath.balancer.where, None, False, lambda _: None)
        assert IP(datapath.deliver(kind.later()).frame[14:]).src == "10.0.0.2"
    finally:
        ip("route", "del", "10.0.0.11/32")
        ip("addr", "del", "10.0.0.2/24", "dev", "lb1")
    datapath.apply(kind.text)
    assert IP(datapath.deliver(kind.later()).frame[14:]).src == "10.0.0.1"


def test_a_change_of_the_tunnel_holds_for_connections_that_are_there(datapath: Datapath) -> None:
    kind, other = Kind(4, 4), Kind(4, 4, "gre", "csum")
    datapath.apply(kind.text)
    datapath.deliver(kind.first())
    datapath.apply(other.text)
    sent = other.later()
    got = datapath.deliver(sent)
    is_sent(got, other.expected(datapath, got.frame, sent))


def test_a_change_of_the_method_holds_for_new_connections(datapath: Datapath) -> None:
    kind = Kind(4, 4)
    datapath.apply(kind.text.replace("forward: tunnel", "forward: dr").replace("tunnel:", "#"))
    datapath.deliver(kind.first())
    datapath.apply(kind.text)
    sent = kind.later()
    assert len(datapath.deliver(sent).frame) == 14 + len(sent)
    sent[TCP].sport, sent[TCP].flags = 1002, "S"
    got = datapath.deliver(sent)
    is_sent(got, kind.expected(datapath, got.frame, sent))


@pytest.mark.parametrize("kind", SOME, ids=str)
def test_a_backend_that_is_this_host_has_the_packet_as_it_came(
    datapath: Datapath, kind: Kind
) -> None:
    local = {4: "192.0.2.11", 6: "2001:db8::11"}[kind.outer]
    datapath.apply(kind.text.replace(BACKEND[kind.outer], local))
    for sent in (kind.first(), kind.later()):
        for got in (datapath.deliver(sent), datapath.send_tc(datapath.to_host(sent))):
            assert (got.action, got.frame) == ("pass", bytes(datapath.to_host(sent)))
    assert datapath.reasons() == {"local_backend": 4}


@pytest.mark.parametrize("kind", [*SOME, *(k for k in KINDS if k.type == "gue")], ids=str)
def test_what_gets_too_big_on_its_way_is_answered_with_what_is_left_of_the_road(
    datapath: Datapath, kind: Kind
) -> None:
    overhead = len(kind.shim(bytes(100), b"")) + (20 if kind.outer == 4 else 40)
    datapath.apply(kind.text)
    datapath.deliver(kind.first())
    room = 1500 - overhead - len(kind.later(payload=b"")) if kind.protocol != "sctp" else 0
    if kind.protocol == "sctp":
        return
    fits = kind.later(payload=bytes(room))
    got = datapath.deliver(fits)
    is_sent(got, kind.expected(datapath, got.frame, fits))
    over = kind.later(payload=bytes(room + 1))
    assert datapath.deliver(over).handover is not None
    got = datapath.send_tc(datapath.to_host(over))
    back = Ether(got.frame)
    assert (got.action, back.dst) == ("redirect", ROUTER_MAC)
    if kind.inner == 4:
        assert (back[IP].src, back[ICMP].type, back[ICMP].code) == (VIP[4], 3, 4)
        assert back[ICMP].nexthopmtu == 1500 - overhead
    else:
        assert (back[IPv6].src, back[IPv6].payload.type) == (VIP[6], 2)
        assert back[IPv6].payload.mtu == 1500 - overhead


@pytest.mark.parametrize("kind", SOME, ids=str)
def test_a_packet_at_its_end_is_answered(datapath: Datapath, kind: Kind) -> None:
    datapath.apply(kind.text)
    datapath.deliver(kind.first())
    for got in (
        datapath.deliver(kind.later(hops=1)),
        datapath.send_tc(datapath.to_host(kind.later(hops=1))),
    ):
        back = Ether(got.frame)
        assert back.dst == ROUTER_MAC
        assert (back[ICMP].type if kind.inner == 4 else back[IPv6].payload.type) in (11, 3)
    assert datapath.reasons() == {"forwarded": 1, "ttl_exceeded": 2}


@pytest.mark.parametrize("kind", SOME, ids=str)
def test_an_error_about_what_a_client_was_sent_goes_through_the_tunnel_whole(
    datapath: Datapath, kind: Kind
) -> None:
    datapath.apply(kind.text)
    datapath.deliver(kind.first())
    quoted = kind.packet(payload=b"a long answer")
    quoted.src, quoted.dst = VIP[kind.inner], CLIENT[kind.inner]
    quoted[TCP].sport, quoted[TCP].dport = 80, 1001
    for outside in (ICMP(type=3, code=1), ICMP(type=11)) if kind.inner == 4 else ():
        header = IP(src="198.51.100.254", dst=VIP[4], ttl=64, id=9, tos=0)
        sent = IP(bytes(header / outside / Raw(bytes(quoted))))
        sent.chksum = None
        both(datapath, kind, sent, service=0)


def test_without_a_road_a_packet_is_dropped(datapath: Datapath) -> None:
    kind = Kind(4, 6)
    datapath.apply(kind.text.replace(BACKEND[6], "2001:db8:77::1"))
    assert datapath.deliver(kind.first()).action == "drop"
    assert datapath.reasons() == {"no_route": 1}


# ---- the way's MTU ----

ROUTER = {4: "198.51.100.254", 6: "2001:db8:9::fe"}


def complaint(kind: Kind, outer: bytes, mtu: int, length: int | None = None) -> Any:
    """What a router says of the tunnel's own packet, to whom sent that."""
    quoted = Raw(outer[:length])
    if kind.outer == 4:
        error = ICMP(type=3, code=4, nexthopmtu=mtu)
        return IP(src=ROUTER[4], dst=OWN[4]) / error / quoted
    return IPv6(src=ROUTER[6], dst=OWN[6]) / ICMPv6PacketTooBig(mtu=mtu) / quoted


def told(datapath: Datapath, kind: Kind, size: int) -> int | None:
    """The MTU that a client hears of whose packet is so large; None where it goes its way."""
    sent = kind.later(payload=bytes(size - len(kind.later(payload=b""))))
    there = datapath.deliver(sent)
    if there.action == "redirect" and there.frame[:6].hex(":") != ROUTER_MAC:
        assert datapath.send_tc(datapath.to_host(sent)).frame[:6].hex(":") != ROUTER_MAC
        return None
    back = Ether(datapath.send_tc(datapath.to_host(sent)).frame)
    return int(back[ICMP].nexthopmtu if kind.inner == 4 else back[ICMPv6PacketTooBig].mtu)


def to_own(datapath: Datapath, packet: Any) -> Any:
    return Ether(src=ROUTER_MAC, dst=datapath.mac["lb1"]) / packet


LEARNT = [k for k in KINDS if k.protocol == "tcp"]


@pytest.mark.parametrize("kind", LEARNT, ids=str)
@pytest.mark.parametrize("by_kernel", [False, True])
def test_a_router_that_takes_less_is_heard_and_its_word_passed_on(
    datapath: Datapath, kind: Kind, by_kernel: bool
) -> None:
    datapath.apply(kind.text)
    outer = datapath.deliver(kind.first()).frame[14:]
    overhead = len(outer) - len(kind.first())
    assert told(datapath, kind, 1410) is None
    frame = to_own(datapath, complaint(kind, outer, 1400))
    got = datapath.send_tc(frame, "lb1") if by_kernel else datapath.send(frame, "lb1")
    # the host has it, too
    assert (got.action, got.frame) == ("pass", bytes(frame))
    assert told(datapath, kind, 1410) == 1400 - overhead
    assert told(datapath, kind, 1400 - overhead) is None
    assert told(datapath, kind, 1400 - overhead + 1) == 1400 - overhead
    # for ten minutes
    for _ in range(3):
        datapath.later(200)
        datapath.deliver(kind.later())
    datapath.later(1)
    assert told(datapath, kind, 1410) is None


@pytest.mark.parametrize("kind", SOME, ids=str)
def test_what_quotes_no_packet_of_ours_is_not_believed(datapath: Datapath, kind: Kind) -> None:
    datapath.apply(kind.text)
    outer = datapath.deliver(kind.first()).frame[14:]
    head = 20 if kind.outer == 4 else 40
    inner = len(outer) - len(kind.first())
    ports = inner + (20 if kind.inner == 4 else 40)
    changed = (
        # another backend's, another source's, another client's, another port's
        outer[: head - 1] + b"\xee" + outer[head:],
        outer[: head - (5 if kind.outer == 4 else 17)]
        + b"\xee"
        + outer[head - (4 if kind.outer == 4 else 16) :],
        outer[:ports] + b"\xee\xee" + outer[ports + 2 :],
        outer[: head + 8] if kind.type == "ipip" else outer[: inner + 8],
    )
    for each in changed:
        frame = to_own(datapath, complaint(kind, each, 1400))
        assert datapath.send(frame, "lb1").action == "pass"
    assert told(datapath, kind, 1410) is None


@pytest.mark.parametrize(("kind", "least"), [(Kind(4, 4), 552 - 20), (Kind(4, 6), 1280 - 40)])
def test_no_router_makes_the_way_smaller_than_any_is(
    datapath: Datapath, kind: Kind, least: int
) -> None:
    datapath.apply(kind.text)
    outer = datapath.deliver(kind.first()).frame[14:]
    datapath.send(to_own(datapath, complaint(kind, outer, 68)), "lb1")
    assert told(datapath, kind, 1410) == least
