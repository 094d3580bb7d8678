"""persistence pin: a client's backend by hand, in the place of whatever its entry said."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable

import pytest

from lvsxdp import names, pinning
from lvsxdp.errors import ConflictError
from tests.datapath.harness import Datapath, tcp, udp

A, B, C = "10.0.0.11", "10.0.0.12", "10.0.0.13"
A6, B6 = "2001:db8:0:2::11", "2001:db8:0:2::12"
VIP, VIP6 = "192.0.2.10", "2001:db8::10"
BACKENDS = f"[{{address: {A}}}, {{address: {B}}}, {{address: {C}, weight: 0}}]"
CONFIG = f"""
marks:
- {{mark: 1, protocols: [tcp, udp], address: {VIP}, ports: [80, 443]}}
services:
- {{name: marked, mark: 1, scheduler: rr, persistence: {{timeout: 600, netmask: 255.255.255.0}},
   backends: {BACKENDS}}}
- {{name: plain, protocol: tcp, address: {VIP}, port: 8080, scheduler: rr, persistence: 600,
   backends: {BACKENDS}}}
- {{name: any, protocol: udp, address: {VIP}, port: any, scheduler: rr, persistence: 600,
   backends: {BACKENDS}}}
- {{name: ftp, protocol: tcp, address: {VIP}, port: 21, scheduler: rr, persistence: 600,
   backends: {BACKENDS}}}
- {{name: six, protocol: tcp, address: "{VIP6}", port: 80, scheduler: rr, persistence: 600,
   backends: [{{address: "{A6}"}}, {{address: "{B6}"}}]}}
- {{name: none, protocol: tcp, address: {VIP}, port: 81, scheduler: rr, backends: {BACKENDS}}}
"""


@pytest.fixture
def shop(datapath: Datapath) -> Datapath:
    datapath.apply(CONFIG)
    return datapath


def pin(datapath: Datapath, name: str, client: str, backend: str, timeout: int | None) -> None:
    service = names.find_service(datapath.balancer.state.config, name)
    chosen = names.find_backend(service, backend)
    pinning.pin(datapath.balancer, service, ipaddress.ip_address(client), chosen, timeout)


def rows(datapath: Datapath) -> list[tuple[str, str, str | None, int, int]]:
    """Each entry's service, client, backend, whole seconds left and connections."""
    found = datapath.persistence()
    wanted = ("service", "client", "backend")
    return [(*(r[n] for n in wanted), round(r["expires_in"]), r["connections"]) for r in found]


@pytest.mark.parametrize(
    ("name", "client", "chosen", "packet"),
    [
        ("marked", "198.51.100.7", B, lambda: tcp("198.51.100.9:1000", f"{VIP}:443")),
        ("marked", "198.51.100.7", A, lambda: udp("198.51.100.1:1000", f"{VIP}:80")),
        ("plain", "198.51.100.7", A, lambda: tcp("198.51.100.7:1000", f"{VIP}:8080")),
        ("plain", "198.51.100.7", C, lambda: tcp("198.51.100.7:1000", f"{VIP}:8080")),
        ("any", "198.51.100.7", B, lambda: udp("198.51.100.7:1000", f"{VIP}:999")),
        ("ftp", "198.51.100.7", B, lambda: tcp("198.51.100.7:1000", f"{VIP}:21")),
        ("six", "2001:db8:1::7", B6, lambda: tcp("[2001:db8:1::7]:1000", f"[{VIP6}]:80")),
        ("six", "2001:db8:1::7", A6, lambda: tcp("[2001:db8:1::7]:1000", f"[{VIP6}]:80")),
    ],
)
def test_a_pinned_clients_connections_go_to_its_backend(
    shop: Datapath, name: str, client: str, chosen: str, packet: Callable[[], object]
) -> None:
    pin(shop, name, client, chosen, 100)
    for _ in range(2):
        assert shop.backend_for(packet()) == chosen
    assert [(backend, left, count) for _, _, backend, left, count in rows(shop)] == [
        (chosen, 100, 1)
    ]


def test_a_pin_takes_the_place_of_an_entry_and_leaves_its_connections(shop: Datapath) -> None:
    first, second = (tcp(f"198.51.100.7:{port}", f"{VIP}:8080") for port in (1, 2))
    was = shop.backend_for(first)
    chosen = B if was == A else A
    pin(shop, "plain", "198.51.100.7", chosen, None)
    assert shop.backend_for(tcp("198.51.100.7:1", f"{VIP}:8080", "A")) == was
    assert shop.backend_for(second) == chosen
    assert rows(shop) == [("plain", "198.51.100.7", chosen, 600, 1)]


def test_a_pin_lasts_its_own_time_from_each_new_connection_on(shop: Datapath) -> None:
    pin(shop, "plain", "198.51.100.7", B, 10)
    shop.later(6)
    assert shop.backend_for(tcp("198.51.100.7:1", f"{VIP}:8080")) == B
    assert rows(shop) == [("plain", "198.51.100.7", B, 10, 1)]
    pin(shop, "plain", "198.51.100.8", B, 10)
    shop.later(11)
    assert "198.51.100.8" not in {client for _, client, *_ in rows(shop)}


def test_pins_again_and_again_leave_one_entry_and_a_share_that_is_exact(shop: Datapath) -> None:
    for chosen in (A, B, C, A, B):
        pin(shop, "plain", "198.51.100.7", chosen, 100)
    assert rows(shop) == [("plain", "198.51.100.7", B, 100, 0)]
    place = shop.balancer.state.book.services[f"tcp:{VIP}:8080"]
    offset = shop.balancer.schema.values["shares"].fields["persistence4"].offset
    assert shop.balancer.map("shares").read_word(place.id, offset) == 1


def test_a_pin_to_a_backend_that_drains_or_without_persistence_is_refused(shop: Datapath) -> None:
    with pytest.raises(ConflictError, match="is not persistent"):
        pin(shop, "none", "198.51.100.7", A, None)
    shop.apply(CONFIG.replace(f"address: {B}}}", f"address: {B}, draining: true}}"))
    with pytest.raises(ConflictError, match="drains"):
        pin(shop, "plain", "198.51.100.7", B, None)
    assert rows(shop) == []


def test_where_there_is_no_room_a_pin_says_so(shop: Datapath) -> None:
    shares = shop.balancer.map("pools")
    fields, number = shop.balancer.schema.values["pools"].fields, 2
    before = [shares.read_word(number, fields[name].offset) for name in ("own", "limit")]
    try:
        for name in ("own", "limit"):
            shares.store_word(number, 0, fields[name].offset)
        with pytest.raises(ConflictError, match="no room for an entry of service plain"):
            pin(shop, "plain", "198.51.100.7", A, None)
    finally:
        for name, value in zip(("own", "limit"), before, strict=True):
            shares.store_word(number, value, fields[name].offset)
    assert rows(shop) == []
