"""The rows that say how packets to backends by tunnel are wrapped."""

from __future__ import annotations

import functools
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from lvsxdp import records
from lvsxdp.book import BackendPlace, ServicePlace
from lvsxdp.model import Address, Backend, Config, Forward, Service, Settings, TunnelChecksum
from lvsxdp.schema import Schema
from lvsxdp.writes import Block, Rows, Write, runs

# The ports that this host's own flows come from.
LOCAL_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")

Source = Callable[[Address], Address | None]


def local_ports() -> tuple[int, int]:
    """The first of the ports that gue's outer headers come from, and how many there are."""
    first, last = map(int, LOCAL_PORTS.read_text().split())
    return first, last - first + 1


def row(schema: Schema, backend: Backend, source: Source, settings: Settings) -> bytes:
    """The row of a backend by tunnel.

    `source` is what the routes choose for an address, None where none leads there.
    """
    tunnel = backend.tunnel
    layout = schema.values["tunnels"]
    address = tunnel.source or source(backend.address)
    flag = schema.enums["tunnel_flag"]
    flags = flag["checksum"] * (tunnel.checksum is not TunnelChecksum.NOCSUM)
    flags |= flag["cut"] * (not settings.pmtu_disc)
    first_port, ports = local_ports()
    # struct tunnel_options
    options = struct.pack(
        "=2sBBHH",
        records.wire_port(tunnel.port or 0),
        schema.enums["tunnel_type"][tunnel.type],
        flags,
        first_port,
        ports,
    )
    return layout.encode(
        source=records.wire_address(address) if address else 0,
        options=int.from_bytes(options, sys.byteorder),
    )


def new_rows(
    schema: Schema,
    backends: Iterable[Backend],
    places: Mapping[str, BackendPlace],
    source: Source,
    settings: Settings,
) -> Iterator[Write]:
    """Rows of backends that were not there, before anything finds them."""
    found = {
        places[str(backend)].id: row(schema, backend, source, settings)
        for backend in backends
        if backend.forward is Forward.TUNNEL
    }
    for first, values in runs(found):
        yield Rows("tunnels", first, b"".join(values))


def changed_rows(
    schema: Schema,
    old: Config,
    new: Config,
    places: Mapping[str, ServicePlace],
    source: Source,
) -> Iterator[Write]:
    """Rows of backends that stay, where their tunnels are not what they were."""
    before = {service.key: service for service in old.services}
    other = old.settings.pmtu_disc != new.settings.pmtu_disc
    for service in new.services:
        was = before.get(service.key)
        if was is None or Forward.TUNNEL not in service.forwards:
            continue
        if was is service and not other:
            continue
        had = {str(b): b.tunnel if b.forward is Forward.TUNNEL else None for b in was.backends}
        for backend in service.backends:
            name = str(backend)
            if backend.forward is not Forward.TUNNEL or name not in had:
                continue
            if other or had[name] != backend.tunnel:
                wanted = row(schema, backend, source, new.settings)
                start = places[str(service.key)].backends[name].id * len(wanted)
                yield Block("tunnels", start, wanted)


def following(config: Config) -> Iterator[tuple[Service, Backend]]:
    """Backends whose outer headers have the source that the routes choose."""
    for service in config.services:
        if Forward.TUNNEL in service.forwards:
            for backend in service.backends:
                if backend.forward is Forward.TUNNEL and backend.tunnel.source is None:
                    yield service, backend


def cached(source: Source) -> Source:
    """The same, each address asked for once."""
    return functools.cache(source)
