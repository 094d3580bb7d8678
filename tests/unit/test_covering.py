"""Which listeners a configuration takes the packets of."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lvsxdp import config, covering, marks
from lvsxdp.covering import Listener
from lvsxdp.model import Config, MarkRule, Ports, Protocol, Service
from lvsxdp.names import parse_service_key

VIP, OTHER, LOOP = (ipaddress.ip_address(a) for a in ("192.0.2.1", "192.0.2.2", "127.0.0.1"))
VIP6 = ipaddress.ip_address("2001:db8::1")
LOCAL = [VIP, VIP6, LOOP, ipaddress.ip_address("::1")]
BACKENDS = "backends: [{address: 10.0.0.1}]"


def at(address: str, port: int = 22, protocol: Protocol = Protocol.TCP) -> Listener:
    return Listener(protocol, ipaddress.ip_address(address), port, 7)


def places(text: str, *listeners: Listener, before: str = "") -> list[tuple[str, str]]:
    """Where, and by what, the text takes packets of each listener that `before` does not."""
    old, new = (config.load(one)[0] if one else Config() for one in (before, text))
    found = covering.newly_covered(old, new, listeners or [at("0.0.0.0")], LOCAL)
    return [(str(one.address), one.place) for one in found]


def service(key: str, persistent: bool = False) -> str:
    protocol, address, port = key.split(" ")
    more = ", persistence: 60" if persistent else ""
    words = f"protocol: {protocol}, address: '{address}', port: {port}{more}"
    return f"services: [{{{words}}}]"


def rules(*conditions: str, mark: int = 1) -> str:
    """Rules, and a service for mark 1."""
    listed = "".join(f"\n- {{{one if 'mark' in one else f'mark: 1, {one}'}}}" for one in conditions)
    return f"marks:{listed}\nservices: [{{mark: {mark}, {BACKENDS}}}]"


def test_a_service_covers_who_listens_at_its_address_or_at_every_one() -> None:
    web = service("tcp 192.0.2.1 22")
    found = [("192.0.2.1", "service tcp:192.0.2.1:22")]
    assert places(web, at("0.0.0.0")) == found
    assert places(web, at("192.0.2.1")) == found
    # a socket for IPv6 may take IPv4, too
    assert places(web, at("::")) == found
    assert places(service("tcp 2001:db8::1 22"), at("0.0.0.0")) == []


@pytest.mark.parametrize(
    "listener",
    [at("0.0.0.0", 23), at("0.0.0.0", protocol=Protocol.UDP), at("127.0.0.1"), at("192.0.2.2")],
)
def test_a_service_covers_no_other_port_protocol_or_address(listener: Listener) -> None:
    assert places(service("tcp 192.0.2.1 22"), listener) == []


def test_an_address_that_is_not_this_hosts_now_takes_nothing() -> None:
    assert places(service("tcp 192.0.2.2 22"), at("0.0.0.0"), at("192.0.2.2")) == []


def test_a_service_of_any_port_covers_every_port_of_its_protocol() -> None:
    every = service("tcp 192.0.2.1 any", persistent=True)
    listeners = at("0.0.0.0"), at("0.0.0.0", 53, Protocol.UDP), at("192.0.2.1", 9100)
    assert [where for where, _ in places(every, *listeners)] == ["192.0.2.1", "192.0.2.1"]


@pytest.mark.parametrize(("port", "covered"), [(20, True), (22, False), (1024, True)])
def test_a_persistent_ftp_service_covers_the_ports_of_its_data(port: int, covered: bool) -> None:
    ftp = service("tcp 192.0.2.1 21", persistent=True)
    assert bool(places(ftp, at("0.0.0.0", port))) == covered
    assert places(service("tcp 192.0.2.1 21"), at("0.0.0.0", port)) == []


def test_a_rule_for_any_address_covers_each_that_is_local_but_not_the_loopback() -> None:
    every = rules("address: any, ports: 20-30")
    assert places(every, at("0.0.0.0"), at("127.0.0.1"), at("0.0.0.0", 31)) == [
        ("192.0.2.1", "marks[0]")
    ]
    # there is no service of mark 1 for IPv6
    assert places(every, at("2001:db8::1")) == []


@pytest.mark.parametrize(
    "conditions",
    [
        ("mark: 0, address: 192.0.2.1, port: 22", "address: 192.0.2.0/24"),
        ("mark: 7, address: 192.0.2.1, port: 22", "address: 192.0.2.0/24"),
        ("mark: 7, address: any",),
    ],
)
def test_the_first_rule_decides_and_one_without_service_takes_nothing(
    conditions: tuple[str, ...],
) -> None:
    assert places(rules(*conditions)) == []


def test_a_rule_that_leaves_packets_alone_does_so_before_a_service_by_address() -> None:
    web = service("tcp 192.0.2.1 22")
    assert places("marks: [{mark: 0, address: 192.0.2.1, port: 22}]\n" + web) == []
    assert places("marks: [{mark: 7, address: 192.0.2.1, port: 22}]\n" + web) != []


def test_a_rule_for_some_clients_covers_and_exempts_only_them() -> None:
    assert places(rules("address: any, source: 203.0.113.0/24")) == [("192.0.2.1", "marks[0]")]
    exempting = "mark: 0, address: any, source: 203.0.113.0/24"
    assert places(rules(exempting, "address: any, port: 22")) == [("192.0.2.1", "marks[1]")]
    assert places(rules("address: any, source: '2001:db8::/32'")) == []


def test_what_was_covered_before_is_no_news() -> None:
    web = service("tcp 192.0.2.1 22")
    assert places(web, before=web) == []
    assert places(rules("address: any"), before=web) == []
    both = [at("0.0.0.0"), at("0.0.0.0", 80)]
    assert places(rules("address: any"), *both, before=web) == [("192.0.2.1", "marks[0]")]


RULES = st.lists(
    st.builds(
        MarkRule,
        mark=st.integers(0, 2),
        protocols=st.sampled_from([(Protocol.TCP,), (Protocol.UDP,), tuple(Protocol)]),
        addresses=st.sampled_from(
            [(), *((ipaddress.ip_network(n),) for n in ("192.0.2.1", "192.0.2.0/24", "10.0.0.0/8"))]
        ),
        ports=st.sampled_from([(), (Ports(22, 22),), (Ports(1, 100),), (Ports(80, 443),)]),
    ),
    max_size=6,
)


@settings(deadline=None)
@given(RULES, st.sampled_from([22, 80, 443, 1000]))
def test_random_rules_cover_what_the_plain_reference_gives_a_service(
    drawn: list[MarkRule], port: int
) -> None:
    listener = at("192.0.2.1", port)
    new = Config(marks=tuple(drawn), services=(Service(parse_service_key("mark:1")),))
    packet = marks.Packet(Protocol.TCP, OTHER, VIP, port, "eth0", None, "")
    found = covering.newly_covered(Config(), new, [listener], LOCAL)
    assert bool(found) == (marks.first_match(tuple(drawn), packet) == 1)
