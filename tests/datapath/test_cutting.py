"""IPv4 packets without DF that are too large for the road to their backend leave in fragments."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP, fragment
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Raw

from tests.datapath.harness import BACKENDS, ROUTER_MAC, Datapath, ip

CLIENT, VIP, BACKEND = "172.31.0.21", "192.0.2.10", "10.0.0.11"
MTU = 1000
OUTGOING = 4  # an AF_PACKET socket's word for what it sees leave


def services(forward: str, more: str = "") -> str:
    port = ", port: 8080" if forward == "nat" else ""
    return f"""
services:
  - {{protocol: tcp, address: {VIP}, port: 80, forward: {forward},
     backends: [{{address: {BACKEND}{port}}}]}}
  - {{protocol: udp, address: {VIP}, port: 80, forward: {forward},
     backends: [{{address: {BACKEND}{port}}}]}}
{more}"""


@pytest.fixture
def narrow(datapath: Datapath) -> Iterator[Datapath]:
    """The road to the backends takes 1000 bytes."""
    ip("route", "add", f"{BACKEND}/32", "dev", "lb1", "mtu", "lock", str(MTU))
    try:
        yield datapath
    finally:
        ip("route", "del", f"{BACKEND}/32")


@contextlib.contextmanager
def watched() -> Iterator[socket.socket]:
    """What leaves for the backends, but for the last fragment, which a test run keeps."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as wire:
        wire.bind(("lb1p", 3))
        wire.setblocking(False)
        yield wire


def taken(wire: socket.socket) -> list[bytes]:
    frames = []
    with contextlib.suppress(BlockingIOError):
        while True:
            data, (_, _, direction, *_) = wire.recvfrom(65536)
            if direction != OUTGOING and data[12:14] == b"\x08\x00":
                frames.append(data)
    return frames


def cut(datapath: Datapath, packet: Any, tags: Any = None) -> list[IP]:
    """The fragments that leave of a packet; each is as large as it may be, and none larger."""
    frame = Ether(src=ROUTER_MAC, dst=datapath.mac["lb0"])
    frame = frame / tags / packet if tags else frame / packet
    with watched() as wire:
        got = datapath.send_tc(frame)
        frames = [*taken(wire), got.frame]
    assert got.action == "redirect", datapath.reasons()
    link = bytes(Ether(src=datapath.mac["lb1"], dst=BACKENDS[BACKEND]) / IP())[:14]
    assert {each[:14] for each in frames} == {link}
    return [IP(each[14:]) for each in frames]


def packet(payload: int, protocol: str = "udp", hops: int = 64, **fields: Any) -> Any:
    transport = UDP(sport=1001, dport=80) if protocol == "udp" else TCP(sport=1001, dport=80)
    body = Raw(bytes(n % 251 for n in range(payload)))
    return IP(bytes(IP(src=CLIENT, dst=VIP, ttl=hops, id=9, **fields) / transport / body))


def is_whole(pieces: list[IP], expected: Any) -> None:
    """They are what a sender would have made of the expected packet."""
    wanted = fragment(expected, (MTU - 20) // 8 * 8)
    assert [bytes(each) for each in pieces] == [bytes(IP(bytes(each))) for each in wanted]


@pytest.mark.parametrize("payload", [973, 1000, 1944, 1945, 3400])
def test_dr_cuts_what_may_be_cut(narrow: Datapath, payload: int) -> None:
    narrow.apply(services("dr"))
    sent = packet(payload)
    assert len(sent) > MTU
    assert narrow.deliver(sent).action == "pass"
    pieces = cut(narrow, sent)
    is_whole(pieces, packet(payload, hops=63))
    assert narrow.reasons() == {"forwarded": 1}
    assert narrow.backends()[BACKEND]["bytes"] == len(sent)


def test_a_packet_of_1040_bytes_becomes_996_and_64(narrow: Datapath) -> None:
    """As IPVS was seen to do."""
    narrow.apply(services("dr"))
    assert [each.len for each in cut(narrow, packet(1000, "tcp", flags=0))] == [996, 64]


def test_nat_cuts_after_it_has_translated(narrow: Datapath) -> None:
    narrow.apply(services("nat"))
    sent = packet(3000)
    expected = packet(3000, hops=63)
    expected.dst, expected[UDP].dport = BACKEND, 8080
    del expected.chksum, expected[UDP].chksum
    is_whole(cut(narrow, sent), IP(bytes(expected)))


def test_nat_gives_a_datagram_its_checksum_before_it_is_cut(narrow: Datapath) -> None:
    narrow.apply(services("nat"))
    sent = packet(3000)
    sent[UDP].chksum = 0
    expected = packet(3000, hops=63)
    expected.dst, expected[UDP].dport = BACKEND, 8080
    del expected.chksum, expected[UDP].chksum
    is_whole(cut(narrow, IP(bytes(sent))), IP(bytes(expected)))


@pytest.mark.parametrize("kind", ["ipip", "{type: gue, port: 6080}", "{type: gre, checksum: csum}"])
def test_a_tunnels_own_packet_is_cut_and_what_is_inside_stays_whole(
    narrow: Datapath, kind: str
) -> None:
    narrow.apply(services("tunnel").replace("tunnel,", f"tunnel, tunnel: {kind},"))
    inner = packet(1900, hops=63)
    pieces = cut(narrow, packet(1900))
    whole = b"".join(bytes(each.payload) for each in pieces)
    assert whole.endswith(bytes(inner))
    assert {(each.src, each.dst, each.id) for each in pieces} == {
        ("10.0.0.1", BACKEND, pieces[0].id)
    }
    assert [int(each.frag) for each in pieces] == [0, 122, 244][: len(pieces)]
    assert [bool(each.flags.MF) for each in pieces] == [True] * (len(pieces) - 1) + [False]
    for each in pieces:
        sum_found, each.chksum = each.chksum, None
        assert IP(bytes(each)).chksum == sum_found


def test_a_packet_of_1000_bytes_by_ipip_becomes_996_and_44(narrow: Datapath) -> None:
    """As IPVS was seen to do."""
    narrow.apply(services("tunnel"))
    assert [each.len for each in cut(narrow, packet(960, "tcp", flags=0))] == [996, 44]


def test_a_fragment_that_is_too_large_is_cut_again(narrow: Datapath) -> None:
    narrow.apply(services("dr"))
    whole, pieces = packet(3000), []
    for each in fragment(whole, 1480):
        sent = IP(bytes(each))
        pieces += cut(narrow, sent) if len(sent) > MTU else [IP(narrow.deliver(sent).frame[14:])]
    joined = sorted((int(each.frag) * 8, bytes(each.payload)) for each in pieces)
    assert b"".join(body for _, body in joined) == bytes(whole.payload)
    assert [at for at, _ in joined] == [
        sum(len(b) for _, b in joined[:n]) for n in range(len(joined))
    ]
    assert [bool(each.flags.MF) for each in pieces].count(False) == 1


@pytest.mark.parametrize("tags", [Dot1Q(vlan=5), Dot1Q(vlan=5) / Dot1Q(vlan=6)])
def test_tags_of_the_road_in_go(narrow: Datapath, tags: Any) -> None:
    narrow.apply(services("dr"))
    is_whole(cut(narrow, packet(1500), tags), packet(1500, hops=63))


@pytest.mark.parametrize("forward", ["dr", "nat", "tunnel"])
def test_what_must_not_be_cut_is_answered(narrow: Datapath, forward: str) -> None:
    narrow.apply(services(forward))
    got = narrow.send_tc(narrow.to_host(packet(1200, "tcp", flags="DF")))
    back = Ether(got.frame)
    assert (back[ICMP].type, back[ICMP].code) == (3, 4)
    assert back[ICMP].nexthopmtu == (MTU - 20 if forward == "tunnel" else MTU)
    assert narrow.reasons() == {"too_big": 1}


def test_without_pmtu_disc_a_tunnels_packet_never_has_df_and_is_cut(narrow: Datapath) -> None:
    """IPVS's pmtu_disc: 0."""
    narrow.apply(services("tunnel"))
    narrow.apply(services("tunnel", "settings: {pmtu_disc: false}"))
    fits = packet(100, "tcp", flags="DF")
    for _ in range(2):
        header = IP(narrow.deliver(fits).frame[14:])
        assert (header.flags.DF, header.payload.flags.DF) == (False, True)
    assert IP(narrow.send_tc(narrow.to_host(fits)).frame[14:]).flags.DF is False
    pieces = cut(narrow, packet(960, "tcp", flags="DF"))
    assert [each.len for each in pieces] == [996, 44]
    narrow.apply(services("tunnel"))
    assert IP(narrow.deliver(fits).frame[14:]).flags.DF is True


def test_what_has_options_is_dropped(narrow: Datapath) -> None:
    narrow.apply(services("dr"))
    with watched() as wire:
        got = narrow.send_tc(narrow.to_host(packet(1200, options=[IPOption_NOP()] * 4)))
        assert (got.action, taken(wire)) == ("drop", [])
    assert narrow.reasons() == {"too_big": 1}
