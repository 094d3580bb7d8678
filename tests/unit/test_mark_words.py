"""Sets of mark rules as words, read as bpf/mark.h reads them."""

from __future__ import annotations

import ipaddress
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lvsxdp import mark_words, marks
from lvsxdp.errors import ConflictError
from lvsxdp.model import MarkRule, Ports, Protocol
from tests import drawn_rules
from tests.marked import Reader
from tests.unit.headers import ROOT, schema

SCHEMA = schema()
IFINDEXES = {"lb0": 2, "lb1": 3}
CONFIG_H = (ROOT / "bpf/config.h").read_text()


def built(rules: tuple[MarkRule, ...], capacity: int = 16384) -> Reader:
    table = marks.expand(rules)
    room = mark_words.words_for(capacity)
    raw = mark_words.build(table, SCHEMA.enums, SCHEMA.hashing, IFINDEXES, room)
    return Reader(SCHEMA, memoryview(raw).cast("Q").__getitem__, IFINDEXES)


def differing(rules: tuple[MarkRule, ...], packets: list[marks.Packet], reader: Reader) -> list:
    """The packets that get another mark than the first rule that matches gives."""
    found = [reader.found(packet, exact=True, ordered=True) for packet in packets]
    wanted = [marks.first_match(rules, packet) for packet in packets]
    return [trio for trio in zip(packets, found, wanted, strict=True) if trio[1] != trio[2]]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), count=st.integers(1, 300))
def test_a_packet_gets_the_mark_of_the_first_rule_that_matches(seed: int, count: int) -> None:
    dice = random.Random(seed)
    rules = drawn_rules.rules(dice, count)
    packets = [drawn_rules.packet(dice, rules) for _ in range(20)]
    reader = built(rules)
    if all(map(marks.is_exact, rules)):
        return
    assert differing(rules, packets, reader) == []


def test_ten_thousand_rules_are_found_within_the_steps_that_a_program_takes() -> None:
    dice = random.Random(1)
    rules = drawn_rules.rules(dice, 10_000)
    packets = [drawn_rules.packet(dice, rules) for _ in range(100)]
    reader = built(rules)
    assert differing(rules, packets, reader) == []
    assert {marks.first_match(rules, packet) for packet in packets} >= {None, 0, 1}
    assert f"#define MARK_PROBES {mark_words.PROBES}\n" in CONFIG_H
    assert reader.most_steps <= 8


def test_every_prefix_length_of_both_families_takes_at_most_eight_steps() -> None:
    six = ipaddress.ip_address("2001:db8:ffff:ffff:ffff:ffff:ffff:ffff")
    lengths = [ipaddress.ip_network((six, n), strict=False) for n in range(129)]
    four = ipaddress.ip_address("192.0.2.255")
    lengths += [ipaddress.ip_network((four, n), strict=False) for n in range(33)]
    rules = tuple(MarkRule(n + 1, addresses=(net,)) for n, net in enumerate(reversed(lengths)))
    reader = built(rules)
    for address in (four, six, *(ipaddress.ip_address(int(six) ^ 1 << n) for n in range(128))):
        packet = marks.Packet(Protocol.TCP, address, address, 80, "lb0", None, drawn_rules.MACS[0])
        assert reader.found(packet, exact=False, ordered=True) == marks.first_match(rules, packet)
    assert "#define MARK_STEPS 8\n" in CONFIG_H
    assert reader.most_steps == 8


def test_an_ipv6_address_is_not_taken_for_an_ipv4_address_of_the_same_first_bytes() -> None:
    four, six = ipaddress.ip_address("192.0.2.10"), ipaddress.ip_address("c000:20a::")
    assert four.packed == six.packed[:4]
    rules = tuple(
        MarkRule(n + 1, (Protocol.TCP,), (ipaddress.ip_network(address),), (Ports(80, 80),))
        for n, address in enumerate((four, six))
    )
    reader = built(rules)
    found = [
        reader.found(
            marks.Packet(Protocol.TCP, address, address, 80, "lb0", None, drawn_rules.MACS[0]),
            exact=True,
            ordered=False,
        )
        for address in (four, six)
    ]
    assert found == [1, 2]


def test_rules_that_need_more_memory_than_there_is_say_how_to_get_it() -> None:
    rules = tuple(MarkRule(1, ports=(Ports(n, n + 30_000),)) for n in range(2_000))
    with pytest.raises(ConflictError, match=r"raise capacity.marks to (\d+) and attach") as caught:
        built(rules, 1024)
    raised = int(str(caught.value).rpartition("marks to ")[2].split()[0])
    assert built(rules, raised).header("summaries") == 1
    with pytest.raises(ConflictError):
        built(rules, raised // 2)


def test_more_rules_than_have_bits_are_refused() -> None:
    rules = tuple(MarkRule(1, vlans=(n % 4095,)) for n in range(mark_words.MAX_ORDERED + 1))
    assert built(rules[:-1]).header("summaries") == 4
    with pytest.raises(ConflictError, match=r"16385 rules .* and 16384 such rules is the most"):
        built(rules)
