"""What a sweep finds and mends in the counts of persistence entries."""

from __future__ import annotations

import pytest

from lvsxdp import ageing, entries
from tests.datapath.harness import Datapath, tcp

VIPS = {"persistence4": "192.0.2.10:80", "persistence6": "[2001:db8::10]:80"}
CLIENTS = {"persistence4": "198.51.100.7", "persistence6": "2001:db8:0:7::7"}
SERVERS = {"persistence4": "10.0.0.11", "persistence6": "2001:db8:0:2::11"}
# counts of connections in a word, and of those in a lasting state
ONE, ONE_LASTING = 1, 1 << 24
TABLES = pytest.mark.parametrize("table", VIPS)


def apply(datapath: Datapath, persistence: str) -> None:
    """A persistent service of each family, each with one backend."""
    datapath.apply(
        "services:\n"
        + "".join(
            f'- {{protocol: tcp, address: "{VIPS[table].rpartition(":")[0].strip("[]")}", port: 80,'
            f' persistence: {persistence}, backends: [{{address: "{SERVERS[table]}"}}]}}\n'
            for table in VIPS
        )
    )


def send(datapath: Datapath, table: str, port: int, flags: str) -> None:
    """Packets with these flags, one after another, of one connection of the family's client."""
    client = CLIENTS[table] if table.endswith("4") else f"[{CLIENTS[table]}]"
    for flag in flags:
        assert datapath.backend_for(tcp(f"{client}:{port}", VIPS[table], flag)) == SERVERS[table]


def place_of(datapath: Datapath, table: str) -> int:
    """The slot of the family's only entry."""
    balancer = datapath.balancer
    memory = balancer.map(table).memory()
    ((place, _),) = entries.places(balancer.schema, table, memory, entries.ALL)
    return place


def spoil(datapath: Datapath, table: str, change: int) -> None:
    """Adds to the counts of the family's only entry."""
    offset = datapath.balancer.schema.values[table].fields["counts"].offset
    place, rows = place_of(datapath, table), datapath.balancer.map(table)
    rows.store_word(place, (rows.read_word(place, offset) + change) % 2**64, offset)


def one_too_many(datapath: Datapath, table: str) -> None:
    """An entry with one connection, which counts two."""
    apply(datapath, "300")
    send(datapath, table, 1001, "SA")
    spoil(datapath, table, ONE)


def counted(datapath: Datapath, table: str) -> tuple[int, int]:
    """All and lasting connections of the family's only entry, as its counts say."""
    offset = datapath.balancer.schema.values[table].fields["counts"].offset
    word = datapath.balancer.map(table).read_word(place_of(datapath, table), offset)
    return word & 2**24 - 1, word >> 24 & 2**24 - 1


def swept(datapath: Datapath, times: int) -> list[tuple[int, int]]:
    """Suspect buckets and healed entries of some sweeps, each of which knows of the one before."""
    found = [ageing.sweep(datapath.balancer)]
    for _ in range(times - 1):
        found.append(ageing.sweep(datapath.balancer, found[-1]))
    return [(one.suspect, one.healed) for one in found]


@TABLES
@pytest.mark.parametrize(
    "change", [ONE, 5 * ONE + 2 * ONE_LASTING, -ONE, -ONE - ONE_LASTING, ONE_LASTING]
)
def test_counts_that_are_wrong_are_found_in_one_sweep_watched_by_the_next_and_then_mended(
    datapath: Datapath, table: str, change: int
) -> None:
    apply(datapath, "300")
    send(datapath, table, 1001, "SA")
    send(datapath, table, 1002, "SA")
    send(datapath, table, 1003, "SAF")
    spoil(datapath, table, change)
    assert swept(datapath, 5) == [(1, 0), (1, 0), (1, 1), (0, 0), (0, 0)]
    assert counted(datapath, table) == (3, 2)


@TABLES
def test_counts_that_are_right_are_not_suspect(datapath: Datapath, table: str) -> None:
    apply(datapath, "300")
    for port in range(1001, 1021):
        send(datapath, table, port, "SAF"[: 1 + port % 3])
    assert swept(datapath, 1) == [(0, 0)]


@TABLES
def test_a_sweep_that_knows_of_none_before_mends_no_entry(datapath: Datapath, table: str) -> None:
    one_too_many(datapath, table)
    assert [swept(datapath, 1) for _ in range(4)] == [[(1, 0)]] * 4
    assert counted(datapath, table) == (2, 1)


@TABLES
def test_counts_that_moved_since_the_sweep_before_are_watched_anew(
    datapath: Datapath, table: str
) -> None:
    one_too_many(datapath, table)
    swept(datapath, 2)
    send(datapath, table, 1002, "S")
    second = ageing.sweep(datapath.balancer, ageing.Sweep(0, 0, {}, 0))
    assert (second.suspect, second.healed) == (1, 0)
    assert ageing.sweep(datapath.balancer, second).healed == 1
    assert counted(datapath, table) == (2, 2)


@TABLES
def test_a_connection_that_only_tells_its_time_does_not_keep_counts_from_being_mended(
    datapath: Datapath, table: str
) -> None:
    one_too_many(datapath, table)
    swept(datapath, 2)
    datapath.later(2)
    send(datapath, table, 1001, "A")
    assert ageing.sweep(datapath.balancer, ageing.Sweep(0, 0, {}, 0)).healed == 1
    assert counted(datapath, table) == (1, 1)


@TABLES
def test_connections_of_the_entry_that_a_slot_had_before_are_not_counted_for_this_one(
    datapath: Datapath, table: str
) -> None:
    apply(datapath, "{timeout: 60, expiry: strict}")
    for port in range(1001, 1011):
        send(datapath, table, port, "SA")
    former = place_of(datapath, table)
    datapath.later(61)
    for port in range(2001, 2004):
        send(datapath, table, port, "SA")
    assert place_of(datapath, table) == former
    # what is left over in the sum is the former entry's connections, and no count is wrong
    assert swept(datapath, 4) == [(1, 0)] * 4
    assert counted(datapath, table) == (3, 3)
    spoil(datapath, table, ONE)
    assert swept(datapath, 2) == [(1, 0), (1, 1)]
    assert counted(datapath, table) == (3, 3)


@TABLES
def test_after_a_sweep_nothing_is_left_of_what_it_counted(datapath: Datapath, table: str) -> None:
    one_too_many(datapath, table)
    swept(datapath, 4)
    for name in (f"entry_recounts{table[-1]}", f"bucket_sums{table[-1]}"):
        recounts = datapath.balancer.map(name)
        assert not any(recounts.memory()[: recounts.capacity * 8])
