"""Bits of the filter, from addresses and from configurations."""

from __future__ import annotations

import ipaddress
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lvsxdp import filtering
from lvsxdp.filtering import Hashing
from lvsxdp.model import (
    ANY_PORT,
    FTP_PORT,
    Address,
    AddressKey,
    Config,
    Family,
    MarkKey,
    MarkRule,
    Network,
    Ports,
    Protocol,
    Service,
)
from tests.unit.headers import HASHING

ip, net = ipaddress.ip_address, ipaddress.ip_network
VIP, VIP6 = ip("192.0.2.10"), ip("2001:db8::10")
ADDRESSES = st.ip_addresses(v=4) | st.ip_addresses(v=6)
FAMILIES = pytest.mark.parametrize("address", [VIP, VIP6], ids=["ipv4", "ipv6"])


def service(address: Address, port: int, protocol: Protocol = Protocol.TCP) -> Service:
    return Service(AddressKey(protocol, address, port))


def bits(*rules: MarkRule, services: tuple[Service, ...] = ()) -> set[int] | None:
    """The numbers of the bits that are set; None where everything passes."""
    words = filtering.words(HASHING, Config(marks=rules, services=services))
    if words is None:
        return None
    return {64 * index + n for index, word in words.items() for n in range(64) if word >> n & 1}


def whole_bits(*rules: MarkRule, services: tuple[Service, ...] = ()) -> set[int] | None:
    """The same without those of addresses' fragments, which none of these addresses shares."""
    found = bits(*rules, services=services)
    if found is None:
        return None
    named = {network for rule in rules for network in rule.addresses if network.num_addresses < 257}
    addresses = {address for network in named for address in network_addresses(network)}
    addresses |= {each.key.address for each in services if isinstance(each.key, AddressKey)}
    return found - {HASHING.bit(address, 0, filtering.OF_FRAGMENT) for address in addresses}


def network_addresses(network: Network) -> list[Address]:
    return [network[index] for index in range(network.num_addresses)]


# ---- one bit ----


@settings(max_examples=200, deadline=None)
@given(
    address=ADDRESSES,
    port=st.integers(0, 65535),
    protocol=st.integers(0, 255),
    size=st.integers(6, 24),
)
def test_every_address_port_and_protocol_has_a_bit_of_the_filter(
    address: Address, port: int, protocol: int, size: int
) -> None:
    assert 0 <= Hashing(HASHING.keys, size).bit(address, port, protocol) < 2**size


@FAMILIES
def test_an_address_alone_has_another_bit_than_with_a_port(address: Address) -> None:
    alone = HASHING.bit(address)
    same = sum(HASHING.bit(address, port, 6) == alone for port in range(1, 2001))
    assert same <= 2


@FAMILIES
def test_protocols_of_one_port_have_bits_of_their_own(address: Address) -> None:
    assert len({HASHING.bit(address, 53, protocol) for protocol in (6, 17, 132)}) == 3


def test_two_targets_rarely_share_a_bit() -> None:
    """2000 targets in 65536 bits: about 30 pairs meet by chance."""
    dice = random.Random(1)
    drawn = Hashing(tuple(dice.getrandbits(64) for _ in range(14)), 16)
    targets = [(ip(0xC0000200 + n), port) for n in range(100) for port in range(8000, 8010)]
    targets += [(ip(int(VIP6) + (n << 32 * (n % 4))), n + 1) for n in range(1000)]
    assert len({drawn.bit(address, port, 6) for address, port in targets}) > 1900


@pytest.mark.parametrize("part", range(4))
def test_every_part_of_an_ipv6_address_counts(part: int) -> None:
    assert HASHING.bit(ip(int(VIP6) ^ 1 << 32 * part), 80, 6) != HASHING.bit(VIP6, 80, 6)


def test_a_bit_is_the_top_of_the_sum_over_the_words_of_a_key() -> None:
    """bpf/hash.h over a flow4, as this machine reads it."""
    keys = HASHING.keys
    flow = bytes(4) + VIP.packed + bytes(2) + (80).to_bytes(2, "big") + bytes([6, 0, 0, 0])
    first, second = (int.from_bytes(flow[at : at + 8], "little") for at in (0, 8))
    total = keys[0] + keys[1] * (first >> 32) + keys[2] * (second >> 16)
    assert HASHING.bit(VIP, 80, 6) == total % 2**64 >> 48


def test_a_bit_of_ipv6_is_the_top_of_the_sum_over_the_words_of_a_key() -> None:
    keys = HASHING.keys
    flow = bytes(16) + VIP6.packed + bytes(2) + (80).to_bytes(2, "big") + bytes([6, 0, 0, 0])
    words = [int.from_bytes(flow[at : at + 8], "little") for at in range(0, 40, 8)]
    total = keys[5] + keys[6] * (words[2] % 2**32) + keys[7] * (words[2] >> 32)
    total += keys[8] * (words[3] % 2**32) + keys[9] * (words[3] >> 32)
    assert HASHING.bit(VIP6, 80, 6) == (total + keys[2] * (words[4] >> 16)) % 2**64 >> 48


# ---- services ----


def test_where_nothing_is_configured_nothing_passes() -> None:
    assert whole_bits() == set()


@FAMILIES
def test_a_service_is_the_bit_of_its_address_port_and_protocol(address: Address) -> None:
    assert whole_bits(services=(service(address, 80),)) == {HASHING.bit(address, 80, 6)}


@FAMILIES
def test_of_every_address_that_is_named_fragments_are_known(address: Address) -> None:
    bit = HASHING.bit(address, 0, filtering.OF_FRAGMENT)
    assert bit in (bits(services=(service(address, 80),)) or set())
    assert bit in (bits(rule(str(address), Ports(80, 80))) or set())


@FAMILIES
@pytest.mark.parametrize("port", [FTP_PORT, ANY_PORT])
def test_a_service_of_many_ports_is_also_the_bit_of_its_address(
    address: Address, port: int
) -> None:
    found = whole_bits(services=(service(address, port),))
    assert found is not None and HASHING.bit(address) in found


def test_a_service_by_mark_needs_no_bit_of_its_own() -> None:
    assert whole_bits(services=(Service(MarkKey(1, Family.IPV4)),)) == set()


# ---- mark rules ----


def rule(address: str | None = None, *ports: Ports, source: str | None = None) -> MarkRule:
    return MarkRule(
        1,
        protocols=(Protocol.TCP, Protocol.UDP),
        addresses=(net(address),) if address else (),
        ports=ports,
        sources=(net(source),) if source else (),
    )


@pytest.mark.parametrize("source", [None, "203.0.113.0/24"])
def test_a_rule_is_a_bit_for_each_address_port_and_protocol(source: str | None) -> None:
    wanted = {
        HASHING.bit(ip(address), port, protocol)
        for address in ("192.0.2.10", "192.0.2.11")
        for port in (80, 81)
        for protocol in (6, 17)
    }
    assert whole_bits(rule("192.0.2.10/31", Ports(80, 81), source=source)) == wanted


@pytest.mark.parametrize("address", ["192.0.2.0/24", "2001:db8::/120"])
def test_the_most_addresses_that_have_bits_are_256(address: str) -> None:
    wanted = {HASHING.bit(each, 80, p) for each in net(address) for p in (6, 17)}
    assert whole_bits(rule(address, Ports(80, 80))) == wanted


@pytest.mark.parametrize("address", ["192.0.2.0/23", "2001:db8::/119", "0.0.0.0/0", "::/0"])
def test_of_too_many_addresses_everything_passes(address: str) -> None:
    assert whole_bits(rule(address, Ports(80, 80))) is None


def test_a_rule_without_an_address_lets_everything_pass() -> None:
    assert whole_bits(rule(None, Ports(80, 80))) is None
    assert whole_bits(rule(source="203.0.113.7/32")) is None


def test_a_rule_that_lets_everything_pass_does_so_beside_others() -> None:
    assert whole_bits(rule("192.0.2.10/32", Ports(80, 80)), rule()) is None


@pytest.mark.parametrize("ports", [(), (Ports(80, 96),), (Ports(1, 65535),)])
def test_a_rule_of_too_many_ports_is_the_bit_of_its_address_alone(ports: tuple[Ports, ...]) -> None:
    assert whole_bits(rule("192.0.2.10/31", *ports)) == {
        HASHING.bit(ip("192.0.2.10")),
        HASHING.bit(ip("192.0.2.11")),
    }


def test_the_most_ports_that_have_bits_of_their_own_are_16() -> None:
    wanted = {HASHING.bit(VIP, port, p) for port in range(80, 96) for p in (6, 17)}
    assert whole_bits(rule("192.0.2.10/32", Ports(80, 95))) == wanted
