"""The bits of the filter for a configuration (bpf/hash.h, bpf/classify.h), and their writes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

from lvsxdp import marks
from lvsxdp.model import (
    ANSWERING,
    ANY_PORT,
    FTP_PORT,
    Address,
    AddressKey,
    Backend,
    Config,
    Network,
    Ports,
    Protocol,
    Service,
)
from lvsxdp.writes import Fill, Raise, Write

WORD = 64
# A rule of more addresses lets everything pass the filter, one of more ports all of its address.
MOST_ADDRESSES = 256
MOST_PORTS = 16
# Beside a backend's protocol, and of every address that is named: bpf/hash.h.
OF_BACKEND = 1 << 8
OF_FRAGMENT = 1 << 9
PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}


@dataclasses.dataclass(frozen=True, slots=True)
class Hashing:
    """The random numbers that the programs were compiled with, and the filter's size in bits."""

    keys: tuple[int, ...]
    filter_bits: int

    def bit(self, address: Address, port: int = 0, protocol: int = 0) -> int:
        """The filter's bit of an address, port and protocol; of the address alone without them."""
        packed = address.packed
        words = [int.from_bytes(packed[i : i + 4], "little") for i in range(0, len(packed), 4)]
        first = (0, 1) if address.version == 4 else (5, 6, 7, 8, 9)
        numbers = [self.keys[n] for n in first]
        total = numbers[0] + sum(n * word for n, word in zip(numbers[1:], words, strict=True))
        target = int.from_bytes(port.to_bytes(2, "big"), "little") | protocol << 16
        return (total + self.keys[2] * target) % 2**64 >> (64 - self.filter_bits)

    def scattered(self, key: tuple[int, int, int]) -> int:
        """The hash of a key of the mark rules, 32 bits: bpf/mark.h."""
        halves = (half for word in key for half in (word & 0xFFFFFFFF, word >> 32))
        numbers = (self.keys[n] for n in (6, 7, 8, 9, 2, 4))
        products = sum(n * half for n, half in zip(numbers, halves, strict=True))
        total = (self.keys[5] + products) % 2**64
        return (total >> 32) * total % 2**64 >> 32


def filter_writes(hashing: Hashing, old: Config, new: Config) -> list[Write]:
    """Bits of the filter that the old configuration had not set."""
    if list(_concerns(old)) == list(_concerns(new)) and old.marks == new.marks:
        return []
    before, after = (words(hashing, config) for config in (old, new))
    if after is None:
        return [Fill("filter", 2**hashing.filter_bits // WORD)]
    known = before or {}
    return [Raise("filter", i, bits) for i, bits in after.items() if bits & ~known.get(i, 0)]


def _concerns(config: Config) -> Iterator[tuple[object, ...]]:
    """What of each service the filter lets pass."""
    for service in config.services:
        yield service.key, tuple(b.key for b in _by_nat(service))


def _by_nat(service: Service) -> Iterator[Backend]:
    """The backends whose answers come by this host."""
    if not service.forwards.isdisjoint(ANSWERING):
        yield from (b for b in service.backends if b.forward in ANSWERING)


def words(hashing: Hashing, config: Config) -> dict[int, int] | None:
    """The filter's words, by index, that let pass whatever the configuration may concern.

    None where every packet has to pass.
    """
    found: dict[int, int] = {}
    for bit in _bits(hashing, config):
        if bit is None:
            return None
        found[bit // WORD] = found.get(bit // WORD, 0) | 1 << bit % WORD
    return found


def _bits(hashing: Hashing, config: Config) -> Iterator[int | None]:
    """Bits, or None where every packet has to pass."""
    for service in config.services:
        if isinstance(service.key, AddressKey):
            key = service.key
            yield hashing.bit(key.address, key.port, PROTOCOLS[key.protocol])
            yield hashing.bit(key.address, 0, OF_FRAGMENT)
            if key.port in (ANY_PORT, FTP_PORT):
                yield hashing.bit(key.address)
        yield from (_answer_bit(hashing, service, backend) for backend in _by_nat(service))
    table = marks.expand(config.marks)
    for exact in table.exact:
        yield hashing.bit(exact.address, exact.port, PROTOCOLS[exact.protocol])
        yield hashing.bit(exact.address, 0, OF_FRAGMENT)
    for target in {target for _, rule in table.ordered for target in marks.targets(rule)}:
        yield from _rule_bits(hashing, *target)


def _answer_bit(hashing: Hashing, service: Service, backend: Backend) -> int:
    """The bit of what a backend by nat or fullnat sends back."""
    key = service.key
    if isinstance(key, AddressKey) and key.port not in (ANY_PORT, FTP_PORT):
        port, protocol = backend.port or key.port, PROTOCOLS[key.protocol]
        return hashing.bit(backend.address, port, protocol | OF_BACKEND)
    return hashing.bit(backend.address, 0, OF_BACKEND)


def _rule_bits(
    hashing: Hashing, destination: Network | None, named: Ports, protocols: tuple[Protocol, ...]
) -> Iterator[int | None]:
    if destination is None or destination.num_addresses > MOST_ADDRESSES:
        yield None
        return
    ports = range(named.first, named.last + 1)
    for address in _addresses(destination):
        yield hashing.bit(address, 0, OF_FRAGMENT)
        if len(ports) > MOST_PORTS:
            yield hashing.bit(address)
            continue
        for port in ports:
            for protocol in protocols:
                yield hashing.bit(address, port, PROTOCOLS[protocol])


def _addresses(network: Network) -> Iterable[Address]:
    """Every address of a network, also its first and last."""
    return (network[index] for index in range(network.num_addresses))
