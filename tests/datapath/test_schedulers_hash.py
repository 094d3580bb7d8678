"""dh, mh, lblc and lblcr pick what IPVS picks: cases of the vectors file, with its addresses."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from lvsxdp import maglev, scheduling
from tests.datapath import harness
from tests.datapath.harness import Datapath, tcp

VECTORS = yaml.safe_load((Path(__file__).parent.parent / "vectors/ipvs-vectors.yaml").read_text())
SCHEDULERS = {"dh", "mh", "lblc", "lblcr"}
FAMILIES = {"ipv4": "192.168.1.{}", "ipv6": "2001:db8:2::{:x}"}
DESTINATIONS = {"ipv4": "172.16.0.0/16", "ipv6": "2001:db8:ff::/48"}
LETTERS = "ABCDEFGHIJ"
Weights = Mapping[str, int]


def cases() -> list[Any]:
    """The scheduler cases of those schedulers."""
    found = [case for case in VECTORS["schedulers"] if case["scheduler"] in SCHEDULERS]
    return [pytest.param(case, id=case["id"]) for case in found]


def address(name: str, family: str = "ipv4") -> str:
    """The address of server A, B, C, ..."""
    return FAMILIES[family].format(LETTERS.index(name) + 1)


def mac(name: str, family: str) -> str:
    """The MAC by which its frames are known."""
    return f"02:00:00:00:{0x10 if family == 'ipv4' else 0x11:02x}:{LETTERS.index(name):02x}"


@pytest.fixture(scope="module")
def servers(loaded: Datapath) -> Iterator[None]:
    """The servers' addresses are behind lb1."""
    harness.ip("addr", "add", "192.168.1.254/24", "dev", "lb1")
    harness.ip("addr", "add", "2001:db8:2::fe/64", "dev", "lb1", "nodad")
    for family in FAMILIES:
        for name in LETTERS:
            pair = (address(name, family), "lladdr", mac(name, family))
            harness.ip("neigh", "add", *pair, "dev", "lb1", "nud", "permanent")
    yield
    harness.ip("addr", "del", "192.168.1.254/24", "dev", "lb1")
    harness.ip("addr", "del", "2001:db8:2::fe/64", "dev", "lb1")


def text(case: Mapping[str, Any], weights: Weights) -> str:
    """The configuration of a case's service with these servers and weights.

    It is reached by mark where clients reach it at several addresses.
    """
    family = case.get("family", "ipv4")
    destinations = {client[2] for client in case["clients"]}
    key: dict[str, Any] = {"mark": 1, "family": family}
    if len(destinations) == 1:
        key = {"protocol": "tcp", "address": destinations.pop(), "port": 80}
    backends = [{"address": address(n, family), "weight": w} for n, w in weights.items()]
    options = {name: case[name] for name in ("scheduler", "flags") if name in case}
    rule = {"mark": 1, "protocol": "tcp", "address": DESTINATIONS[family], "port": 80}
    return yaml.safe_dump(
        {
            "marks": [rule] if "mark" in key else [],
            "services": [{**key, **options, "backends": backends}],
            "settings": {"require_local": 0, **case.get("settings", {})},
        }
    )


def ends(client: list[Any]) -> tuple[str, str]:
    """A case's client and destination as ends of a packet."""
    source, port, destination = client
    if ":" in destination:
        return f"[{source}]:{port}", f"[{destination}]:80"
    return f"{source}:{port}", f"{destination}:80"


def pick(datapath: Datapath, client: list[Any]) -> str:
    """The letter of the server that a client's new connection gets, `-` for none."""
    datapath.confirm()
    verdict = datapath.deliver(tcp(*ends(client)))
    assert verdict.action in ("tx", "redirect")
    if verdict.frame[:6].hex(":") == harness.ROUTER_MAC:
        return "-"  # port unreachable, to the client
    known = {mac(name, family): name for family in FAMILIES for name in LETTERS}
    return known[verdict.frame[:6].hex(":")]


def picks(datapath: Datapath, clients: list[list[Any]]) -> str:
    """The letters of all of them."""
    return "".join(pick(datapath, client) for client in clients)


@pytest.mark.usefixtures("servers")
@pytest.mark.parametrize("case", cases())
def test_new_connections_go_where_ipvs_sends_them(datapath: Datapath, case: dict[str, Any]) -> None:
    weights = {server["name"]: server["w"] for server in case["servers"]}
    datapath.apply(text(case, weights))
    got, expected = picks(datapath, case["clients"]), case["picks"]
    for step in case.get("steps", []):
        if "picks" in step:
            got += picks(datapath, step["clients"])
            expected += step["picks"]
        else:
            weights[step["edit"]] = step["w"]
            datapath.apply(text(case, weights))
    assert got == expected


# ---- single rules ----


def clients(count: int, destinations: int = 1) -> list[list[Any]]:
    """So many clients, each at the next of so many destinations."""
    return [
        [f"10.{n >> 8}.{n & 255}.7", 1024 + n, f"172.16.0.{100 + n % destinations}"]
        for n in range(count)
    ]


def case_of(scheduler: str, several: list[list[Any]], *flags: str) -> dict[str, Any]:
    found: dict[str, Any] = {"scheduler": scheduler, "clients": several}
    return {**found, "flags": list(flags)} if flags else found


def by_hash(datapath: Datapath, value: dict[str, Any], *flags: str) -> str:
    """The letter that a client gets from port 20000."""
    scheduler = value["scheduler"]
    is_ipv6 = ":" in value["addr"]
    several = [[value["addr"], 20000, "2001:db8:ff::100" if is_ipv6 else "172.16.0.100"]]
    case = case_of(scheduler, several, *flags)
    if is_ipv6:
        case["family"] = "ipv6"
    datapath.clear()
    datapath.apply(text(case, dict.fromkeys("ABCDEFG", 1)))
    return picks(datapath, several)


# the others are no client's
HASHED = [v for v in VECTORS["hash_values"] if v["addr"] not in ("0.0.0.0", "255.255.255.255")]


@pytest.mark.usefixtures("servers")
@pytest.mark.parametrize("value", HASHED, ids=lambda value: str(value["addr"]))
@pytest.mark.parametrize("with_port", [False, True], ids=["address", "port"])
def test_a_client_meets_the_slot_that_ipvs_hashes_it_to(
    datapath: Datapath, value: dict[str, Any], with_port: bool
) -> None:
    suffix = "_port_20000" if with_port else ""
    flags = ("-port",) if with_port else ()
    listed = "GFEDCBA"
    family = "ipv6" if ":" in value["addr"] else "ipv4"
    servers = [maglev.fold(ipaddress.ip_address(address(name, family))) + 80 for name in listed]
    table = maglev.table([maglev.Server(server, 1) for server in servers])
    mh = by_hash(datapath, {**value, "scheduler": "mh"}, *(f"mh{flag}" for flag in flags))
    assert mh == listed[table[value[f"mh_slot{suffix}"]]]
    sh = by_hash(datapath, {**value, "scheduler": "sh"}, *(f"sh{flag}" for flag in flags))
    assert sh == listed[scheduling.sh_table([1] * 7)[value[f"sh{suffix}"]]]


@pytest.mark.usefixtures("servers")
def test_dh_has_nobody_for_destinations_of_a_server_without_weight(datapath: Datapath) -> None:
    """And no edit of a weight moves a bucket."""
    several = clients(40, destinations=40)
    case = case_of("dh", several)
    datapath.apply(text(case, {"A": 1, "B": 1, "C": 1}))
    before = picks(datapath, several)
    assert set(before) == set("ABC")
    again = [[source, port + 100, at] for source, port, at in several]
    datapath.apply(text(case, {"A": 5, "B": 0, "C": 1}))
    assert picks(datapath, again) == before.replace("B", "-")


@pytest.mark.usefixtures("servers")
def test_of_mh_a_quiesced_servers_clients_alone_go_elsewhere(datapath: Datapath) -> None:
    several = clients(200)
    again = [[source, port + 1000, at] for source, port, at in several]
    case = case_of("mh", several, "mh-fallback")
    datapath.apply(text(case, {"A": 2, "B": 1, "C": 1}))
    before = picks(datapath, several)
    datapath.apply(text(case, {"A": 2, "B": 0, "C": 1}))
    after = picks(datapath, again)
    assert set(after) == {"A", "C"}
    assert all(new == old for old, new in zip(before, after, strict=True) if old != "B")


@pytest.mark.usefixtures("servers")
@pytest.mark.parametrize("flags", [(), ("mh-fallback",), ("mh-port", "mh-fallback")])
def test_of_mh_nobody_is_chosen_where_nobody_has_a_weight(
    datapath: Datapath, flags: tuple[str, ...]
) -> None:
    several = clients(10)
    case = case_of("mh", several, *flags)
    datapath.apply(text(case, {"A": 1, "B": 1}))
    datapath.apply(text(case, {"A": 0, "B": 0}))
    assert picks(datapath, several) == "-" * 10
    assert datapath.reasons() == {"no_backend": 10}


@pytest.mark.usefixtures("servers")
def test_mh_fallback_looks_for_the_only_server_that_is_left(datapath: Datapath) -> None:
    """It has one slot in 541: a search takes thousands of steps."""
    several = clients(30)
    case = case_of("mh", several, "mh-fallback")
    datapath.apply(text(case, {"A": 1, **dict.fromkeys("BCDEFGHIJ", 60)}))
    datapath.apply(text(case, {"A": 1, **dict.fromkeys("BCDEFGHIJ", 0)}))
    assert picks(datapath, several) == "A" * 30
