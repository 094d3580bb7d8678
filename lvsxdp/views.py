"""What the read commands show, gathered from a balancer's maps."""

from __future__ import annotations

import ipaddress
import itertools
from collections import Counter
from collections.abc import Iterator

from lvsxdp import network, show
from lvsxdp.controller import Balancer
from lvsxdp.model import Address, AddressKey, Backend, Config, Service
from lvsxdp.network import Network
from lvsxdp.show import Names, Row

CONNECTIONS = ("connections4", "connections6")
PERSISTENCE = ("persistence4", "persistence6")


def connections(balancer: Balancer) -> Iterator[Row]:
    """Every live connection."""
    now, names = balancer.clock(), Names(balancer.state)
    return itertools.chain.from_iterable(
        show.connection_rows(balancer.schema, names, table, balancer.map(table).items(), now)
        for table in CONNECTIONS
    )


def persistence(balancer: Balancer) -> Iterator[Row]:
    """Every live persistence entry."""
    now, names = balancer.clock(), Names(balancer.state)
    return itertools.chain.from_iterable(
        show.persistence_rows(balancer.schema, names, table, balancer.map(table).items(), now)
        for table in PERSISTENCE
    )


def services(balancer: Balancer) -> list[Row]:
    """Every service with its counters."""
    rows = []
    for service in balancer.state.config.services:
        place = balancer.state.book.services[str(service.key)]
        rows.append(show.service_row(service, balancer.total("service_counters", place.id)))
    return rows


def backends(balancer: Balancer, net: Network, only: Service | None = None) -> list[Row]:
    """Every backend of one service or of all: state, load, counters and road."""
    bound: Counter[tuple[str, str]] = Counter()
    for entry in persistence(balancer):
        bound[entry["service"], entry["backend"]] += 1
    links = {link.index: link for link in net.links()}
    rows = []
    for service in [only] if only else balancer.state.config.services:
        for backend in service.backends:
            row = _backend_row(balancer, service, backend)
            row["persistent"] = bound[str(service), str(backend)]
            row["road"] = _road(balancer, net, links, backend)
            rows.append(row)
    return rows


def _backend_row(balancer: Balancer, service: Service, backend: Backend) -> Row:
    place = balancer.state.book.services[str(service.key)].backends[str(backend)]
    load = balancer.total("loads", place.id)
    counters = balancer.total("backend_counters", place.id)
    port = backend.port or getattr(service.key, "port", 0) or None
    state = "draining" if backend.draining else "active" if backend.weight else "quiesced"
    return {
        "service": str(service),
        "address": str(backend.address),
        "port": port,
        "weight": backend.weight,
        "forward": str(backend.forward),
        "state": state,
        "active": load["active"],
        "inactive": max(load["total"] - load["active"], 0),
        "persistent": 0,
        **counters,
        "road": None,
    }


def _road(
    balancer: Balancer, net: Network, links: dict[int, network.Link], backend: Backend
) -> str | None:
    """How packets leave for the backend: tx, redirect or tc."""
    attached = {a.ifindex: a.mode for a in balancer.state.attachments}
    route = net.route(backend.address)
    if route is None or not attached:
        return None
    link = links.get(route.ifindex)
    xdp = [index for index, mode in attached.items() if mode != "tc"]
    if not xdp or link is None or not network.can_transmit(link) or not _fib_answers(backend):
        return "tc"
    return "tx" if route.ifindex in xdp else "redirect"


def _fib_answers(backend: Backend) -> bool:
    """The kernel's FIB answers XDP only while lo.forwarding is on."""
    return network.sysctl(f"net/ipv{backend.address.version}/conf/lo/forwarding") == "1"


def status(balancer: Balancer, net: Network) -> Row:
    """Interfaces, tables, packets by reason, and what needs attention."""
    links = {link.index: link for link in net.links()}
    interfaces = []
    for attached in balancer.state.attachments:
        link = links.get(attached.ifindex)
        interfaces.append(
            {
                "name": attached.interface,
                "mode": attached.mode,
                "program_id": attached.program,
                "attached": _is_attached(net, link, attached.mode, attached.program),
            }
        )
    return {
        "interfaces": interfaces,
        "services": len(balancer.state.config.services),
        "last_sweep": _last_sweep(balancer),
        "tables": [_table_row(balancer, name) for name in (*CONNECTIONS, *PERSISTENCE)],
        "reasons": balancer.reasons(),
        "local_addresses": "fib" if _lo_forwarding() else "table",
    }


def warnings(config: Config, net: Network) -> list[str]:
    """What is legal but will not do what its author wants, on this host as it is now."""
    found = []
    for address in sorted({str(address) for address in _virtual_addresses(config)}):
        if not net.has_answer(ipaddress.ip_address(address)):
            found.append(
                f"{address} is no address of this host, and no route says so: packets to it are "
                f"balanced all the same. ip {'-6 ' if ':' in address else ''}route add "
                "unreachable default metric 4278198272"
            )
    return found


def _virtual_addresses(config: Config) -> Iterator[Address]:
    for service in config.services:
        if isinstance(service.key, AddressKey):
            yield service.key.address
    for rule in config.marks:
        for network_ in rule.addresses:
            if network_.num_addresses == 1:
                yield network_.network_address


def _is_attached(net: Network, link: network.Link | None, mode: str, program: int) -> bool:
    if link is None:
        return False
    if mode == "tc":
        return (net.tc_program(link) or (0, ""))[0] == program
    return link.program == program


def _lo_forwarding() -> bool:
    return network.sysctl("net/ipv4/conf/lo/forwarding") == "1"


def _last_sweep(balancer: Balancer) -> float | None:
    stamp = balancer.where.files / "last_sweep"
    return float(stamp.read_text()) if stamp.exists() else None


def _table_row(balancer: Balancer, name: str) -> Row:
    table = balancer.map(name)
    return {
        "name": name,
        "used": sum(1 for _ in table.items()),
        "capacity": table.capacity,
    }


def stranded(balancer: Balancer, service: Service, backend: Backend) -> tuple[int, int]:
    """Open connections and persistent clients that would lose this backend if it went now.

    Connections whose client has closed are not counted, nor entries that a drain has ended.
    """
    mine = (str(service), str(backend))
    open_states = ("ESTABLISHED", "SYN_SENT", "SYN_RECV", "SYNACK", "UDP")
    live = sum(
        (row["service"], row["backend"]) == mine and row["state"] in open_states
        for row in connections(balancer)
    )
    if backend.draining:
        return live, 0
    kept = sum((row["service"], row["backend"]) == mine for row in persistence(balancer))
    return live, kept


def reap_items(
    balancer: Balancer, tables: tuple[str, ...], service: int | None = None
) -> Iterator[tuple[str, bytes]]:
    """Keys of all entries of some tables, of one service or of all, for Balancer.reap."""
    for table in tables:
        layout = balancer.schema.values[table]
        for key, value in balancer.map(table).items():
            if service is None or layout.number(value, "service") == service:
                yield table, key
