"""The rows that say how packets to backends by tunnel are wrapped."""

from __future__ import annotations

import functools
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from lvsxdp import records
from lvsxdp.book import BackendPlace
from lvsxdp.model import Address, Backend, Config, Forward, Service, TunnelChecksum
from lvsxdp.schema import Schema
from lvsxdp.writes import Block, Rows, Write, runs

# The ports that this host's own flows come from.
LOCAL_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")

Source = Callable[[Address], Address | None]


def local_ports() -> tuple[int, int]:
    """The first of the ports that gue's outer headers come from, and how many there are."""
    first, last = map(int, LOCAL_PORTS.read_text().split())
    return first, last - first + 1


def row(schema: Schema, backend: Backend, source: Source) -> bytes:
    """A backend's row; all zero where the method is another.

    `source` is what the routes choose for an address, None where none leads there.
    """
    tunnel = backend.tunnel
    layout = schema.values["tunnels"]
    if backend.forward is not Forward.TUNNEL:
        return bytes(layout.size)
    address = tunnel.source or source(backend.address)
    has_sum = tunnel.checksum is not TunnelChecksum.NOCSUM
    first_port, ports = local_ports()
    # struct tunnel_options
    options = struct.pack(
        "=2sBBHH",
        records.wire_port(tunnel.port or 0),
        schema.enums["tunnel_type"][tunnel.type],
        schema.enums["tunnel_flag"]["checksum"] if has_sum else 0,
        first_port,
        ports,
    )
    return layout.encode(
        source=records.wire_address(address) if address else 0,
        options=int.from_bytes(options, sys.byteorder),
    )


def new_rows(
    schema: Schema, backends: Iterable[Backend], places: Mapping[str, BackendPlace], source: Source
) -> Iterator[Write]:
    """Rows of backends that were not there, before anything finds them."""
    found = {
        places[str(backend)].id: row(schema, backend, source)
        for backend in backends
        if backend.forward is Forward.TUNNEL
    }
    for first, values in runs(found):
        yield Rows("tunnels", first, b"".join(values))


def changed_rows(
    schema: Schema, old: Service, new: Service, places: Mapping[str, BackendPlace], source: Source
) -> Iterator[Write]:
    """Rows of backends that stay, where their tunnels are not what they were."""
    before = {str(b): b.tunnel for b in old.backends if b.forward is Forward.TUNNEL}
    names = {str(backend) for backend in old.backends}
    for backend in new.backends:
        name = str(backend)
        if backend.forward is not Forward.TUNNEL or name not in names:
            continue
        if before.get(name) != backend.tunnel:
            wanted = row(schema, backend, source)
            yield Block("tunnels", places[name].id * len(wanted), wanted)


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
