"""Rows of the tables, from bytes as the programs leave them in memory."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lvsxdp import entries, setting, tables
from lvsxdp.book import BackendPlace, Book, ServicePlace
from lvsxdp.entries import ALL, Wanted
from lvsxdp.model import (
    Address,
    Backend,
    Config,
    Expiry,
    Family,
    MarkKey,
    Persistence,
    Service,
    Settings,
)
from lvsxdp.show import Names
from lvsxdp.state import State
from tests.unit.headers import schema

HZ, NOW = 100, 1_000_000
SCHEMA = schema(HZ)
STATES, FLAGS = SCHEMA.enums["state"], SCHEMA.enums["slot_flag"]
TIMES = tables.timeouts(SCHEMA, Settings())
BACKEND = 6 << 32 | 4
ip, net = ipaddress.ip_address, ipaddress.ip_network
CLIENT, VIRTUAL = ip("198.51.100.7"), ip("192.0.2.10")


def word(state: str, expires: int = 0, flags: int = 0, generation: int = 0) -> int:
    """A slot's word: bpf/word.h."""
    return expires | STATES[state] << 44 | flags << 48 | generation << 52


def kept(mask: str, expiry: Expiry = Expiry.IPVS) -> Persistence:
    return Persistence(300, ip(mask), expiry)


def names(persistence: Persistence | None = None) -> Names:
    """Service `shop` is id 3, its backend 10.0.0.1 is id 4 in generation 6."""
    backends = (Backend(ip("10.0.0.1")),)
    shop = Service(MarkKey(1, Family.IPV4), "shop", persistence=persistence, backends=backends)
    place = ServicePlace(3, 1, 0, 0, 1, None, {"10.0.0.1": BackendPlace(4, 6)})
    return Names(State(Config(services=(shop,)), Book({"mark:1": place}), [], {}))


FREE = {table: bytes(SCHEMA.values[table].size) for table in SCHEMA.enums["table"]}


# ---- connections ----


def connection(
    left: int = 250,
    state: str = "established",
    client: Address = CLIENT,
    *,
    generation: int = 0,
    flags: int = 0,
    **fields: int,
) -> bytes:
    """A slot with a connection that lives for `left` jiffies from NOW on."""
    table = f"connections{client.version}"
    given = {
        "word": word(state, flags=flags, generation=generation),
        "seen": NOW + left - TIMES.get(STATES[state], 0),
        "backend": BACKEND,
        "service": 3,
        "mark": 1,
        "protocol": 6,
    }
    return SCHEMA.values[table].encode(
        client=client.packed,
        virtual=(VIRTUAL if client.version == 4 else ip("2001:db8::10")).packed,
        client_port=(4000).to_bytes(2, "big"),
        virtual_port=(80).to_bytes(2, "big"),
        **(given | fields),
    )


def connections(*slots: bytes, wanted: Wanted = ALL, family: int = 4) -> list[entries.Row]:
    table, buffer = f"connections{family}", b"".join(slots)
    return list(entries.connections(SCHEMA, names(), table, buffer, NOW, wanted))


def connection_row(slot: bytes, family: int = 4) -> dict[str, object]:
    (row,) = connections(slot, family=family)
    return dict(entries.as_row(entries.CONNECTION, row))


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
    assert connection_row(connection()) == ROW


def test_a_words_generation_and_flags_are_no_part_of_a_connections_state() -> None:
    # the third flag is a bit of the state: SCTP's
    slot = connection(state="time_wait", generation=4095, flags=11)
    assert connection_row(slot) == ROW | {"state": "TIME_WAIT"}


@pytest.mark.parametrize("state", setting.TIMEOUTS)
def test_a_connection_lives_for_its_states_time_after_its_last_packet(state: str) -> None:
    row = connection_row(connection(0, state, seen=NOW, generation=1))
    assert (row["state"], row["expires_in"]) == (entries.state_name(state), setting.TIMEOUTS[state])


def test_what_was_removed_from_the_configuration_has_no_name() -> None:
    slot = connection(service=9, backend=5 << 32 | 4)
    assert connection_row(slot) == ROW | {"service": None, "backend": None}


@pytest.mark.parametrize("left", [0, -1, -NOW // 2])
def test_a_connection_that_has_ended_is_no_row(left: int) -> None:
    assert connections(connection(left)) == []


def test_a_connection_seen_a_moment_after_the_clock_was_read_is_a_row() -> None:
    assert connection_row(connection(0, seen=NOW + 3))["expires_in"] == 900.0


@pytest.mark.parametrize("state", ["busy", "dead"])
def test_a_slot_without_an_entry_is_no_row(state: str) -> None:
    slot = connection(0, state, seen=NOW, generation=7)
    assert connections(FREE["connections4"], slot) == []
    assert connections(connection(), slot, connection()) == connections(connection()) * 2


def test_what_an_entry_left_in_a_slot_that_is_free_again_is_no_row() -> None:
    assert connections(connection(word=0)) == []


def test_ipv6_endpoints_stand_in_brackets() -> None:
    row = connection_row(connection(1, "udp", ip("2001:db8::1"), protocol=17), 6)
    assert row == ROW | {
        "client": "[2001:db8::1]:4000",
        "virtual": "[2001:db8::10]:80",
        "protocol": "udp",
        "state": "UDP",
        "expires_in": 0.0,
    }


def test_rows_stand_in_the_order_of_their_slots() -> None:
    slots = [connection(client=ip(int(CLIENT) + n)) for n in (3, 1, 2)]
    found = connections(slots[0], FREE["connections4"], slots[1], slots[2])
    column = entries.CONNECTION.index("client")
    assert [row[column] for row in found] == [f"198.51.100.{n}:4000" for n in (10, 8, 9)]


@pytest.mark.parametrize("buffer", [b"", FREE["connections4"] * 64])
def test_an_empty_table_has_no_rows(buffer: bytes) -> None:
    assert connections(buffer) == []
    assert entries.count(SCHEMA, Settings(), "connections4", buffer, NOW) == 0
    assert list(entries.places(SCHEMA, "connections4", buffer, ALL)) == []


def test_a_mapping_may_be_longer_than_its_slots() -> None:
    """A mapping ends at a page, a table may end before."""
    assert connections(connection(), bytes(24)) == connections(connection())


# ---- which ones ----


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [
        (ALL, [0, 1, 2, 3]),
        (Wanted(service=3), [0, 2, 3]),
        (Wanted(service=8), [1]),
        (Wanted(service=7), []),
        (Wanted(backends=frozenset([BACKEND])), [0, 1]),
        (Wanted(backends=frozenset([7 << 32 | 4])), [2]),
        (Wanted(backends=frozenset([4])), []),
        (Wanted(client=net("198.51.100.7")), [0, 1]),
        (Wanted(client=net("198.51.100.0/29")), [0, 1, 2]),
        (Wanted(client=net("0.0.0.0/0")), [0, 1, 2, 3]),
        (Wanted(client=net("::/0")), []),
        (Wanted(backends=frozenset([BACKEND, 7 << 32 | 4])), [0, 1, 2]),
        (Wanted(backends=frozenset()), []),
        (Wanted(3, frozenset([BACKEND]), net("198.51.0.0/16")), [0]),
    ],
)
def test_only_wanted_connections_are_found(wanted: Wanted, chosen: list[int]) -> None:
    slots = [
        connection(),
        connection(service=8),
        connection(client=ip("198.51.100.1"), backend=7 << 32 | 4),
        connection(client=ip("198.51.101.7"), backend=0),
    ]
    assert connections(*slots, wanted=wanted) == connections(*(slots[n] for n in chosen))
    buffer = b"".join(slots)
    found = entries.places(SCHEMA, "connections4", buffer, wanted)
    assert [place for place, _ in found] == chosen


@pytest.mark.parametrize(
    ("network", "chosen"),
    [
        ("2001:db8::1/128", [0]),
        ("2001:db8::/126", [0, 1]),
        ("2001:db8::/33", [0, 1]),
        ("2001:db8::/32", [0, 1, 2]),
        ("::/0", [0, 1, 2]),
        ("0.0.0.0/0", []),
    ],
)
def test_ipv6_clients_are_found_by_their_network(network: str, chosen: list[int]) -> None:
    clients = ("2001:db8::1", "2001:db8::2", "2001:db8:8000::1")
    buffer = b"".join(connection(client=ip(client)) for client in clients)
    found = entries.places(SCHEMA, "connections6", buffer, Wanted(client=net(network)))
    assert [place for place, _ in found] == chosen


@settings(max_examples=100, deadline=None)
@given(
    clients=st.lists(st.ip_addresses(network="198.51.100.0/26"), max_size=8),
    prefix=st.integers(24, 32),
    base=st.ip_addresses(network="198.51.100.0/26"),
)
def test_the_clients_of_a_network_are_those_that_python_says(
    clients: list[ipaddress.IPv4Address], prefix: int, base: ipaddress.IPv4Address
) -> None:
    network = net((base, prefix), strict=False)
    buffer = b"".join(connection(client=client) for client in clients)
    found = entries.places(SCHEMA, "connections4", buffer, Wanted(client=network))
    assert [place for place, _ in found] == [n for n, c in enumerate(clients) if c in network]


def test_a_place_is_named_with_its_words_generation_whether_its_entry_lives_or_not() -> None:
    slots = [
        FREE["connections4"],
        connection(generation=4095),
        connection(-1, generation=1, flags=15),
        connection(0, "busy", generation=5),
        connection(0, "dead", generation=6),
        connection(),
    ]
    found = entries.places(SCHEMA, "connections4", b"".join(slots), ALL)
    assert list(found) == [(1, 4095), (2, 1), (5, 0)]


def test_only_live_entries_are_counted() -> None:
    slots = (connection(), connection(0), FREE["connections4"], connection(0, "dead"), connection())
    assert entries.count(SCHEMA, Settings(), "connections4", b"".join(slots), NOW) == 2
    lasting = (entry_of(), entry_of(expires=NOW), entry_of(expires=NOW - HZ, inactive_until=NOW))
    assert entries.count(SCHEMA, Settings(), "persistence4", b"".join(lasting), NOW) == 2


def test_a_table_of_many_slots_is_read_whole() -> None:
    """Places go on counting from one piece to the next."""
    size, free = 2 * entries.CHUNK + 5, FREE["connections4"]
    last = [entries.CHUNK - 1, entries.CHUNK, size - 1]
    buffer = bytearray(free * size)
    for index, place in enumerate(last):
        buffer[place * len(free) : (place + 1) * len(free)] = connection(
            client=ip(int(CLIENT) + index), generation=index
        )
    assert list(entries.places(SCHEMA, "connections4", buffer, ALL)) == [
        (place, index) for index, place in enumerate(last)
    ]
    assert entries.count(SCHEMA, Settings(), "connections4", buffer, NOW) == 3
    column = entries.CONNECTION.index("client")
    assert [row[column] for row in connections(bytes(buffer))] == [
        f"198.51.100.{n}:4000" for n in (7, 8, 9)
    ]


def test_more_entries_than_one_piece_are_as_many_rows() -> None:
    buffer = connection() * (entries.CHUNK + 1)
    assert entries.count(SCHEMA, Settings(), "connections4", buffer, NOW) == entries.CHUNK + 1
    found = entries.connections(SCHEMA, names(), "connections4", buffer, NOW)
    assert sum(1 for _ in found) == entries.CHUNK + 1


# ---- persistence ----


def entry_of(
    expires: int = NOW + 1000,
    connections: int = 2,
    active: int = 0,
    client: Address = CLIENT,
    flags: int = 0,
    state: str = "bound",
    **fields: int,
) -> bytes:
    """A slot with a persistence entry."""
    given = {"backend": BACKEND, "service": 3, "counts": 7 << 49 | active << 24 | connections}
    masked = net((client, 24 if client.version == 4 else 64), strict=False)
    return SCHEMA.values[f"persistence{client.version}"].encode(
        word=word(state, expires, flags, 3),
        client=masked.network_address.packed,
        **(given | fields),
    )


def persistence(
    *slots: bytes, kept_as: Persistence | None = None, wanted: Wanted = ALL, family: int = 4
) -> list[dict[str, object]]:
    known = names(kept_as or kept("255.255.255.0"))
    table, buffer = f"persistence{family}", b"".join(slots)
    rows = entries.persistence(SCHEMA, known, table, buffer, NOW, wanted)
    return [dict(entries.as_row(entries.PERSISTENCE, row)) for row in rows]


ENTRY = {
    "service": "shop",
    "client": "198.51.100.0/24",
    "backend": "10.0.0.1",
    "expires_in": 10.0,
    "connections": 2,
    "engine": None,
    "data": None,
}


def test_a_persistence_entry_is_a_row() -> None:
    assert persistence(entry_of()) == [ENTRY]


def test_an_ipv6_entry_is_a_row() -> None:
    slot = entry_of(client=ip("2001:db8::1"))
    found = persistence(slot, kept_as=kept("ffff:ffff:ffff:ffff::"), family=6)
    assert found == [ENTRY | {"client": "2001:db8::/64"}]


def test_an_entrys_counts_stand_in_one_word() -> None:
    most = 2**23 - 1
    slot = entry_of(counts=0xFFFF << 48 | most << 24 | most, active_until=NOW)
    assert persistence(slot) == [ENTRY | {"connections": most}]
    assert persistence(entry_of(active=5)) == [ENTRY]


def test_a_count_below_0_is_shown_as_none() -> None:
    slot = entry_of(counts=7 << 49 | 2**24 - 1)
    assert persistence(slot) == [ENTRY | {"connections": 0}]


def test_an_entry_of_a_service_that_was_removed_has_no_name_and_no_mask() -> None:
    gone = {"service": None, "backend": None, "client": "198.51.100.0"}
    assert persistence(entry_of(service=9, backend=1)) == [ENTRY | gone]


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
    assert persistence(entry_of(), kept_as=kept(mask)) == [ENTRY | {"client": shown}]


EXPIRED = NOW - 10 * HZ
HELD = {
    "nothing holds it": (entry_of(EXPIRED), None),
    "an active connection holds it": (
        entry_of(EXPIRED, active=1, active_until=NOW + 5 * HZ),
        50.0,
    ),
    "an inactive connection holds it": (entry_of(EXPIRED, inactive_until=NOW + 5 * HZ), 50.0),
    "what was active is not": (entry_of(EXPIRED, active_until=NOW + 5 * HZ), None),
    "its connections end before the next look": (
        entry_of(EXPIRED, inactive_until=NOW - 5 * HZ),
        50.0,
    ),
    "they ended before its time": (entry_of(EXPIRED, inactive_until=NOW - 20 * HZ), None),
    "they ended at its time": (entry_of(EXPIRED, inactive_until=EXPIRED), None),
}


@pytest.mark.parametrize("case", HELD)
def test_an_entry_whose_time_is_up_is_armed_again_for_60_seconds_where(case: str) -> None:
    slot, left = HELD[case]
    assert [row["expires_in"] for row in persistence(slot)] == ([] if left is None else [left])


def test_an_entry_is_armed_as_often_as_connections_live() -> None:
    slot = entry_of(NOW - 70 * HZ, active=1, active_until=NOW + HZ)
    assert [row["expires_in"] for row in persistence(slot)] == [50.0]


def test_an_entry_is_armed_at_the_moment_when_its_time_is_up() -> None:
    slot = entry_of(NOW, inactive_until=NOW + 1)
    assert [row["expires_in"] for row in persistence(slot)] == [60.0]


def test_a_strict_entry_ends_at_its_time_whatever_lives() -> None:
    """Its word says that it is strict, not its service, which may have been edited since."""
    strict = entry_of(EXPIRED, active=1, flags=FLAGS["strict"], active_until=NOW + HZ)
    assert persistence(strict) == []
    assert persistence(entry_of(flags=FLAGS["strict"])) == [ENTRY]


@pytest.mark.parametrize("flag", [name for name in FLAGS if name != "strict"])
def test_another_flag_makes_no_entry_strict(flag: str) -> None:
    assert len(persistence(entry_of(EXPIRED, flags=FLAGS[flag], inactive_until=NOW))) == 1


@pytest.mark.parametrize("state", ["busy", "dead"])
def test_an_entry_that_is_being_written_or_was_removed_is_no_row(state: str) -> None:
    held = entry_of(0, state=state, inactive_until=NOW + HZ)
    assert persistence(FREE["persistence4"], held, entry_of(state=state)) == []


def test_only_wanted_entries_are_found() -> None:
    slots = (entry_of(), entry_of(service=8), entry_of(client=ip("203.0.113.9"), backend=1))
    assert persistence(*slots, wanted=Wanted(3, frozenset([BACKEND]))) == [ENTRY]
    away = persistence(*slots, wanted=Wanted(client=net("203.0.113.0/24")))
    assert [row["client"] for row in away] == ["203.0.113.0/24"]


MANY = {
    3: kept("255.255.255.0"),
    4: kept("255.255.0.0"),
    5: kept("255.0.255.0"),
    6: kept("255.255.255.255"),
    7: None,
}


def many() -> Names:
    """Services under other netmasks, by id; 9 is none."""
    services = [Service(MarkKey(n, Family.IPV4), persistence=how) for n, how in MANY.items()]
    places = {f"mark:{n}": ServicePlace(n, 1, 0, 0, 0, None, {}) for n in MANY}
    return Names(State(Config(services=tuple(services)), Book(places), [], {}))


@pytest.mark.parametrize(
    ("network", "chosen"),
    [
        ("198.51.100.7", [3, 4, 5]),
        ("198.51.100.0", [3, 4, 5, 6, 7, 9]),
        ("198.51.100.128/25", [3, 4, 5]),
        ("198.51.100.0/23", [3, 4, 5, 6, 7, 9]),
        ("198.51.101.0/24", [4]),
        ("198.52.100.3", [5]),
        ("198.52.101.3", []),
        ("0.0.0.0/0", [3, 4, 5, 6, 7, 9]),
    ],
)
def test_an_entry_is_wanted_where_its_client_network_and_the_named_one_share_an_address(
    network: str, chosen: list[int]
) -> None:
    keys = {3: "198.51.100.0", 4: "198.51.0.0", 5: "198.0.100.0"}
    encode, live = SCHEMA.values["persistence4"].encode, word("bound", NOW + HZ)
    slots = [
        encode(word=live, service=n, client=ip(keys.get(n, "198.51.100.0")).packed)
        for n in (*MANY, 9)
    ]
    rows = entries.persistence(
        SCHEMA, many(), "persistence4", b"".join(slots), NOW, Wanted(client=net(network))
    )
    found = [row[entries.PERSISTENCE.index("service")] for row in rows]
    assert found == [f"mark:{n}" if n in MANY else None for n in chosen]


@settings(max_examples=100, deadline=None)
@given(
    client=st.ip_addresses(v=6, network="2001:db8::/56"),
    length=st.integers(52, 128),
    base=st.ip_addresses(v=6, network="2001:db8::/56"),
    prefix=st.integers(52, 128),
)
def test_two_networks_share_an_address_where_python_says_so(
    client: ipaddress.IPv6Address, length: int, base: ipaddress.IPv6Address, prefix: int
) -> None:
    mine, named = net((client, length), strict=False), net((base, prefix), strict=False)
    slot = SCHEMA.values["persistence6"].encode(
        word=word("bound", NOW + HZ), service=3, client=mine.network_address.packed
    )
    found = persistence(
        slot, kept_as=kept(str(mine.netmask)), wanted=Wanted(client=named), family=6
    )
    assert bool(found) == mine.overlaps(named)


# ---- JSON ----


TEXT = st.text(st.characters(), max_size=8) | st.sampled_from(['"', "\\", "%s", "\u2028", "\ud800"])


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.none() | TEXT, TEXT, st.integers(0, 2**32 - 1), st.integers(0, 99999)),
        max_size=4,
    )
)
def test_json_is_read_back_as_the_rows(rows: list[tuple[str | None, str, int, int]]) -> None:
    columns = ("service", "client", "mark", "expires_in")
    timed = [(*row[:3], row[3] / 10) for row in rows]
    text = "".join(entries.as_json(columns, iter(timed)))
    assert json.loads(text) == [dict(zip(columns, row, strict=True)) for row in timed]


def test_json_of_a_table_is_read_back_with_names_of_any_characters() -> None:
    shop = Service(MarkKey(1, Family.IPV4), 'a"b\\c%s\u00e9')
    place = ServicePlace(3, 1, 0, 0, 0, None, {})
    known = Names(State(Config(services=(shop,)), Book({"mark:1": place}), [], {}))
    buffer = connection() + connection(service=9)

    def rows() -> Iterator[entries.Row]:
        return entries.connections(SCHEMA, known, "connections4", buffer, NOW)

    named, unnamed = json.loads("".join(entries.as_json(entries.CONNECTION, rows())))
    assert named == ROW | {"service": shop.name, "backend": None}
    assert unnamed == ROW | {"service": None, "backend": None}


def test_json_has_a_row_on_each_line() -> None:
    lines = "".join(entries.as_json(("a", "b"), iter([(1, None), (2.5, "x")]))).splitlines()
    assert lines == ["[", '{"a": 1, "b": null},', '{"a": 2.5, "b": "x"}', "]"]


def test_json_of_no_rows_is_an_empty_array() -> None:
    assert "".join(entries.as_json(("a",), iter(()))) == "[]\n"
