"""mh's table and its hash, against IPVS's own and against a slow model."""

from __future__ import annotations

import hashlib
import ipaddress
import math
import pathlib
from collections import Counter
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lvsxdp import maglev
from lvsxdp.maglev import SLOTS, Server
from lvsxdp.model import AddressKey, Backend, Family, MarkKey, Protocol, Service

VECTORS = yaml.safe_load(
    (pathlib.Path(__file__).parents[1] / "vectors/ipvs-vectors.yaml").read_text()
)
TABLES = [table for table in VECTORS["tables"] if table["scheduler"] == "mh"]
ip = ipaddress.ip_address


def server(address: str, last_weight: int = 1, port: int = 80) -> Server:
    return Server(maglev.fold(ip(address)) + port, last_weight)


# ---- the hash ----


@pytest.mark.parametrize("vector", VECTORS["hash_values"], ids=lambda vector: str(vector["addr"]))
def test_an_address_is_folded_and_hashed_as_by_ipvs(vector: dict[str, Any]) -> None:
    folded = maglev.fold(ip(vector["addr"]))
    assert folded == vector["fold"]
    assert maglev.siphash(folded, maglev.START_KEY) == vector["mh_h1"]
    assert maglev.siphash(folded, maglev.START_KEY) % SLOTS == vector["mh_slot"]
    with_port = (folded + 20000) % 2**32
    assert maglev.siphash(with_port, maglev.START_KEY) % SLOTS == vector["mh_slot_port_20000"]


@pytest.mark.parametrize("vector", VECTORS["mh_servers"], ids=lambda vector: str(vector["addr"]))
def test_a_server_walks_from_where_and_as_far_as_under_ipvs(vector: dict[str, Any]) -> None:
    assert maglev.walk(server(vector["addr"]).value) == (vector["start"], vector["step"])


# ---- the table ----


@pytest.mark.parametrize("vector", TABLES, ids=lambda vector: str(vector["weights"]))
def test_the_table_of_mh_is_that_of_ipvs(vector: dict[str, Any]) -> None:
    names = "ABCDEFGH"[: len(vector["weights"])]
    added = [server(f"192.168.1.{n}", w) for n, w in enumerate(vector["weights"], 1)]
    letters = "".join(names[::-1][place] for place in maglev.table(added[::-1]))
    assert letters[:32] == vector["first_32"]
    assert Counter(letters) == vector["owners"]
    assert hashlib.sha256(letters.encode()).hexdigest() == vector["sha256_of_letters"]


def slow_table(servers: list[Server]) -> list[int]:
    """The same by the words of the rule: each server's whole walk, and slots one by one."""
    divisor = math.gcd(*(server.last_weight for server in servers)) or 1
    highest = max((server.last_weight for server in servers), default=0) // divisor
    shift = max(0, len(bin(highest)) - 2 - 6) if highest else 0
    owners: dict[int, int] = {}
    walks, turns = [], []
    for each in servers:
        start, step = maglev.walk(each.value)
        walks.append([(start + n * step) % SLOTS for n in range(SLOTS)])
        turns.append(max((each.last_weight // divisor) >> shift, 1) if each.last_weight else 0)
    while any(turns) and len(owners) < SLOTS:
        for place, walk in enumerate(walks):
            for _ in range(turns[place]):
                while walk and walk[0] in owners:
                    walk.pop(0)
                if walk:
                    owners[walk[0]] = place
    return [owners[slot] for slot in sorted(owners)]


VALUES = st.integers(0, 2**32 - 1)
LAST_WEIGHTS = st.one_of(st.integers(0, 3), st.integers(0, 2**31 - 1))
SERVERS = st.lists(st.builds(Server, VALUES, LAST_WEIGHTS), max_size=5)


@settings(max_examples=25, deadline=None)
@given(servers=SERVERS, twins=st.booleans())
def test_whatever_the_servers_the_table_is_that_of_the_rule(
    servers: list[Server], twins: bool
) -> None:
    listed = [*servers, *(Server(each.value, 2) for each in servers)] if twins else servers
    assert maglev.table(listed) == slow_table(listed)


def test_a_server_that_never_had_a_weight_owns_nothing() -> None:
    shared = maglev.table([server("10.0.0.3"), server("10.0.0.2", 0), server("10.0.0.1")])
    alone = maglev.table([server("10.0.0.3"), server("10.0.0.1")])
    assert shared == [2 * place for place in alone]


def test_where_nobody_ever_had_a_weight_there_is_no_table() -> None:
    assert maglev.table([]) == maglev.table([server("10.0.0.1", 0)]) == []


def test_as_many_servers_as_there_are_slots_own_one_each() -> None:
    assert sorted(maglev.table([Server(n, 1) for n in range(SLOTS)])) == list(range(SLOTS))


# ---- what of a service counts ----

A, B, C = (Backend(ip(f"10.0.0.{n}"), weight=n) for n in (1, 2, 3))
WEB = AddressKey(Protocol.TCP, ip("192.0.2.10"), 80)


def test_servers_stand_in_scheduling_order_with_the_port_of_the_service() -> None:
    drained = Backend(ip("10.0.0.9"), draining=True)
    service = Service(WEB, backends=(A, drained, B))
    assert maglev.servers_of(service) == [server("10.0.0.2", 2), server("10.0.0.1", 1)]


def test_servers_of_a_mark_have_the_port_that_is_theirs_or_none() -> None:
    service = Service(MarkKey(1, Family.IPV4), backends=(A, Backend(ip("10.0.0.2"), 8080)))
    assert maglev.servers_of(service) == [
        server("10.0.0.2", port=8080),
        server("10.0.0.1", port=0),
    ]
