"""Connections: their states and timeouts, what is counted, when they are used again and end."""

from __future__ import annotations

import math
from typing import Any

import pytest

from lvsxdp import ageing, records, views
from tests.datapath.harness import Datapath, tcp, udp

A, B, C = "10.0.0.11", "10.0.0.12", "10.0.0.13"
CLIENT = "198.51.100.7:1001"
VIP = "192.0.2.10:80"
THREE = f"[{{address: {A}}}, {{address: {B}}}, {{address: {C}}}]"
WEB = f"""
services:
  - {{protocol: tcp, address: 192.0.2.10, port: 80, scheduler: rr, backends: {THREE}}}
"""
DNS = WEB.replace("tcp", "udp").replace("80", "53")
DNS_VIP = "192.0.2.10:53"
BYTES_TCP, BYTES_UDP = 40, 28


def play(datapath: Datapath, packets: list[str], client: str = CLIENT) -> list[str | None]:
    """Sends a client's packets, by their flags; the backends that they went to."""
    return [datapath.backend_for(tcp(client, VIP, flags)) for flags in packets]


def states(datapath: Datapath) -> list[tuple[str, int]]:
    """Each connection's state and whole seconds left."""
    return [(row["state"], math.ceil(row["expires_in"])) for row in datapath.connections()]


def carried(datapath: Datapath, backend: str) -> tuple[int, int]:
    """A backend's active and inactive connections."""
    row = datapath.backends()[backend]
    return row["active"], row["inactive"]


def counted(row: dict[str, Any]) -> tuple[int, int, int]:
    """Connections, packets and bytes of a service or backend."""
    return row["connections"], row["packets"], row["bytes"]


def reap(datapath: Datapath) -> int:
    """Removes what has expired; how many there were."""
    tables = (*views.CONNECTIONS, *views.PERSISTENCE)
    return datapath.balancer.reap(views.places(datapath.balancer, tables), force=False)


# --------------------------------------------------------------------------------------- states

# tcp_states.input_only of the vectors file: packets, state, timeout, active
INPUT_ONLY = [
    (["S"], "SYN_RECV", 60, True),
    (["S", "A"], "ESTABLISHED", 900, True),
    (["S", "A", "FA"], "FIN_WAIT", 120, False),
    (["S", "A", "FA", "A"], "FIN_WAIT", 120, False),
    (["S", "A", "R"], "CLOSE", 10, False),
    (["S", "R"], "SYN_RECV", 60, True),
    (["S", "FA"], "TIME_WAIT", 120, False),
    (["S", "A", "FA", "S"], "SYN_RECV", 60, True),
    (["S", "A", "FA", "R"], "CLOSE", 10, False),
    (["SA"], "SYN_RECV", 60, True),
    # transition_tables.tcp.normal.input_only, beyond what was observed
    (["S", "A", "S"], "ESTABLISHED", 900, True),
    (["S", "A", "SR"], "CLOSE", 10, False),
    (["S", "A", "FR"], "CLOSE", 10, False),
    (["S", "A", "SF"], "ESTABLISHED", 900, True),
    (["S", "A", ""], "CLOSE", 10, False),
    (["S", "A", "PU"], "CLOSE", 10, False),
    (["S", "FA", "A"], "TIME_WAIT", 120, False),
    (["S", "A", "R", "A"], "CLOSE", 10, False),
    (["S", "A", "R", "FA"], "CLOSE", 10, False),
]


@pytest.mark.parametrize(
    ("packets", "state", "timeout", "active"),
    INPUT_ONLY,
    ids=["-".join(p or "none" for p in row[0]) for row in INPUT_ONLY],
)
def test_tcp_states_are_ipvss_of_a_half_open_view(
    datapath: Datapath, packets: list[str], state: str, timeout: int, active: bool
) -> None:
    datapath.apply(WEB)
    assert play(datapath, packets) == [C] * len(packets)
    assert states(datapath) == [(state, timeout)]
    assert carried(datapath, C) == ((1, 0) if active else (0, 1))


def test_an_ack_without_a_connection_makes_none(datapath: Datapath) -> None:
    datapath.apply(WEB)
    assert play(datapath, ["A"]) == [None]
    assert states(datapath) == []


def test_every_packet_gives_a_connection_its_whole_time_again(datapath: Datapath) -> None:
    datapath.apply(WEB)
    play(datapath, ["S", "A"])
    datapath.later(899)
    play(datapath, ["A"])
    assert states(datapath) == [("ESTABLISHED", 900)]


def test_a_udp_connection_lives_300_seconds_and_is_never_active(datapath: Datapath) -> None:
    datapath.apply(DNS)
    assert datapath.backend_for(udp(CLIENT, DNS_VIP)) == C
    assert states(datapath) == [("UDP", 300)]
    assert carried(datapath, C) == (0, 1)
    datapath.later(299)
    assert datapath.backend_for(udp(CLIENT, DNS_VIP)) == C
    assert states(datapath) == [("UDP", 300)]


def test_a_connection_shows_who_reaches_what_by_which_backend(datapath: Datapath) -> None:
    datapath.apply(WEB)
    play(datapath, ["S"])
    (row,) = datapath.connections()
    assert math.ceil(row.pop("expires_in")) == 60
    assert row == {
        "service": "tcp:192.0.2.10:80",
        "protocol": "tcp",
        "client": CLIENT,
        "virtual": VIP,
        "backend": C,
        "state": "SYN_RECV",
        "mark": 0,
    }


# ------------------------------------------------------------------------------------------ end


def test_a_packet_after_the_connections_end_finds_none(datapath: Datapath) -> None:
    datapath.apply(WEB)
    play(datapath, ["S", "A"])
    datapath.later(901)
    assert play(datapath, ["A"]) == [None]
    assert datapath.reasons() == {"forwarded": 2, "not_opening": 1}
    assert (states(datapath), carried(datapath, C)) == ([], (0, 0))


def test_a_syn_after_the_connections_end_gets_another_backend(datapath: Datapath) -> None:
    datapath.apply(WEB)
    assert play(datapath, ["S"]) == [C]
    datapath.later(61)
    assert play(datapath, ["S"]) == [B]
    assert (carried(datapath, C), carried(datapath, B)) == ((0, 0), (1, 0))


def test_a_udp_packet_after_the_connections_end_gets_another_backend(datapath: Datapath) -> None:
    datapath.apply(DNS)
    assert datapath.backend_for(udp(CLIENT, DNS_VIP)) == C
    datapath.later(301)
    assert datapath.backend_for(udp(CLIENT, DNS_VIP)) == B


def test_the_reaper_removes_only_what_has_expired_and_takes_it_from_the_counts(
    datapath: Datapath,
) -> None:
    datapath.apply(WEB.replace(THREE, f"[{{address: {C}}}]"))
    play(datapath, ["S"], "198.51.100.1:1001")
    play(datapath, ["S", "A"], "198.51.100.2:1001")
    play(datapath, ["S", "A", "R"], "198.51.100.3:1001")
    assert carried(datapath, C) == (2, 1)
    datapath.later(11)
    assert (reap(datapath), carried(datapath, C)) == (1, (2, 0))
    datapath.later(50)
    assert (reap(datapath), carried(datapath, C)) == (1, (1, 0))
    assert [row["client"] for row in datapath.connections()] == ["198.51.100.2:1001"]
    assert (reap(datapath), carried(datapath, C)) == (0, (1, 0))
    datapath.later(850)
    assert (reap(datapath), carried(datapath, C)) == (1, (0, 0))


def test_the_reaper_removes_a_persistence_entry_only_after_its_connections_end(
    datapath: Datapath,
) -> None:
    datapath.apply(WEB.replace("rr,", "rr, persistence: 10,"))
    play(datapath, ["S"])
    datapath.later(11)
    assert (reap(datapath), len(datapath.persistence())) == (0, 1)
    datapath.later(50)
    assert (reap(datapath), len(datapath.persistence())) == (1, 1)
    datapath.later(10)
    assert (reap(datapath), len(datapath.persistence())) == (1, 0)


def test_reaping_a_connection_takes_it_from_its_persistence_entry(datapath: Datapath) -> None:
    datapath.apply(WEB.replace("rr,", "rr, persistence: 300,"))
    play(datapath, ["S"])
    play(datapath, ["S", "A"], "198.51.100.7:1002")
    datapath.later(61)
    reap(datapath)
    assert [row["connections"] for row in datapath.persistence()] == [1]


# -------------------------------------------------------------------------------------- counting


def test_connections_packets_and_bytes_are_counted_for_service_and_backend(
    datapath: Datapath,
) -> None:
    datapath.apply(WEB)
    play(datapath, ["S", "A", "A", "FA"])
    play(datapath, ["S"], "198.51.100.8:1001")
    (service,) = views.services(datapath.balancer)
    rows = datapath.backends()
    assert counted(service) == (2, 5, 5 * BYTES_TCP)
    assert {name: counted(rows[name]) for name in (A, B, C)} == {
        A: (0, 0, 0),
        B: (1, 1, BYTES_TCP),
        C: (1, 4, 4 * BYTES_TCP),
    }


def test_padding_and_ethernet_are_not_counted(datapath: Datapath) -> None:
    datapath.apply(DNS)
    datapath.send(bytes(datapath.to_host(udp(CLIENT, DNS_VIP))) + bytes(18))
    (service,) = views.services(datapath.balancer)
    assert counted(service) == (1, 1, BYTES_UDP)


def test_ipv6_bytes_are_counted_with_the_header(datapath: Datapath) -> None:
    datapath.apply("""
services:
  - protocol: udp
    address: "2001:db8::10"
    port: 53
    backends: [{address: "2001:db8:0:2::11"}]
""")
    datapath.deliver(udp("[2001:db8:1::7]:5000", "[2001:db8::10]:53") / (b"x" * 100))
    (service,) = views.services(datapath.balancer)
    assert counted(service) == (1, 1, 148)


def test_a_packet_that_is_not_forwarded_is_not_counted_for_its_service(datapath: Datapath) -> None:
    datapath.apply(WEB)
    packet = tcp(CLIENT, VIP)
    packet.ttl = 1
    datapath.deliver(packet)
    (service,) = views.services(datapath.balancer)
    assert counted(service) == (1, 0, 0)


def test_every_connection_of_many_is_in_the_counts(datapath: Datapath) -> None:
    datapath.apply(WEB)
    for number in range(30):
        packets = ["S", "A"] if number % 2 else ["S", "A", "R"]
        play(datapath, packets, f"198.51.100.9:{2000 + number}")
    rows = datapath.backends()
    assert {n: (rows[n]["active"], rows[n]["inactive"]) for n in (A, B, C)} == {
        A: (5, 5),
        B: (5, 5),
        C: (5, 5),
    }
    assert len(datapath.connections()) == 30


# ----------------------------------------------------------------------------------------- reuse

# tcp_states.reuse of the vectors file, and modes that it leaves out
REUSE = [
    (1, ["S", "A", "FA"], "FIN_WAIT", C),
    (1, ["S", "A", "R"], "CLOSE", B),
    (1, ["S", "FA"], "TIME_WAIT", B),
    (3, ["S", "A", "FA"], "FIN_WAIT", B),
    (3, ["S", "A", "R"], "CLOSE", B),
    (0, ["S", "A", "R"], "CLOSE", C),
    (0, ["S", "A", "FA"], "FIN_WAIT", C),
    (3, ["S", "A"], "ESTABLISHED", C),
    (3, ["S"], "SYN_RECV", C),
    (2, ["S", "A", "FA"], "FIN_WAIT", B),
    (2, ["S", "A", "R"], "CLOSE", B),
]


@pytest.mark.parametrize(
    ("mode", "before", "state", "backend"), REUSE, ids=[f"{r[0]}-{r[2]}" for r in REUSE]
)
def test_a_syn_on_a_connection_goes_on_or_starts_afresh_by_conn_reuse_mode(
    datapath: Datapath, mode: int, before: list[str], state: str, backend: str
) -> None:
    datapath.apply(f"settings: {{conn_reuse_mode: {mode}}}\n" + WEB)
    play(datapath, before)
    assert [row["state"] for row in datapath.connections()] == [state]
    assert play(datapath, ["S"]) == [backend]
    others = {A: (0, 0), B: (0, 0), C: (0, 0)}
    assert {name: carried(datapath, name) for name in (A, B, C)} == others | {backend: (1, 0)}


@pytest.mark.parametrize(("expire", "backend"), [("false", C), ("true", B)])
def test_a_syn_on_a_connection_of_a_quiesced_backend_goes_on_unless_such_ones_expire(
    datapath: Datapath, expire: str, backend: str
) -> None:
    settings = f"settings: {{expire_nodest_conn: {expire}}}\n"
    datapath.apply(settings + WEB)
    play(datapath, ["S"])
    quiesced = WEB.replace(f"{{address: {C}}}", f"{{address: {C}, weight: 0}}")
    datapath.apply(settings + quiesced)
    assert play(datapath, ["S"]) == [backend]


def test_packets_of_a_connection_follow_it_though_its_service_is_quiesced(
    datapath: Datapath,
) -> None:
    datapath.apply(WEB)
    play(datapath, ["S"])
    datapath.apply(WEB.replace(f"{{address: {C}}}", f"{{address: {C}, weight: 0}}"))
    assert play(datapath, ["A"]) == [C]


def test_the_connections_of_a_removed_service_are_gone(datapath: Datapath) -> None:
    datapath.apply(WEB)
    play(datapath, ["S", "A"])
    datapath.apply(WEB.replace("port: 80", "port: 81"))
    assert play(datapath, ["A"]) == [None]
    assert datapath.reasons() == {"forwarded": 2, "no_service": 1}


# ----------------------------------------------------------------------------------------- sweep


def spoil(datapath: Datapath, backend: str, active: int, total: int) -> int:
    """Makes a backend's counts wrong; its id."""
    place = datapath.balancer.state.book.services["tcp:192.0.2.10:80"].backends[backend]
    value = datapath.balancer.schema.values["loads"].encode(active=active, total=total)
    datapath.balancer.map("loads").update(records.number(place.id), value)
    return place.id


@pytest.mark.parametrize(("active", "total"), [(5, 9), (0, 0), (2**64 - 1, 2**64 - 1)])
def test_a_count_that_is_wrong_is_mended_by_the_second_sweep_that_sees_it(
    datapath: Datapath, active: int, total: int
) -> None:
    datapath.apply(WEB)
    play(datapath, ["S"])
    spoiled = spoil(datapath, C, active, total)
    first = ageing.sweep(datapath.balancer)
    assert ({key[:2] for key in first.drift}, first.healed) == ({("loads", spoiled)}, 0)
    assert first.removed == 0
    second = ageing.sweep(datapath.balancer, first)
    assert (second.drift, second.healed) == (first.drift, len(first.drift))
    assert carried(datapath, C) == (1, 0)
    assert ageing.sweep(datapath.balancer, second).drift == {}


def test_a_sweep_leaves_alone_a_count_that_differs_otherwise_than_before(
    datapath: Datapath,
) -> None:
    datapath.apply(WEB)
    spoil(datapath, C, 5, 9)
    first = ageing.sweep(datapath.balancer)
    spoil(datapath, C, 4, 8)
    assert ageing.sweep(datapath.balancer, first).healed == 0


def test_a_sweep_removes_what_has_expired(datapath: Datapath) -> None:
    datapath.apply(WEB)
    play(datapath, ["S"])
    play(datapath, ["S", "A"], "198.51.100.8:1001")
    datapath.later(61)
    swept = ageing.sweep(datapath.balancer)
    assert (swept.removed, swept.drift) == (1, {})
    assert carried(datapath, C) == (0, 0)


def test_a_sweep_that_is_not_whole_goes_over_the_tables_in_use(datapath: Datapath) -> None:
    datapath.apply(WEB)
    play(datapath, ["S"])
    datapath.later(61)
    assert ageing.sweep(datapath.balancer, whole=False).removed == 1
    assert carried(datapath, C) == (0, 0)


def test_only_a_whole_sweep_finds_entries_that_no_share_counts(datapath: Datapath) -> None:
    datapath.apply(WEB)
    play(datapath, ["S"])
    identity = datapath.balancer.state.book.services["tcp:192.0.2.10:80"].id
    empty = datapath.balancer.schema.values["shares"].encode()
    datapath.balancer.map("shares").update(records.number(identity), empty)
    datapath.later(61)
    swept = ageing.sweep(datapath.balancer, whole=False)
    assert (swept.removed, carried(datapath, C)) == (0, (1, 0))
    assert ageing.sweep(datapath.balancer).removed == 1
    # the share that was taken back once too often is healed like any count
    seen = ageing.sweep(datapath.balancer)
    assert ageing.sweep(datapath.balancer, seen).healed == 1
    assert ageing.sweep(datapath.balancer).drift == {}
