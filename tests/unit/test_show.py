"""Rows of the read commands, from the maps' bytes."""

from __future__ import annotations

import ipaddress
import json

import pytest

from lvsxdp import show
from lvsxdp.model import (
    AddressKey,
    Backend,
    Config,
    Expiry,
    Family,
    MarkKey,
    MarkRule,
    Persistence,
    Ports,
    Protocol,
    Scheduler,
    SchedulerFlag,
    Service,
)
from lvsxdp.show import Names, Row
from lvsxdp.state import State
from lvsxdp.tables import BackendPlace, Book, ServicePlace
from tests.unit.headers import schema

HZ, NOW = 100, 1_000_000
SCHEMA = schema(HZ)
ip = ipaddress.ip_address


def state(persistence: Persistence | None = None) -> State:
    """Service `shop` is id 3, its backend 10.0.0.1 is id 4 in generation 6."""
    shop = Service(MarkKey(1, Family.IPV4), "shop", persistence=persistence)
    backends = (Backend(ip("10.0.0.1")),)
    place = ServicePlace(3, 1, 0, 0, 1, None, {"10.0.0.1": BackendPlace(4, 6)})
    services = (Service(shop.key, shop.name, persistence=persistence, backends=backends),)
    rules = (
        MarkRule(
            1,
            protocols=(Protocol.TCP,),
            addresses=(ipaddress.ip_network("192.0.2.0/24"),),
            ports=(Ports(80, 80), Ports(20, 21)),
        ),
        MarkRule(2),
    )
    return State(Config(marks=rules, services=services), Book({"mark:1": place}), [], {})


def kept(mask: str, expiry: Expiry = Expiry.IPVS) -> Persistence:
    return Persistence(300, ip(mask), expiry)


# ---- tables and JSON ----


def test_a_table_has_numbers_to_the_right_and_a_dash_for_nothing() -> None:
    rows = [
        {"name": "shop", "packets": 7, "road": None},
        {"name": "a", "packets": 1200, "road": "tx"},
    ]
    assert show.as_table(rows, ("name", "packets", "road")).splitlines() == [
        "name  packets  road",
        "shop        7  -",
        "a        1200  tx",
    ]


def test_a_table_without_rows_is_its_heading() -> None:
    assert show.as_table([], ("name", "packets")) == "name  packets"


def test_json_is_read_again() -> None:
    rows = [{"service": "shop", "expires_in": 1.5, "road": None}]
    assert json.loads(show.as_json(rows)) == rows


# ---- names ----


def test_a_backend_is_named_by_id_and_generation() -> None:
    names = Names(state())
    assert names.backend(6 << 32 | 4) == "10.0.0.1"
    assert [names.backend(reference) for reference in (5 << 32 | 4, 6 << 32 | 5, 0)] == [None] * 3


# ---- connections ----


def connection(**fields: int) -> list[Row]:
    key = SCHEMA.keys["connections4"].encode(
        client=ip("198.51.100.7").packed,
        client_port=(4000).to_bytes(2, "big"),
        virtual=ip("192.0.2.10").packed,
        virtual_port=(80).to_bytes(2, "big"),
        protocol=6,
    )
    given = {"word": 1, "backend": 6 << 32 | 4, "expires": NOW + 250, "service": 3, "mark": 1}
    value = SCHEMA.values["connections4"].encode(**(given | fields))
    rows = show.connection_rows(SCHEMA, Names(state()), "connections4", iter([(key, value)]), NOW)
    return list(rows)


ROW = {
    "service": "shop",
    "protocol": "tcp",
    "client": "198.51.100.7:4000",
    "virtual": "192.0.2.10:80",
    "backend": "10.0.0.1",
    "state": "ESTABLISHED",
    "expires_in": 2.5,
    "mark": 1,
}


def test_a_connection_is_a_row() -> None:
    assert connection() == [ROW]


def test_a_connections_identity_is_no_part_of_its_state() -> None:
    assert connection(word=77 << 8 | 5) == [ROW | {"state": "TIME_WAIT"}]


def test_what_was_removed_from_the_configuration_has_no_name() -> None:
    assert connection(service=9, backend=1) == [ROW | {"service": None, "backend": None}]


@pytest.mark.parametrize("fields", [{"expires": NOW}, {"expires": NOW - 1}, {"word": 15}])
def test_a_connection_that_has_ended_is_no_row(fields: dict[str, int]) -> None:
    assert connection(**fields) == []


def test_ipv6_endpoints_stand_in_brackets() -> None:
    six = ip("2001:db8::1").packed
    key = SCHEMA.keys["connections6"].encode(client=six, virtual=six, protocol=17)
    value = SCHEMA.values["connections6"].encode(expires=NOW + 1)
    entries = iter([(key, value)])
    (row,) = show.connection_rows(SCHEMA, Names(state()), "connections6", entries, NOW)
    assert (row["client"], row["protocol"]) == ("[2001:db8::1]:0", "udp")


# ---- persistence ----


def entry(persistence: Persistence, **fields: int) -> list[Row]:
    key = SCHEMA.keys["persistence4"].encode(client=ip("198.51.100.0").packed)
    given = {"expires": NOW + 1000, "backend": 6 << 32 | 4, "service": 3, "connections": 2}
    value = SCHEMA.values["persistence4"].encode(**(given | fields))
    names = Names(state(persistence))
    return list(show.persistence_rows(SCHEMA, names, "persistence4", iter([(key, value)]), NOW))


def test_a_persistence_entry_is_a_row() -> None:
    assert entry(kept("255.255.255.0")) == [
        {
            "service": "shop",
            "client": "198.51.100.0/24",
            "backend": "10.0.0.1",
            "expires_in": 10.0,
            "connections": 2,
        }
    ]


@pytest.mark.parametrize(
    ("mask", "shown"),
    [
        ("255.255.255.255", "198.51.100.0"),
        ("255.255.255.0", "198.51.100.0/24"),
        ("0.0.0.0", "198.51.100.0/0"),
        ("255.0.255.0", "198.51.100.0/255.0.255.0"),
        ("0.0.0.255", "198.51.100.0/0.0.0.255"),
    ],
)
def test_a_client_that_stands_for_a_network_has_its_mask(mask: str, shown: str) -> None:
    assert [row["client"] for row in entry(kept(mask))] == [shown]


EXPIRED = {"expires": NOW - 10 * HZ}
HELD = {
    "nothing holds it": ({}, None),
    "an active connection holds it": ({"active": 1, "active_until": NOW + 5 * HZ}, 50.0),
    "an inactive connection holds it": ({"inactive_until": NOW + 5 * HZ}, 50.0),
    "what was active is not": ({"active": 0, "active_until": NOW + 5 * HZ}, None),
    "its connections end before the next look": ({"inactive_until": NOW - 5 * HZ}, 50.0),
    "they ended before its time": ({"inactive_until": NOW - 20 * HZ}, None),
}


@pytest.mark.parametrize("case", HELD)
def test_an_entry_whose_time_is_up_is_armed_again_for_60_seconds_where(case: str) -> None:
    fields, left = HELD[case]
    rows = entry(kept("255.255.255.0"), **(EXPIRED | fields))
    assert [row["expires_in"] for row in rows] == ([] if left is None else [left])


def test_an_entry_is_armed_as_often_as_connections_live() -> None:
    past = {"expires": NOW - 70 * HZ, "active": 1, "active_until": NOW + HZ}
    assert [row["expires_in"] for row in entry(kept("255.255.255.0"), **past)] == [50.0]


def test_a_strict_entry_ends_at_its_time_whatever_lives() -> None:
    strict = kept("255.255.255.0", Expiry.STRICT)
    assert entry(strict, **EXPIRED, active=1, active_until=NOW + HZ) == []


def test_an_entry_that_is_being_written_is_no_row() -> None:
    assert entry(kept("255.255.255.0"), expires=0) == []


# ---- configuration ----


def test_mark_rules_are_numbered_from_one() -> None:
    first, second = show.mark_rows(state())
    assert first == {
        "number": 1,
        "mark": 1,
        "protocols": "tcp",
        "addresses": "192.0.2.0/24",
        "ports": "80 20-21",
        "sources": "",
        "interfaces": "",
        "vlans": "",
        "source_macs": "",
    }
    assert (second["number"], second["addresses"], second["ports"]) == (2, "any", "any")


def test_a_service_is_a_row_with_its_counters() -> None:
    service = Service(
        AddressKey(Protocol.TCP, ip("192.0.2.10"), 80),
        scheduler=Scheduler.SH,
        flags=(SchedulerFlag.SH_PORT,),
        persistence=kept("255.255.255.0", Expiry.STRICT),
    )
    assert show.service_row(service, {"packets": 7}) == {
        "service": "tcp:192.0.2.10:80",
        "name": None,
        "scheduler": "sh sh-port",
        "persistence": 300,
        "netmask": "255.255.255.0",
        "expiry": "strict",
        "backends": 0,
        "packets": 7,
    }


def test_a_field_of_no_entry_is_zero() -> None:
    layout = SCHEMA.values["loads"]
    assert show.number_of(None, layout, "active") == 0
    assert show.number_of(layout.encode(active=4), layout, "active") == 4
