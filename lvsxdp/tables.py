"""From a Config to the writes that bring the maps there, in an order that packets never mind."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping

from lvsxdp import filtering, marks, records, scheduling
from lvsxdp.errors import ConfigError, ConflictError
from lvsxdp.filtering import Hashing
from lvsxdp.model import (
    ANY_PORT,
    FTP_PORT,
    AddressKey,
    Backend,
    Config,
    Expiry,
    Family,
    MarkKey,
    Network,
    Scheduler,
    SchedulerFlag,
    Service,
    Settings,
)
from lvsxdp.records import Layout, Shape
from lvsxdp.scheduling import Cursor, Member

SLOTS_EACH = scheduling.SH_BUCKETS
MEMBERS_EACH_BACKEND = 4
PROTOCOL_BITS = {"tcp": 1, "udp": 2, "sctp": 4}
FULL = 2**64 - 1


# Seconds, by state: IPVS's table of TCP timeouts, and UDP's.
TIMEOUTS = {
    **{"none": 2, "established": 900, "syn_sent": 120, "syn_recv": 60, "fin_wait": 120},
    **{"time_wait": 120, "close": 10, "close_wait": 60, "last_ack": 30, "listen": 120},
    **{"synack": 120, "udp": 300},
}


@dataclasses.dataclass(frozen=True, slots=True)
class Update:
    """Write one entry."""

    table: str
    key: bytes
    value: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Delete:
    """Delete one entry."""

    table: str
    key: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Store:
    """Store one 64-bit word of a mapped array: the moment at which a change takes effect."""

    table: str
    index: int
    word: int


@dataclasses.dataclass(frozen=True, slots=True)
class Raise:
    """Set bits of one 64-bit word of a mapped array."""

    table: str
    index: int
    bits: int


@dataclasses.dataclass(frozen=True, slots=True)
class Fill:
    """Set all bits of the first words of a mapped array."""

    table: str
    words: int


@dataclasses.dataclass(frozen=True, slots=True)
class Evict:
    """Remove every entry that a service id had in the tables before."""

    service: int


@dataclasses.dataclass(frozen=True, slots=True)
class Divide:
    """Say what of a table is each service's own, and how much they may share beyond that."""

    table: int
    own: int
    limit: int


@dataclasses.dataclass(frozen=True, slots=True)
class Reset:
    """Set all CPUs' values of one entry to 0."""

    table: str
    key: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Grace:
    """Wait until no program runs that may have read what the switch replaced."""


Write = Update | Delete | Store | Raise | Fill | Evict | Divide | Reset | Grace


@dataclasses.dataclass(frozen=True, slots=True)
class Schema:
    """What was compiled: layouts, enums, jiffies a second, hash numbers, shapes of flat tables."""

    keys: Mapping[str, Layout]
    values: Mapping[str, Layout]
    enums: Mapping[str, Mapping[str, int]]
    hz: int
    hashing: Hashing
    flat: Mapping[str, Shape] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(slots=True)
class BackendPlace:
    """The id that a backend has, with its generation."""

    id: int
    generation: int


@dataclasses.dataclass(slots=True)
class ServicePlace:
    """Where a service stands in the maps."""

    id: int
    generation: int
    row: int
    list_offset: int
    list_length: int
    slots: int | None
    backends: dict[str, BackendPlace]


@dataclasses.dataclass(slots=True)
class Book:
    """Which ids, rows and ranges are in use, and by what; stored beside the configuration."""

    services: dict[str, ServicePlace] = dataclasses.field(default_factory=dict)
    service_generations: dict[int, int] = dataclasses.field(default_factory=dict)
    backend_generations: dict[int, int] = dataclasses.field(default_factory=dict)
    mark_generation: int = 0
    epoch: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Host:
    """What the network says that the maps need: indices of interfaces, live cursors."""

    ifindexes: Mapping[str, int]
    cursors: Mapping[int, Cursor]


# ------------------------------------------------------------------------------- free places


def _free(taken: set[int], capacity: int, what: str) -> int:
    """The lowest number that is not taken, which it takes."""
    for number in range(capacity):
        if number not in taken:
            taken.add(number)
            return number
    raise ConflictError(f"all {capacity} {what} are taken: raise capacity.{what} and attach anew")


def _free_range(taken: list[tuple[int, int]], length: int, capacity: int) -> int:
    """The start of a free range of members, which it takes; both old and new count as taken."""
    start = 0
    for begin, size in sorted(taken):
        if begin - start >= length:
            break
        start = max(start, begin + size)
    if start + length > capacity:
        raise ConflictError(f"no room for a list of {length} backends: raise capacity.backends")
    taken.append((start, length))
    return start


@dataclasses.dataclass(slots=True)
class _Places:
    """Everything that is taken while a change is planned: by the old state and by the new."""

    services: set[int]
    rows: set[int]
    slots: set[int]
    backends: set[int]
    members: list[tuple[int, int]]

    @classmethod
    def of(cls, book: Book) -> _Places:
        places = book.services.values()
        return cls(
            services={place.id for place in places},
            rows={place.row for place in places},
            slots={place.slots for place in places if place.slots is not None},
            backends={b.id for place in places for b in place.backends.values()},
            members=[(place.list_offset, place.list_length) for place in places],
        )


# ------------------------------------------------------------------------------------ services


def service_keys(schema: Schema, service: Service) -> bytes:
    """The key by which packets find the service."""
    layout = schema.keys["services"]
    family = records.family_number(service.family)
    if isinstance(service.key, MarkKey):
        return layout.encode(mark=service.key.mark, family=family)
    return layout.encode(
        address=records.wire_address(service.key.address),
        port=records.wire_port(service.key.port),
        protocol=service.key.protocol.number,
        family=family,
    )


def _service_flags(schema: Schema, service: Service) -> int:
    flag = schema.enums["service_flag"]
    flags = 0
    if service.persistence:
        flags |= flag["persistent"]
        flags |= flag["strict"] if service.persistence.expiry is Expiry.STRICT else 0
    if isinstance(service.key, MarkKey):
        flags |= flag["by_mark"]
    elif service.key.port == ANY_PORT:
        flags |= flag["any_port"]
    elif service.key.port == FTP_PORT and service.key.protocol == "tcp":
        flags |= flag["ftp"]
    flags |= flag["sh_port"] if SchedulerFlag.SH_PORT in service.flags else 0
    flags |= flag["sh_fallback"] if SchedulerFlag.SH_FALLBACK in service.flags else 0
    return flags


def _service_row(
    schema: Schema, service: Service, place: ServicePlace, members: tuple[Member, ...], at: Cursor
) -> bytes:
    """The service_config of one version of a service."""
    rounds = scheduling.wrr_rounds([member.weight for member in members])
    kept = service.persistence
    return schema.values["service_configs"].encode(
        persistence_timeout=(kept.timeout if kept else 0) * schema.hz,
        netmask=records.wire_address(kept.netmask) if kept else 0,
        flags=_service_flags(schema, service),
        scheduler=schema.enums["scheduler"][service.scheduler],
        generation=place.generation & 0xFFFF,
        mark=service.key.mark if isinstance(service.key, MarkKey) else 0,
        list_offset=place.list_offset,
        list_length=place.list_length,
        slots_offset=(place.slots or 0) * SLOTS_EACH,
        weight_step=rounds.step,
        weight_max=rounds.top,
        cursor_position=at.position,
        cursor_weight=at.weight,
    )


def backend_flags(schema: Schema, backend: Backend) -> int:
    """The flags of a backend that is configured."""
    flag = schema.enums["backend_flag"]
    quiesced = flag["quiesced"] if backend.weight == 0 else 0
    return flag["present"] | quiesced | (flag["draining"] if backend.draining else 0)


@dataclasses.dataclass(slots=True)
class _Change:
    """One service on its way from what it was to what it is to be."""

    schema: Schema
    book: Book
    taken: _Places
    config: Config
    host: Host
    prepare: list[Write] = dataclasses.field(default_factory=list)
    switch: list[Write] = dataclasses.field(default_factory=list)
    finish: list[Write] = dataclasses.field(default_factory=list)

    def place_backends(self, service: Service, old: ServicePlace | None) -> dict[str, BackendPlace]:
        """An id for each backend: the one it has, or a free one with its next generation."""
        places: dict[str, BackendPlace] = {}
        for backend in service.backends:
            name = str(backend)
            if old and name in old.backends:
                places[name] = old.backends[name]
                continue
            identity = _free(self.taken.backends, self.config.capacity.backends, "backends")
            generation = self.book.backend_generations.get(identity, 0) % (2**32 - 1) + 1
            self.book.backend_generations[identity] = generation
            places[name] = BackendPlace(identity, generation)
        return places

    def write_new_backends(
        self, service: Service, identity: int, places: Mapping[str, BackendPlace], kept: set[str]
    ) -> None:
        """Rows of backends that were not there: counts first, then the row that makes them real."""
        for backend in service.backends:
            if str(backend) in kept:
                continue
            place = places[str(backend)]
            key = records.number(place.id)
            for table in ("loads", "nexthop_probes", "lanes"):
                self.prepare.append(Reset(table, key))
            row = self.schema.values["backends"].encode(
                word=place.generation << 32 | backend_flags(self.schema, backend),
                address=records.wire_address(backend.address),
                family=records.family_number(service.family),
                service=identity,
            )
            self.prepare.append(Update("backends", key, row))

    def write_flags(self, old: Service, new: Service, place: ServicePlace) -> None:
        """Weight 0 and drain of backends that stay: one store each."""
        before = {str(backend): backend for backend in old.backends}
        for backend in new.backends:
            was = before.get(str(backend))
            if was is None or backend_flags(self.schema, was) == backend_flags(
                self.schema, backend
            ):
                continue
            at = place.backends[str(backend)]
            word = at.generation << 32 | backend_flags(self.schema, backend)
            self.switch.append(Store("backends", at.id, word))

    def drop_backends(self, places: Iterable[BackendPlace]) -> None:
        """Makes ids free: nothing that names them with their generation finds them any more."""
        for place in places:
            self.finish.append(Store("backends", place.id, place.generation << 32))

    def write_version(
        self, service: Service, place: ServicePlace, members: tuple[Member, ...], at: Cursor
    ) -> None:
        """List, table and row of a version, then the word that switches to it."""
        for index, member in enumerate(members):
            value = self.schema.values["members"].encode(
                backend=place.backends[member.name].id, weight=member.weight
            )
            key = records.number(place.list_offset + index)
            self.prepare.append(Update("members", key, value))
        if place.slots is not None:
            table = scheduling.sh_table([member.weight for member in members])
            for bucket, entry in enumerate(table):
                key = records.number(place.slots * SLOTS_EACH + bucket)
                self.prepare.append(Update("slots", key, records.number(entry)))
        row = _service_row(self.schema, service, place, members, at)
        self.prepare.append(Update("service_configs", records.number(place.row), row))
        word = (place.generation & 0xFFFFFFFF) << 32 | place.row
        self.switch.append(Store("service_switches", place.id, word))

    def new_version(
        self, service: Service, identity: int, backends: dict[str, BackendPlace], length: int
    ) -> ServicePlace:
        """Free places for a version; what the old one has stays taken until the next change."""
        capacity = self.config.capacity
        generation = self.book.service_generations.get(identity, 0) + 1
        self.book.service_generations[identity] = generation
        slots = None
        if service.scheduler is Scheduler.SH:
            slots = _free(self.taken.slots, 2 * capacity.services, "services")
        return ServicePlace(
            id=identity,
            generation=generation,
            row=_free(self.taken.rows, 2 * capacity.services, "services"),
            list_offset=_free_range(
                self.taken.members, length, MEMBERS_EACH_BACKEND * capacity.backends
            ),
            list_length=length,
            slots=slots,
            backends=backends,
        )


def _fresh_service(change: _Change) -> int:
    """An id that no service ever had, or else one whose entries are removed first."""
    capacity = change.config.capacity.services
    used = {*change.taken.services, *change.book.service_generations}
    if len(used) < capacity:
        identity = _free(used, capacity, "services")
        change.taken.services.add(identity)
        return identity
    identity = _free(change.taken.services, capacity, "services")
    change.prepare.append(Evict(identity))
    return identity


def _add_service(change: _Change, service: Service) -> None:
    identity = _fresh_service(change)
    members = scheduling.members_of(service.backends)
    backends = change.place_backends(service, None)
    place = change.new_version(service, identity, backends, len(members))
    change.book.services[str(service.key)] = place
    change.prepare.append(Reset("service_counters", records.number(identity)))
    change.write_new_backends(service, identity, backends, set())
    cursor = scheduling.next_cursor(service.scheduler, (), members, Cursor())
    change.write_version(service, place, members, cursor)
    key = service_keys(change.schema, service)
    # before the epoch: nobody may remember under the new one that there is no such service
    change.switch.append(Update("services", key, records.number(identity)))


def _edit_service(change: _Change, old: Service, new: Service) -> None:
    was = change.book.services[str(new.key)]
    members = scheduling.members_of(new.backends)
    backends = change.place_backends(new, was)
    place = change.new_version(new, was.id, backends, len(members))
    change.write_new_backends(new, was.id, backends, set(was.backends))
    change.write_version(new, place, members, _cursor_after(change, old, new, was))
    change.write_flags(old, new, place)
    change.drop_backends(b for name, b in was.backends.items() if name not in backends)
    change.book.services[str(new.key)] = place


def _cursor_after(change: _Change, old: Service, new: Service, was: ServicePlace) -> Cursor:
    """The cursor goes on across an edit; another scheduler starts afresh."""
    members = scheduling.members_of(new.backends)
    if old.scheduler is not new.scheduler:
        return scheduling.next_cursor(new.scheduler, (), members, Cursor())
    before = scheduling.members_of(old.backends)
    at = change.host.cursors.get(was.id, Cursor())
    return scheduling.next_cursor(new.scheduler, before, members, at)


def _remove_service(change: _Change, old: Service) -> None:
    place = change.book.services.pop(str(old.key))
    change.switch.append(Delete("services", service_keys(change.schema, old)))
    change.drop_backends(place.backends.values())


# --------------------------------------------------------------------------------------- marks


def _mark_writes(
    schema: Schema, book: Book, old: Config, new: Config, host: Host
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
        row = _ordered_row(schema, rule, host)
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


def _ordered_row(schema: Schema, rule: marks.OrderedRule, host: Host) -> bytes:
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
        ifindex=_ifindex(rule.interface, host) if rule.interface else 0,
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


def _ifindex(name: str, host: Host) -> int:
    if name not in host.ifindexes:
        raise ConfigError(f'marks: there is no interface "{name}" here')
    return host.ifindexes[name]


# --------------------------------------------------------------------------------------- whole


def settings_word(schema: Schema, settings: Settings, services: Iterable[Service]) -> int:
    """All settings in one word, with what the services need of the look-up."""
    bit = schema.enums["setting"]
    word = bit["expire_nodest_conn"] * settings.expire_nodest_conn
    word |= bit["expire_quiescent_template"] * settings.expire_quiescent_template
    word |= bit["require_local"] * settings.require_local
    word |= bit["reuse_closed"] * bool(settings.conn_reuse_mode & 1)
    word |= bit["reuse_fin_wait"] * bool(settings.conn_reuse_mode & 2)
    ports = {service.key.port for service in services if isinstance(service.key, AddressKey)}
    word |= bit["ftp_service"] * (FTP_PORT in ports)
    word |= bit["any_port_service"] * (ANY_PORT in ports)
    return word


def plan(
    schema: Schema, book: Book, old: Config, new: Config, host: Host, *, first: bool = False
) -> list[Write]:
    """The writes that lead from `old` to `new`, and `book` brought up to date.

    What is new is written beside what is in use; then single stores switch to it; only then is
    anything taken away.  `first` writes also what is equal to the defaults.
    """
    change = _Change(schema, book, _Places.of(book), new, host)
    before = {service.key: service for service in old.services}
    after = {service.key: service for service in new.services}
    for service in old.services:
        if service.key not in after:
            _remove_service(change, service)
    for service in new.services:
        was = before.get(service.key)
        if was is None:
            _add_service(change, service)
        elif dataclasses.replace(was, name=None) != dataclasses.replace(service, name=None):
            _edit_service(change, was, service)
    stages = {"prepare": change.prepare, "switch": change.switch, "finish": change.finish}
    if first or old.marks != new.marks:
        for stage, write in _mark_writes(schema, book, old, new, host):
            stages[stage].append(write)
    settings = _settings_writes(schema, old, new, first)
    times = _timeout_writes(schema) if first else []
    times += _divide_writes(schema, old, new, first)
    return [
        *times,
        *_filter_writes(schema, old, new),
        *settings,
        *_ordered(change, new, old, schema),
    ]


def _divide_writes(schema: Schema, old: Config, new: Config, first: bool) -> list[Write]:
    """Half of each table belongs to its services in equal parts, the rest to whoever comes first.

    The parts change only as the number of services passes a power of two.
    """
    found: list[Write] = []
    for name, number in schema.enums["table"].items():
        before, after = (_division(name, config) for config in (old, new))
        if first or before != after:
            found.append(Divide(number, *after))
    return found


def _division(table: str, config: Config) -> tuple[int, int]:
    """What is each service's own in a table of TABLES, and what all may have beyond it."""
    family = Family.IPV6 if table.endswith("6") else Family.IPV4
    count = sum(service.family is family for service in config.services)
    of = config.capacity
    entries = of.connections if table.startswith("connections") else of.persistence
    own = entries // (2 << (count - 1).bit_length()) if count else 0
    return own, entries - own * count


def timeouts(schema: Schema) -> dict[int, int]:
    """State -> jiffies that a connection lives in it without a packet; IPVS's own times."""
    return {schema.enums["state"][name]: t * schema.hz for name, t in TIMEOUTS.items()}


def _filter_writes(schema: Schema, old: Config, new: Config) -> list[Write]:
    """Bits of the filter that the old configuration had not set."""
    if [s.key for s in old.services] == [s.key for s in new.services] and old.marks == new.marks:
        return []
    before, after = (filtering.words(schema.hashing, config) for config in (old, new))
    if after is None:
        return [Fill("filter", 2**schema.hashing.filter_bits // filtering.WORD)]
    known = before or {}
    return [Raise("filter", i, bits) for i, bits in after.items() if bits & ~known.get(i, 0)]


def _timeout_writes(schema: Schema) -> list[Write]:
    return [
        Update("timeouts", records.number(state), records.number(jiffies))
        for state, jiffies in timeouts(schema).items()
    ]


def _settings_writes(schema: Schema, old: Config, new: Config, first: bool) -> list[Write]:
    """Before services come: what either state's look-up needs."""
    before = settings_word(schema, old.settings, old.services)
    after = settings_word(schema, new.settings, new.services)
    if before == after and not first:
        return []
    both = settings_word(schema, new.settings, [*old.services, *new.services])
    return [Store("switches", schema.enums["switch_word"]["settings"], both)]


def _ordered(change: _Change, new: Config, old: Config, schema: Schema) -> list[Write]:
    word = settings_word(schema, new.settings, new.services)
    both = settings_word(schema, new.settings, [*old.services, *new.services])
    last: list[Write] = []
    if word != both:
        last.append(Store("switches", schema.enums["switch_word"]["settings"], word))
    grace: list[Write] = []
    if change.switch:
        change.book.epoch += 1
        epoch = schema.enums["switch_word"]["epoch"]
        grace = [Store("switches", epoch, change.book.epoch), Grace()]
    return [*change.prepare, *change.switch, *grace, *change.finish, *last]
