"""fullnat: whole frames with both ends replaced, and the source ports that connections get."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPerror
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6PacketTooBig,
    IPerror6,
    IPv6,
)
from scapy.layers.l2 import Ether

from lvsxdp import sources
from lvsxdp.errors import ConfigError, ConflictError
from tests.datapath.harness import BACKENDS, Datapath, Verdict
from tests.datapath.test_nat import (
    ENDS,
    FLOWS,
    Flow,
    from_backend,
    local,
    to_backend,
    to_client,
)

POOL = {4: "10.0.0.200", 6: "2001:db8:0:2::200"}


@dataclasses.dataclass(frozen=True)
class FullFlow(Flow):
    """The same flow by fullnat; `source` is the port that its connection has of the pool."""

    source: int = 0

    @property
    def text(self) -> str:
        """The configuration."""
        pool = f"settings: {{source_pool: '{POOL[4]}, {POOL[6]}'}}\n"
        return pool + super().text.replace("forward: nat", "forward: fullnat")

    def delivered(self, hops: int = 63, **fields: Any) -> Any:
        """A request as the backend is to get it."""
        ports = (self.source, self.port)
        return self.packet(POOL[self.version], ENDS[self.version][2], ports, hops=hops, **fields)

    def answer(self, hops: int = 64, **fields: Any) -> Any:
        """What the backend answers."""
        ports = (self.port, self.source)
        return self.packet(ENDS[self.version][2], POOL[self.version], ports, hops=hops, **fields)

    def seen_in(self, frame: bytes) -> FullFlow:
        """The flow with the source port that a delivered frame has."""
        layer = Ether(frame).payload
        while not hasattr(layer, "sport"):
            layer = layer.payload
        return dataclasses.replace(self, source=layer.sport)

    def opened(self, datapath: Datapath) -> FullFlow:
        """The flow once its first packet has passed."""
        return self.seen_in(datapath.deliver(self.request(**self.opening()[0])).frame)


FULL = [FullFlow(flow.version, flow.protocol, flow.port) for flow in FLOWS]


@pytest.mark.parametrize("flow", FULL, ids=str)
def test_the_backend_sees_the_pool_and_the_client_the_service(
    datapath: Datapath, flow: FullFlow
) -> None:
    datapath.apply(flow.text)
    first, second = flow.opening()
    for sent, back in ((first, second), (flow.later(), flow.later())):
        there = datapath.deliver(flow.request(**sent))
        flow = flow.seen_in(there.frame)
        assert flow.source >= 1024
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


@pytest.mark.parametrize("flow", FULL, ids=str)
def test_tc_does_the_same(datapath: Datapath, flow: FullFlow) -> None:
    datapath.apply(flow.text)
    for sent, back in (flow.opening(), (flow.later(), flow.later())):
        there = datapath.send_tc(datapath.to_host(flow.request(**sent)))
        flow = flow.seen_in(there.frame)
        expected = to_backend(datapath, flow, flow.delivered(**sent))
        # the MACs are the kernel's to write, after the program
        assert (there.action, there.frame[12:]) == ("redirect", expected[12:])
        here = datapath.send_tc(from_backend(datapath, flow, flow.answer(**back)), "lb1")
        expected = to_client(datapath, flow, flow.returned(**back))
        assert (here.action, here.frame[12:]) == ("redirect", expected[12:])
    assert datapath.reasons() == {"forwarded": 2, "answered": 2}


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("size", [0, 1, 513])
def test_udp_without_a_checksum_gets_a_real_one_from_tc(
    datapath: Datapath, version: int, size: int
) -> None:
    flow = FullFlow(version, "udp", 5353)
    payload = (bytes(range(256)) * 6)[:size]
    datapath.apply(flow.text)
    request = datapath.to_host(flow.request(payload=payload, chksum=0))
    handed = datapath.send(request)
    assert (handed.action, handed.frame) == ("pass", bytes(request))
    assert handed.handover is not None and handed.handover["reason"] == "forwarded"
    there = datapath.send_tc(request)
    flow = flow.seen_in(there.frame)
    expected = to_backend(datapath, flow, flow.delivered(payload=payload))
    assert (there.action, there.frame[12:]) == ("redirect", expected[12:])
    answer = from_backend(datapath, flow, flow.answer(payload=payload, chksum=0))
    here = datapath.send_tc(answer, "lb1")
    expected = to_client(datapath, flow, flow.returned(payload=payload))
    assert (here.action, here.frame[12:]) == ("redirect", expected[12:])


def test_answers_step_the_state_that_both_directions_see(datapath: Datapath) -> None:
    flow = FullFlow(4, "tcp")
    datapath.apply(flow.text)
    flow = flow.opened(datapath)
    seen = []
    for side, flags in (
        *(("backend", "SA"), ("client", "A"), ("backend", "FA")),
        *(("client", "FA"), ("backend", "A")),
    ):
        if side == "client":
            datapath.deliver(flow.request(flags=flags, payload=b""))
        else:
            answer = flow.answer(flags=flags, payload=b"")
            datapath.send(from_backend(datapath, flow, answer), "lb1")
        seen.append(datapath.connections()[0]["state"])
    assert seen == ["SYN_RECV", "ESTABLISHED", "FIN_WAIT", "TIME_WAIT", "TIME_WAIT"]


@pytest.mark.parametrize("version", [4, 6])
def test_what_no_connection_knows_passes_untouched(datapath: Datapath, version: int) -> None:
    flow = FullFlow(version, "tcp")
    datapath.apply(flow.text)
    flow = flow.opened(datapath)
    others = [
        dataclasses.replace(flow, source=flow.source + 1).answer(flags="SA"),
        dataclasses.replace(flow, port=8081).answer(flags="SA"),
        dataclasses.replace(flow, protocol="udp").answer(),
        dataclasses.replace(flow, source=0).answer(flags="SA"),
    ]
    for packet in others:
        frame = from_backend(datapath, flow, packet)
        assert datapath.send(frame, "lb1") == Verdict("pass", bytes(frame))
    assert "answered" not in datapath.reasons()


# ------------------------------------------------------------------------------------- sources


def of_clients(flow: FullFlow, count: int) -> list[Any]:
    """First packets of so many clients."""
    _, virtual, _ = ENDS[flow.version]
    base = "172.31.{}.{}" if flow.version == 4 else "2001:db8:0:1::{:x}:{:x}"
    return [
        flow.packet(base.format(*divmod(n, 200)), virtual, (1001, 80), flags="S", payload=b"")
        for n in range(1, count + 1)
    ]


def narrow(flow: FullFlow, pool: str, ports: str) -> str:
    """The configuration with another pool."""
    settings = f"settings: {{source_pool: '{pool}', source_ports: '{ports}'}}"
    return settings + "\n" + flow.text.partition("\n")[2]


@pytest.mark.parametrize("version", [4, 6])
def test_no_two_connections_share_a_source(datapath: Datapath, version: int) -> None:
    flow = FullFlow(version, "tcp")
    pool = "10.0.0.200-10.0.0.203" if version == 4 else "2001:db8:0:2::200/126"
    datapath.apply(narrow(flow, pool, "2000-2009"))
    got = []
    for packet in of_clients(flow, 30):
        layer = Ether(datapath.deliver(packet).frame).payload
        got.append((layer.src, layer.payload.sport))
    assert len(set(got)) == 30
    assert set(got) <= set(itertools.product(map(str, sources.addresses(pool)), range(2000, 2010)))


def test_a_pool_that_is_used_up_takes_no_more_until_a_connection_ends(datapath: Datapath) -> None:
    flow = FullFlow(4, "tcp")
    datapath.apply(narrow(flow, POOL[4], "2000-2003"))
    clients = of_clients(flow, 6)
    got = [datapath.deliver(packet) for packet in clients]
    assert [verdict.action for verdict in got] == ["redirect"] * 4 + ["drop"] * 2
    assert datapath.reasons() == {"forwarded": 4, "busy": 2}
    assert len(datapath.connections()) == 4
    # nothing is left of those that got none
    (load,) = datapath.backends().values()
    assert load["active"] + load["inactive"] == 4
    reset = flow.packet(clients[2].src, ENDS[4][1], (1001, 80), flags="R", payload=b"")
    datapath.deliver(reset)
    datapath.later(61)
    # what has expired gives its port up, and a client that comes again gets one
    assert datapath.deliver(clients[5]).action == "redirect"


def test_a_client_that_comes_again_keeps_its_source(datapath: Datapath) -> None:
    flow = FullFlow(4, "tcp")
    datapath.apply(flow.text)
    flow = flow.opened(datapath)
    again = datapath.deliver(flow.request(flags="S", payload=b""))
    assert again.frame == to_backend(datapath, flow, flow.delivered(flags="S", payload=b""))


def test_an_address_that_leaves_the_pool_serves_its_connections_to_the_end(
    datapath: Datapath,
) -> None:
    flow = FullFlow(4, "tcp")
    datapath.apply(flow.text)
    flow = flow.opened(datapath)
    datapath.apply(narrow(flow, "10.0.0.201", "1024-65535"))
    here = datapath.send(from_backend(datapath, flow, flow.answer(flags="SA")), "lb1")
    assert here.frame == to_client(datapath, flow, flow.returned(flags="SA"))
    there = datapath.deliver(flow.request(flags="A"))
    assert there.frame == to_backend(datapath, flow, flow.delivered(flags="A"))
    (fresh,) = of_clients(flow, 1)
    assert Ether(datapath.deliver(fresh).frame).payload.src == "10.0.0.201"


def test_numbers_of_addresses_are_used_again_once_nobody_has_them(datapath: Datapath) -> None:
    flow = FullFlow(4, "tcp")
    datapath.apply(flow.text)
    flow = flow.opened(datapath)
    capacity = datapath.capacity.sources
    for turn in range(1, capacity):
        datapath.apply(narrow(flow, f"10.0.1.{turn}", "1024-65535"))
    book = datapath.balancer.state.book.sources
    assert len(book) == capacity and POOL[4] in book
    datapath.apply(narrow(flow, f"10.0.2.1-10.0.2.{capacity - 1}", "1024-65535"))
    book = datapath.balancer.state.book.sources
    # the one that has a connection is still there, and its answers arrive
    assert len(book) == capacity and POOL[4] in book
    here = datapath.send(from_backend(datapath, flow, flow.answer(flags="SA")), "lb1")
    assert here.frame == to_client(datapath, flow, flow.returned(flags="SA"))
    with pytest.raises(ConflictError, match=r"capacity\.sources"):
        datapath.apply(narrow(flow, f"10.0.3.1-10.0.3.{capacity}", "1024-65535"))
    assert datapath.balancer.state.book.sources == book


def test_fullnat_wants_a_pool_of_its_family(datapath: Datapath) -> None:
    text = FullFlow(6, "tcp").text.replace(f", {POOL[6]}", "")
    with pytest.raises(ConfigError, match=r"settings\.source_pool"):
        datapath.apply(text)


# ------------------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize("version", [4, 6])
def test_an_answer_that_cannot_go_on_is_refused_to_the_backend(
    datapath: Datapath, version: int
) -> None:
    flow = FullFlow(version, "tcp")
    datapath.apply(flow.text)
    flow = flow.opened(datapath)
    last = from_backend(datapath, flow, flow.answer(hops=1, flags="SA"))
    handed = datapath.send(last, "lb1")
    assert handed.handover is not None and handed.handover["reason"] == "answered"
    told = Ether(datapath.send_tc(last, "lb1").frame).payload
    assert (told.src, told.dst) == (POOL[version], ENDS[version][2])
    large = flow.answer(flags="A", payload=bytes(1600))
    if version == 4:
        large.flags = "DF"
    told = Ether(datapath.send_tc(from_backend(datapath, flow, large), "lb1").frame).payload
    if version == 4:
        assert (told[ICMP].type, told[ICMP].code, told[ICMP].nexthopmtu) == (3, 4, 1500)
        assert (told[IPerror].src, told[IPerror].dst) == (large.src, large.dst)
    else:
        assert told[ICMPv6PacketTooBig].mtu == 1500
        assert (told[IPerror6].src, told[IPerror6].dst) == (large.src, large.dst)
    assert datapath.reasons() == {"forwarded": 1, "ttl_exceeded": 1, "too_big": 1}


def quoting(version: int, source: str, quoted: Any) -> Any:
    """An error from `source` to the sender of a packet, which it quotes."""
    if version == 4:
        return IP(src=source, dst=quoted.src, ttl=64, id=9) / ICMP(type=3, code=1) / quoted
    return IPv6(src=source, dst=quoted.src, hlim=64) / ICMPv6DestUnreach(code=3) / quoted


def passed_on(version: int, source: str, quoted: Any) -> bytes:
    """The same with one hop less to go."""
    packet = quoting(version, source, quoted)
    packet.ttl = 63
    if version == 6:
        packet.hlim = 63
    return bytes(packet)


def with_sum_of(packet: Any, other: Any) -> Any:
    """The packet with the other's transport checksum, which stays as it was in what is quoted."""
    built = other.__class__(bytes(other))
    packet.payload.chksum = built.payload.chksum
    return packet


ROUTERS = {4: "172.31.0.254", 6: "2001:db8:0:1::fe"}


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("hook", ["xdp", "tc"])
def test_errors_reach_the_end_that_they_are_about(
    datapath: Datapath, version: int, protocol: str, hook: str
) -> None:
    flow = FullFlow(version, protocol)
    datapath.apply(flow.text)
    flow = flow.opened(datapath)
    send = datapath.send if hook == "xdp" else datapath.send_tc
    # about what went to the client: from the pool, as the backend knows nobody else
    sent = flow.returned(hops=60)
    there = send(datapath.to_host(quoting(version, ROUTERS[version], sent)), "lb0")
    expected = passed_on(version, POOL[version], with_sum_of(flow.answer(hops=60), sent))
    assert (there.action, there.frame[14:]) == ("redirect", expected)
    # about what went to the backend: from the service
    _, virtual, backend = ENDS[version]
    sent = flow.delivered(hops=60)
    here = send(from_backend(datapath, flow, quoting(version, backend, sent)), "lb1")
    expected = passed_on(version, virtual, with_sum_of(flow.request(hops=60), sent))
    assert (here.action, here.frame[14:]) == ("redirect", expected)


@pytest.mark.parametrize("version", [4, 6])
def test_an_error_about_another_flow_goes_up(datapath: Datapath, version: int) -> None:
    flow = FullFlow(version, "tcp")
    datapath.apply(flow.text)
    flow = flow.opened(datapath)
    other = dataclasses.replace(flow, source=flow.source + 1)
    frame = from_backend(datapath, flow, quoting(version, ENDS[version][2], other.delivered()))
    assert datapath.send(frame, "lb1") == Verdict("pass", bytes(frame))
    assert datapath.reasons() == {"forwarded": 1, "other_protocol": 1}


def test_a_backend_that_is_this_host_sees_its_clients(datapath: Datapath) -> None:
    flow = FullFlow(4, "tcp")
    with local("10.9.9.9"):
        datapath.apply(flow.text.replace("10.0.0.11", "10.9.9.9"))
        sent = datapath.deliver(flow.request(flags="S", payload=b""))
        here = flow.packet("172.31.0.21", "10.9.9.9", (1001, 8080), flags="S", payload=b"")
        assert (sent.action, sent.frame) == ("pass", bytes(datapath.to_host(here)))
        assert datapath.reasons() == {"local_backend": 1}


# ---------------------------------------------------------------------------------- fragments


def test_fragments_follow_their_first_both_ways(datapath: Datapath) -> None:
    flow = FullFlow(4, "udp", 5353)
    datapath.apply(flow.text)
    client, virtual, backend = ENDS[4]
    data = bytes(range(256)) * 4
    first = (
        IP(src=client, dst=virtual, id=5, flags="MF")
        / UDP(sport=1001, dport=80, len=8 + 2048, chksum=0x1234)
        / data
    )
    later = IP(src=client, dst=virtual, id=5, frag=129, proto=17) / data
    there = Ether(datapath.deliver(first).frame).payload
    assert (there.src, there.dst, there[UDP].dport) == (POOL[4], backend, 5353)
    port = there[UDP].sport
    rest = Ether(datapath.deliver(later).frame).payload
    assert (rest.src, rest.dst, rest.frag) == (POOL[4], backend, 129)
    assert bytes(rest) == bytes(
        IP(src=POOL[4], dst=backend, id=5, frag=129, proto=17, ttl=63) / data
    )
    back = (
        IP(src=backend, dst=POOL[4], id=6, flags="MF")
        / UDP(sport=5353, dport=port, len=8 + 2048, chksum=0x1234)
        / data
    )
    more = IP(src=backend, dst=POOL[4], id=6, frag=129, proto=17) / data
    here = Ether(datapath.send(from_backend(datapath, flow, back), "lb1").frame).payload
    assert (here.src, here.dst, here[UDP].sport, here[UDP].dport) == (virtual, client, 80, 1001)
    rest = Ether(datapath.send(from_backend(datapath, flow, more), "lb1").frame).payload
    assert bytes(rest) == bytes(
        IP(src=virtual, dst=client, id=6, frag=129, proto=17, ttl=63) / data
    )


def test_a_service_of_several_methods(datapath: Datapath) -> None:
    """Each backend by its own, in one service."""
    datapath.apply(f"""
settings: {{source_pool: {POOL[4]}}}
services:
  - protocol: tcp
    address: 192.0.2.10
    port: 80
    scheduler: rr
    backends:
      - {{address: 10.0.0.11, port: 8080, forward: nat}}
      - {{address: 10.0.0.12, port: 8080, forward: fullnat}}
      - {{address: 10.0.0.13}}
""")
    seen = {}
    for packet in of_clients(FullFlow(4, "tcp"), 3):
        frame = Ether(datapath.deliver(packet).frame)
        name = {mac: address for address, mac in BACKENDS.items()}[frame.dst]
        seen[name] = (frame[IP].src == POOL[4], frame[IP].dst, frame[TCP].dport)
    assert seen == {
        "10.0.0.11": (False, "10.0.0.11", 8080),
        "10.0.0.12": (True, "10.0.0.12", 8080),
        "10.0.0.13": (False, "192.0.2.10", 80),
    }
