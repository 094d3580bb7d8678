"""Tables and JSON of the read commands, and the names in them."""

from __future__ import annotations

import ipaddress
import json

from lvsxdp import show
from lvsxdp.book import BackendPlace, Book, ServicePlace
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
from lvsxdp.show import Names
from lvsxdp.state import State
from tests.unit.headers import schema

SCHEMA = schema()
ip = ipaddress.ip_address


def state() -> State:
    """Service `shop` is id 3, its backend 10.0.0.1 is id 4 in generation 6."""
    shop = Service(MarkKey(1, Family.IPV4), "shop", backends=(Backend(ip("10.0.0.1")),))
    place = ServicePlace(3, 1, 0, 0, 1, None, {"10.0.0.1": BackendPlace(4, 6)})
    rules = (
        MarkRule(
            1,
            protocols=(Protocol.TCP,),
            addresses=(ipaddress.ip_network("192.0.2.0/24"),),
            ports=(Ports(80, 80), Ports(20, 21)),
        ),
        MarkRule(2),
    )
    return State(Config(marks=rules, services=(shop,)), Book({"mark:1": place}), [], {})


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
        persistence=Persistence(300, ip("255.255.255.0"), Expiry.STRICT),
    )
    assert show.service_row(service, {"packets": 7}) == {
        "service": "tcp:192.0.2.10:80",
        "name": None,
        "scheduler": "sh sh-port",
        "persistence": 300,
        "netmask": "255.255.255.0",
        "expiry": "strict",
        "engine": None,
        "one_packet": False,
        "sloppy_tcp": False,
        "backends": 0,
        "packets": 7,
    }


def test_a_switch_stands_in_a_table_in_the_words_of_the_file() -> None:
    rows = [{"on": True, "off": False}]
    assert show.as_table(rows, ("on", "off")).split() == ["on", "off", "true", "false"]


def test_a_field_of_no_entry_is_zero() -> None:
    layout = SCHEMA.values["loads"]
    assert show.number_of(None, layout, "active") == 0
    assert show.number_of(layout.encode(active=4), layout, "active") == 4
