"""Mark rules as rows."""

from __future__ import annotations

import dataclasses
import ipaddress
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lvsxdp import marks
from lvsxdp.marks import ExactKey, Packet, Verdict
from lvsxdp.model import MarkRule, Network, Ports, Protocol

TCP, UDP, SCTP = Protocol.TCP, Protocol.UDP, Protocol.SCTP
VIP = ipaddress.ip_network("192.0.2.10")
NET = ipaddress.ip_network("192.0.2.0/24")
CLIENTS = ipaddress.ip_network("198.51.100.0/24")


def rule(mark: int = 1, *ports: Ports, **conditions: Any) -> MarkRule:
    return dataclasses.replace(MarkRule(mark, (TCP,), (VIP,), ports), **conditions)


PACKET = Packet(
    protocol=TCP,
    source=ipaddress.ip_address("198.51.100.1"),
    destination=VIP.network_address,
    port=80,
    interface="eth0",
    vlan=None,
    source_mac="02:00:00:00:00:01",
)


def test_addresses_with_single_ports_become_exact_rows_of_every_protocol() -> None:
    other = ipaddress.ip_network("2001:db8::1")
    several = rule(7, Ports(80, 80), Ports(443, 443), protocols=(TCP, UDP), addresses=(VIP, other))
    assert marks.expand((several,)) == marks.RuleTable(
        {
            ExactKey(protocol, address.network_address, port): Verdict(7, 0)
            for address in (VIP, other)
            for protocol in (TCP, UDP)
            for port in (80, 443)
        },
        (),
    )


@pytest.mark.parametrize(
    "restriction",
    [
        {"addresses": (NET,)},
        {"addresses": (VIP, NET)},
        {"addresses": ()},
        {"ports": ()},
        {"ports": (Ports(80, 80), Ports(20, 21))},
        {"sources": (CLIENTS,)},
        {"source_macs": ("02:00:00:00:00:01",)},
        {"interfaces": ("eth0",)},
        {"vlans": (5,)},
    ],
)
def test_whatever_else_restricts_or_widens_a_rule_makes_it_an_ordered_one(
    restriction: dict[str, Any],
) -> None:
    first, widened = rule(1, Ports(22, 22)), rule(7, **{"ports": (Ports(80, 80),), **restriction})
    table = marks.expand((first, widened))
    assert (len(table.exact), table.ordered) == (1, ((1, widened),))


def test_the_first_of_two_exact_duplicates_is_kept() -> None:
    table = marks.expand((rule(1, Ports(80, 80)), rule(2, Ports(80, 80))))
    assert list(table.exact.values()) == [Verdict(1, 0)]


def test_mark_zero_ends_classification() -> None:
    rules = (rule(0, Ports(80, 80)), rule(1))
    assert marks.first_match(rules, PACKET) == 0


def test_a_packet_that_no_rule_takes_has_no_mark() -> None:
    rules = (rule(1, Ports(443, 443)),)
    assert marks.first_match(rules, PACKET) is None


def test_an_untagged_packet_matches_no_rule_of_a_vlan() -> None:
    assert marks.first_match((rule(1, vlans=(5,)),), PACKET) is None
    assert marks.first_match((rule(1, vlans=(5,)),), dataclasses.replace(PACKET, vlan=5)) == 1


def test_a_rule_that_repeats_an_earlier_one_is_a_warning() -> None:
    rules = (rule(1, Ports(80, 80)), rule(2, Ports(22, 22)), rule(1, Ports(80, 80)))
    assert marks.warnings(rules) == ["marks[2]: repeats marks[0]; leave one of them out"]


def test_a_rule_that_an_earlier_one_covers_is_a_warning() -> None:
    rules = (rule(1, addresses=(NET,)), rule(2, Ports(80, 90), sources=(CLIENTS,)))
    assert marks.warnings(rules) == [
        "marks[1]: is never reached, after marks[0]; move it up or leave it out"
    ]


def test_a_rule_that_several_earlier_ones_cover_together_is_a_warning() -> None:
    rules = (
        rule(1, Ports(80, 80)),
        rule(1, Ports(443, 443)),
        rule(2, Ports(80, 80), Ports(443, 443), interfaces=("eth0",)),
    )
    assert marks.warnings(rules) == [
        "marks[2]: is never reached, after marks[0] and marks[1]; move it up or leave it out"
    ]


@pytest.mark.parametrize(
    "later",
    [
        rule(2, Ports(80, 81)),
        rule(2, Ports(80, 80), protocols=(TCP, UDP)),
        rule(2, Ports(80, 80), addresses=(NET,)),
        rule(2, Ports(80, 80), addresses=()),
    ],
)
def test_a_rule_that_is_reached_by_some_packets_is_no_warning(later: MarkRule) -> None:
    assert marks.warnings((rule(1, Ports(80, 80)), later)) == []


@pytest.mark.parametrize(
    "narrower",
    [
        {"addresses": (NET,)},
        {"addresses": (ipaddress.ip_network("192.0.0.0/23"),)},
        {"sources": (CLIENTS,)},
        {"source_macs": ("02:00:00:00:00:01",)},
        {"interfaces": ("eth0",)},
        {"vlans": (5,)},
        {"ports": (Ports(2, 65535),)},
        {"protocols": (UDP, SCTP)},
    ],
)
def test_a_rule_that_is_wider_than_an_earlier_one_is_no_warning(narrower: dict[str, Any]) -> None:
    wide = rule(2, addresses=(ipaddress.ip_network("192.0.0.0/16"),))
    earlier = dataclasses.replace(wide, mark=1, **narrower)
    assert marks.warnings((earlier, wide)) == []
    assert len(marks.warnings((wide, earlier))) == (0 if "protocols" in narrower else 1)


ADDRESSES = [ipaddress.ip_address(a) for a in ("192.0.2.1", "192.0.2.2", "2001:db8::1")]
NETWORKS: list[Network] = [
    *(ipaddress.ip_network(a) for a in ADDRESSES),
    *map(ipaddress.ip_network, ("192.0.2.0/30", "0.0.0.0/0", "2001:db8::/64", "::/0")),
]
PORTS = [Ports(1, 1), Ports(2, 2), Ports(1, 2), Ports(2, 65535), Ports(1, 65535)]
MACS = ["02:00:00:00:00:01", "02:00:00:00:00:02"]


def some(values: list, most: int = 2, least: int = 0) -> st.SearchStrategy:
    return st.lists(st.sampled_from(values), min_size=least, max_size=most, unique=True).map(tuple)


def rarely(values: list) -> st.SearchStrategy:
    return st.one_of(st.just(()), st.just(()), some(values))


RULES = st.lists(
    st.builds(
        MarkRule,
        mark=st.integers(0, 5),
        protocols=some(list(Protocol), 3, 1),
        addresses=some(NETWORKS),
        ports=some(PORTS),
        sources=rarely(NETWORKS),
        source_macs=rarely(MACS),
        interfaces=rarely(["eth0", "eth1"]),
        vlans=rarely([1, 2]),
    ),
    max_size=6,
).map(tuple)


@st.composite
def packets(draw: st.DrawFn) -> Packet:
    version = draw(st.sampled_from([4, 4, 6]))
    one_family = [address for address in ADDRESSES if address.version == version]
    return Packet(
        protocol=draw(st.sampled_from(list(Protocol))),
        source=draw(st.sampled_from(one_family)),
        destination=draw(st.sampled_from(one_family)),
        port=draw(st.sampled_from([0, 1, 2, 3])),
        interface=draw(st.sampled_from(["eth0", "eth1", "eth2"])),
        vlan=draw(st.sampled_from([None, 1, 2])),
        source_mac=draw(st.sampled_from(MACS)),
    )


@settings(max_examples=200, deadline=None)
@given(rules=RULES, probe=packets())
def test_no_packet_reaches_a_rule_that_is_said_to_be_never_reached(
    rules: tuple[MarkRule, ...], probe: Packet
) -> None:
    unreached = {
        int(line.partition("]")[0].removeprefix("marks[")) for line in marks.warnings(rules)
    }
    matching = [marks.first_match((rule,), probe) is not None for rule in rules]
    assume(True in matching)
    assert matching.index(True) not in unreached
