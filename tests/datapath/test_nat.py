"""nat: whole frames to the backend and back, checksums reckoned anew by scapy."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.layers.sctp import SCTP, SCTPChunkCookieAck, SCTPChunkData, SCTPChunkInit

from lvsxdp import counting, views
from tests.datapath.harness import (
    BACKENDS,
    CLIENTS,
    ROUTER_MAC,
    Datapath,
    Verdict,
    ip,
)

ENDS = {
    4: ("172.31.0.21", "192.0.2.10", "10.0.0.11"),
    6: ("2001:db8:0:1::21", "2001:db8::10", "2001:db8:0:2::11"),
}
TRANSPORTS: dict[str, Any] = {"tcp": TCP, "udp": UDP, "sctp": SCTP}


@dataclasses.dataclass(frozen=True)
class Flow:
    """A client's flow to a service with one backend by nat, whose port is 8080 or the service's."""

    version: int
    protocol: str
    port: int = 8080

    @property
    def text(self) -> str:
        """The configuration."""
        _, virtual, backend = ENDS[self.version]
        return f"""
services:
  - protocol: {self.protocol}
    address: "{virtual}"
    port: 80
    forward: nat
    backends: [{{address: "{backend}", port: {self.port}}}]
"""

    def packet(self, source: str, destination: str, ports: tuple[int, int], **fields: Any) -> Any:
        """An IP packet with something in it; hops are its TTL."""
        hops = fields.pop("hops", 64)
        payload = fields.pop("payload", b"twelve bytes")
        layer: Any = (
            IP(src=source, dst=destination, ttl=hops, id=7)
            if self.version == 4
            else IPv6(src=source, dst=destination, hlim=hops)
        )
        sport, dport = ports
        transport = TRANSPORTS[self.protocol](sport=sport, dport=dport, **fields)
        return layer / transport / payload

    def request(self, hops: int = 64, **fields: Any) -> Any:
        """What the client sends."""
        client, virtual, _ = ENDS[self.version]
        return self.packet(client, virtual, (1001, 80), hops=hops, **fields)

    def delivered(self, hops: int = 63, **fields: Any) -> Any:
        """The same, as the backend is to get it."""
        client, _, backend = ENDS[self.version]
        return self.packet(client, backend, (1001, self.port), hops=hops, **fields)

    def answer(self, hops: int = 64, **fields: Any) -> Any:
        """What the backend answers."""
        client, _, backend = ENDS[self.version]
        return self.packet(backend, client, (self.port, 1001), hops=hops, **fields)

    def returned(self, hops: int = 63, **fields: Any) -> Any:
        """The same, as the client is to get it."""
        client, virtual, _ = ENDS[self.version]
        return self.packet(virtual, client, (80, 1001), hops=hops, **fields)

    def opening(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the first packet has, and its answer."""
        if self.protocol == "tcp":
            return {"flags": "S", "payload": b""}, {"flags": "SA", "payload": b""}
        if self.protocol == "sctp":
            return {"payload": SCTPChunkInit()}, {"payload": SCTPChunkCookieAck()}
        return {}, {}

    def later(self) -> dict[str, Any]:
        """What later packets have."""
        if self.protocol == "sctp":
            return {"payload": SCTPChunkData(data=b"odd bytes!")}
        return {"flags": "PA"} if self.protocol == "tcp" else {}


FLOWS = [
    Flow(version, protocol, port)
    for version in (4, 6)
    for protocol in TRANSPORTS
    for port in (8080, 80)
]


def to_backend(datapath: Datapath, flow: Flow, packet: Any) -> bytes:
    """The frame that the backend is to get."""
    mac = BACKENDS[ENDS[flow.version][2]]
    return bytes(Ether(src=datapath.mac["lb1"], dst=mac) / packet)


def from_backend(datapath: Datapath, flow: Flow, packet: Any, tags: Any = None) -> Any:
    """A frame from the backend to the balancer, its gateway."""
    frame = Ether(src=BACKENDS[ENDS[flow.version][2]], dst=datapath.mac["lb1"])
    return frame / tags / packet if tags else frame / packet


def to_client(datapath: Datapath, flow: Flow, packet: Any) -> bytes:
    """The frame that the client is to get."""
    return bytes(Ether(src=datapath.mac["lb0"], dst=CLIENTS[ENDS[flow.version][0]]) / packet)


@pytest.mark.parametrize("flow", FLOWS, ids=str)
def test_a_request_gets_the_backends_end_and_its_answer_the_services(
    datapath: Datapath, flow: Flow
) -> None:
    datapath.apply(flow.text)
    first, second = flow.opening()
    for sent, back in ((first, second), (flow.later(), flow.later())):
        there = datapath.deliver(flow.request(**sent))
        assert (there.action, there.frame) == (
            "redirect",
            to_backend(datapath, flow, flow.delivered(**sent)),
        )
        here = datapath.send(from_backend(datapath, flow, flow.answer(**back)), "lb1")
        assert (here.action, here.frame) == (
            "redirect",
            to_client(datapath, flow, flow.returned(**back)),
        )
    assert datapath.reasons() == {"forwarded": 2, "answered": 2}


def test_requests_and_answers_are_counted_apart(datapath: Datapath) -> None:
    flow = Flow(4, "tcp")
    counting.zero(datapath.balancer, None)
    datapath.apply(flow.text)
    first, second = flow.opening()
    datapath.deliver(flow.request(**first))
    answer = from_backend(datapath, flow, flow.answer(**second))
    datapath.send(answer, "lb1")
    datapath.send_tc(answer, "lb1")
    names = ("connections", "packets", "bytes", "out_packets", "out_bytes")
    (service,) = views.services(datapath.balancer)
    rows = [service, *datapath.backends().values()]
    assert [[row[name] for name in names] for row in rows] == [[1, 1, 40, 2, 80]] * 2
    counting.zero(datapath.balancer, None)
    (service,) = views.services(datapath.balancer)
    assert [service[name] for name in names] == [0] * 5


@pytest.mark.parametrize("flow", FLOWS, ids=str)
def test_tc_does_the_same(datapath: Datapath, flow: Flow) -> None:
    datapath.apply(flow.text)
    for sent, back in (flow.opening(), (flow.later(), flow.later())):
        there = datapath.send_tc(datapath.to_host(flow.request(**sent)))
        expected = to_backend(datapath, flow, flow.delivered(**sent))
        # the MACs are the kernel's to write, after the program
        assert (there.action, there.frame[12:]) == ("redirect", expected[12:])
        here = datapath.send_tc(from_backend(datapath, flow, flow.answer(**back)), "lb1")
        expected = to_client(datapath, flow, flow.returned(**back))
        assert (here.action, here.frame[12:]) == ("redirect", expected[12:])
    assert datapath.reasons() == {"forwarded": 2, "answered": 2}


def test_tags_of_the_way_in_are_gone_in_both_directions(datapath: Datapath) -> None:
    flow = Flow(4, "tcp")
    datapath.apply(flow.text)
    first, second = flow.opening()
    frame = Ether(src=ROUTER_MAC, dst=datapath.mac["lb0"]) / Dot1Q(vlan=10) / flow.request(**first)
    assert datapath.send(frame).frame == to_backend(datapath, flow, flow.delivered(**first))
    tagged = from_backend(datapath, flow, flow.answer(**second), Dot1Q(vlan=20) / Dot1Q(vlan=30))
    assert datapath.send(tagged, "lb1").frame == to_client(datapath, flow, flow.returned(**second))


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 1400])
def test_udp_without_a_checksum_gets_a_real_one_from_tc(
    datapath: Datapath, version: int, size: int
) -> None:
    flow = Flow(version, "udp", 5353)
    payload = bytes(range(256)) * 6
    datapath.apply(flow.text)
    request = datapath.to_host(flow.request(payload=payload[:size], chksum=0))
    handed = datapath.send(request)
    assert (handed.action, handed.frame) == ("pass", bytes(request))
    assert handed.handover is not None and handed.handover["reason"] == "forwarded"
    there = datapath.send_tc(request)
    expected = to_backend(datapath, flow, flow.delivered(payload=payload[:size]))
    assert (there.action, there.frame[12:]) == ("redirect", expected[12:])
    answer = from_backend(datapath, flow, flow.answer(payload=payload[:size], chksum=0))
    here = datapath.send_tc(answer, "lb1")
    expected = to_client(datapath, flow, flow.returned(payload=payload[:size]))
    assert (here.action, here.frame[12:]) == ("redirect", expected[12:])


def test_a_udp_checksum_that_comes_to_nothing_is_sent_as_all_ones(datapath: Datapath) -> None:
    flow = Flow(4, "udp")
    datapath.apply(flow.text)

    def frame(number: int) -> tuple[Any, bytes]:
        payload = number.to_bytes(2, "big")
        return flow.request(payload=payload), bytes(flow.delivered(payload=payload))

    # the payload's words count up, so that one in 65,536 brings the sum to 0
    base = int.from_bytes(frame(0)[1][26:28], "big")
    packet, _ = frame(base)
    assert datapath.deliver(packet).frame[40:42] == b"\xff\xff"


@pytest.mark.parametrize("flow", [Flow(4, "tcp"), Flow(6, "udp")], ids=str)
def test_what_no_connection_knows_passes_untouched(datapath: Datapath, flow: Flow) -> None:
    datapath.apply(flow.text)
    answer = from_backend(datapath, flow, flow.answer())
    assert datapath.send(answer, "lb1") == Verdict("pass", bytes(answer))
    assert datapath.reasons() == {"no_service": 1}


def test_the_answer_of_another_backend_port_or_client_is_none(datapath: Datapath) -> None:
    flow = Flow(4, "tcp")
    datapath.apply(flow.text)
    datapath.deliver(flow.request(flags="S", payload=b""))
    client, _, backend = ENDS[4]
    others = [
        flow.packet(backend, client, (8081, 1001), flags="SA"),
        flow.packet(backend, client, (8080, 1002), flags="SA"),
        flow.packet("10.0.0.12", client, (8080, 1001), flags="SA"),
        flow.packet(backend, "172.31.0.22", (8080, 1001), flags="SA"),
    ]
    for packet in others:
        frame = from_backend(datapath, flow, packet)
        assert datapath.send(frame, "lb1") == Verdict("pass", bytes(frame))
    udp = dataclasses.replace(flow, protocol="udp").answer()
    assert datapath.send(from_backend(datapath, flow, udp), "lb1").action == "pass"


def test_answers_step_the_state_that_both_directions_see(datapath: Datapath) -> None:
    flow = Flow(4, "tcp")
    datapath.apply(flow.text)

    def states(*steps: tuple[str, str]) -> list[str]:
        seen = []
        for side, flags in steps:
            if side == "client":
                datapath.deliver(flow.request(flags=flags, payload=b""))
            else:
                datapath.send(
                    from_backend(datapath, flow, flow.answer(flags=flags, payload=b"")), "lb1"
                )
            seen.append(datapath.connections()[0]["state"])
        return seen

    assert states(
        *(("client", "S"), ("backend", "SA"), ("client", "A"), ("backend", "FA")),
        *(("client", "FA"), ("backend", "A")),
    ) == ["SYN_RECV", "SYN_RECV", "ESTABLISHED", "FIN_WAIT", "TIME_WAIT", "TIME_WAIT"]


def test_an_answer_that_cannot_go_on_is_the_hosts_to_refuse(datapath: Datapath) -> None:
    flow = Flow(4, "tcp")
    datapath.apply(flow.text)
    datapath.deliver(flow.request(flags="S", payload=b""))
    for answer in (flow.answer(hops=1, flags="SA"), flow.answer(flags="A", payload=bytes(1600))):
        frame = from_backend(datapath, flow, answer)
        handed = datapath.send(frame, "lb1")
        assert handed.handover is not None and handed.handover["reason"] == "answered"
        assert datapath.send_tc(frame, "lb1") == Verdict("pass", bytes(frame))
    assert datapath.reasons() == {"forwarded": 1, "answer_left": 2}


def test_two_services_share_a_backend_and_each_gets_its_own_answers(datapath: Datapath) -> None:
    flow = Flow(4, "tcp")
    datapath.apply("""
services:
  - {protocol: tcp, address: 192.0.2.10, port: 80, forward: nat,
     backends: [{address: 10.0.0.11, port: 8080}]}
  - {protocol: tcp, address: 192.0.2.11, port: 443, forward: nat,
     backends: [{address: 10.0.0.11, port: 8443}]}
""")
    client, _, backend = ENDS[4]
    for virtual, port in (("192.0.2.10", 80), ("192.0.2.11", 443)):
        datapath.deliver(flow.packet(client, virtual, (1001, port), flags="S", payload=b""))
    for virtual, port, own in (("192.0.2.10", 80, 8080), ("192.0.2.11", 443, 8443)):
        back = flow.packet(backend, client, (own, 1001), flags="SA", payload=b"")
        expected = flow.packet(virtual, client, (port, 1001), hops=63, flags="SA", payload=b"")
        sent = datapath.send(from_backend(datapath, flow, back), "lb1")
        assert sent.frame == to_client(datapath, flow, expected)


@contextlib.contextmanager
def local(address: str) -> Iterator[None]:
    """An address of the balancer itself."""
    ip("addr", "add", f"{address}/128" if ":" in address else f"{address}/32", "dev", "lo")
    try:
        yield
    finally:
        ip("addr", "del", f"{address}/128" if ":" in address else f"{address}/32", "dev", "lo")


def test_a_backend_that_is_this_host_gets_its_packets_with_its_own_end(datapath: Datapath) -> None:
    flow = Flow(4, "tcp")
    with local("10.9.9.9"):
        datapath.apply(flow.text.replace("10.0.0.11", "10.9.9.9"))
        sent = datapath.deliver(flow.request(flags="S", payload=b""))
        here = flow.packet("172.31.0.21", "10.9.9.9", (1001, 8080), flags="S", payload=b"")
        assert (sent.action, sent.frame) == ("pass", bytes(datapath.to_host(here)))
        assert datapath.reasons() == {"local_backend": 1}


@pytest.mark.parametrize(
    ("service", "backend", "ports"),
    [
        ("port: 80", "", [80]),
        ("port: 80", ", port: 8080", [8080]),
        ("port: 80, persistence: 60", ", port: 8080", [8080]),
        ("port: any, persistence: 60", ", port: 8080", [443]),
    ],
)
def test_the_port_at_the_backend_goes_by_the_kind_of_the_service(
    datapath: Datapath, service: str, backend: str, ports: list[int]
) -> None:
    datapath.apply(f"""
services:
  - {{protocol: tcp, address: 192.0.2.10, {service}, forward: nat,
     backends: [{{address: 10.0.0.11{backend}}}]}}
""")
    port = 443 if "any" in service else 80
    sent = datapath.deliver(
        Flow(4, "tcp").packet("172.31.0.21", "192.0.2.10", (1001, port), flags="S", payload=b"")
    )
    assert [Ether(sent.frame)[TCP].dport] == ports


@pytest.mark.parametrize(
    ("persistence", "backend", "port"),
    [("", ", port: 8080", 8080), ("", "", 443), ("persistence: 60,", ", port: 8080", 443)],
)
def test_a_mark_service_maps_ports_where_it_is_not_persistent(
    datapath: Datapath, persistence: str, backend: str, port: int
) -> None:
    datapath.apply(f"""
marks: [{{mark: 7, protocol: tcp, address: 192.0.2.10, ports: [80, 443]}}]
services:
  - {{mark: 7, {persistence} forward: nat, backends: [{{address: 10.0.0.11{backend}}}]}}
""")
    flow = Flow(4, "tcp", port)
    client, virtual, _ = ENDS[4]
    sent = datapath.deliver(flow.packet(client, virtual, (1001, 443), flags="S", payload=b""))
    assert Ether(sent.frame)[TCP].dport == port
    back = datapath.send(from_backend(datapath, flow, flow.answer(flags="SA", payload=b"")), "lb1")
    assert Ether(back.frame)[TCP].sport == 443


def test_connections_keep_the_method_that_they_began_with(datapath: Datapath) -> None:
    flow = Flow(4, "tcp", 80)
    datapath.apply(flow.text)
    datapath.deliver(flow.request(flags="S", payload=b""))
    datapath.apply(flow.text.replace("forward: nat", "forward: dr"))
    old = datapath.deliver(flow.request(flags="A"))
    assert old.frame == to_backend(datapath, flow, flow.delivered(flags="A"))
    client, virtual, _ = ENDS[4]
    fresh = flow.packet(client, virtual, (1002, 80), flags="S", payload=b"")
    new = datapath.deliver(fresh)
    fresh[IP].ttl = 63
    assert new.frame == to_backend(datapath, flow, fresh)
