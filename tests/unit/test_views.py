"""What is told of a configuration on a host that is not prepared for it."""

from __future__ import annotations

import ipaddress
from typing import cast

from lvsxdp import views
from lvsxdp.model import Address, AddressKey, Config, Protocol, Service
from lvsxdp.network import Network

FIRST = ipaddress.ip_address("198.18.0.0")


class Host:
    """A network that has some addresses and no other route; what it was asked."""

    def __init__(self, local: int) -> None:
        self.local, self.asked = [FIRST + n for n in range(local)], list[Address]()

    def addresses(self) -> list[Address]:
        return list(self.local)

    def has_answer(self, address: Address) -> bool:
        self.asked.append(address)
        return address in self.local


def told(services: int, host: Host) -> list[str]:
    config = Config(
        services=tuple(Service(AddressKey(Protocol.TCP, FIRST + n, 80)) for n in range(services))
    )
    return views.warnings(config, cast("Network", host))


def test_an_address_of_this_host_is_not_asked_about() -> None:
    host = Host(local=3)
    assert (told(3, host), host.asked) == ([], [])


def test_an_address_of_which_nothing_is_known_is_named_with_the_remedy() -> None:
    (line,) = told(3, Host(local=2))
    assert line.startswith("198.18.0.2 is no address of this host, and no route says so")
    assert line.endswith("ip route add unreachable default metric 4278198272")


def test_of_very_many_addresses_only_the_first_are_asked_about() -> None:
    host = Host(local=10)
    *lines, last = told(1000, host)
    assert len(lines) == len(host.asked) == views.MOST_ASKED
    assert last == "926 more such addresses were not asked about"
