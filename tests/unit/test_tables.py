"""The writes from one configuration to another, performed one by one on maps in memory."""

from __future__ import annotations

import dataclasses
import ipaddress
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from lvsxdp import marks, records, tables
from lvsxdp.book import Book
from lvsxdp.errors import ConfigError, ConflictError
from lvsxdp.filtering import OF_FRAGMENT
from lvsxdp.model import (
    ANY_PORT,
    FTP_PORT,
    AddressKey,
    Backend,
    Capacity,
    Config,
    Family,
    MarkKey,
    MarkRule,
    Persistence,
    Ports,
    Protocol,
    Scheduler,
    Service,
    Settings,
)
from lvsxdp.names import parse_service_key
from lvsxdp.scheduling import Cursor
from lvsxdp.tables import Host
from lvsxdp.writes import (
    FULL,
    Block,
    Delete,
    Divide,
    Evict,
    Fill,
    Grace,
    Limit,
    Raise,
    Reset,
    Rows,
    Store,
    Update,
    Write,
    Zero,
)
from tests.said import (
    View,
    assert_says,
    found_marks,
    found_service,
    keyed,
    probes,
    wanted_marks,
    wanted_service,
    word,
)
from tests.unit.headers import schema
from tests.unit.strategies import CONFIGS

SCHEMA = schema()
CAPACITY = Capacity(connections=8, persistence=8, services=16, backends=64)
ip = ipaddress.ip_address
Written = dict[str, dict[bytes, bytes]]


def perform(maps: Written, write: Write) -> None:
    """What Balancer._perform does, on dictionaries."""
    if isinstance(write, Grace | Evict | Zero | Divide):
        return
    if isinstance(write, Limit):
        store(maps, "limits", write.backend, write.thresholds)
        return
    table = maps[write.table]
    if isinstance(write, Update):
        assert len(write.value) == SCHEMA.values[write.table].size
        assert len(write.key) == SCHEMA.keys[write.table].size
        table[write.key] = write.value
    elif isinstance(write, Rows):
        size = SCHEMA.values[write.table].size
        assert write.value and len(write.value) % size == 0
        for n in range(len(write.value) // size):
            row = write.value[n * size : (n + 1) * size]
            table[records.number(write.index + n)] = row
    elif isinstance(write, Delete):
        assert write.key in table, f"{write} deletes what is not there"
        del table[write.key]
    elif isinstance(write, Reset):
        for index in range(write.index, write.index + write.count):
            table[records.number(index)] = bytes(SCHEMA.values[write.table].size)
    elif isinstance(write, Store):
        store(maps, write.table, write.index, write.word)
    elif isinstance(write, Raise):
        store(maps, write.table, write.index, word(maps, write.table, write.index) | write.bits)
    elif isinstance(write, Block):
        for n in range(0, len(write.value), 8):
            table[records.number((write.start + n) // 8)] = write.value[n : n + 8]
    elif isinstance(write, Fill):
        for index in range(write.words):
            store(maps, write.table, index, FULL)


def store(maps: Written, table: str, index: int, value: int) -> None:
    key = records.number(index)
    before = maps[table].get(key, bytes(SCHEMA.values[table].size))
    maps[table][key] = value.to_bytes(8, "little") + before[8:]


def table_of(write: Write) -> str | None:
    """The map that a write is to, None for the others."""
    return None if isinstance(write, Grace | Evict | Zero | Divide | Limit) else write.table


# ---- driving it ----


@dataclasses.dataclass
class Machine:
    """Maps in memory, the book of what stands where, and the configuration that they hold."""

    maps: Written = dataclasses.field(default_factory=lambda: defaultdict(dict))
    book: Book = dataclasses.field(default_factory=Book)
    config: Config = dataclasses.field(default_factory=Config)
    first: bool = True
    ifindexes: dict[str, int] = dataclasses.field(default_factory=lambda: {"lb0": 2})

    def plan(self, new: Config, cursors: dict[int, Cursor] | None = None) -> list[Write]:
        rules = (*self.config.marks, *new.marks)
        self.ifindexes |= {
            name: zlib.crc32(name.encode()) for rule in rules for name in rule.interfaces
        }
        stand = cursors or {}
        host = Host(self.ifindexes, lambda place: stand.get(place.id, Cursor()))
        plan = tables.plan(SCHEMA, self.book, self.config, new, host, first=self.first)
        self.first = False
        return list(plan.writes)

    def become(self, new: Config) -> None:
        for write in self.plan(new):
            perform(self.maps, write)
        self.config = new


SMALL = CONFIGS.map(lambda config: dataclasses.replace(config, capacity=CAPACITY))


@st.composite
def neighbours(draw: st.DrawFn) -> tuple[Config, Config]:
    """Two configurations that share services, as edits of one file do."""
    one, other = draw(SMALL), draw(SMALL)
    shared = []
    for service in one.services:
        taken = [s.key for s in other.services] + [s.name for s in other.services if s.name]
        if draw(st.booleans()) or service.key in taken or service.name in taken:
            continue
        backends = list(draw(st.permutations(service.backends)))[: draw(st.integers(0, 4))]
        edited = tuple(
            dataclasses.replace(
                b,
                weight=draw(st.integers(0, 9)),
                draining=draw(st.booleans()),
                upper_threshold=draw(st.sampled_from([0, b.upper_threshold, 2**31 - 1])),
                lower_threshold=0,
            )
            for b in backends
        )
        scheduler = draw(st.sampled_from([service.scheduler, Scheduler.WLC]))
        flags = service.flags if scheduler is service.scheduler else ()
        shared.append(
            dataclasses.replace(service, backends=edited, scheduler=scheduler, flags=flags)
        )
    both = dataclasses.replace(other, services=(*other.services, *shared))
    return one, both


PROPERTY = settings(
    max_examples=25,
    deadline=None,
    # a failure is not explained: hypothesis takes minutes to, with configurations of this size
    phases=[phase for phase in Phase if phase is not Phase.explain],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


@PROPERTY
@given(pair=neighbours())
def test_whatever_was_there_the_maps_then_say_the_new_configuration(
    pair: tuple[Config, Config],
) -> None:
    machine = Machine()
    for config in (*pair, pair[0], Config(capacity=CAPACITY)):
        machine.become(config)
        assert_says(SCHEMA, machine.maps, machine.book, config, machine.ifindexes)


@PROPERTY
@given(pair=neighbours())
def test_at_every_moment_each_service_and_the_rules_are_wholly_old_or_wholly_new(
    pair: tuple[Config, Config],
) -> None:
    old, new = pair
    machine = Machine()
    machine.become(old)
    before, after = keyed(SCHEMA, old), keyed(SCHEMA, new)
    allowed: dict[bytes, list[View | None]] = defaultdict(list)
    for one, other in ((before, after), (after, before)):
        for key, (raw, service) in one.items():
            allowed[raw].append(wanted_service(SCHEMA, service))
            if key not in other:
                allowed[raw].append(None)
    met = probes(old, new)
    rules = [wanted_marks(old.marks, met), wanted_marks(new.marks, met)]
    for write in machine.plan(new):
        perform(machine.maps, write)
        for raw, views in allowed.items():
            assert found_service(SCHEMA, machine.maps, raw) in views, write
        if table_of(write) in ("switches", "mark_words"):
            seen = found_marks(SCHEMA, machine.maps, met, machine.ifindexes)
            assert seen in rules, write


@PROPERTY
@given(pair=neighbours())
def test_an_id_that_is_used_again_has_a_greater_generation(pair: tuple[Config, Config]) -> None:
    machine = Machine()
    owners: dict[int, tuple[int, str]] = {}
    for config in (*pair, *pair):
        machine.become(config)
        for key, place in machine.book.services.items():
            for name, at in place.backends.items():
                last, owner = owners.get(at.id, (0, ""))
                assert at.generation > last or (at.generation, key + name) == (last, owner)
                owners[at.id] = (at.generation, key + name)


@PROPERTY
@given(config=SMALL)
def test_a_configuration_that_is_there_already_needs_no_write(config: Config) -> None:
    machine = Machine()
    machine.become(config)
    assert machine.plan(config) == []


@PROPERTY
@given(pair=neighbours())
def test_what_was_found_at_any_moment_of_a_change_is_not_remembered_where_it_no_longer_holds(
    pair: tuple[Config, Config],
) -> None:
    """bpf/classify.h: what a CPU found holds as long as the epoch that it read before."""
    machine = Machine()
    machine.become(pair[0])
    keys = {raw for config in pair for raw, _ in keyed(SCHEMA, config).values()}

    def found() -> dict[bytes, tuple[int, bytes | None]]:
        rules = word(machine.maps, "switches", SCHEMA.enums["switch_word"]["marks"])
        return {key: (rules, machine.maps["services"].get(key)) for key in keys}

    remembered = [(epoch_of(machine), found())]
    for write in machine.plan(pair[1]):
        perform(machine.maps, write)
        remembered.append((epoch_of(machine), found()))
    last, holds = remembered[-1]
    assert [what for epoch, what in remembered if epoch == last and what != holds] == []


def epoch_of(machine: Machine) -> int:
    return word(machine.maps, "switches", SCHEMA.enums["switch_word"]["epoch"])


# ---- the filter ----


def passes(maps: Written, packet: marks.Packet) -> bool:
    """bpf/classify.h: the bit of address, port and protocol, or that of the address alone."""
    exact = SCHEMA.hashing.bit(packet.destination, packet.port, packet.protocol.number)
    return any(
        word(maps, "filter", bit // 64) >> bit % 64 & 1
        for bit in (exact, SCHEMA.hashing.bit(packet.destination))
    )


def concerns(config: Config, packet: marks.Packet) -> bool:
    """Whether a rule or a service by address has to do with the packet: bpf/service.h."""
    if marks.first_match(config.marks, packet) is not None:
        return True
    ports = {packet.port, ANY_PORT}
    if packet.protocol is Protocol.TCP and (packet.port == 20 or packet.port >= 1024):
        ports.add(FTP_PORT)
    keys = {AddressKey(packet.protocol, packet.destination, port) for port in ports}
    return any(service.key in keys for service in config.services)


def is_narrow(rule: MarkRule) -> bool:
    """It has bits of its own in the filter."""
    return bool(rule.addresses) and all(n.num_addresses <= 256 for n in rule.addresses)


@st.composite
def meetings(draw: st.DrawFn) -> tuple[Config, Config, list[marks.Packet]]:
    """Two configurations, and packets to the addresses and ports that they name."""
    pair = draw(neighbours())
    if draw(st.booleans()):
        old, new = (
            dataclasses.replace(config, marks=tuple(filter(is_narrow, config.marks)))
            for config in pair
        )
    else:
        old, new = pair
    packet = packets(old, new)
    return old, new, draw(st.lists(packet, min_size=4, max_size=8))


def packets(*configs: Config) -> st.SearchStrategy[marks.Packet]:
    rules = [rule for config in configs for rule in config.marks]
    keys = [s.key for config in configs for s in config.services]
    by_address = [key for key in keys if isinstance(key, AddressKey)]
    networks = [network for rule in rules for network in rule.addresses]
    sources = [network for rule in rules for network in rule.sources]
    edges = [edge for rule in rules for p in rule.ports for edge in (p.first, p.last)]
    named = [address for n in networks for address in (n[0], n[-1])]
    named += [key.address for key in by_address]
    ports = [20, 21, 1024, 80, *edges, *(key.port or 443 for key in by_address)]
    return st.builds(
        marks.Packet,
        st.sampled_from(Protocol),
        st.sampled_from([network[0] for network in sources] or [ip("203.0.113.7")]),
        st.sampled_from(named or [ip("192.0.2.10")]),
        st.sampled_from(ports),
        st.sampled_from([name for rule in rules for name in rule.interfaces] or ["eth0"]),
        st.sampled_from([None, *(tag for rule in rules for tag in rule.vlans)]),
        st.sampled_from([mac for r in rules for mac in r.source_macs] or ["02:00:00:00:00:01"]),
    )


@PROPERTY
@given(meeting=meetings())
def test_whatever_a_configuration_concerns_passes_the_filter_at_every_moment(
    meeting: tuple[Config, Config, list[marks.Packet]],
) -> None:
    """Old packets always; new ones before anything that concerns them can be found."""
    old, new, met = meeting
    machine = Machine()
    machine.become(old)
    concerned = {config: [p for p in met if concerns(config, p)] for config in (old, new)}
    for write in machine.plan(new):
        if table_of(write) in ("services", "switches", "service_switches"):
            assert all(passes(machine.maps, packet) for packet in concerned[new]), write
        perform(machine.maps, write)
        assert all(passes(machine.maps, packet) for packet in concerned[old]), write
    assert all(passes(machine.maps, packet) for packet in concerned[new])


def at(*texts: str) -> tuple[Service, ...]:
    kept = Persistence(300, ip("255.255.255.255"))
    return tuple(Service(parse_service_key(text), persistence=kept) for text in texts)


def to(port: int, protocol: Protocol = Protocol.TCP) -> marks.Packet:
    mac = "02:00:00:00:00:01"
    return marks.Packet(protocol, ip("203.0.113.7"), ip("192.0.2.10"), port, "eth0", None, mac)


@pytest.mark.parametrize(
    ("service", "met"),
    [
        ("tcp:192.0.2.10:80", [to(80)]),
        ("tcp:192.0.2.10:21", [to(21), to(20), to(1024), to(65535)]),
        ("udp:192.0.2.10:any", [to(1, Protocol.UDP), to(65535, Protocol.UDP)]),
    ],
)
def test_the_packets_of_a_service_pass_the_filter_from_its_first_day_on(
    service: str, met: list[marks.Packet]
) -> None:
    machine = Machine()
    machine.become(Config(capacity=CAPACITY))
    assert [packet for packet in met if passes(machine.maps, packet)] == []
    machine.become(Config(services=at(service), capacity=CAPACITY))
    assert [packet for packet in met if not passes(machine.maps, packet)] == []


def test_what_another_service_is_for_does_not_pass_the_filter() -> None:
    machine = Machine()
    machine.become(Config(services=at("tcp:192.0.2.10:80"), capacity=CAPACITY))
    assert [p for p in (to(81), to(443), to(80, Protocol.UDP)) if passes(machine.maps, p)] == []


def test_only_bits_that_are_new_are_raised() -> None:
    machine = Machine()
    machine.become(Config(services=at("tcp:192.0.2.10:80"), capacity=CAPACITY))
    both = Config(services=at("tcp:192.0.2.10:80", "udp:192.0.2.10:53"), capacity=CAPACITY)
    bit = SCHEMA.hashing.bit(ip("192.0.2.10"), 53, 17)
    raised = [write for write in machine.plan(both) if isinstance(write, Raise | Fill)]
    assert raised == [Raise("filter", bit // 64, 1 << bit % 64)]


def test_where_a_rule_may_concern_every_packet_every_packet_passes() -> None:
    machine = Machine()
    machine.become(Config(marks=(MarkRule(1, ports=(Ports(80, 80),)),), capacity=CAPACITY))
    words = 2**SCHEMA.hashing.filter_bits // 64
    assert {word(machine.maps, "filter", n) for n in range(words)} == {FULL}


def test_after_a_rule_that_let_everything_pass_the_bits_of_the_others_are_raised_again() -> None:
    """A sweep may have taken the other bits away, in the meantime."""
    shop = Config(services=at("tcp:192.0.2.10:80"), capacity=CAPACITY)
    machine = Machine()
    machine.become(dataclasses.replace(shop, marks=(MarkRule(1),)))
    raised = [write for write in machine.plan(shop) if isinstance(write, Raise)]
    address = ip("192.0.2.10")
    named = [SCHEMA.hashing.bit(address, 80, 6), SCHEMA.hashing.bit(address, 0, OF_FRAGMENT)]
    assert {(each.index, each.bits) for each in raised} == {
        (bit // 64, 1 << bit % 64) for bit in named
    }


# ---- order ----


def is_epoch(write: Write) -> bool:
    index = SCHEMA.enums["switch_word"]["epoch"]
    return isinstance(write, Store) and (write.table, write.index) == ("switches", index)


@PROPERTY
@given(pair=neighbours())
def test_the_epoch_is_stored_once_after_every_switch_and_a_grace_before_what_is_taken_away(
    pair: tuple[Config, Config],
) -> None:
    machine = Machine()
    for config in pair:
        before, epoch = epoch_of(machine), machine.book.epoch
        writes = machine.plan(config)
        places = [index for index, write in enumerate(writes) if is_epoch(write)]
        assert machine.book.epoch == epoch + len(places)
        for write in writes:
            perform(machine.maps, write)
        machine.config = config
        assert epoch_of(machine) == before + len(places)
        if not places:
            assert not any(map(is_switch, writes))
            continue
        (place,) = places
        rest = writes[place + 1 :]
        assert [isinstance(write, Grace) for write in rest] == [True, *[False] * (len(rest) - 1)][
            : len(rest)
        ]
        assert not any(map(is_switch, rest))


def is_switch(write: Write) -> bool:
    """It changes what a packet finds."""
    if isinstance(write, Delete):
        return write.table == "services"
    index = SCHEMA.enums["switch_word"]["marks"]
    return isinstance(write, Store) and (
        write.table == "service_switches" or (write.table, write.index) == ("switches", index)
    )


# ---- what is written at all ----


def test_the_first_change_writes_everything_that_a_packet_needs_even_of_the_defaults() -> None:
    machine = Machine()
    machine.become(Config(capacity=CAPACITY))
    switches = SCHEMA.enums["switch_word"]
    assert word(machine.maps, "switches", switches["settings"])
    assert word(machine.maps, "switches", switches["marks"])
    assert epoch_of(machine) == 1


def test_a_connections_times_are_those_of_ipvs() -> None:
    """Linux, net/netfilter/ipvs: the tables of timeouts in ip_vs_proto_*.c."""
    machine = Machine()
    machine.become(Config(capacity=CAPACITY))
    states, layout = SCHEMA.enums["state"], SCHEMA.values["timeouts"]
    rows = {
        int.from_bytes(key, "little"): layout.number(row, "value") // SCHEMA.hz
        for key, row in machine.maps["timeouts"].items()
    }
    assert {name: rows.get(number) for name, number in states.items() if number in rows} == {
        **{"none": 2, "established": 15 * 60, "syn_sent": 2 * 60, "syn_recv": 60},
        **{"fin_wait": 2 * 60, "time_wait": 2 * 60, "close": 10, "close_wait": 60},
        **{"last_ack": 30, "listen": 2 * 60, "synack": 2 * 60, "udp": 5 * 60},
        **{"sctp_none": 2, "sctp_init1": 4, "sctp_init": 61, "sctp_c_sent": 61},
        **{"sctp_c_replied": 61, "sctp_c_wait": 61, "sctp_cookie": 61, "sctp_c_echoed": 61},
        **{"sctp_established": 15 * 60, "sctp_s_sent": 61, "sctp_s_received": 61},
        **{"sctp_s_ack_sent": 61, "sctp_rejected": 4, "sctp_closed": 61},
    }
    assert not {states["bound"], states["busy"], states["dead"]} & set(rows)


def test_a_weight_alone_touches_neither_filter_nor_rules_nor_settings_nor_times() -> None:
    machine = Machine()
    machine.become(shop(*hosts(1, 1)))
    writes = machine.plan(shop(*hosts(1, 5)))
    assert {table for write in writes if (table := table_of(write))} == {
        *("members", "service_configs", "service_switches", "switches")
    }
    assert [w for w in writes if table_of(w) == "switches"] == [w for w in writes if is_epoch(w)]
    assert not [write for write in writes if isinstance(write, Evict | Zero | Divide)]


def test_a_setting_alone_is_one_store() -> None:
    machine = Machine()
    machine.become(shop(*hosts(1)))
    changed = dataclasses.replace(machine.config, settings=Settings(require_local=False))
    (write,) = machine.plan(changed)
    assert (table_of(write), isinstance(write, Store)) == ("switches", True)


def by_target(*rules: MarkRule) -> bool:
    machine = Machine()
    machine.become(Config(marks=rules, capacity=CAPACITY))
    return bool(word(machine.maps, "switches", SCHEMA.enums["switch_word"]["marks"]) >> 34 & 1)


TARGET = MarkRule(1, addresses=(ipaddress.ip_network("192.0.2.0/24"),), ports=(Ports(1, 9),))


@pytest.mark.parametrize("rules", [(), (TARGET,), (TARGET, MarkRule(2)), (MarkRule(0),)])
def test_verdicts_may_be_remembered_where_rules_look_at_nothing_but_the_target(
    rules: tuple[MarkRule, ...],
) -> None:
    assert by_target(*rules)


@pytest.mark.parametrize(
    "more",
    [
        {"sources": (ipaddress.ip_network("203.0.113.0/24"),)},
        {"source_macs": ("02:00:00:00:00:01",)},
        {"interfaces": ("eth0",)},
        {"vlans": (1,)},
        {"sources": (ipaddress.ip_network("0.0.0.0/0"),), "vlans": (4094,)},
    ],
)
def test_verdicts_are_not_remembered_where_a_rule_looks_at_more(more: Mapping[str, Any]) -> None:
    assert not by_target(TARGET, dataclasses.replace(TARGET, **more))


# ---- ids and shares ----


def evicted(writes: list[Write]) -> list[int]:
    return [write.service for write in writes if isinstance(write, Evict)]


def test_a_service_takes_an_id_that_nobody_ever_had_as_long_as_there_is_one() -> None:
    machine = Machine()
    one, two, three = (
        dataclasses.replace(shop(), services=(each,), capacity=Capacity(8, 8, 2, 8))
        for each in services(3)
    )
    assert evicted(machine.plan(one)) == []
    machine.config = one
    assert evicted(machine.plan(two)) == []
    machine.config = two
    assert machine.book.services["mark:2"].id == 1
    assert evicted(machine.plan(three)) == [0]
    assert machine.book.services["mark:3"].id == 0


@PROPERTY
@given(rounds=st.lists(st.sets(st.integers(1, 6), max_size=3), min_size=2, max_size=6))
def test_two_services_never_have_one_id_and_an_id_that_is_used_again_is_evicted_first(
    rounds: list[set[int]],
) -> None:
    """What goes leaves its place to the next change: both have to fit."""
    machine = Machine()
    every, known, held = services(6), set[int](), dict[int, str]()
    before: set[int] = set()
    for chosen in rounds:
        config = Config(
            services=tuple(every[n - 1] for n in sorted(chosen)), capacity=Capacity(8, 8, 4, 8)
        )
        if len(before | chosen) > 4:
            with pytest.raises(ConflictError):
                machine.plan(config)
            return
        writes = machine.plan(config)
        machine.config = config
        holders = {place.id: key for key, place in machine.book.services.items()}
        assert len(holders) == len(chosen)
        fresh = {identity for identity, key in holders.items() if held.get(identity) != key}
        assert set(evicted(writes)) == fresh & known
        before, held = chosen, holders
        known |= set(holders)


def divisions(writes: list[Write]) -> dict[str, tuple[int, int]]:
    tables_by_number = {number: name for name, number in SCHEMA.enums["table"].items()}
    return {tables_by_number[w.table]: (w.own, w.limit) for w in writes if isinstance(w, Divide)}


@pytest.mark.parametrize(
    ("count", "own"), [(1, 512), (2, 256), (3, 128), (4, 128), (5, 64), (8, 64), (9, 32)]
)
def test_half_of_a_table_is_its_services_own_in_equal_parts(count: int, own: int) -> None:
    config = Config(services=services(count), capacity=Capacity(1024, 2048, 16, 64))
    assert divisions(Machine().plan(config)) == {
        "connections4": (own, 1024 - count * own),
        "connections6": (0, 1024),
        "persistence4": (2 * own, 2048 - 2 * count * own),
        "persistence6": (0, 2048),
    }


def test_a_table_is_divided_anew_only_where_the_number_of_its_services_changes() -> None:
    machine = Machine()
    machine.become(shop(*hosts(1)))
    assert divisions(machine.plan(shop(*hosts(5)))) == {}
    more = dataclasses.replace(machine.config, services=services(2))
    assert set(divisions(machine.plan(more))) == {"connections4", "persistence4"}


# ---- single promises ----

SHOP = MarkKey(1, Family.IPV4)


def shop(*backends: Backend, scheduler: Scheduler = Scheduler.RR) -> Config:
    return Config(
        services=(Service(SHOP, scheduler=scheduler, backends=backends),), capacity=CAPACITY
    )


def hosts(*weights: int) -> tuple[Backend, ...]:
    return tuple(Backend(ip(f"10.0.0.{n}"), weight=w) for n, w in enumerate(weights, 1))


def cursor_of(machine: Machine) -> Cursor:
    row = machine.maps["service_configs"][records.number(machine.book.services["mark:1"].row)]
    layout = SCHEMA.values["service_configs"]
    return Cursor(layout.number(row, "cursor_position"), layout.number(row, "cursor_weight"))


def test_the_cursor_goes_on_across_an_edit() -> None:
    machine = Machine()
    machine.become(shop(*hosts(1, 1, 1)))
    identity = machine.book.services["mark:1"].id
    for write in machine.plan(shop(*hosts(1, 1)), {identity: Cursor(2)}):
        perform(machine.maps, write)
    assert cursor_of(machine) == Cursor(1)


def test_another_scheduler_starts_afresh_with_the_list_as_it_is() -> None:
    """wrr that has the servers from the start begins with the heaviest: IPVS's init_service."""
    machine = Machine()
    machine.become(shop(*hosts(1, 3)))
    identity = machine.book.services["mark:1"].id
    for backends in (hosts(1, 3), hosts(1, 3, 1)):
        new = shop(*backends, scheduler=Scheduler.WRR)
        for write in machine.plan(new, {identity: Cursor(2)}):
            perform(machine.maps, write)
        assert cursor_of(machine) == Cursor(0, 3)


def test_a_service_is_known_by_the_generation_in_which_it_got_its_scheduler() -> None:
    """What lblc and lblcr remember is void with another choice of scheduler, not with an edit."""
    machine, seen = Machine(), []
    for count, scheduler in enumerate((Scheduler.LBLC, Scheduler.LBLC, Scheduler.LBLCR)):
        machine.become(shop(*hosts(*[1] * (count + 1)), scheduler=scheduler))
        place = machine.book.services["mark:1"]
        row = machine.maps["service_configs"][records.number(place.row)]
        assert SCHEMA.values["service_configs"].number(row, "since") == place.since
        seen.append((place.generation, place.since))
    assert seen == [(1, 1), (2, 1), (3, 3)]


def test_a_new_name_alone_writes_nothing() -> None:
    machine = Machine()
    machine.become(shop(*hosts(1)))
    named = dataclasses.replace(machine.config.services[0], name="shop")
    assert machine.plan(dataclasses.replace(machine.config, services=(named,))) == []


def test_thresholds_that_change_are_judged_at_once_and_those_of_a_new_backend_with_it() -> None:
    machine = Machine()
    (one,) = hosts(1)
    machine.become(shop(dataclasses.replace(one, upper_threshold=4)))
    (identity,) = machine.maps["limits"]
    assert word(machine.maps, "limits", int.from_bytes(identity, "little")) == 3 << 31 | 4
    writes = machine.plan(shop(dataclasses.replace(one, upper_threshold=4, lower_threshold=1)))
    limit = Limit(int.from_bytes(identity, "little"), 1 << 31 | 4)
    assert [write for write in writes if isinstance(write, Limit)] == [limit]


@pytest.mark.parametrize(
    ("scheduler", "upper", "counts"),
    [
        *((scheduler, 0, True) for scheduler in ("lc", "wlc", "sed", "nq", "ovf")),
        *((scheduler, 0, False) for scheduler in ("rr", "wrr", "fo", "sh")),
        *((scheduler, 1, True) for scheduler in ("rr", "wrr", "fo", "sh")),
    ],
)
def test_a_choice_by_counts_is_told_apart(scheduler: str, upper: int, counts: bool) -> None:
    (service,) = shop(dataclasses.replace(hosts(1)[0], upper_threshold=upper)).services
    flags = tables._service_flags(
        SCHEMA, dataclasses.replace(service, scheduler=Scheduler(scheduler))
    )
    assert bool(flags & SCHEMA.enums["service_flag"]["by_counts"]) == counts


def test_a_drain_leaves_the_backend_present_and_out_of_the_list() -> None:
    machine = Machine()
    machine.become(shop(*hosts(1, 1)))
    one, two = hosts(1, 1)
    machine.become(shop(dataclasses.replace(one, draining=True), two))
    assert_says(SCHEMA, machine.maps, machine.book, machine.config, machine.ifindexes)


def test_a_service_with_every_backend_taken_keeps_its_key() -> None:
    machine = Machine()
    machine.become(shop(*hosts(1, 1)))
    machine.become(shop())
    assert_says(SCHEMA, machine.maps, machine.book, machine.config, machine.ifindexes)


def services(count: int) -> tuple[Service, ...]:
    return tuple(Service(MarkKey(n, Family.IPV4)) for n in range(1, count + 1))


@pytest.mark.parametrize("capacity", [1, 2, 16])
def test_every_place_that_the_capacity_names_can_be_used(capacity: int) -> None:
    machine = Machine()
    config = Config(services=services(capacity), capacity=Capacity(8, 8, capacity, capacity))
    machine.become(config)
    assert_says(SCHEMA, machine.maps, machine.book, config, machine.ifindexes)


def test_more_services_than_there_is_room_for_are_a_conflict_that_names_the_setting() -> None:
    config = Config(services=services(3), capacity=Capacity(8, 8, 2, 8))
    with pytest.raises(ConflictError, match=r"all 2 services are taken: raise capacity\.services"):
        Machine().plan(config)


def test_more_tables_of_mh_than_there_is_room_for_are_a_conflict_that_names_the_setting() -> None:
    rows = SCHEMA.flat["slots"].rows
    keys = [MarkKey(n, Family.IPV4) for n in range(1, rows // 4093 + 2)]
    config = Config(services=tuple(Service(key, scheduler=Scheduler.MH) for key in keys))
    told = r"no room for a scheduler's table of 4093 slots: raise capacity\.services"
    with pytest.raises(ConflictError, match=told):
        Machine().plan(config)
    Machine().plan(dataclasses.replace(config, services=config.services[:-1]))


def test_a_full_table_of_backends_can_be_edited() -> None:
    machine = Machine()
    full = dataclasses.replace(shop(*hosts(1, 1, 1)), capacity=Capacity(8, 8, 2, 3))
    machine.become(full)
    edited = dataclasses.replace(shop(*hosts(2, 2, 2)), capacity=full.capacity)
    for config in (edited, full, edited, full):
        machine.become(config)
        assert_says(SCHEMA, machine.maps, machine.book, config, machine.ifindexes)


def test_a_rule_for_an_interface_that_is_not_here_is_a_fault_of_the_configuration() -> None:
    rule = MarkRule(1, interfaces=("eth9",), ports=(Ports(1, 2),))
    with pytest.raises(ConfigError, match='there is no interface "eth9" here'):
        tables.plan(SCHEMA, Book(), Config(), Config(marks=(rule,)), Host({}, lambda _: Cursor()))


def test_the_times_of_lblc_and_lblcr_are_words_in_jiffies() -> None:
    machine, words = Machine(), SCHEMA.enums["switch_word"]

    def times() -> tuple[int, int]:
        maps = machine.maps
        names = ("lblc_expiration", "lblcr_expiration")
        lblc, lblcr = (word(maps, "switches", words[name]) for name in names)
        return lblc, lblcr

    machine.become(Config(capacity=CAPACITY))
    assert times() == (86400 * SCHEMA.hz, 86400 * SCHEMA.hz)
    chosen = Settings(lblc_expiration=60, lblcr_expiration=61)
    machine.become(Config(capacity=CAPACITY, settings=chosen))
    assert times() == (60 * SCHEMA.hz, 61 * SCHEMA.hz)


@pytest.mark.parametrize(
    ("chosen", "names"),
    [
        (Settings(), {"expire_nodest_conn", "require_local", "reuse_closed"}),
        (Settings(False, True, 2, False), {"expire_quiescent_template", "reuse_fin_wait"}),
        (Settings(False, False, 0, False), set()),
    ],
)
def test_the_settings_are_bits_of_one_word(chosen: Settings, names: Iterable[str]) -> None:
    bits = SCHEMA.enums["setting"]
    assert tables.settings_word(SCHEMA, chosen, ()) == sum(bits[name] for name in names)
