"""Mark rules in the maps: the writes that put one rule set in the place of another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from lvsxdp import marks, records
from lvsxdp.book import Book
from lvsxdp.errors import ConfigError
from lvsxdp.model import Config, Network
from lvsxdp.schema import Schema
from lvsxdp.writes import Delete, Store, Update, Write

PROTOCOL_BITS = {"tcp": 1, "udp": 2, "sctp": 4}


def mark_writes(
    schema: Schema, book: Book, old: Config, new: Config, ifindexes: Mapping[str, int]
) -> Iterator[tuple[str, Write]]:
    """The new rule set beside the old, the switch, then the old one's removal."""
    before, after = marks.expand(old.marks), marks.expand(new.marks)
    last = book.mark_generation
    book.mark_generation = generation = (last + 1) & 0xFFFF
    offset = generation % 2 * marks.MAX_ORDERED
    for exact, verdict in after.exact.items():
        value = schema.values["mark_exact"].encode(mark=verdict.mark, position=verdict.position)
        yield "prepare", Update("mark_exact", _exact_key(schema, exact, generation), value)
    for index, rule in enumerate(after.ordered):
        row = _ordered_row(schema, rule, ifindexes)
        yield "prepare", Update("mark_rules", records.number(offset + index), row)
    word = generation | offset << 16 | len(after.ordered) << 32 | bool(after.exact) << 48
    word |= all(map(_is_by_target, after.ordered)) << 49
    yield "switch", Store("switches", schema.enums["switch_word"]["marks"], word)
    for exact in before.exact:
        yield "finish", Delete("mark_exact", _exact_key(schema, exact, last))


def _is_by_target(rule: marks.OrderedRule) -> bool:
    """Looks at nothing but destination address, port and protocol."""
    return rule.source is None and not (rule.source_mac or rule.interface or rule.vlan is not None)


def _exact_key(schema: Schema, exact: marks.ExactKey, generation: int) -> bytes:
    return schema.keys["mark_exact"].encode(
        address=records.wire_address(exact.address),
        port=records.wire_port(exact.port),
        protocol=exact.protocol.number,
        family=exact.address.version,
        generation=generation,
    )


def _ordered_row(schema: Schema, rule: marks.OrderedRule, ifindexes: Mapping[str, int]) -> bytes:
    destination, destination_mask = _prefix(rule.destination)
    source, source_mask = _prefix(rule.source)
    network = rule.destination or rule.source
    return schema.values["mark_rules"].encode(
        destination=destination,
        destination_mask=destination_mask,
        source=source,
        source_mask=source_mask,
        mac=records.mac_word(rule.source_mac) if rule.source_mac else 0,
        mac_mask=2**48 - 1 if rule.source_mac else 0,
        ifindex=_ifindex(rule.interface, ifindexes) if rule.interface else 0,
        ifindex_mask=2**32 - 1 if rule.interface else 0,
        vlan=0 if rule.vlan is None else rule.vlan + 1,
        vlan_mask=0 if rule.vlan is None else 0xFFFF,
        first_port=rule.ports.first,
        last_port=rule.ports.last,
        protocols=sum(PROTOCOL_BITS[protocol] for protocol in rule.protocols),
        family=network.version if network else 0,
        mark=rule.mark,
        position=rule.position,
    )


def _prefix(network: Network | None) -> tuple[bytes, bytes]:
    if network is None:
        return bytes(16), bytes(16)
    address, mask = network.network_address, network.netmask
    return records.wire_address(address), records.wire_address(mask)


def _ifindex(name: str, ifindexes: Mapping[str, int]) -> int:
    if name not in ifindexes:
        raise ConfigError(f'marks: there is no interface "{name}" here')
    return ifindexes[name]
