"""Pins a client to a backend: a persistence entry made by hand, by the data plane's own steps."""

from __future__ import annotations

import os
import struct

from lvsxdp import maps, records
from lvsxdp.controller import Balancer
from lvsxdp.errors import ConflictError, DatapathError
from lvsxdp.model import ANY_PORT, Address, AddressKey, Backend, Family, Service

# struct pin_item, before its answer.
ITEM = struct.Struct("<QQ40sII")
ATTEMPTS = 100


def pin(
    balancer: Balancer, service: Service, client: Address, backend: Backend, timeout: int | None
) -> None:
    """Has the client's new connections go to the backend for `timeout` seconds, and as persistence
    goes on; without, for the service's.

    Connections that there are keep their backend.  ConflictError where the service is not
    persistent, the backend drains, or there is no room for an entry.
    """
    kept = service.persistence
    if kept is None:
        raise ConflictError(f"service {service} is not persistent (service edit --persistence)")
    if backend.draining:
        raise ConflictError(f"{backend} of service {service} drains (backend drain --undo)")
    answer = _ask(balancer, _item(balancer, service, client, backend, timeout or kept.timeout))
    answers = balancer.schema.enums["pin"]
    if answer == answers["full"]:
        raise ConflictError(
            f"there is no room for an entry of service {service} (capacity.persistence)"
        )
    if answer != answers["done"]:
        raise DatapathError(f"the entry of {client} was busy {ATTEMPTS} times; try again")


def _item(
    balancer: Balancer, service: Service, client: Address, backend: Backend, timeout: int
) -> bytes:
    place = balancer.state.book.services[str(service.key)]
    chosen = place.backends[str(backend)]
    return ITEM.pack(
        chosen.generation << 32 | chosen.id,
        timeout * balancer.schema.hz,
        _flow(service, client),
        place.id,
        records.family_number(service.family),
    )


def _flow(service: Service, client: Address) -> bytes:
    """A flow of the client to the service, as struct flow4 or flow6; of a mark, to nothing."""
    key, size = service.key, 4 if service.family is Family.IPV4 else 16
    if not isinstance(key, AddressKey):
        return client.packed + bytes(size + 8)
    port = 0 if key.port == ANY_PORT else key.port
    ports = bytes(2) + records.wire_port(port)
    return client.packed + key.address.packed + ports + bytes([key.protocol.number, 0, 0, 0])


def _ask(balancer: Balancer, item: bytes) -> int:
    """What the program answers; again where another CPU was at the entry."""
    busy = balancer.schema.enums["pin"]["busy"]
    descriptor = balancer.program("pin_client")
    answer = busy
    try:
        for _ in range(ATTEMPTS):
            run = maps.run_program(descriptor, item.ljust(128, b"\0"))
            answer = int(struct.unpack_from("<I", run.data, ITEM.size)[0])
            if answer != busy:
                break
    finally:
        os.close(descriptor)
    return answer
