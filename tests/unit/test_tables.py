"""The writes from one configuration to another, performed one by one on maps in memory."""

from __future__ import annotations

import dataclasses
import ipaddress
from collections import defaultdict
from collections.abc import Iterable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lvsxdp import marks, records, scheduling, tables
from lvsxdp.errors import ConfigError, ConflictError
from lvsxdp.model import (
    Backend,
    Capacity,
    Config,
    Family,
    MarkKey,
    MarkRule,
    Ports,
    Scheduler,
    Service,
    ServiceKey,
    Settings,
)
from lvsxdp.scheduling import Cursor
from lvsxdp.tables import Book, Delete, Grace, Host, Reset, Store, Update, Write
from tests.unit.headers import schema
from tests.unit.strategies import CONFIGS

SCHEMA = schema()
CAPACITY = Capacity(connections=8, persistence=8, services=16, backends=64)
ip = ipaddress.ip_address
Maps = dict[str, dict[bytes, bytes]]
View = tuple[object, ...]


def perform(maps: Maps, write: Write) -> None:
    """What Balancer._perform does, on dictionaries."""
    if isinstance(write, Grace):
        return
    table = maps[write.table]
    if isinstance(write, Update):
        assert len(write.value) == SCHEMA.values[write.table].size
        assert len(write.key) == SCHEMA.keys[write.table].size
        table[write.key] = write.value
    elif isinstance(write, Delete):
        assert write.key in table, f"{write} deletes what is not there"
        del table[write.key]
    elif isinstance(write, Reset):
        table[write.key] = bytes(SCHEMA.values[write.table].size)
    elif isinstance(write, Store):
        key = records.number(write.index)
        before = table.get(key, bytes(SCHEMA.values[write.table].size))
        table[key] = write.word.to_bytes(8, "little") + before[8:]


def word(maps: Maps, table: str, index: int) -> int:
    return int.from_bytes(maps[table].get(records.number(index), bytes(8))[:8], "little")


# ---- what the data plane finds ----


def found_service(maps: Maps, key: bytes) -> View | None:
    """The service as a packet meets it: its row's facts, its list, its table of sh."""
    identity = maps["services"].get(key)
    if identity is None:
        return None
    switch = word(maps, "service_switches", int.from_bytes(identity, "little"))
    row = maps["service_configs"][records.number(switch & 0xFFFFFFFF)]
    layout = SCHEMA.values["service_configs"]
    assert layout.number(row, "generation") == switch >> 32 & 0xFFFF
    names = ("persistence_timeout", "flags", "scheduler", "mark", "weight_step", "weight_max")
    start, length = layout.number(row, "list_offset"), layout.number(row, "list_length")
    is_sh = layout.number(row, "scheduler") == SCHEMA.enums["scheduler"]["sh"]
    slots = layout.number(row, "slots_offset")
    return (
        *(layout.number(row, name) for name in names),
        layout.octets(row, "netmask"),
        tuple(found_member(maps, start + n) for n in range(length)),
        found_slots(maps, slots, length) if is_sh else (),
    )


def found_member(maps: Maps, index: int) -> View:
    member = maps["members"][records.number(index)]
    layout, backend = SCHEMA.values["members"], SCHEMA.values["backends"]
    row = maps["backends"][member[:4]]
    assert backend.number(row, "word") & SCHEMA.enums["backend_flag"]["present"]
    return (backend.octets(row, "address"), layout.number(member, "weight"))


def found_slots(maps: Maps, start: int, length: int) -> View:
    wanted = range(start, start + (scheduling.SH_BUCKETS if length else 0))
    return tuple(int.from_bytes(maps["slots"][records.number(n)], "little") for n in wanted)


def wanted_service(service: Service) -> View:
    """The same, from the configuration."""
    members = [b for b in reversed(service.backends) if not b.draining]
    weights = [b.weight for b in members]
    rounds = scheduling.wrr_rounds(weights)
    kept = service.persistence
    is_sh = service.scheduler is Scheduler.SH
    return (
        (kept.timeout if kept else 0) * SCHEMA.hz,
        tables._service_flags(SCHEMA, service),
        SCHEMA.enums["scheduler"][service.scheduler],
        service.key.mark if isinstance(service.key, MarkKey) else 0,
        rounds.step,
        rounds.top,
        kept.netmask.packed.ljust(16, b"\0") if kept else bytes(16),
        tuple((b.address.packed.ljust(16, b"\0"), b.weight) for b in members),
        tuple(scheduling.sh_table(weights)) if is_sh else (),
    )


def found_marks(maps: Maps) -> View:
    """The rule set that the switch word names."""
    switch = word(maps, "switches", SCHEMA.enums["switch_word"]["marks"])
    generation, start, count = switch & 0xFFFF, switch >> 16 & 0xFFFF, switch >> 32 & 0xFFFF
    key, value = SCHEMA.keys["mark_exact"], SCHEMA.values["mark_exact"]
    exact = {
        (key.octets(k, "address"), key.octets(k, "port"), key.number(k, "protocol")): (
            value.number(v, "mark"),
            value.number(v, "position"),
        )
        for k, v in maps["mark_exact"].items()
        if key.number(k, "generation") == generation
    }
    assert bool(exact) == bool(switch >> 48)
    rows = (maps["mark_rules"][records.number(start + n)] for n in range(count))
    layout = SCHEMA.values["mark_rules"]
    names = ("mark", "position", "first_port", "last_port", "protocols", "vlan")
    return exact, [
        (*(layout.number(row, name) for name in names), layout.octets(row, "destination"))
        for row in rows
    ]


def wanted_marks(rules: tuple[MarkRule, ...]) -> View:
    table = marks.expand(rules)
    exact = {
        (k.address.packed.ljust(16, b"\0"), k.port.to_bytes(2, "big"), k.protocol.number): (
            verdict.mark,
            verdict.position,
        )
        for k, verdict in table.exact.items()
    }
    bits = {"tcp": 1, "udp": 2, "sctp": 4}
    ordered = [
        (
            rule.mark,
            rule.position,
            rule.ports.first,
            rule.ports.last,
            sum(bits[protocol] for protocol in rule.protocols),
            0 if rule.vlan is None else rule.vlan + 1,
            rule.destination.network_address.packed.ljust(16, b"\0")
            if rule.destination
            else bytes(16),
        )
        for rule in table.ordered
    ]
    return exact, ordered


def wanted_flags(backend: Backend) -> int:
    return 1 + 2 * (backend.weight == 0) + 4 * backend.draining


# ---- driving it ----


@dataclasses.dataclass
class Machine:
    """Maps in memory, the book of what stands where, and the configuration that they hold."""

    maps: Maps = dataclasses.field(default_factory=lambda: defaultdict(dict))
    book: Book = dataclasses.field(default_factory=Book)
    config: Config = dataclasses.field(default_factory=Config)
    first: bool = True

    def plan(self, new: Config, cursors: dict[int, Cursor] | None = None) -> list[Write]:
        rules = (*self.config.marks, *new.marks)
        names = sorted({name for rule in rules for name in rule.interfaces})
        host = Host({name: index for index, name in enumerate(names, 2)}, cursors or {})
        writes = tables.plan(SCHEMA, self.book, self.config, new, host, first=self.first)
        self.first = False
        return writes

    def become(self, new: Config) -> None:
        for write in self.plan(new):
            perform(self.maps, write)
        self.config = new


def keyed(config: Config) -> dict[ServiceKey, tuple[bytes, Service]]:
    return {s.key: (tables.service_keys(SCHEMA, s), s) for s in config.services}


def assert_says(machine: Machine, config: Config) -> None:
    """The maps hold this configuration and nothing else that a packet could meet."""
    maps = machine.maps
    wanted = {key: wanted_service(service) for key, service in keyed(config).values()}
    assert {key: found_service(maps, key) for key in maps["services"]} == wanted
    layout = SCHEMA.values["backends"]
    expected = {}
    for service in config.services:
        place = machine.book.services[str(service.key)]
        for backend in service.backends:
            at = place.backends[str(backend)]
            flags = wanted_flags(backend)
            row = (at.generation << 32 | flags, backend.address.packed.ljust(16, b"\0"), place.id)
            assert at.id not in expected
            expected[at.id] = row
    present = {
        int.from_bytes(key, "little"): (
            layout.number(row, "word"),
            layout.octets(row, "address"),
            layout.number(row, "service"),
        )
        for key, row in maps["backends"].items()
        if layout.number(row, "word") & 0xFFFFFFFF
    }
    assert present == expected
    assert found_marks(maps) == wanted_marks(config.marks)
    assert len(maps["mark_exact"]) == len(marks.expand(config.marks).exact)
    assert word(maps, "switches", SCHEMA.enums["switch_word"]["settings"]) == (
        tables.settings_word(SCHEMA, config.settings, config.services)
    )


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
            dataclasses.replace(b, weight=draw(st.integers(0, 9)), draining=draw(st.booleans()))
            for b in backends
        )
        scheduler = draw(st.sampled_from([service.scheduler, Scheduler.WLC]))
        flags = service.flags if scheduler is Scheduler.SH else ()
        shared.append(
            dataclasses.replace(service, backends=edited, scheduler=scheduler, flags=flags)
        )
    both = dataclasses.replace(other, services=(*other.services, *shared))
    return one, both


PROPERTY = settings(
    max_examples=25,
    deadline=None,
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
        assert_says(machine, config)


@PROPERTY
@given(pair=neighbours())
def test_at_every_moment_each_service_and_the_rules_are_wholly_old_or_wholly_new(
    pair: tuple[Config, Config],
) -> None:
    old, new = pair
    machine = Machine()
    machine.become(old)
    before, after = keyed(old), keyed(new)
    allowed: dict[bytes, list[View | None]] = defaultdict(list)
    for one, other in ((before, after), (after, before)):
        for key, (raw, service) in one.items():
            allowed[raw].append(wanted_service(service))
            if key not in other:
                allowed[raw].append(None)
    rules = [wanted_marks(old.marks), wanted_marks(new.marks)]
    for write in machine.plan(new):
        perform(machine.maps, write)
        for raw, views in allowed.items():
            assert found_service(machine.maps, raw) in views, write
        if isinstance(write, Grace):
            continue
        if write.table in ("switches", "mark_exact", "mark_rules"):
            assert found_marks(machine.maps) in rules, write


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


def test_another_scheduler_starts_afresh() -> None:
    machine = Machine()
    machine.become(shop(*hosts(1, 3)))
    identity = machine.book.services["mark:1"].id
    new = shop(*hosts(1, 3), scheduler=Scheduler.WRR)
    for write in machine.plan(new, {identity: Cursor(2)}):
        perform(machine.maps, write)
    assert cursor_of(machine) == Cursor(0, 1)


def test_a_new_name_alone_writes_nothing() -> None:
    machine = Machine()
    machine.become(shop(*hosts(1)))
    named = dataclasses.replace(machine.config.services[0], name="shop")
    assert machine.plan(dataclasses.replace(machine.config, services=(named,))) == []


def test_a_drain_leaves_the_backend_present_and_out_of_the_list() -> None:
    machine = Machine()
    machine.become(shop(*hosts(1, 1)))
    one, two = hosts(1, 1)
    machine.become(shop(dataclasses.replace(one, draining=True), two))
    assert_says(machine, machine.config)


def test_a_service_with_every_backend_taken_keeps_its_key() -> None:
    machine = Machine()
    machine.become(shop(*hosts(1, 1)))
    machine.become(shop())
    assert_says(machine, machine.config)


def services(count: int) -> tuple[Service, ...]:
    return tuple(Service(MarkKey(n, Family.IPV4)) for n in range(1, count + 1))


@pytest.mark.parametrize("capacity", [1, 2, 16])
def test_every_place_that_the_capacity_names_can_be_used(capacity: int) -> None:
    machine = Machine()
    config = Config(services=services(capacity), capacity=Capacity(8, 8, capacity, capacity))
    machine.become(config)
    assert_says(machine, config)


def test_more_services_than_there_is_room_for_are_a_conflict_that_names_the_setting() -> None:
    config = Config(services=services(3), capacity=Capacity(8, 8, 2, 8))
    with pytest.raises(ConflictError, match=r"all 2 services are taken: raise capacity\.services"):
        Machine().plan(config)


def test_a_full_table_of_backends_can_be_edited() -> None:
    machine = Machine()
    full = dataclasses.replace(shop(*hosts(1, 1, 1)), capacity=Capacity(8, 8, 2, 3))
    machine.become(full)
    edited = dataclasses.replace(shop(*hosts(2, 2, 2)), capacity=full.capacity)
    for config in (edited, full, edited, full):
        machine.become(config)
        assert_says(machine, config)


def test_a_rule_for_an_interface_that_is_not_here_is_a_fault_of_the_configuration() -> None:
    rule = MarkRule(1, interfaces=("eth9",), ports=(Ports(1, 2),))
    with pytest.raises(ConfigError, match='there is no interface "eth9" here'):
        tables.plan(SCHEMA, Book(), Config(), Config(marks=(rule,)), Host({}, {}))


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
