"""One-packet scheduling: every UDP packet by itself, nothing kept but the client's persistence."""

from __future__ import annotations

import math

import pytest

from lvsxdp import views
from tests.datapath.harness import Datapath, tcp, udp
from tests.datapath.test_connections import counted

A, B, C = "10.0.0.11", "10.0.0.12", "10.0.0.13"
CLIENT, VIP = "198.51.100.7:1001", "192.0.2.10:53"
THREE = f"[{{address: {A}}}, {{address: {B}}}, {{address: {C}}}]"
ONE = "scheduler: rr, one_packet: true"
DNS = f"services: [{{protocol: udp, address: 192.0.2.10, port: 53, {ONE}, backends: {THREE}}}]"
KEPT = DNS.replace("true,", "true, persistence: 10,")
MARKED = f"""
marks: [{{mark: 1, address: 192.0.2.10, ports: [53, 80]}}]
services: [{{mark: 1, {ONE}, backends: {THREE}}}]
"""


def ask(datapath: Datapath, times: int, client: str = CLIENT) -> list[str | None]:
    """Sends a client's packets from one port; the backends that they went to."""
    return [datapath.backend_for_soon(udp(client, VIP)) for _ in range(times)]


def kept(datapath: Datapath) -> list[tuple[str, str, int, int]]:
    """Each persistence entry: client, backend, whole seconds left, connections."""
    return [
        (row["client"], row["backend"], math.ceil(row["expires_in"]), row["connections"])
        for row in datapath.persistence()
    ]


def test_every_packet_gets_a_backend_by_itself_and_leaves_no_connection(datapath: Datapath) -> None:
    datapath.apply(DNS)
    assert ask(datapath, 4) == [C, B, A, C]
    assert datapath.connections() == []
    row = datapath.backends()[C]
    assert (row["active"], row["inactive"]) == (0, 0)


def test_connections_and_packets_rise_together(datapath: Datapath) -> None:
    datapath.apply(DNS)
    ask(datapath, 4)
    (service,) = views.services(datapath.balancer)
    assert counted(service) == (4, 4, 4 * 28)
    assert counted(datapath.backends()[C]) == (2, 2, 2 * 28)


def test_over_ipv6_too(datapath: Datapath) -> None:
    datapath.apply(f"""
services:
  - protocol: udp
    address: "2001:db8::10"
    port: 53
    {ONE.replace(", ", chr(10) + "    ")}
    backends: [{{address: "2001:db8:0:2::11"}}, {{address: "2001:db8:0:2::12"}}]
""")
    packet = udp("[2001:db8:1::7]:1001", "[2001:db8::10]:53")
    found = [datapath.backend_for(packet) for _ in range(3)]
    assert found == ["2001:db8:0:2::12", "2001:db8:0:2::11", "2001:db8:0:2::12"]
    assert datapath.connections() == []


def test_without_a_backend_every_packet_is_refused(datapath: Datapath) -> None:
    datapath.apply(DNS.replace(THREE, f"[{{address: {C}, weight: 0}}]"))
    assert ask(datapath, 2) == [None, None]
    assert datapath.reasons() == {"no_backend": 2}


# ------------------------------------------------------------------------------------ persistence


def test_every_packet_renews_its_clients_entry(datapath: Datapath) -> None:
    # persistence.ops-renews-on-every-packet of the vectors file
    datapath.apply(KEPT)
    assert ask(datapath, 3) == [C, C, C]
    datapath.later(3)
    assert ask(datapath, 1) == [C]
    assert kept(datapath) == [("198.51.100.7", C, 10, 0)]
    assert datapath.connections() == []
    assert counted(datapath.backends()[C])[:2] == (4, 4)


def test_an_entry_ends_at_its_time_for_no_connection_holds_it(datapath: Datapath) -> None:
    datapath.apply(KEPT)
    ask(datapath, 3)
    datapath.later(11)
    assert kept(datapath) == []
    assert ask(datapath, 1) == [B]


def test_a_packet_does_not_lengthen_what_connections_hold(datapath: Datapath) -> None:
    datapath.apply(MARKED.replace("true,", "true, persistence: 10,"))
    assert datapath.backend_for(tcp("198.51.100.7:2000", "192.0.2.10:80")) == C
    datapath.later(5)
    assert ask(datapath, 1) == [C]
    # SYN_RECV lives until 60: the timer that ended at 15 was armed again, and ends at 75
    datapath.later(56)
    assert [(c, b, n) for c, b, _, n in kept(datapath)] == [("198.51.100.7", C, 1)]
    datapath.later(15)
    assert kept(datapath) == []


@pytest.mark.parametrize("service", [KEPT, MARKED.replace("true,", "true, persistence: 10,")])
def test_a_client_keeps_its_backend(datapath: Datapath, service: str) -> None:
    datapath.apply(service)
    assert ask(datapath, 3) == [C, C, C]
    assert ask(datapath, 2, "198.51.100.8:1001") == [B, B]


# ------------------------------------------------------------------------------------------- marks


def test_of_a_mark_service_only_udp_goes_packet_by_packet(datapath: Datapath) -> None:
    datapath.apply(MARKED)
    assert ask(datapath, 2) == [C, B]
    web = ("198.51.100.7:2000", "192.0.2.10:80")
    found = [datapath.backend_for(tcp(*web, flags)) for flags in ("S", "A", "A")]
    assert found == [A, A, A]
    assert [row["protocol"] for row in datapath.connections()] == ["tcp"]


def test_a_packet_may_overload_a_backend_that_it_is_on_for_a_moment(datapath: Datapath) -> None:
    limits = "upper_threshold: 2, lower_threshold: 1"
    datapath.apply(MARKED.replace(f"{{address: {C}}}", f"{{address: {C}, {limits}}}"))
    web = [f"198.51.100.{n}:2000" for n in range(1, 5)]
    assert datapath.backend_for(tcp(web[0], "192.0.2.10:80")) == C
    assert ask(datapath, 3) == [B, A, C]
    # two for the moment of the last one, and not below one since
    assert [datapath.backend_for(tcp(each, "192.0.2.10:80")) for each in web[1:]] == [B, A, B]


# ------------------------------------------------------------------------------------------ edits


def test_a_connection_that_there_is_goes_on_when_the_service_is_made_one_packet(
    datapath: Datapath,
) -> None:
    datapath.apply(DNS.replace("true", "false"))
    assert ask(datapath, 2) == [C, C]
    datapath.apply(DNS)
    assert ask(datapath, 2) == [C, C]
    assert ask(datapath, 3, "198.51.100.8:1001") == [B, A, C]
    assert len(datapath.connections()) == 1


def test_a_service_that_is_one_packet_no_more_keeps_connections(datapath: Datapath) -> None:
    datapath.apply(DNS)
    ask(datapath, 1)
    datapath.apply(DNS.replace("true", "false"))
    assert ask(datapath, 3) == [B, B, B]
    assert len(datapath.connections()) == 1


def test_a_service_may_be_sloppy_by_itself(datapath: Datapath) -> None:
    web = f"protocol: tcp, address: 192.0.2.10, scheduler: rr, backends: {THREE}"
    datapath.apply(f"""
services:
  - {{{web}, port: 80, sloppy_tcp: true}}
  - {{{web}, port: 81}}
""")
    assert datapath.backend_for(tcp(CLIENT, "192.0.2.10:80", "A")) == C
    assert datapath.backend_for(tcp(CLIENT, "192.0.2.10:81", "A")) is None
    assert [row["state"] for row in datapath.connections()] == ["ESTABLISHED"]
