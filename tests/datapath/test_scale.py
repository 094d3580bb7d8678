"""As many services and backends as lvsxdp is made for, loaded and met by packets."""

from __future__ import annotations

import dataclasses
import ipaddress
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lvsxdp.model import Backend
from tests.datapath.conftest import running
from tests.datapath.harness import Datapath, tcp

SERVICES, BACKENDS, LARGEST = 10_000, 100_000, 1000
VIP = "192.0.2.10"
OTHER = ipaddress.ip_address("10.0.0.30")
CAPACITY = f"""
capacity: {{connections: 4096, persistence: 4096, services: {SERVICES}, backends: {BACKENDS + 1}}}
"""


def chosen(port: int) -> str:
    """The address of the backend that a service gives all its clients to."""
    return f"10.0.0.{11 + port % 20}"


def backends(port: int) -> Iterator[str]:
    """One backend that takes clients, last in the list's walk, and many of weight 0."""
    count, one_more = divmod(BACKENDS - LARGEST, SERVICES - 1)
    count = LARGEST if port == 1 else count + (port <= one_more + 1)
    yield f"{{address: {chosen(port)}}}"
    for number in range(count - 1):
        yield f"{{address: 10.1.{number >> 8}.{number & 255}, weight: 0}}"


def text() -> str:
    lines = [
        f"- {{protocol: tcp, address: {VIP}, port: {port}, scheduler: {scheduler},"
        f" backends: [{', '.join(backends(port))}]}}"
        for port in range(1, SERVICES + 1)
        for scheduler in [("wlc", "rr", "wrr")[port % 3]]
    ]
    return "\n".join([CAPACITY, "services:", *lines])


@pytest.fixture
def large(tmp_path: Path) -> Iterator[Datapath]:
    with running(f"lvxscale{os.getpid()}", CAPACITY, tmp_path) as made:
        yield made


def served(large: Datapath, client_port: int) -> dict[int, str | None]:
    """Where a new client of the first, the last and some of the other services goes."""
    ports = (1, *range(2, SERVICES, 97), SERVICES)
    client = f"198.51.100.7:{client_port}"
    return {port: large.backend_for(tcp(client, f"{VIP}:{port}")) for port in ports}


def test_ten_thousand_services_with_a_thousand_backends_in_one_are_served(large: Datapath) -> None:
    loaded = large.apply(text())
    sizes = [len(service.backends) for service in loaded.services]
    assert (len(sizes), max(sizes), sum(sizes)) == (SERVICES, LARGEST, BACKENDS)
    expected = served(large, 20000)
    assert expected == {port: chosen(port) for port in expected}
    _, *others = loaded.services[0].backends
    first = dataclasses.replace(loaded.services[0], backends=(*others, Backend(OTHER)))
    changed = dataclasses.replace(loaded, services=(first, *loaded.services[1:]))
    large.balancer.apply(changed, large.net)
    large.confirm()
    assert served(large, 20001) == {**expected, 1: str(OTHER)}
