"""What a configuration says and what the maps say, to be compared, in memory or in the kernel."""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Iterable, Mapping

from lvsxdp import locality, marks, records, scheduling, tables, thresholds
from lvsxdp.book import Book
from lvsxdp.marks import Packet
from lvsxdp.model import (
    Backend,
    Config,
    MarkKey,
    MarkRule,
    Protocol,
    Scheduler,
    Service,
    ServiceKey,
)
from lvsxdp.schema import Schema
from tests.marked import Reader

Maps = Mapping[str, Mapping[bytes, bytes]]
View = tuple[object, ...]


def word(maps: Maps, table: str, index: int) -> int:
    """The first word of an array's row."""
    return int.from_bytes(maps[table].get(records.number(index), bytes(8))[:8], "little")


def found_service(schema: Schema, maps: Maps, key: bytes) -> View | None:
    """The service as a packet meets it: its row's facts, its list, its scheduler's table."""
    identity = maps["services"].get(key)
    if identity is None:
        return None
    switch = word(maps, "service_switches", int.from_bytes(identity, "little"))
    row = maps["service_configs"][records.number(switch & 0xFFFFFFFF)]
    layout = schema.values["service_configs"]
    assert layout.number(row, "generation") == switch >> 32 & 0xFFFF
    names = ("persistence_timeout", "flags", "scheduler", "mark", "weight_step", "weight_max")
    start, length = layout.number(row, "list_offset"), layout.number(row, "list_length")
    names_of = {number: name for name, number in schema.enums["scheduler"].items()}
    count = scheduling.SLOTS.get(Scheduler(names_of[layout.number(row, "scheduler")]), 0)
    slots = layout.number(row, "slots_offset")
    if Scheduler(names_of[layout.number(row, "scheduler")]) in locality.SCHEDULERS:
        assert_places(schema, maps, layout.number(row, "generation"), start, length)
    return (
        *(layout.number(row, name) for name in names),
        layout.octets(row, "netmask"),
        tuple(found_member(schema, maps, start + n) for n in range(length)),
        found_slots(maps, slots, count if length else 0),
    )


def assert_places(schema: Schema, maps: Maps, generation: int, start: int, length: int) -> None:
    """Each backend of a list is found by its id at its place."""
    half = schema.flat["member_places"].rows // 2 * (generation & 1)
    for place in range(length):
        member = int.from_bytes(maps["members"][records.number(start + place)][:4], "little")
        assert maps["member_places"][records.number(half + member)] == records.number(place)


def found_member(schema: Schema, maps: Maps, index: int) -> View:
    member = maps["members"][records.number(index)]
    layout, backend = schema.values["members"], schema.values["backends"]
    row = maps["backends"][member[:4]]
    assert backend.number(row, "word") & schema.enums["backend_flag"]["present"]
    return (backend.octets(row, "address"), layout.number(member, "weight"))


def found_slots(maps: Maps, start: int, count: int) -> View:
    wanted = range(start, start + count)
    return tuple(int.from_bytes(maps["slots"][records.number(n)], "little") for n in wanted)


def wanted_service(schema: Schema, service: Service) -> View:
    """The same, from the configuration."""
    members = [b for b in reversed(service.backends) if not b.draining]
    weights = [b.weight for b in members]
    rounds = scheduling.wrr_rounds(weights)
    kept = service.persistence
    return (
        (kept.timeout if kept else 0) * schema.hz,
        tables._service_flags(schema, service),
        schema.enums["scheduler"][service.scheduler],
        service.key.mark if isinstance(service.key, MarkKey) else 0,
        rounds.step,
        rounds.top,
        kept.netmask.packed.ljust(16, b"\0") if kept else bytes(16),
        tuple((b.address.packed.ljust(16, b"\0"), b.weight) for b in members),
        tuple(scheduling.slot_table(service, scheduling.members_of(service.backends))),
    )


def probes(*configs: Config) -> list[Packet]:
    """Packets at the edges of what the rules name, each of one family."""
    rules = [rule for config in configs for rule in config.marks]
    networks = [network for rule in rules for network in (*rule.addresses, *rule.sources)]
    interfaces = [name for rule in rules for name in rule.interfaces] or ["lb0"]
    macs = [mac for rule in rules for mac in rule.source_macs] or ["02:00:00:00:00:01"]
    edges = {edge for rule in rules for p in rule.ports for edge in (p.first - 1, p.first, p.last)}
    dice = random.Random(1)
    found = []
    for network in (ipaddress.ip_network("192.0.2.10"), *networks):
        alike = [other for other in networks if other.version == network.version]
        for _ in range(4):
            found.append(
                Packet(
                    protocol=dice.choice((Protocol.TCP, Protocol.UDP)),
                    source=dice.choice(alike or [network])[0],
                    destination=network[dice.choice((0, -1))],
                    port=dice.choice([80, *sorted(edges - {-1})]),
                    interface=dice.choice(interfaces),
                    vlan=dice.choice([None, *(tag for rule in rules for tag in rule.vlans)]),
                    source_mac=dice.choice(macs),
                )
            )
    return found


def found_marks(
    schema: Schema,
    maps: Maps,
    packets: Iterable[Packet],
    ifindexes: Mapping[str, int],
) -> list[int | None]:
    """The marks that packets get by the rule set that the switch word names."""
    switch = word(maps, "switches", schema.enums["switch_word"]["marks"])
    start = (switch & 1) * schema.flat["mark_words"].rows // 2
    reader = Reader(schema, lambda place: word(maps, "mark_words", start + place), ifindexes)
    exact, ordered = bool(switch >> 32 & 1), bool(switch >> 33 & 1)
    return [reader.found(packet, exact=exact, ordered=ordered) for packet in packets]


def wanted_marks(rules: tuple[MarkRule, ...], packets: Iterable[Packet]) -> list[int | None]:
    """The marks that they are to get."""
    return [marks.first_match(rules, packet) for packet in packets]


def wanted_flags(backend: Backend) -> int:
    return 1 + 2 * (backend.weight == 0) + 4 * backend.draining


def keyed(schema: Schema, config: Config) -> dict[ServiceKey, tuple[bytes, Service]]:
    return {s.key: (tables.service_keys(schema, s), s) for s in config.services}


def assert_says(
    schema: Schema, maps: Maps, book: Book, config: Config, ifindexes: Mapping[str, int]
) -> None:
    """The maps hold this configuration and nothing else that a packet could meet."""
    wanted = {
        key: wanted_service(schema, service) for key, service in keyed(schema, config).values()
    }
    assert {key: found_service(schema, maps, key) for key in maps["services"]} == wanted
    layout = schema.values["backends"]
    expected = {}
    for service in config.services:
        place = book.services[str(service.key)]
        for backend in service.backends:
            at = place.backends[str(backend)]
            flags = wanted_flags(backend)
            row = (
                at.generation << 32 | flags,
                backend.address.packed.ljust(16, b"\0"),
                place.id,
                thresholds.word_of(backend),
            )
            assert at.id not in expected
            expected[at.id] = row
    present = {
        int.from_bytes(key, "little"): (
            layout.number(row, "word"),
            layout.octets(row, "address"),
            layout.number(row, "service"),
            # without what came of the thresholds
            word(maps, "limits", int.from_bytes(key, "little")) & ~thresholds.OVERLOADED,
        )
        for key, row in maps["backends"].items()
        if layout.number(row, "word") & 0xFFFFFFFF
    }
    assert present == expected
    packets = probes(config)
    assert found_marks(schema, maps, packets, ifindexes) == (wanted_marks(config.marks, packets))
    assert word(maps, "switches", schema.enums["switch_word"]["settings"]) == (
        tables.settings_word(schema, config.settings, config.services)
    )
