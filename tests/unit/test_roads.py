"""What is told of roads to many new backends, on a host without routes."""

from __future__ import annotations

import dataclasses
import ipaddress
from types import SimpleNamespace
from typing import cast

from lvsxdp import roads
from lvsxdp.controller import Balancer
from lvsxdp.model import Address, AddressKey, Backend, Config, Protocol, Service
from lvsxdp.network import Link, Network

FIRST = ipaddress.ip_address("198.18.0.0")
KEY = AddressKey(Protocol.TCP, FIRST, 80)


class Host:
    """A network that has some addresses, and no routes; what it was asked."""

    def __init__(self, *local: Address) -> None:
        self.local, self.asked = list(local), list[Address]()

    def links(self) -> list[Link]:
        return []

    def addresses(self) -> list[Address]:
        return self.local

    def route(self, address: Address) -> None:
        self.asked.append(address)


def of(*numbers: int) -> Config:
    """A service with these backends."""
    return Config(services=(Service(KEY, backends=tuple(Backend(FIRST + n) for n in numbers)),))


def told(wanted: Config, host: Host, known: Config | None = None) -> list[str]:
    running = SimpleNamespace(state=SimpleNamespace(config=wanted, attachments=[]))
    return roads.warnings(cast("Balancer", running), cast("Network", host), known)


def test_backends_with_the_same_fault_are_told_in_one_line() -> None:
    assert told(of(1, 2, 3), Host()) == [
        "backend 198.18.0.1 and 2 more: no route leads there, so its packets are dropped: "
        "ip route add PREFIX via GATEWAY"
    ]


def test_a_backend_that_is_this_host_has_no_fault() -> None:
    assert told(of(1), Host(FIRST + 1)) == []


def test_only_backends_that_are_new_are_asked_about() -> None:
    host, known = Host(), of(1, 2)
    told(of(1, 2, 3), host, known)
    edited = dataclasses.replace(known.services[0], name="shop")
    told(Config(services=(edited,)), host, known)
    assert host.asked == [FIRST + 3]


def test_of_very_many_backends_only_the_first_are_asked_about() -> None:
    host = Host()
    assert told(of(*range(1000)), host)[1:] == [
        "936 more new backends were not asked about (backend list)"
    ]
    assert len(host.asked) == roads.MOST_ASKED
