"""Every reason: which packets are balanced, passed up untouched, or dropped, each counted once."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP, IPOption_Router_Alert
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.packet import Raw

from lvsxdp import maps
from tests.datapath.harness import (
    BACKENDS,
    ROUTER_MAC,
    UNREACHABLE_METRIC,
    Datapath,
    Verdict,
    ip,
    tcp,
    udp,
)

TC_ACT_UNSPEC = 2**32 - 1
BACKEND = "10.0.0.11"
BACKEND6 = "2001:db8:0:2::11"
CLIENT = "198.51.100.7:1001"
VIP = "192.0.2.10:80"
VIP6 = "[2001:db8::10]:53"
WEB = """
services:
  - {protocol: tcp, address: 192.0.2.10, port: 80, scheduler: rr, backends: [{address: 10.0.0.11}]}
"""
DNS = """
services:
  - protocol: udp
    address: "2001:db8::10"
    port: 53
    backends: [{address: "2001:db8:0:2::11"}]
"""
FTP = """
services:
  - {protocol: tcp, address: 192.0.2.10, port: 21, backends: [{address: 10.0.0.11}]}
"""
FTP_PERSISTENT = FTP.replace("port: 21,", "port: 21, persistence: 60,")
ANY_PORT = FTP.replace("port: 21,", "port: any, persistence: 60,")


def outcome(datapath: Datapath, frame: Any) -> tuple[Verdict, dict[str, int]]:
    """What became of a frame, and all that is counted."""
    verdict = datapath.send(frame)
    return verdict, datapath.reasons()


def passed(frame: Any, reason: str) -> tuple[Verdict, dict[str, int]]:
    """The outcome of a frame that goes up byte for byte as it came."""
    return Verdict("pass", bytes(frame)), {reason: 1}


def dropped(frame: Any, reason: str) -> tuple[Verdict, dict[str, int]]:
    """The outcome of a frame that is dropped as it came."""
    return Verdict("drop", bytes(frame)), {reason: 1}


def forwarded(
    datapath: Datapath, packet: Any, backend: str = BACKEND, padding: bytes = b""
) -> tuple[Verdict, dict[str, int]]:
    """The outcome of a packet that goes to a backend on lb1 with one hop less."""
    aged = packet.copy()
    if isinstance(aged, IPv6):
        aged.hlim -= 1
    else:
        aged.ttl -= 1
    frame = Ether(src=datapath.mac["lb1"], dst=BACKENDS[backend]) / aged
    return Verdict("redirect", bytes(frame) + padding), {"forwarded": 1}


def ids(datapath: Datapath, service: str, backend: str) -> dict[str, int]:
    """The ids by which a handover names a backend and its service."""
    place = datapath.balancer.state.book.services[service]
    return {"backend": place.backends[backend].id, "service": place.id}


# ----------------------------------------------------------------------------- what is not ours


def test_arp_goes_up_untouched(datapath: Datapath) -> None:
    datapath.apply(WEB)
    frame = Ether(src=ROUTER_MAC, dst="ff:ff:ff:ff:ff:ff") / ARP(pdst="192.0.2.10")
    assert outcome(datapath, frame) == passed(frame, "not_ip")


def test_a_third_tag_goes_up_untouched(datapath: Datapath) -> None:
    datapath.apply(WEB)
    tags = Dot1Q(vlan=1) / Dot1Q(vlan=2) / Dot1Q(vlan=3)
    frame = datapath.to_host(tags / tcp(CLIENT, VIP))
    assert outcome(datapath, frame) == passed(frame, "not_ip")


@pytest.mark.parametrize(
    "packet",
    [
        IP(src="198.51.100.7", dst="192.0.2.10") / ICMP(),
        IP(src="198.51.100.7", dst="192.0.2.10", proto=47) / Raw(b"\0" * 8),
        IPv6(src="2001:db8:1::7", dst="2001:db8::10") / ICMPv6EchoRequest(),
    ],
    ids=["ping", "gre", "ping6"],
)
def test_what_is_of_another_protocol_goes_up_untouched(datapath: Datapath, packet: Any) -> None:
    datapath.apply(WEB)
    frame = datapath.to_host(packet)
    assert outcome(datapath, frame) == passed(frame, "other_protocol")


@pytest.mark.parametrize(
    "packet",
    [
        IP(src="198.51.100.7", dst="192.0.2.200", flags="MF")
        / TCP(sport=1001, dport=80, flags="S"),
        IP(src="198.51.100.7", dst="192.0.2.200", flags="MF", frag=3, proto=6) / Raw(b"x" * 24),
        IP(src="198.51.100.7", dst="192.0.2.200", frag=3, proto=6) / Raw(b"x" * 24),
        IP(src="198.51.100.7", dst="192.0.2.200", frag=0x1000, proto=17) / Raw(b"x" * 3),
        IPv6(src="2001:db8:1::7", dst="2001:db8::200")
        / IPv6ExtHdrFragment(m=1, id=9)
        / UDP(sport=5000, dport=53),
        IPv6(src="2001:db8:1::7", dst="2001:db8::200")
        / IPv6ExtHdrFragment(offset=3, id=9, nh=17)
        / Raw(b"x" * 24),
        IPv6(src="2001:db8:1::7", dst="2001:db8::200")
        / IPv6ExtHdrHopByHop()
        / IPv6ExtHdrFragment(id=9)
        / UDP(sport=5000, dport=53),
    ],
    ids=["first", "middle", "last", "far-last-udp", "ipv6-first", "ipv6-last", "ipv6-after-hbh"],
)
def test_fragments_of_what_is_not_balanced_go_up_byte_for_byte(
    datapath: Datapath, packet: Any
) -> None:
    datapath.apply(WEB)
    frame = datapath.to_host(packet)
    assert outcome(datapath, frame) == passed(frame, "fragment")


def test_an_ipv4_packet_that_must_not_be_fragmented_is_no_fragment(datapath: Datapath) -> None:
    datapath.apply(WEB)
    packet = tcp(CLIENT, VIP)
    packet[IP].flags = "DF"
    assert outcome(datapath, datapath.to_host(packet)) == forwarded(datapath, packet)


# ------------------------------------------------------------------------- options and headers


@pytest.mark.parametrize(
    "options",
    [[IPOption_NOP()] * 4, [IPOption_Router_Alert()], [IPOption_NOP()] * 40],
    ids=["24-bytes", "router-alert", "60-bytes"],
)
def test_ipv4_options_do_not_keep_a_packet_from_its_backend(
    datapath: Datapath, options: list[Any]
) -> None:
    datapath.apply(WEB)
    packet = IP(src="198.51.100.7", dst="192.0.2.10", options=options)
    packet /= TCP(sport=1001, dport=80, flags="S")
    assert outcome(datapath, datapath.to_host(packet)) == forwarded(datapath, packet)


EXTENSIONS: dict[str, Callable[[], Any]] = {
    "hop-by-hop": IPv6ExtHdrHopByHop,
    "destination": IPv6ExtHdrDestOpt,
    "routing": lambda: IPv6ExtHdrRouting(addresses=["2001:db8::77"], segleft=0),
    "all-three": lambda: IPv6ExtHdrHopByHop() / IPv6ExtHdrRouting(segleft=0) / IPv6ExtHdrDestOpt(),
    "five": lambda: IPv6ExtHdrHopByHop() / fourfold_destination_options(),
}


def fourfold_destination_options() -> Any:
    """Four headers of destination options in a row."""
    return IPv6ExtHdrDestOpt() / IPv6ExtHdrDestOpt() / IPv6ExtHdrDestOpt() / IPv6ExtHdrDestOpt()


@pytest.mark.parametrize("extensions", EXTENSIONS.values(), ids=EXTENSIONS.keys())
def test_ipv6_extension_headers_do_not_keep_a_packet_from_its_backend(
    datapath: Datapath, extensions: Callable[[], Any]
) -> None:
    datapath.apply(DNS)
    packet = IPv6(src="2001:db8:1::7", dst="2001:db8::10") / extensions()
    packet /= UDP(sport=5000, dport=53) / b"?"
    assert outcome(datapath, datapath.to_host(packet)) == forwarded(datapath, packet, BACKEND6)


def test_six_extension_headers_are_left_to_the_kernel(datapath: Datapath) -> None:
    datapath.apply(DNS)
    packet = IPv6(src="2001:db8:1::7", dst="2001:db8::10") / IPv6ExtHdrHopByHop()
    packet /= fourfold_destination_options() / IPv6ExtHdrDestOpt() / UDP(sport=5000, dport=53)
    frame = datapath.to_host(packet)
    assert outcome(datapath, frame) == passed(frame, "other_protocol")


def cut(length: int) -> Callable[[bytes], bytes]:
    """A frame's first bytes."""
    return lambda frame: frame[:length]


def put(offset: int, value: bytes) -> Callable[[bytes], bytes]:
    """A frame with some bytes changed."""
    return lambda frame: frame[:offset] + value + frame[offset + len(value) :]


MALFORMED: dict[str, tuple[Any, Callable[[bytes], bytes]]] = {
    "no-ip-header": (tcp(CLIENT, VIP), cut(14)),
    "half-an-ip-header": (tcp(CLIENT, VIP), cut(33)),
    "no-transport-header": (tcp(CLIENT, VIP), lambda f: put(16, b"\0\x14")(f)[:34]),
    "half-a-tcp-header": (tcp(CLIENT, VIP), lambda f: put(16, b"\0\x27")(f)[:53]),
    "half-a-udp-header": (udp(CLIENT, VIP), lambda f: put(16, b"\0\x1b")(f)[:41]),
    "ihl-4": (tcp(CLIENT, VIP), put(14, b"\x44")),
    "ihl-0": (tcp(CLIENT, VIP), put(14, b"\x40")),
    "ihl-beyond-the-frame": (tcp(CLIENT, VIP), put(14, b"\x4f")),
    "version-6-in-ipv4": (tcp(CLIENT, VIP), put(14, b"\x65")),
    "version-4-in-ipv6": (udp("[2001:db8:1::7]:5000", VIP6), put(14, b"\x40")),
    "length-beyond-the-frame": (tcp(CLIENT, VIP), put(16, b"\0\x29")),
    "length-0": (tcp(CLIENT, VIP), put(16, b"\0\0")),
    "length-below-the-header": (tcp(CLIENT, VIP), put(16, b"\0\x13")),
    "last-byte-cut": (tcp(CLIENT, VIP), cut(53)),
    "ipv6-half-a-header": (udp("[2001:db8:1::7]:5000", VIP6), cut(53)),
    "ipv6-length-beyond-the-frame": (udp("[2001:db8:1::7]:5000", VIP6), put(18, b"\0\x09")),
    "ipv6-no-transport-header": (
        udp("[2001:db8:1::7]:5000", VIP6),
        lambda f: put(18, b"\0\0")(f)[:54],
    ),
    "ipv6-extension-beyond-the-frame": (
        IPv6(src="2001:db8:1::7", dst="2001:db8::10", nh=60) / Raw(b"\x11\xff" + bytes(30)),
        lambda f: f,
    ),
    "tag-cut-short": (Dot1Q(vlan=1) / tcp(CLIENT, VIP), cut(17)),
}


@pytest.mark.parametrize("case", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_frame_goes_up_untouched(
    datapath: Datapath, case: tuple[Any, Callable[[bytes], bytes]]
) -> None:
    datapath.apply(WEB)
    packet, spoil = case
    frame = spoil(bytes(datapath.to_host(packet)))
    assert outcome(datapath, frame) == passed(frame, "malformed")


def test_the_padding_of_a_short_frame_is_kept(datapath: Datapath) -> None:
    datapath.apply(WEB)
    packet = tcp(CLIENT, VIP)
    frame = bytes(datapath.to_host(packet)) + bytes(6)
    assert outcome(datapath, frame) == forwarded(datapath, packet, padding=bytes(6))


# -------------------------------------------------------------------------------------- layer 2


@pytest.mark.parametrize("mac", ["02:00:00:00:99:99", "ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:12"])
def test_a_frame_for_another_mac_goes_up_untouched(datapath: Datapath, mac: str) -> None:
    datapath.apply(WEB)
    frame = Ether(src=ROUTER_MAC, dst=mac) / tcp(CLIENT, VIP)
    assert outcome(datapath, frame) == passed(frame, "other_host")


def test_the_mac_of_another_interface_is_not_ours_here(datapath: Datapath) -> None:
    datapath.apply(WEB)
    frame = Ether(src=ROUTER_MAC, dst=datapath.mac["lb1"]) / tcp(CLIENT, VIP)
    assert outcome(datapath, frame) == passed(frame, "other_host")


@pytest.mark.parametrize("mac", ["00:00:5e:00:01:01", "00:00:5e:00:01:ff", "00:00:5e:00:02:33"])
def test_a_virtual_mac_of_vrrp_is_ours(datapath: Datapath, mac: str) -> None:
    datapath.apply(WEB)
    packet = tcp(CLIENT, VIP)
    frame = Ether(src=ROUTER_MAC, dst=mac) / packet
    assert outcome(datapath, frame) == forwarded(datapath, packet)


def test_the_mac_of_a_device_above_the_interface_is_ours(datapath: Datapath) -> None:
    mac = "02:00:00:00:77:01"
    ip("link", "add", "link", "lb0", "name", "lbm", "address", mac, "type", "macvlan")
    try:
        datapath.apply(WEB)
        packet = tcp(CLIENT, VIP)
        assert outcome(datapath, Ether(src=ROUTER_MAC, dst=mac) / packet) == forwarded(
            datapath, packet
        )
    finally:
        ip("link", "del", "lbm")


@pytest.mark.parametrize(
    "tags",
    [Dot1Q(vlan=10), Dot1AD(vlan=10), Dot1AD(vlan=10) / Dot1Q(vlan=20)],
    ids=["802.1q", "802.1ad", "both"],
)
def test_a_tagged_packet_goes_to_its_backend_without_tags(datapath: Datapath, tags: Any) -> None:
    datapath.apply(WEB)
    packet = tcp(CLIENT, VIP)
    frame = datapath.to_host(tags / packet)
    assert outcome(datapath, frame) == forwarded(datapath, packet)


# ------------------------------------------------------------------------------------- services


@pytest.mark.parametrize(
    "packet",
    [
        tcp(CLIENT, "192.0.2.10:81"),
        tcp(CLIENT, "192.0.2.11:80"),
        udp(CLIENT, VIP),
        tcp("[2001:db8:1::7]:1001", "[2001:db8::10]:80"),
    ],
    ids=["port", "address", "protocol", "family"],
)
def test_a_packet_to_no_service_goes_up_untouched(datapath: Datapath, packet: Any) -> None:
    datapath.apply(WEB)
    frame = datapath.to_host(packet)
    assert outcome(datapath, frame) == passed(frame, "no_service")


@pytest.mark.parametrize("flags", ["A", "FA", "R", "SR", "", "P", "F"])
def test_a_tcp_packet_that_opens_nothing_goes_up_untouched(datapath: Datapath, flags: str) -> None:
    datapath.apply(WEB)
    frame = datapath.to_host(tcp(CLIENT, VIP, flags))
    assert outcome(datapath, frame) == passed(frame, "not_opening")


@pytest.mark.parametrize("flags", ["S", "SA", "SEC", "SF"])
def test_every_syn_without_rst_opens_a_connection(datapath: Datapath, flags: str) -> None:
    datapath.apply(WEB)
    packet = tcp(CLIENT, VIP, flags)
    assert outcome(datapath, datapath.to_host(packet)) == forwarded(datapath, packet)


def test_a_syn_from_port_20_goes_up_untouched(datapath: Datapath) -> None:
    datapath.apply(WEB)
    frame = datapath.to_host(tcp("198.51.100.7:20", VIP))
    assert outcome(datapath, frame) == passed(frame, "source_port_20")


@pytest.mark.parametrize("port", [20, 1024, 50000])
def test_ftp_data_without_persistence_goes_up_untouched(datapath: Datapath, port: int) -> None:
    datapath.apply(FTP)
    frame = datapath.to_host(tcp(CLIENT, f"192.0.2.10:{port}"))
    assert outcome(datapath, frame) == passed(frame, "ftp_not_persistent")


@pytest.mark.parametrize("port", [20, 21, 1024, 50000])
def test_ftp_data_with_persistence_goes_to_the_ftp_service(datapath: Datapath, port: int) -> None:
    datapath.apply(FTP_PERSISTENT)
    packet = tcp(CLIENT, f"192.0.2.10:{port}")
    assert outcome(datapath, datapath.to_host(packet)) == forwarded(datapath, packet)


@pytest.mark.parametrize(
    "packet",
    [tcp(CLIENT, "192.0.2.10:1023"), tcp(CLIENT, "192.0.2.11:1024"), udp(CLIENT, "192.0.2.10:20")],
    ids=["low-port", "other-address", "udp"],
)
def test_what_is_not_ftp_data_is_not_for_the_ftp_service(datapath: Datapath, packet: Any) -> None:
    datapath.apply(FTP_PERSISTENT)
    frame = datapath.to_host(packet)
    assert outcome(datapath, frame) == passed(frame, "no_service")


@pytest.mark.parametrize("port", [1, 20, 21, 80, 65535])
def test_an_any_port_service_takes_every_port(datapath: Datapath, port: int) -> None:
    datapath.apply(ANY_PORT)
    packet = tcp(CLIENT, f"192.0.2.10:{port}")
    assert outcome(datapath, datapath.to_host(packet)) == forwarded(datapath, packet)


def test_a_service_on_the_port_comes_before_the_any_port_service(datapath: Datapath) -> None:
    datapath.apply(WEB.replace("10.0.0.11", "10.0.0.12") + ANY_PORT.partition("services:")[2])
    packet = tcp(CLIENT, VIP)
    assert outcome(datapath, datapath.to_host(packet)) == forwarded(datapath, packet, "10.0.0.12")


# ------------------------------------------------------------------------------- local addresses


@pytest.mark.parametrize("vip", ["172.31.0.99", "192.0.2.99"], ids=["routed", "no-route"])
def test_a_vip_that_is_not_an_address_here_goes_up_untouched(datapath: Datapath, vip: str) -> None:
    datapath.apply(WEB.replace("192.0.2.10", vip))
    frame = datapath.to_host(tcp(CLIENT, f"{vip}:80"))
    assert outcome(datapath, frame) == passed(frame, "not_local")


@pytest.mark.parametrize("vip", ["2001:db8:0:1::99", "2001:db8::99"], ids=["routed", "no-route"])
def test_a_vip_that_is_not_an_ipv6_address_here_goes_up_untouched(
    datapath: Datapath, vip: str
) -> None:
    datapath.apply(DNS.replace("2001:db8::10", vip))
    frame = datapath.to_host(udp("[2001:db8:1::7]:5000", f"[{vip}]:53"))
    assert outcome(datapath, frame) == passed(frame, "not_local")


def test_a_vip_need_not_be_an_address_here_without_require_local(datapath: Datapath) -> None:
    text = WEB.replace("192.0.2.10", "192.0.2.99") + "settings: {require_local: false}"
    datapath.apply(text)
    packet = tcp(CLIENT, "192.0.2.99:80")
    assert outcome(datapath, datapath.to_host(packet)) == forwarded(datapath, packet)


def test_without_forwarding_on_lo_a_local_vip_is_known_from_the_table(datapath: Datapath) -> None:
    datapath.set_sysctl("net/ipv4/conf/lo/forwarding", 0)
    try:
        datapath.apply(WEB)
        frame = datapath.to_host(tcp(CLIENT, VIP))
        handover = {"reason": "forwarded", "mark": 0, **ids(datapath, "tcp:192.0.2.10:80", BACKEND)}
        expected = Verdict("pass", bytes(frame), handover)
        assert outcome(datapath, frame) == (expected, {})
    finally:
        datapath.set_sysctl("net/ipv4/conf/lo/forwarding", 1)


def test_without_forwarding_on_lo_a_vip_that_is_not_local_goes_up(datapath: Datapath) -> None:
    datapath.set_sysctl("net/ipv4/conf/lo/forwarding", 0)
    try:
        datapath.apply(WEB.replace("192.0.2.10", "192.0.2.99"))
        frame = datapath.to_host(tcp(CLIENT, "192.0.2.99:80"))
        assert outcome(datapath, frame) == passed(frame, "not_local")
    finally:
        datapath.set_sysctl("net/ipv4/conf/lo/forwarding", 1)


# ------------------------------------------------------------------------------------- backends


def test_a_backend_that_is_this_host_gets_its_packets_from_the_kernel(datapath: Datapath) -> None:
    datapath.apply(WEB.replace("10.0.0.11", "10.0.0.1"))
    frame = datapath.to_host(tcp(CLIENT, VIP))
    assert outcome(datapath, frame) == passed(frame, "local_backend")


def test_a_packet_to_a_backend_without_a_route_is_dropped(datapath: Datapath) -> None:
    datapath.apply(WEB.replace("10.0.0.11", "203.0.113.9"))
    frame = datapath.to_host(tcp(CLIENT, VIP))
    assert outcome(datapath, frame) == dropped(frame, "no_route")


# ----------------------------------------------------------------------------- the kernel's road


def test_a_packet_whose_next_hop_has_no_mac_yet_is_handed_over_untouched(
    datapath: Datapath,
) -> None:
    datapath.apply(WEB.replace("10.0.0.11", "10.0.0.99"))
    frame = datapath.to_host(tcp(CLIENT, VIP))
    handover = {"reason": "forwarded", "mark": 0, **ids(datapath, "tcp:192.0.2.10:80", "10.0.0.99")}
    assert outcome(datapath, frame) == (Verdict("pass", bytes(frame), handover), {})


def test_a_handover_names_the_mark_that_the_connection_was_chosen_by(datapath: Datapath) -> None:
    datapath.apply("""
marks: [{mark: 7, address: 192.0.2.10, port: 80}]
services: [{mark: 7, backends: [{address: 10.0.0.99}]}]
""")
    frame = datapath.to_host(tcp(CLIENT, VIP))
    handover = {"reason": "forwarded", "mark": 7, **ids(datapath, "mark:7", "10.0.0.99")}
    assert outcome(datapath, frame) == (Verdict("pass", bytes(frame), handover), {})


def test_one_new_connection_a_second_takes_the_kernels_road(datapath: Datapath) -> None:
    datapath.balancer.apply(datapath.apply(WEB), datapath.net)
    datapath.advance(2)
    roads = []
    for second in range(3):
        for number in range(3):
            verdict = datapath.deliver(tcp(f"198.51.100.{second}:{1000 + number}", VIP))
            roads.append("kernel" if verdict.handover else verdict.action)
        datapath.advance(1)
    assert roads == ["kernel", "redirect", "redirect"] * 3


def test_packets_of_connections_take_the_kernels_road_only_every_other_second(
    datapath: Datapath,
) -> None:
    datapath.apply(WEB)
    datapath.deliver(tcp(CLIENT, VIP))
    roads = []
    for _ in range(6):
        datapath.advance(1.01)
        verdict = datapath.deliver(tcp(CLIENT, VIP, "A"))
        roads.append("kernel" if verdict.handover else verdict.action)
    assert roads == ["redirect", "kernel"] * 3


def test_a_packet_with_a_mark_but_no_service_is_handed_over_with_its_mark(
    datapath: Datapath,
) -> None:
    datapath.apply("marks: [{mark: 9, address: 192.0.2.11, port: 80}]")
    frame = datapath.to_host(tcp(CLIENT, "192.0.2.11:80"))
    handover = {"reason": "no_service", "mark": 9, "backend": 0, "service": 0}
    assert outcome(datapath, frame) == (Verdict("pass", bytes(frame), handover), {})


# ------------------------------------------------------------------------------------------- tc


def test_the_tc_entry_balances_alone_where_there_is_no_xdp(datapath: Datapath) -> None:
    datapath.apply(WEB)
    frame = datapath.to_host(tcp(CLIENT, VIP))
    verdict = datapath.send_tc(frame)
    frame[IP].ttl -= 1
    assert verdict == Verdict("redirect", bytes(frame))
    assert datapath.reasons() == {"forwarded": 1}


def test_the_tc_entry_leaves_alone_what_xdp_has_passed(datapath: Datapath) -> None:
    datapath.apply(WEB)
    frame = bytes(datapath.to_host(tcp(CLIENT, VIP)))
    context = bytearray(192)
    struct.pack_into("<I", context, 40, datapath.ifindex["lb0"])
    run = maps.run_program(datapath.entry["tc"], frame, context=bytes(context))
    assert (run.verdict, run.data) == (TC_ACT_UNSPEC, frame)
    assert datapath.reasons() == {}


def test_the_tc_entry_sends_a_packet_by_the_mark_that_it_came_with(datapath: Datapath) -> None:
    datapath.apply("services: [{mark: 7, backends: [{address: 10.0.0.11}]}]")
    frame = datapath.to_host(tcp(CLIENT, VIP))
    assert datapath.send_tc(frame, mark=7).action == "redirect"
    assert [row["mark"] for row in datapath.connections()] == [7]


# ------------------------------------------------------------------------------------- counting


def counted(datapath: Datapath, frame: Any) -> int:
    """By how much the sum of all reasons grows with one frame."""
    before = sum(datapath.reasons().values())
    datapath.send(frame)
    return sum(datapath.reasons().values()) - before


def test_every_packet_is_counted_once(datapath: Datapath) -> None:
    datapath.apply(WEB + "  - {protocol: udp, address: 192.0.2.10, port: 53}")
    packets = [
        tcp(CLIENT, VIP),
        tcp(CLIENT, VIP, "A"),
        tcp(CLIENT, VIP, "FA"),
        tcp(CLIENT, "192.0.2.10:81"),
        udp(CLIENT, "192.0.2.10:53"),
        tcp("198.51.100.7:20", VIP),
        IP(dst="192.0.2.10") / ICMP(),
        IP(dst="192.0.2.10", frag=3, proto=6),
        IP(dst="192.0.2.10", ihl=4) / TCP(),
        ARP(),
        Dot1Q(vlan=1) / tcp("198.51.100.8:1001", VIP),
    ]
    frames = [datapath.to_host(packet) for packet in packets]
    assert [counted(datapath, frame) for frame in frames] == [1] * len(frames)


def test_a_packet_to_a_backend_of_which_no_route_says_anything_is_dropped(
    datapath: Datapath,
) -> None:
    ip("route", "del", "unreachable", "default", "metric", UNREACHABLE_METRIC)
    try:
        datapath.apply(WEB.replace("10.0.0.11", "203.0.113.9"))
        frame = datapath.to_host(tcp(CLIENT, VIP))
        assert outcome(datapath, frame) == dropped(frame, "no_route")
    finally:
        ip("route", "add", "unreachable", "default", "metric", UNREACHABLE_METRIC)
