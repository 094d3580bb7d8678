"""ICMP errors about balanced flows: whole frames in and out, by dr and nat, in XDP and TC."""

from __future__ import annotations

from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoRequest,
    ICMPv6PacketTooBig,
    ICMPv6TimeExceeded,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
)
from scapy.layers.l2 import Dot1Q, Ether
from scapy.layers.sctp import SCTP, SCTPChunkInit
from scapy.packet import Raw

from tests.datapath.harness import BACKENDS, CLIENTS, ROUTER_MAC, Datapath, Verdict

CLIENT = {4: "172.31.0.21", 6: "2001:db8:0:1::21"}
VIP = {4: "192.0.2.10", 6: "2001:db8::10"}
BACKEND = {4: "10.0.0.11", 6: "2001:db8:0:2::11"}
ROUTER = {4: "198.51.100.254", 6: "2001:db8:9::fe"}
PROTOCOLS: dict[str, Any] = {"tcp": TCP, "udp": UDP, "sctp": SCTP}
ERRORS4 = {
    "unreachable": ICMP(type=3, code=1),
    "too big": ICMP(type=3, code=4, nexthopmtu=1400),
    "quench": ICMP(type=4),
    "exceeded": ICMP(type=11),
}
ERRORS6 = {
    "unreachable": ICMPv6DestUnreach(code=3),
    "too big": ICMPv6PacketTooBig(mtu=1280),
    "exceeded": ICMPv6TimeExceeded(),
}
CASES = [(4, name) for name in ERRORS4] + [(6, name) for name in ERRORS6]


def services(forward: str, protocol: str = "tcp") -> str:
    port = ", port: 8080" if forward == "nat" else ""
    return "services:\n" + "".join(
        f'  - {{protocol: {protocol}, address: "{VIP[version]}", port: 80, forward: {forward},\n'
        f'     backends: [{{address: "{BACKEND[version]}"{port}}}]}}\n'
        for version in (4, 6)
    )


def layer(version: int, source: str, destination: str, hops: int = 64, **fields: Any) -> Any:
    if version == 4:
        return IP(src=source, dst=destination, ttl=hops, id=9, **fields)
    return IPv6(src=source, dst=destination, hlim=hops)


def opening(version: int, protocol: str = "tcp") -> Any:
    """A client's first packet."""
    transport = PROTOCOLS[protocol](sport=1001, dport=80)
    more = SCTPChunkInit() if protocol == "sctp" else b""
    return layer(version, CLIENT[version], VIP[version]) / transport / more


def sent_back(
    version: int, source: str, port: int, protocol: str = "tcp", length: int | None = None
) -> bytes:
    """What a backend, or the service, sent the client, as far as it is quoted."""
    transport = PROTOCOLS[protocol](sport=port, dport=1001)
    whole = bytes(layer(version, source, CLIENT[version]) / transport / b"a long answer")
    return whole if length is None else whole[:length]


def error(version: int, name: str, quoted: bytes, **ends: Any) -> Any:
    """An error of a router about that, to whom sent it."""
    message = (ERRORS4 if version == 4 else ERRORS6)[name]
    ends = {"source": ROUTER[version], "destination": VIP[version]} | ends
    return layer(version, **ends) / message / Raw(quoted)


def begin(datapath: Datapath, forward: str, version: int, protocol: str = "tcp") -> None:
    """A connection is there, and nothing has been counted."""
    datapath.apply(services(forward, protocol))
    assert datapath.backend_for_soon(opening(version, protocol)) == BACKEND[version]


def to_backend(datapath: Datapath, version: int, packet: Any) -> bytes:
    frame = Ether(src=datapath.mac["lb1"], dst=BACKENDS[BACKEND[version]]) / packet
    return bytes(frame)


@pytest.mark.parametrize(("version", "name"), CASES)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_error_about_what_a_client_was_sent_goes_to_the_backend_that_sent_it(
    datapath: Datapath, version: int, name: str, protocol: str
) -> None:
    begin(datapath, "dr", version, protocol)
    before = datapath.connections()
    quoted = sent_back(version, VIP[version], 80, protocol)
    sent = datapath.deliver(error(version, name, quoted))
    expected = error(version, name, quoted, hops=63)
    assert (sent.action, sent.frame) == ("redirect", to_backend(datapath, version, expected))
    assert datapath.reasons() == {"forwarded": 2}
    row = datapath.backends()[BACKEND[version]]
    assert (row["connections"], row["packets"]) == (1, 2)
    # neither its state nor its time
    datapath.later(2)
    datapath.deliver(error(version, name, quoted))
    (after,) = datapath.connections()
    assert after["state"] == before[0]["state"]
    assert after["expires_in"] <= before[0]["expires_in"] - 2


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("tags", [0, 1, 2])
def test_eight_bytes_of_the_transport_header_are_enough_and_tags_go(
    datapath: Datapath, version: int, tags: int
) -> None:
    begin(datapath, "dr", version)
    quoted = sent_back(version, VIP[version], 80, length=28 if version == 4 else 48)
    frame: Any = Ether(src=ROUTER_MAC, dst=datapath.mac["lb0"])
    for vlan in range(tags):
        frame /= Dot1Q(vlan=10 + vlan)
    sent = datapath.send(frame / error(version, "too big", quoted))
    expected = error(version, "too big", quoted, hops=63)
    assert sent.frame == to_backend(datapath, version, expected)


def test_what_is_quoted_may_have_options_and_extension_headers(datapath: Datapath) -> None:
    begin(datapath, "dr", 4)
    begin(datapath, "dr", 6)
    transport = TCP(sport=80, dport=1001)
    four = IP(src=VIP[4], dst=CLIENT[4], options=[IPOption_NOP()] * 8) / transport
    six = IPv6(src=VIP[6], dst=CLIENT[6])
    for version, quoted in (
        (4, four),
        (6, six / IPv6ExtHdrDestOpt() / transport),
        (6, six / IPv6ExtHdrFragment(offset=0, m=1) / transport),
    ):
        packet = error(version, "unreachable", bytes(quoted))
        assert datapath.backend_for_soon(packet) == BACKEND[version]
    outer = IP(src=ROUTER[4], dst=VIP[4], options=[IPOption_NOP()] * 4)
    packet = outer / ERRORS4["exceeded"] / Raw(bytes(four))
    assert datapath.backend_for_soon(packet) == BACKEND[4]


OTHERS = {
    "another client port": lambda v: error(
        v, "unreachable", bytes(layer(v, VIP[v], CLIENT[v]) / TCP(sport=80, dport=1002))
    ),
    "another protocol": lambda v: error(v, "unreachable", sent_back(v, VIP[v], 80, "udp")),
    "quoted as the client sent it": lambda v: error(v, "unreachable", bytes(opening(v))),
    "to another than it quotes": lambda v: error(
        v, "unreachable", sent_back(v, VIP[v], 80), destination=VIP[v].replace("10", "11")
    ),
    "too short": lambda v: error(
        v, "unreachable", sent_back(v, VIP[v], 80, length=22 if v == 4 else 42)
    ),
    "nothing quoted": lambda v: error(v, "unreachable", b""),
    "of the other family": lambda v: error(v, "unreachable", sent_back(10 - v, VIP[10 - v], 80)),
}


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("name", OTHERS)
def test_what_quotes_no_known_flow_goes_up_untouched(
    datapath: Datapath, version: int, name: str
) -> None:
    begin(datapath, "nat", version)
    frame = datapath.to_host(OTHERS[name](version))
    assert datapath.send(frame) == Verdict("pass", bytes(frame))
    assert datapath.reasons() == {"forwarded": 1, "other_protocol": 1}


def test_pings_and_messages_that_are_no_errors_go_up(datapath: Datapath) -> None:
    begin(datapath, "dr", 4)
    begin(datapath, "dr", 6)
    quoted = Raw(sent_back(4, VIP[4], 80))
    later = IP(src=VIP[4], dst=CLIENT[4], frag=3) / TCP(sport=80, dport=1001)
    for packet in (
        layer(4, ROUTER[4], VIP[4]) / ICMP() / b"ping",
        layer(4, ROUTER[4], VIP[4]) / ICMP(type=5, code=1) / quoted,
        layer(4, ROUTER[4], VIP[4]) / ICMP(type=12) / quoted,
        layer(6, ROUTER[6], VIP[6]) / ICMPv6EchoRequest() / sent_back(6, VIP[6], 80),
        error(4, "unreachable", bytes(later)),
        IP(src=ROUTER[4], dst=VIP[4], flags="MF") / ERRORS4["unreachable"] / quoted,
    ):
        assert datapath.deliver(packet).action == "pass"
    assert datapath.reasons()["forwarded"] == 2


def test_an_error_for_another_host_at_layer_2_goes_up(datapath: Datapath) -> None:
    begin(datapath, "dr", 4)
    frame = Ether(src=ROUTER_MAC, dst="02:00:00:00:00:77")
    frame /= error(4, "unreachable", sent_back(4, VIP[4], 80))
    assert datapath.send(frame).action == "pass"


# --------------------------------------------------------------------------------------------- nat


@pytest.mark.parametrize(("version", "name"), CASES)
@pytest.mark.parametrize("hook", ["xdp", "tc"])
def test_by_nat_an_error_quotes_to_the_backend_what_it_sent(
    datapath: Datapath, version: int, name: str, hook: str
) -> None:
    begin(datapath, "nat", version)
    packet = error(version, name, sent_back(version, VIP[version], 80))
    expected = error(
        version,
        name,
        _with_transport_sum(version, sent_back(version, BACKEND[version], 8080), VIP[version]),
        destination=BACKEND[version],
        hops=63,
    )
    frame = datapath.to_host(packet)
    sent = datapath.send(frame) if hook == "xdp" else datapath.send_tc(frame)
    wanted = to_backend(datapath, version, expected)
    start = 0 if hook == "xdp" else 12
    assert (sent.action, sent.frame[start:]) == ("redirect", wanted[start:])


@pytest.mark.parametrize(("version", "name"), CASES)
@pytest.mark.parametrize("hook", ["xdp", "tc"])
def test_by_nat_an_error_of_a_backend_quotes_to_the_client_what_it_sent(
    datapath: Datapath, version: int, name: str, hook: str
) -> None:
    begin(datapath, "nat", version)

    def quoted(destination: str, port: int) -> bytes:
        transport = TCP(sport=1001, dport=port)
        return bytes(layer(version, CLIENT[version], destination) / transport / b"a request")

    from_backend = {"source": BACKEND[version], "destination": CLIENT[version]}
    packet = error(version, name, quoted(BACKEND[version], 8080), **from_backend)
    from_vip = {"source": VIP[version], "destination": CLIENT[version], "hops": 63}
    mine = _with_transport_sum(
        version, quoted(VIP[version], 80), BACKEND[version], quoted(BACKEND[version], 8080)
    )
    expected = error(version, name, mine, **from_vip)
    frame = Ether(src=BACKENDS[BACKEND[version]], dst=datapath.mac["lb1"]) / packet
    sent = datapath.send(frame, "lb1") if hook == "xdp" else datapath.send_tc(frame, "lb1")
    wanted = bytes(Ether(src=datapath.mac["lb0"], dst=CLIENTS[CLIENT[version]]) / expected)
    start = 0 if hook == "xdp" else 12
    assert (sent.action, sent.frame[start:]) == ("redirect", wanted[start:])
    assert datapath.reasons() == {"forwarded": 1, "answered": 1}


def _with_transport_sum(
    version: int, quoted: bytes, other: str, original: bytes | None = None
) -> bytes:
    """The quote with the transport checksum that was there before: nobody changes that."""
    place = (20 if version == 4 else 40) + 16
    if original is None:
        original = sent_back(version, other, 80)
    return quoted[:place] + original[place : place + 2] + quoted[place + 2 :]


def test_by_nat_kernel_ipvs_sends_the_very_same_messages(datapath: Datapath) -> None:
    """tests/vectors/ipvs-vectors.yaml, forwarding, icmp_nat: the same bytes but for the router."""
    datapath.apply("""
services:
  - {protocol: tcp, address: 192.0.2.10, port: 80, forward: nat,
     backends: [{address: 10.0.0.11, port: 8080}]}
""")
    assert datapath.backend_for_soon(opening(4)) == BACKEND[4]
    quoted = bytes(IP(src=VIP[4], dst=CLIENT[4], id=1, flags="DF") / TCP(sport=80, dport=1001))
    sent = datapath.deliver(error(4, "too big", quoted[:28]))
    got = IP(sent.frame[14:])
    inner = IP(bytes(got[ICMP].payload))
    assert (got.src, got.dst, inner.src) == (ROUTER[4], BACKEND[4], BACKEND[4])
    again = IP(bytes(got))
    del again[ICMP].chksum, again.chksum
    assert bytes(again.__class__(bytes(again))) == bytes(got)


def test_an_error_by_the_kernels_road_is_sent_as_xdp_made_it(datapath: Datapath) -> None:
    begin(datapath, "nat", 4)
    packet = error(4, "too big", sent_back(4, VIP[4], 80))
    datapath.advance(5)
    frame = datapath.to_host(packet)
    handed = datapath.send(frame)
    assert handed.handover is not None and handed.handover["reason"] == "forwarded"
    assert IP(handed.frame[14:]).dst == BACKEND[4]
