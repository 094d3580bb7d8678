"""What the read commands show, gathered from a balancer's maps."""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Iterable, Iterator

from lvsxdp import (
    counting,
    entries,
    estimating,
    linking,
    model,
    names,
    network,
    rates,
    roads,
    show,
    thresholds,
    watching,
)
from lvsxdp.controller import Balancer
from lvsxdp.entries import ALL, Wanted
from lvsxdp.features import Feature
from lvsxdp.model import Address, AddressKey, Backend, Config, Forward, Service
from lvsxdp.network import Network
from lvsxdp.rates import Rates
from lvsxdp.show import Names, Row

CONNECTIONS = ("connections4", "connections6")
PERSISTENCE = ("persistence4", "persistence6")
CALLS = ("calls4", "calls6")
NEARLY_FULL = 80  # per cent
# Services' addresses, not this host's, of which a command asks the kernel.
MOST_ASKED = 64


def connections(balancer: Balancer, wanted: Wanted = ALL) -> Iterator[entries.Row]:
    """Every wanted live connection, as a row of entries.CONNECTION."""
    now, known = balancer.clock(), Names(balancer.state)
    for table in CONNECTIONS:
        memory = balancer.map(table).memory()
        yield from entries.connections(balancer.schema, known, table, memory, now, wanted)


def persistence(balancer: Balancer, wanted: Wanted = ALL) -> Iterator[entries.Row]:
    """Every wanted live persistence entry, as a row of entries.PERSISTENCE."""
    now, known = balancer.clock(), Names(balancer.state)
    has_calls = Feature.SIP in balancer.state.features
    for table, calls in zip(PERSISTENCE, CALLS, strict=True):
        memory = balancer.map(table).memory()
        texts = balancer.map(calls).memory() if has_calls else None
        yield from entries.persistence(balancer.schema, known, table, memory, now, wanted, texts)


def wanted_entries(
    balancer: Balancer, service: str | None, client: model.Network | None, backend: str | None
) -> Wanted:
    """Which entries a list is to have: service and backend as the command line names them.

    NotFoundError where there is no such service or backend.
    """
    config, places = balancer.state.config, balancer.state.book.services
    only = names.find_service(config, service) if service is not None else None
    backends = None
    if backend is not None:
        among = [only] if only else config.services
        found = names.find_backends(among, backend)
        backends = frozenset(_reference(balancer, *one) for one in found)
    return Wanted(places[str(only.key)].id if only else None, backends, client)


def _reference(balancer: Balancer, service: Service, backend: Backend) -> int:
    """How entries name a backend."""
    place = balancer.state.book.services[str(service.key)].backends[str(backend)]
    return place.generation << 32 | place.id


def services(balancer: Balancer) -> list[Row]:
    """Every service with its counters and rates."""
    known = estimating.read(balancer.where)
    return [_service_row(balancer, found, known) for found in balancer.state.config.services]


def service(balancer: Balancer, found: Service) -> Row:
    """One service with its counters and rates."""
    return _service_row(balancer, found, estimating.read(balancer.where))


def _service_row(balancer: Balancer, found: Service, known: Rates) -> Row:
    place = balancer.state.book.services[str(found.key)]
    seen = counting.of_service(balancer, place.id)
    rate = known.of(rates.of_service(place.id), seen.identity)
    return show.service_row(found, rates.row(seen.counts, rate))


def backends(balancer: Balancer, net: Network, only: Service | None = None) -> list[Row]:
    """Every backend of one service or of all: state, load, counters, interface out and road."""
    bound = Counter((service, backend) for service, _, backend, *_ in persistence(balancer))
    finder, known = roads.Finder(balancer, net), estimating.read(balancer.where)
    rows = []
    for service in [only] if only else balancer.state.config.services:
        for backend in service.backends:
            row = _backend_row(balancer, service, backend, known)
            row["persistent"] = bound[str(service), str(backend)]
            road = finder.road(backend.address)
            row["interface"], row["road"] = road.interface, road.name
            rows.append(row)
    return rows


def _backend_row(balancer: Balancer, service: Service, backend: Backend, known: Rates) -> Row:
    place = balancer.state.book.services[str(service.key)].backends[str(backend)]
    load = balancer.total("loads", place.id)
    seen = counting.of_backend(balancer, place)
    rate = known.of(rates.of_backend(place.id), seen.identity)
    port = backend.port or getattr(service.key, "port", 0) or None
    return {
        "service": str(service),
        "address": str(backend.address),
        "port": port,
        "weight": backend.weight,
        "upper_threshold": backend.upper_threshold,
        "lower_threshold": backend.lower_threshold,
        "forward": str(backend.forward),
        "tunnel": _tunnel(backend),
        "state": _state(balancer, backend, place.id, load["total"]),
        "active": load["active"],
        "inactive": max(load["total"] - load["active"], 0),
        "persistent": 0,
        **rates.row(seen.counts, rate),
        "interface": None,
        "road": None,
    }


def _tunnel(backend: Backend) -> Row | None:
    """How packets to a backend by tunnel are wrapped."""
    if backend.forward is not Forward.TUNNEL:
        return None
    tunnel = backend.tunnel
    source = str(tunnel.source) if tunnel.source else "auto"
    return {
        "type": str(tunnel.type),
        "port": tunnel.port,
        "checksum": str(tunnel.checksum),
        "source": source,
    }


def _state(balancer: Balancer, backend: Backend, identity: int, total: int) -> str:
    """In one word whether it gets connections."""
    if backend.draining:
        return "draining"
    if not backend.weight:
        return "quiesced"
    limit = balancer.map("limits").read_word(identity)
    return "overloaded" if thresholds.is_overloaded(limit, total) else "active"


def interface_rows(balancer: Balancer, net: Network) -> list[Row]:
    """The interfaces that are attached or should be, each with whether it is."""
    links = {link.index: link for link in net.links()}
    rows: list[Row] = []
    for attached in balancer.state.attachments:
        link = links.get(attached.ifindex)
        rows.append(
            {
                "name": link.name if link else attached.interface,
                "mode": attached.mode,
                "program_id": attached.program,
                "attached": bool(link and linking.is_whole(balancer, net, link, attached)),
            }
        )
    # by both its names, where one was renamed
    known = {row["name"] for row in rows} | {a.interface for a in balancer.state.attachments}
    for name in balancer.state.config.interfaces:
        if name not in known:
            rows.append({"name": name, "mode": None, "program_id": None, "attached": False})
    return rows


def status(balancer: Balancer, net: Network) -> Row:
    """Interfaces, tables, packets by reason, and what needs attention."""
    from lvsxdp import confirming

    tables = table_rows(balancer)
    links = {link.index: link for link in net.links()}
    return {
        "interfaces": interface_rows(balancer, net),
        "services": len(balancer.state.config.services),
        "last_sweep": _last_sweep(balancer),
        "total": _total(balancer),
        "tables": tables,
        "reasons": balancer.reasons(),
        "redirect_failures": watching.losses(balancer, links),
        "features": sorted(balancer.state.features),
        "local_addresses": "fib" if _lo_forwarding() else "table",
        "warnings": [
            *confirming.warnings(balancer.where),
            *_full_tables(tables),
            *watching.warnings(balancer, links),
        ],
    }


def _total(balancer: Balancer) -> Row:
    """What all services have counted together, those that are gone among them, and its rates."""
    seen = counting.of_all(balancer)
    rate = estimating.read(balancer.where).of(rates.TOTAL, seen.identity)
    return dict(rates.row(seen.counts, rate))


def _full_tables(tables: list[Row]) -> list[str]:
    """A line for each table that is nearly full, with the remedy."""
    return [
        f"{row['name']} is {row['used'] * 100 // row['capacity']} % full: raise "
        f"capacity.{row['name'][:-1]}, then attach -c FILE --force (without its entries)"
        for row in tables
        if row["used"] * 100 >= NEARLY_FULL * row["capacity"]
    ]


def warnings(config: Config, net: Network) -> list[str]:
    """What is legal but will not do what its author wants, on this host as it is now."""
    found = []
    named = set(_virtual_addresses(config))
    local = set(net.addresses()) if named else set()
    elsewhere = sorted(map(str, named - local))
    for address in elsewhere[:MOST_ASKED]:
        if not net.has_answer(ipaddress.ip_address(address)):
            found.append(
                f"{address} is no address of this host, and no route says so: packets to it are "
                f"balanced all the same. ip {'-6 ' if ':' in address else ''}route add "
                "unreachable default metric 4278198272"
            )
    if found and len(elsewhere) > MOST_ASKED:
        found.append(f"{len(elsewhere) - MOST_ASKED} more such addresses were not asked about")
    return found


def attached(balancer: Balancer, net: Network) -> list[str]:
    """What the kernel does not do for this balancer as well as it could."""
    return [*watching.unwatched(balancer), *roads.warnings(balancer, net)]


def _virtual_addresses(config: Config) -> Iterator[Address]:
    for service in config.services:
        if isinstance(service.key, AddressKey):
            yield service.key.address
    for rule in config.marks:
        for network_ in rule.addresses:
            if network_.num_addresses == 1:
                yield network_.network_address


def _lo_forwarding() -> bool:
    return network.sysctl("net/ipv4/conf/lo/forwarding") == "1"


def _last_sweep(balancer: Balancer) -> float | None:
    stamp = balancer.where.files / "last_sweep"
    return float(stamp.read_text()) if stamp.exists() else None


def table_rows(balancer: Balancer) -> list[Row]:
    """How many entries each table has, and how many it may have."""
    return [_table_row(balancer, name) for name in (*CONNECTIONS, *PERSISTENCE)]


def _table_row(balancer: Balancer, name: str) -> Row:
    memory = balancer.map(name).memory()
    capacity = balancer.state.config.capacity
    return {
        "name": name,
        "used": entries.count(
            balancer.schema, balancer.state.config.settings, name, memory, balancer.clock()
        ),
        "capacity": capacity.connections if name in CONNECTIONS else capacity.persistence,
    }


def stranded(balancer: Balancer, service: Service, backends: Iterable[Backend]) -> tuple[int, int]:
    """Open connections and persistent clients that would lose these backends if they went now.

    Connections whose client has closed are not counted, nor entries that a drain has ended.
    """
    going = {_reference(balancer, service, backend): backend for backend in backends}
    keeping = (reference for reference, backend in going.items() if not backend.draining)
    state = entries.CONNECTION.index("state")
    open_states = ("ESTABLISHED", "SYN_SENT", "SYN_RECV", "SYNACK", "UDP")
    rows = connections(balancer, Wanted(backends=frozenset(going)))
    kept = persistence(balancer, Wanted(backends=frozenset(keeping)))
    return sum(row[state] in open_states for row in rows), sum(1 for _ in kept)


def places(
    balancer: Balancer, tables: tuple[str, ...], wanted: Wanted = ALL
) -> Iterator[tuple[str, int, int]]:
    """Table, place and generation of each wanted entry, for Balancer.reap."""
    for table in tables:
        memory = balancer.map(table).memory()
        for place, generation in entries.places(balancer.schema, table, memory, wanted):
            yield table, place, generation
