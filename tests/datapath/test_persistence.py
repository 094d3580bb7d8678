"""Persistence entries: IPVS's timelines step by step, and what lvsxdp has beyond them."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tests.datapath.harness import Datapath, tcp, udp

A, B, C = "10.0.0.11", "10.0.0.12", "10.0.0.13"
A6, B6, C6 = "2001:db8:0:2::11", "2001:db8:0:2::12", "2001:db8:0:2::13"
VIP = "192.0.2.10"
# IPVS's own defaults, where lvsxdp's differ
IPVS = "settings: {expire_nodest_conn: false}\n"
SERVERS = f"[{{address: {A}}}, {{address: {B}}}, {{address: {C}}}]"


def service(persistence: str, backends: str = SERVERS, *, port: int | str = 80) -> str:
    """An rr service on the VIP; the list is walked backwards, so it picks C, B, A."""
    return (
        f"services:\n- {{protocol: tcp, address: {VIP}, port: {port}, scheduler: rr,"
        f" persistence: {persistence}, backends: {backends}}}\n"
    )


def servers(**weights: int) -> str:
    """The list of backends with these weights, by their letters."""
    letters = {"A": A, "B": B, "C": C}
    rows = (f"{{address: {letters[name]}, weight: {w}}}" for name, w in weights.items())
    return f"[{', '.join(rows)}]"


def syn(datapath: Datapath, client: str, port: int = 80) -> str | None:
    """The backend that a client's SYN to the VIP goes to."""
    return datapath.backend_for(tcp(client, f"{VIP}:{port}"))


def ack(datapath: Datapath, client: str, flags: str = "A") -> str | None:
    """The backend that a later packet of a client's connection goes to."""
    return datapath.backend_for(tcp(client, f"{VIP}:80", flags))


def entries(datapath: Datapath) -> list[tuple[str, str | None, int]]:
    """Each entry's client, backend and whole seconds left."""
    rows = datapath.persistence()
    return sorted((r["client"], r["backend"], math.ceil(r["expires_in"])) for r in rows)


def passed_as(datapath: Datapath, packet: Any) -> tuple[str, dict[str, int]]:
    """What is done with a packet, and what it adds to the reasons."""
    before = datapath.reasons()
    action = datapath.deliver(packet).action
    after = datapath.reasons()
    return action, {n: c - before.get(n, 0) for n, c in after.items() if c != before.get(n, 0)}


# ---------------------------------------------------------------- the timelines of the vectors


def renew_on_new_connection_only(datapath: Datapath) -> None:
    """The timeline that another one continues; at its end t is 6."""
    datapath.apply(service("10"))
    assert syn(datapath, "198.51.100.1:1001") == C
    assert entries(datapath) == [("198.51.100.1", C, 10)]
    datapath.later(4)
    assert ack(datapath, "198.51.100.1:1001") == C
    assert entries(datapath) == [("198.51.100.1", C, 6)]
    datapath.later(2)
    assert syn(datapath, "198.51.100.1:1002") == C
    assert entries(datapath) == [("198.51.100.1", C, 10)]
    assert syn(datapath, "198.51.100.2:1003") == B
    rows = datapath.backends()
    shown = {name: (rows[name]["persistent"], rows[name]["active"]) for name in (A, B, C)}
    assert shown == {A: (0, 0), B: (1, 1), C: (1, 2)}


def test_an_entry_is_renewed_by_new_connections_only(datapath: Datapath) -> None:
    renew_on_new_connection_only(datapath)


def test_an_entry_whose_time_ends_while_connections_live_is_kept_60_seconds_at_a_time(
    datapath: Datapath,
) -> None:
    renew_on_new_connection_only(datapath)
    datapath.later(12)
    assert ("198.51.100.1", C, 58) in entries(datapath)
    assert syn(datapath, "198.51.100.1:1004") == C
    assert ("198.51.100.1", C, 60) in entries(datapath)
    datapath.apply(service("500"))
    assert syn(datapath, "198.51.100.1:1005") == C
    assert ("198.51.100.1", C, 60) in entries(datapath)
    assert syn(datapath, "198.51.100.9:1006") == A
    assert ("198.51.100.9", A, 500) in entries(datapath)


def test_an_entry_without_connections_ends_at_its_time(datapath: Datapath) -> None:
    datapath.apply(service("12"))
    for flags in ("S", "A", "R"):
        assert ack(datapath, "198.51.100.1:1001", flags) == C
    (connection,) = datapath.connections()
    assert (connection["state"], math.ceil(connection["expires_in"])) == ("CLOSE", 10)
    assert entries(datapath) == [("198.51.100.1", C, 12)]
    datapath.later(11)
    assert datapath.connections() == []
    assert entries(datapath) == [("198.51.100.1", C, 1)]
    datapath.later(2)
    assert entries(datapath) == []
    assert syn(datapath, "198.51.100.1:1002") == B


def test_a_udp_client_that_keeps_its_port_renews_nothing(datapath: Datapath) -> None:
    datapath.apply(service("10", port=53).replace("tcp", "udp"))
    assert datapath.backend_for(udp("198.51.100.1:1", f"{VIP}:53")) == C
    assert entries(datapath) == [("198.51.100.1", C, 10)]
    datapath.later(4)
    assert datapath.backend_for(udp("198.51.100.1:1", f"{VIP}:53")) == C
    assert entries(datapath) == [("198.51.100.1", C, 6)]


def test_a_quiesced_backend_keeps_its_clients_unless_the_setting_expires_them(
    datapath: Datapath,
) -> None:
    quiescent = "settings: {expire_nodest_conn: false, expire_quiescent_template: true}\n"
    datapath.apply(IPVS + service("10"))
    assert syn(datapath, "198.51.100.1:1001") == C
    datapath.apply(IPVS + service("10", servers(A=1, B=1, C=0)))
    assert syn(datapath, "198.51.100.1:1002") == C
    datapath.apply(quiescent + service("10", servers(A=1, B=1, C=0)))
    assert syn(datapath, "198.51.100.1:1003") == B
    datapath.apply(quiescent + service("10"))
    assert syn(datapath, "198.51.100.1:1004") == B
    assert entries(datapath) == [("198.51.100.1", B, 10)]


def test_a_controlled_connection_is_not_rescheduled(datapath: Datapath) -> None:
    quiesced = service("50", servers(A=1, B=1, C=0))
    datapath.apply(IPVS + service("50"))
    for flags in ("S", "A", "R"):
        assert ack(datapath, "198.51.100.1:1001", flags) == C
    assert [row["state"] for row in datapath.connections()] == ["CLOSE"]
    datapath.apply(IPVS + quiesced)
    assert syn(datapath, "198.51.100.1:1001") == C
    datapath.apply("settings: {expire_nodest_conn: true}\n" + quiesced)
    assert syn(datapath, "198.51.100.1:1001") == C
    both = "settings: {expire_nodest_conn: true, expire_quiescent_template: true}\n"
    datapath.apply(both + quiesced)
    assert syn(datapath, "198.51.100.1:1001") == B


def test_the_connections_and_entries_of_a_removed_backend_are_gone(datapath: Datapath) -> None:
    datapath.apply(service("60"))
    assert [ack(datapath, "198.51.100.1:1001", flags) for flags in ("S", "A")] == [C, C]
    datapath.apply(service("60", servers(A=1, B=1)))
    packet = tcp("198.51.100.1:1001", f"{VIP}:80", "A")
    assert passed_as(datapath, packet) == ("pass", {"not_opening": 1})
    assert datapath.connections() == []
    assert syn(datapath, "198.51.100.1:1002") == B
    assert entries(datapath) == [("198.51.100.1", B, 60)]


def test_packets_to_a_removed_backend_are_dropped_where_connections_do_not_expire(
    datapath: Datapath,
) -> None:
    datapath.apply(IPVS + service("60"))
    assert [ack(datapath, "198.51.100.1:1001", flags) for flags in ("S", "A")] == [C, C]
    datapath.apply(IPVS + service("60", servers(A=1, B=1)))
    packet = tcp("198.51.100.1:1001", f"{VIP}:80", "A")
    assert passed_as(datapath, packet) == ("drop", {"backend_gone": 1})
    assert syn(datapath, "198.51.100.1:1002") == B
    assert entries(datapath) == [("198.51.100.1", B, 60)]


def test_the_ftp_service_and_the_any_port_service_of_a_vip_share_entries(
    datapath: Datapath,
) -> None:
    d = "10.0.0.14"
    ftp = service("10", f"[{{address: {A}}}, {{address: {B}}}]", port=21)
    rest = service("10", f"[{{address: {C}}}, {{address: {d}}}]", port="any")
    datapath.apply(ftp + rest.partition("services:\n")[2])
    assert syn(datapath, "198.51.100.1:1001", 21) == B
    assert syn(datapath, "198.51.100.1:1002", 50000) == B
    assert syn(datapath, "198.51.100.1:1003", 80) == B
    assert syn(datapath, "198.51.100.2:1004", 80) == d
    assert syn(datapath, "198.51.100.2:1005", 21) == d


def test_the_clients_of_one_network_share_an_entry_under_a_netmask(datapath: Datapath) -> None:
    datapath.apply(service("{timeout: 10, netmask: 255.255.255.0}"))
    assert syn(datapath, "10.1.1.1:1001") == C
    assert entries(datapath) == [("10.1.1.0/24", C, 10)]
    assert syn(datapath, "10.1.1.200:1002") == C
    assert syn(datapath, "10.1.2.1:1003") == B


MARKS = f"""
marks:
  - {{mark: 7, protocol: tcp, address: {VIP}, ports: [80, 443]}}
  - {{mark: 7, protocol: udp, address: 192.0.2.11, port: 53}}
services:
  - {{mark: 7, persistence: 10, scheduler: rr, backends: {SERVERS}}}
"""


def test_what_has_one_mark_shares_an_entry_over_ports_protocols_and_vips(
    datapath: Datapath,
) -> None:
    datapath.apply(MARKS)
    assert syn(datapath, "198.51.100.1:1001", 80) == C
    assert entries(datapath) == [("198.51.100.1", C, 10)]
    assert syn(datapath, "198.51.100.1:1002", 443) == C
    assert datapath.backend_for(udp("198.51.100.1:1003", "192.0.2.11:53")) == C
    assert syn(datapath, "198.51.100.2:1004", 80) == B
    packet = tcp("198.51.100.1:1005", f"{VIP}:81")
    assert passed_as(datapath, packet) == ("pass", {"no_service": 1})


def test_an_ipv6_mark_service_shares_an_entry_over_protocols_and_vips(datapath: Datapath) -> None:
    datapath.apply(f"""
marks: [{{mark: 258, address: "2001:db8::/64", ports: [80, 53]}}]
services:
  - mark: 258
    family: ipv6
    persistence: 20
    scheduler: rr
    backends: [{{address: "{A6}"}}, {{address: "{B6}"}}, {{address: "{C6}"}}]
""")
    assert datapath.backend_for(tcp("[2001:db8:1::1]:1001", "[2001:db8::10]:80")) == C6
    assert datapath.backend_for(udp("[2001:db8:1::1]:1002", "[2001:db8::11]:53")) == C6
    assert entries(datapath) == [("2001:db8:1::1", C6, 20)]


# --------------------------------------------------------------------------- who shares an entry


def test_two_marks_share_no_entry(datapath: Datapath) -> None:
    datapath.apply(f"""
marks:
  - {{mark: 7, address: {VIP}, port: 80}}
  - {{mark: 8, address: {VIP}, port: 443}}
services:
  - {{mark: 7, persistence: 10, scheduler: rr, backends: [{{address: {A}}}]}}
  - {{mark: 8, persistence: 10, scheduler: rr, backends: [{{address: {B}}}]}}
""")
    chosen = [syn(datapath, "198.51.100.1:1001", port) for port in (80, 443)]
    assert chosen == [A, B]
    assert entries(datapath) == [("198.51.100.1", A, 10), ("198.51.100.1", B, 10)]


def test_two_ports_share_no_entry(datapath: Datapath) -> None:
    other = service("10", port=443).partition("services:\n")[2]
    datapath.apply(service("10") + other)
    assert syn(datapath, "198.51.100.1:1001", 80) == C
    assert syn(datapath, "198.51.100.2:1001", 443) == C
    assert syn(datapath, "198.51.100.1:1002", 443) == B


def test_ipv6_clients_of_one_64_share_an_entry(datapath: Datapath) -> None:
    datapath.apply(f"""
services:
  - protocol: tcp
    address: "2001:db8::10"
    port: 80
    scheduler: rr
    persistence: {{timeout: 10, netmask: 64}}
    backends: [{{address: "{A6}"}}, {{address: "{B6}"}}, {{address: "{C6}"}}]
""")
    clients = ["2001:db8:1:1::1", "2001:db8:1:1:ffff::2", "2001:db8:1:2::1", "2001:db8:1:1::3"]
    chosen = [datapath.backend_for(tcp(f"[{c}]:1001", "[2001:db8::10]:80")) for c in clients]
    assert chosen == [C6, C6, B6, C6]
    assert entries(datapath) == [("2001:db8:1:1::/64", C6, 10), ("2001:db8:1:2::/64", B6, 10)]


def test_any_bits_may_be_an_ipv4_netmask(datapath: Datapath) -> None:
    datapath.apply(service("{timeout: 10, netmask: 255.0.0.255}"))
    chosen = [syn(datapath, f"{c}:1001") for c in ("10.1.1.9", "10.2.2.9", "10.1.1.8")]
    assert chosen == [C, C, B]


# ---------------------------------------------------------------------------------- when it ends


def test_an_entry_lives_on_with_an_established_connection(datapath: Datapath) -> None:
    datapath.apply(service("5"))
    assert [ack(datapath, "198.51.100.1:1001", flags) for flags in ("S", "A")] == [C, C]
    datapath.later(6)
    assert ack(datapath, "198.51.100.1:1001", "R") == C
    assert entries(datapath) == [("198.51.100.1", C, 59)]
    datapath.later(60)
    assert entries(datapath) == []
    assert syn(datapath, "198.51.100.1:1002") == B


def test_an_entry_outlives_its_time_as_long_as_packets_keep_its_connection(
    datapath: Datapath,
) -> None:
    datapath.apply(service("5"))
    assert [ack(datapath, "198.51.100.1:1001", flags) for flags in ("S", "A")] == [C, C]
    for _ in range(3):
        datapath.later(800)
        assert ack(datapath, "198.51.100.1:1001") == C
    assert syn(datapath, "198.51.100.1:1002") == C


def test_a_strict_entry_ends_at_its_time_and_live_connections_keep_their_backend(
    datapath: Datapath,
) -> None:
    datapath.apply(service("{timeout: 10, expiry: strict}"))
    assert [ack(datapath, "198.51.100.1:1001", flags) for flags in ("S", "A")] == [C, C]
    datapath.later(9)
    assert entries(datapath) == [("198.51.100.1", C, 1)]
    datapath.later(2)
    assert entries(datapath) == []
    assert syn(datapath, "198.51.100.1:1002") == B
    assert ack(datapath, "198.51.100.1:1001") == C
    assert entries(datapath) == [("198.51.100.1", B, 10)]


def test_a_strict_entry_is_renewed_for_its_whole_time_by_a_new_connection(
    datapath: Datapath,
) -> None:
    datapath.apply(service("{timeout: 10, expiry: strict}"))
    chosen = []
    for number in range(5):
        chosen.append(syn(datapath, f"198.51.100.1:{1001 + number}"))
        datapath.later(9)
    assert chosen == [C] * 5
    assert entries(datapath) == [("198.51.100.1", C, 1)]


# --------------------------------------------------------------------------- backends that go


def drain(letters: str, drained: str) -> str:
    """The list of backends with one of them draining."""
    addresses = {"A": A, "B": B, "C": C}
    rows = (
        f"{{address: {addresses[n]}, weight: {0 if n == drained else 1}"
        f"{', draining: true' if n == drained else ''}}}"
        for n in letters
    )
    return "[" + ", ".join(rows) + "]"


def test_a_draining_backend_keeps_its_connections_and_gets_no_new_ones(datapath: Datapath) -> None:
    datapath.apply(service("60"))
    assert [ack(datapath, "198.51.100.1:1001", flags) for flags in ("S", "A")] == [C, C]
    datapath.apply(service("60", drain("ABC", "C")))
    assert syn(datapath, "198.51.100.1:1002") == B
    assert ack(datapath, "198.51.100.1:1001") == C
    assert entries(datapath) == [("198.51.100.1", B, 60)]


def test_a_backend_of_weight_0_keeps_its_persistent_clients_and_gets_no_others(
    datapath: Datapath,
) -> None:
    datapath.apply(service("60"))
    assert syn(datapath, "198.51.100.1:1001") == C
    datapath.apply(service("60", servers(A=1, B=1, C=0)))
    assert syn(datapath, "198.51.100.1:1002") == C
    others = [syn(datapath, f"198.51.100.{n}:1001") for n in (2, 3, 4)]
    assert others == [B, A, B]


def test_a_backend_that_takes_over_a_removed_ones_id_gets_none_of_its_clients(
    datapath: Datapath,
) -> None:
    datapath.apply(service("60", servers(A=1, C=1)))
    assert [ack(datapath, "198.51.100.1:1001", flags) for flags in ("S", "A")] == [C, C]
    place = datapath.balancer.state.book.services["tcp:192.0.2.10:80"].backends
    freed = place[C].id
    datapath.apply(service("60", servers(A=1)))
    datapath.apply(service("60", servers(A=1, B=1)))
    place = datapath.balancer.state.book.services["tcp:192.0.2.10:80"].backends
    assert place[B].id == freed
    before = {name: row["active"] for name, row in datapath.backends().items()}
    packet = tcp("198.51.100.1:1001", f"{VIP}:80", "A")
    assert passed_as(datapath, packet) == ("pass", {"not_opening": 1})
    assert {name: row["active"] for name, row in datapath.backends().items()} == before
    assert [entry[:2] for entry in entries(datapath)] == [("198.51.100.1", None)]
    assert syn(datapath, "198.51.100.8:1001") == B
    assert syn(datapath, "198.51.100.1:1001") == A


def test_a_backend_that_comes_back_starts_without_connections(datapath: Datapath) -> None:
    datapath.apply(service("60"))
    assert syn(datapath, "198.51.100.1:1001") == C
    datapath.apply(service("60", servers(A=1, B=1)))
    datapath.apply(service("60"))
    row = datapath.backends()[C]
    assert (row["active"], row["inactive"], row["persistent"], row["packets"]) == (0, 0, 0, 0)


@pytest.mark.parametrize("expiry", ["ipvs", "strict"])
def test_a_client_whose_backend_was_removed_is_bound_afresh(
    datapath: Datapath, expiry: str
) -> None:
    text = f"{{timeout: 60, expiry: {expiry}}}"
    datapath.apply(service(text))
    assert syn(datapath, "198.51.100.1:1001") == C
    datapath.apply(service(text, servers(A=1, B=1)))
    chosen = [syn(datapath, f"198.51.100.1:{port}") for port in (1002, 1003)]
    assert chosen == [B, B]


# ------------------------------------------------- a SYN is looked up after its client's entry


def test_a_syn_sent_again_renews_nothing_and_counts_no_connection(datapath: Datapath) -> None:
    datapath.apply(service("10"))
    assert syn(datapath, "198.51.100.1:1001") == C
    datapath.later(4)
    assert syn(datapath, "198.51.100.1:1001") == C
    assert entries(datapath) == [("198.51.100.1", C, 6)]
    assert len(datapath.connections()) == 1
    rows = datapath.backends()
    assert (rows[C]["connections"], rows[C]["active"], rows[B]["connections"]) == (1, 1, 0)


def test_a_syn_sent_again_moves_no_scheduler_on(datapath: Datapath) -> None:
    datapath.apply(
        f"services: [{{protocol: tcp, address: {VIP}, port: 80, scheduler: rr,"
        f" backends: {SERVERS}}}]"
    )
    picks = [syn(datapath, "198.51.100.1:1001") for _ in range(3)]
    assert [*picks, syn(datapath, "198.51.100.1:1002")] == [C, C, C, B]


def test_a_syn_sent_again_finds_its_connection_though_a_rule_now_excludes_it(
    datapath: Datapath,
) -> None:
    """By an exact rule, and by ordered ones, which have a program of their own."""
    datapath.apply(service("10"))
    assert syn(datapath, "198.51.100.1:1001") == C
    for rule in (f"address: {VIP}, port: 80", f"address: {VIP}, source: 198.51.100.0/24"):
        datapath.apply(f"marks: [{{mark: 0, {rule}}}]\n{service('10')}")
        assert syn(datapath, "198.51.100.1:1001") == C
        new = tcp("198.51.100.1:1002", f"{VIP}:80")
        assert passed_as(datapath, new) == ("pass", {"mark_excluded": 1})
