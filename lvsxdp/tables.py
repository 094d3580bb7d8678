"""From a Config to the writes that bring the maps there, in an order that packets never mind."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping

from lvsxdp import (
    changes,
    filtering,
    locality,
    lookups,
    marking,
    records,
    scheduling,
    setting,
    sharing,
    sources,
    thresholds,
    tunnels,
)
from lvsxdp.book import UNPRIVILEGED_PORT, BackendPlace, Book, Places, ServicePlace
from lvsxdp.model import (
    ANY_PORT,
    FTP_PORT,
    Address,
    AddressKey,
    Backend,
    Config,
    Engine,
    Expiry,
    Family,
    Forward,
    MarkKey,
    Service,
    Settings,
)
from lvsxdp.placing import Placing
from lvsxdp.scheduling import Cursor, Member
from lvsxdp.schema import Schema
from lvsxdp.writes import (
    Block,
    Delete,
    Evict,
    Grace,
    Limit,
    Plan,
    Reset,
    Rows,
    Store,
    Update,
    Write,
    Zero,
    runs,
)

MEMBERS_EACH_BACKEND = 4
# What begins at 0 for a backend that is new.
FRESH = ("loads", "limits", "nexthop_probes", "lanes", "backend_answers", "backend_zeros")


@dataclasses.dataclass(frozen=True, slots=True)
class Host:
    """What the network says that the maps need: indices of interfaces, live cursors.

    `cursor_generation` is of the version of a service id that rr and wrr last chose by, 16 bits;
    `unprivileged_port` is where ports begin that FTP's data may be on; `source` is the address
    that the routes choose for packets to another; `source_in_use` says whether connections have an
    address of the pool, by its number.
    """

    ifindexes: Mapping[str, int]
    cursor: Callable[[ServicePlace], Cursor]
    cursor_generation: Callable[[int], int] = lambda _: 0
    unprivileged_port: int = UNPRIVILEGED_PORT
    source: Callable[[Address], Address | None] = lambda _: None
    source_in_use: Callable[[int], bool] = lambda _: False


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
        flags |= flag["sip"] if service.persistence.engine is Engine.SIP else 0
    if isinstance(service.key, MarkKey):
        flags |= flag["by_mark"]
    elif service.key.port == ANY_PORT:
        flags |= flag["any_port"]
    elif service.key.port == FTP_PORT:
        flags |= flag["ftp"]
    flags |= flag["one_packet"] * service.one_packet
    flags |= flag["sloppy_tcp"] * service.sloppy_tcp
    flags |= flag["by_counts"] if scheduling.goes_by_counts(service) else 0
    return flags | sum(flag[f"hash_{each.partition('-')[2]}"] for each in service.flags)


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
        slots_offset=place.slots or 0,
        weight_step=rounds.step,
        weight_max=rounds.top,
        cursor_position=at.position,
        cursor_weight=at.weight,
        since=place.since & 0xFFFFFFFF,
    )


def backend_flags(schema: Schema, backend: Backend) -> int:
    """The flags of a backend that is configured."""
    flag = schema.enums["backend_flag"]
    quiesced = flag["quiesced"] if backend.weight == 0 else 0
    return flag["present"] | quiesced | (flag["draining"] if backend.draining else 0)


def method_word(schema: Schema, backend: Backend) -> bytes:
    """The word of a backend's row that says how it gets new connections."""
    layout = schema.values["backends"]
    row = layout.encode(
        port=records.wire_port(backend.port or 0), method=schema.enums["method"][backend.forward]
    )
    return row[layout.fields["port"].offset :]


@dataclasses.dataclass
class _Change:
    """One service on its way from what it was to what it is to be."""

    schema: Schema
    book: Book
    placing: Placing
    config: Config
    host: Host
    prepare: list[Write] = dataclasses.field(default_factory=list)
    switch: list[Write] = dataclasses.field(default_factory=list)
    finish: list[Write] = dataclasses.field(default_factory=list)

    def write_new_backends(
        self, service: Service, identity: int, places: Mapping[str, BackendPlace], kept: set[str]
    ) -> None:
        """Rows of backends that were not there; one that comes back is made real by a store."""
        head = self.schema.values["backends"].packer("word", "address", "family", "service")
        at = self.schema.values["backends"].fields["port"].offset
        rows: dict[int, bytes] = {}
        limits: dict[int, bytes] = {}
        for backend in service.backends:
            if (name := str(backend)) in kept:
                continue
            place, limit = places[name], thresholds.word_of(backend)
            word = place.generation << 32 | backend_flags(self.schema, backend)
            if place.id in self.placing.back:
                self.switch += Limit(place.id, limit), Store("backends", place.id, word)
                word = place.generation << 32
            elif limit:
                limits[place.id] = records.word(limit)
            family = records.family_number(Family.of(backend.address))
            row = head.pack(word, records.wire_address(backend.address), family, identity)
            rows[place.id] = row[:at] + method_word(self.schema, backend)
        self.prepare += self._rows_of_backends(rows, limits)
        if Forward.TUNNEL in service.forwards:
            fresh = (backend for backend in service.backends if str(backend) not in kept)
            self.prepare += tunnels.new_rows(
                *(self.schema, fresh, places, self.host.source, self.config.settings)
            )

    def _rows_of_backends(
        self, rows: Mapping[int, bytes], limits: Mapping[int, bytes]
    ) -> Iterator[Write]:
        """Counts that begin at 0, unless a backend comes back, and the rows after them."""
        for first, values in runs({i: r for i, r in rows.items() if i not in self.placing.back}):
            for table in FRESH:
                yield Reset(table, first, len(values))
        for table, written in (("backends", rows), ("limits", limits)):
            for first, values in runs(written):
                yield Rows(table, first, b"".join(values))

    def write_thresholds(self, old: Service, new: Service, place: ServicePlace) -> None:
        """Thresholds of backends that stay, where they are not what they were."""
        before = {str(backend): thresholds.word_of(backend) for backend in old.backends}
        for backend in new.backends:
            word, name = thresholds.word_of(backend), str(backend)
            if word != before.get(name, word):
                self.switch.append(Limit(place.backends[name].id, word))

    def write_methods(self, old: Service, new: Service, place: ServicePlace) -> None:
        """Methods of backends that stay: one word each; connections keep the one that they have."""
        before = {str(backend): method_word(self.schema, backend) for backend in old.backends}
        layout = self.schema.values["backends"]
        for backend in new.backends:
            word, name = method_word(self.schema, backend), str(backend)
            if word != before.get(name, word):
                start = place.backends[name].id * layout.size + layout.fields["port"].offset
                self.switch.append(Block("backends", start, word))

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

    def drop_backends(self, key: str, identity: int, gone: Mapping[str, BackendPlace]) -> None:
        """Nothing that names these backends finds them any more, unless they come back.

        Where connections to removed backends expire, there is nothing to come back to.
        """
        for place in gone.values():
            self.finish.append(Store("backends", place.id, place.generation << 32))
        if gone and not self.config.settings.expire_nodest_conn:
            self.book.remember(key, identity, gone)

    def write_version(
        self, service: Service, place: ServicePlace, members: tuple[Member, ...], at: Cursor
    ) -> None:
        """List, table and row of a version, then the word that switches to it."""
        pack = self.schema.values["members"].packer("backend", "weight").pack
        rows = [pack(place.backends[member.name].id, member.weight) for member in members]
        if rows:
            self.prepare.append(Rows("members", place.list_offset, b"".join(rows)))
        self.prepare += lookups.lookup_writes(self.schema, service, place, members)
        row = _service_row(self.schema, service, place, members, at)
        self.prepare.append(Update("service_configs", records.number(place.row), row))
        word = (place.generation & 0xFFFFFFFF) << 32 | place.row
        self.switch.append(Store("service_switches", place.id, word))

    def take_slots(self, length: int) -> int:
        """Where a free range of the schedulers' tables begins."""
        return self.placing.taken.slots.take(length, self.schema.flat["slots"].rows)

    def new_version(
        self,
        service: Service,
        identity: int,
        backends: dict[str, BackendPlace],
        length: int,
        since: int | None = None,
    ) -> ServicePlace:
        """Free places for a version; what the old one has stays taken until the next change."""
        capacity = self.config.capacity
        generation = self.book.service_generations.get(identity, 0) + 1
        if generation & 0xFFFF == self.host.cursor_generation(identity):
            # it may be 65,536 versions old, all without a choice
            generation += 1
        self.book.service_generations[identity] = generation
        slots = scheduling.SLOTS.get(service.scheduler, 0)
        return ServicePlace(
            id=identity,
            generation=generation,
            row=self.placing.taken.rows.take(2 * capacity.services),
            list_offset=self.placing.taken.members.take(
                length, MEMBERS_EACH_BACKEND * capacity.backends
            ),
            list_length=length,
            slots=self.take_slots(slots) if slots else None,
            slots_length=slots,
            since=generation if since is None else since,
            backends=backends,
        )


def _add_service(change: _Change, service: Service) -> None:
    identity, evicts = change.placing.service(str(service.key))
    if evicts:
        change.prepare.append(Evict(identity))
    if identity in change.book.service_generations:
        change.prepare.append(Zero("service_zeros", identity))
    members = scheduling.members_of(service.backends)
    backends = change.placing.backends(service, None)
    # what comes back to a service that is new has counted nothing for it
    returned = (b.id for b in backends.values() if b.id in change.placing.back)
    change.prepare += [Zero("backend_zeros", identity) for identity in returned]
    place = change.new_version(service, identity, backends, len(members))
    change.book.services[str(service.key)] = place
    change.write_new_backends(service, identity, backends, set())
    cursor = scheduling.next_cursor(service.scheduler, (), members, Cursor())
    change.write_version(service, place, members, cursor)
    key = service_keys(change.schema, service)
    # before the epoch: nobody may remember under the new one that there is no such service
    change.switch.append(Update("services", key, records.number(identity)))


def _edit_service(change: _Change, old: Service, new: Service) -> None:
    was = change.book.services[str(new.key)]
    members = scheduling.members_of(new.backends)
    backends = change.placing.backends(new, was)
    since = was.since if old.scheduler is new.scheduler else None
    place = change.new_version(new, was.id, backends, len(members), since)
    change.write_new_backends(new, was.id, backends, set(was.backends))
    change.write_version(new, place, members, _cursor_after(change, old, new, was))
    change.write_flags(old, new, place)
    change.write_thresholds(old, new, place)
    if old.forwards != new.forwards or len(new.forwards) > 1:
        change.write_methods(old, new, place)
    gone = {name: place for name, place in was.backends.items() if name not in backends}
    change.drop_backends(str(new.key), was.id, gone)
    change.book.services[str(new.key)] = place


def _cursor_after(change: _Change, old: Service, new: Service, was: ServicePlace) -> Cursor:
    """The cursor goes on across an edit; another scheduler begins with the list as it was."""
    members = scheduling.members_of(new.backends)
    before = scheduling.members_of(old.backends)
    same = old.scheduler is new.scheduler
    at = change.host.cursor(was) if same else scheduling.first_cursor(before)
    return scheduling.next_cursor(new.scheduler, before, members, at)


def _remove_service(change: _Change, old: Service) -> None:
    place = change.book.services.pop(str(old.key))
    change.switch.append(Delete("services", service_keys(change.schema, old)))
    change.drop_backends(str(old.key), place.id, place.backends)


# --------------------------------------------------------------------------------------- whole


def settings_word(schema: Schema, settings: Settings, services: Iterable[Service]) -> int:
    """All settings in one word, with what the services need of the look-up."""
    bit = schema.enums["setting"]
    word = bit["reuse_closed"] * bool(settings.conn_reuse_mode & 1)
    word |= bit["reuse_fin_wait"] * bool(settings.conn_reuse_mode & 2)
    for name in (
        *("expire_nodest_conn", "expire_quiescent_template", "require_local", "cache_bypass"),
        *("sloppy_tcp", "sloppy_sctp", "secure_tcp"),
    ):
        word |= bit[name] * bool(getattr(settings, name))
    served = list(services)
    ports = {service.key.port for service in served if isinstance(service.key, AddressKey)}
    word |= bit["ftp_service"] * (FTP_PORT in ports)
    word |= bit["any_port_service"] * (ANY_PORT in ports)
    families = {service.family for service in served}
    word |= bit["ipv4_service"] * (Family.IPV4 in families)
    word |= bit["ipv6_service"] * (Family.IPV6 in families)
    return word


def plan(
    schema: Schema, book: Book, old: Config, new: Config, host: Host, *, first: bool = False
) -> Plan:
    """The writes that lead from `old` to `new`, and `book` brought up to date.

    What is new is written beside what is in use; then single stores switch to it; only then is
    anything taken away.  `first` writes also what is equal to the defaults.
    """
    if new.settings.expire_nodest_conn:
        book.removed.clear()
    change = _Change(schema, book, Placing(book, Places(book), new.capacity), new, host)
    before = {service.key: service for service in changes.others(old, new)}
    after = {service.key: service for service in changes.others(new, old)}
    for key, service in before.items():
        if key not in after:
            _remove_service(change, service)
    for key, service in after.items():
        was = before.get(key)
        if was is None:
            _add_service(change, service)
        elif _unnamed(was) != _unnamed(service):
            _edit_service(change, was, service)
    # before a method that makes packets meet them
    change.switch[:0] = tunnels.changed_rows(schema, old, new, book.services, host.source)
    stages = {"prepare": change.prepare, "switch": change.switch, "finish": change.finish}
    pool = sources.pool_writes(schema, book, old, new, host.source_in_use, first=first)
    for place, (stage, write) in enumerate(pool):
        stages[stage].insert(place, write)
    if first or old.marks != new.marks:
        for stage, write in marking.mark_writes(schema, book, new, host.ifindexes):
            stages[stage].append(write)
    if first or book.unprivileged_port != host.unprivileged_port:
        book.unprivileged_port = host.unprivileged_port
        number = schema.enums["switch_word"]["unprivileged"]
        change.switch.append(Store("switches", number, host.unprivileged_port))
    let_pass = filtering.filter_writes(schema.hashing, old, new)
    divided = sharing.divide_writes(schema, old, new, first)
    times = [
        *_timeout_writes(schema, old.settings, new.settings, first),
        *locality.expiration_writes(schema, old.settings, new.settings, first),
        *_drop_writes(schema, old.settings, new.settings, first),
    ]
    return Plan(
        prepare=(*let_pass, *change.prepare),
        effect=(*divided, *times, *_effect(change, schema, old, new, first)),
    )


def _unnamed(service: Service) -> Service:
    """The service without its name, which no packet minds."""
    return dataclasses.replace(service, name=None)


def _effect(
    change: _Change, schema: Schema, old: Config, new: Config, first: bool
) -> Iterator[Write]:
    """Switches, and what is taken away once nobody reads it any more.

    The settings hold first what either state's look-up needs, for as long as services come and go.
    """
    before = settings_word(schema, old.settings, old.services)
    after = settings_word(schema, new.settings, new.services)
    both = settings_word(schema, new.settings, [*old.services, *new.services])
    settings = schema.enums["switch_word"]["settings"]
    if before != both or first:
        yield Store("switches", settings, both)
    yield from change.switch
    if change.switch:
        change.book.epoch += 1
        yield Store("switches", schema.enums["switch_word"]["epoch"], change.book.epoch)
        if change.finish or after != both:
            # what only the next change writes over waits for that one: Balancer.apply
            yield Grace()
    yield from change.finish
    if after != both:
        yield Store("switches", settings, after)


def _drop_writes(schema: Schema, old: Settings, new: Settings, first: bool) -> Iterator[Write]:
    """Of how many packets drop_packet takes one; of the first ones the very first."""
    before, after = (each.am_droprate if each.drop_packet else 0 for each in (old, new))
    if first or before != after:
        yield Store("drop_count", 0, 0)
        yield Store("switches", schema.enums["switch_word"]["drop_rate"], after)


def timeouts(schema: Schema, settings: Settings) -> dict[int, int]:
    """State -> jiffies that a connection lives in it without a packet."""
    return {schema.enums["state"][n]: t * schema.hz for n, t in setting.timeouts(settings).items()}


def _timeout_writes(schema: Schema, old: Settings, new: Settings, first: bool) -> list[Write]:
    """Those that are new; packets may see one of several before the others."""
    before = {} if first else timeouts(schema, old)
    return [
        Update("timeouts", records.number(state), records.number(jiffies))
        for state, jiffies in timeouts(schema, new).items()
        if before.get(state) != jiffies
    ]
