"""Settings as packets meet them: sloppy_tcp and sloppy_sctp, secure_tcp, the timeouts."""

from __future__ import annotations

import math

import pytest

from tests.datapath.harness import Datapath, tcp, udp
from tests.datapath.test_sctp import SIGNALLING
from tests.datapath.test_sctp import play as play_sctp

A, B, C = "10.0.0.11", "10.0.0.12", "10.0.0.13"
CLIENT, VIP = "198.51.100.7:1001", "192.0.2.10:80"
THREE = f"[{{address: {A}}}, {{address: {B}}}, {{address: {C}}}]"
WEB = f"""
services:
  - {{protocol: tcp, address: 192.0.2.10, port: 80, scheduler: rr, backends: {THREE}}}
  - {{protocol: udp, address: 192.0.2.10, port: 53, scheduler: rr, backends: {THREE}}}
"""


def play(datapath: Datapath, packets: list[str], client: str = CLIENT) -> list[str | None]:
    """Sends a client's TCP packets, by their flags; the backends that they went to."""
    return [datapath.backend_for_soon(tcp(client, VIP, flags)) for flags in packets]


def states(datapath: Datapath) -> list[tuple[str, int]]:
    """Each connection's state and whole seconds left."""
    return [(row["state"], math.ceil(row["expires_in"])) for row in datapath.connections()]


# ------------------------------------------------------------------------------------------ sloppy


@pytest.mark.parametrize(
    ("flags", "state"),
    [
        ("A", ("ESTABLISHED", 900)),
        ("FA", ("CLOSE", 10)),
        ("", ("CLOSE", 10)),
        ("SA", ("SYN_RECV", 60)),
    ],
)
def test_under_sloppy_tcp_any_packet_opens_a_connection(
    datapath: Datapath, flags: str, state: tuple[str, int]
) -> None:
    datapath.apply("settings: {sloppy_tcp: true}\n" + WEB)
    assert play(datapath, [flags]) == [C]
    assert states(datapath) == [state]


@pytest.mark.parametrize("flags", ["R", "RA", "SR"])
def test_under_sloppy_tcp_a_reset_opens_none(datapath: Datapath, flags: str) -> None:
    datapath.apply("settings: {sloppy_tcp: true}\n" + WEB)
    assert (play(datapath, [flags]), states(datapath)) == ([None], [])


def test_sloppy_tcp_is_of_tcp_alone(datapath: Datapath) -> None:
    datapath.apply("settings: {sloppy_tcp: true}\n" + SIGNALLING)
    assert play_sctp(datapath, ["DATA"]) == [None]


@pytest.mark.parametrize(
    ("chunks", "state"),
    [
        ("DATA", ("ESTABLISHED", 900)),
        ("COOKIE_ECHO", ("ESTABLISHED", 900)),
        ("SHUTDOWN", ("S-RECEIVED", 61)),
        ("COOKIE_ECHO+ABORT", ("CLOSED", 61)),
    ],
)
def test_under_sloppy_sctp_any_packet_opens_an_association(
    datapath: Datapath, chunks: str, state: tuple[str, int]
) -> None:
    datapath.apply("settings: {sloppy_sctp: true}\n" + SIGNALLING)
    assert play_sctp(datapath, [chunks]) == [C]
    assert states(datapath) == [state]


def test_under_sloppy_sctp_an_abort_opens_none(datapath: Datapath) -> None:
    datapath.apply("settings: {sloppy_sctp: true}\n" + SIGNALLING)
    assert (play_sctp(datapath, ["ABORT"]), states(datapath)) == ([None], [])


# ------------------------------------------------------------------------------------- secure_tcp

# tcp_states.input_only_secure_tcp of the vectors file
SECURE = [
    (["S"], ("SYNACK", 120)),
    (["S", "A"], ("ESTABLISHED", 900)),
    (["S", "A", "FA"], ("FIN_WAIT", 120)),
    (["S", "R"], ("CLOSE", 10)),
    (["S", "FA"], ("TIME_WAIT", 120)),
    (["S", "A", "FA", "S"], ("SYNACK", 120)),
]


@pytest.mark.parametrize(("packets", "state"), SECURE, ids=["-".join(row[0]) for row in SECURE])
def test_under_secure_tcp_states_are_ipvss(
    datapath: Datapath, packets: list[str], state: tuple[str, int]
) -> None:
    datapath.apply("settings: {secure_tcp: 3}\n" + WEB)
    play(datapath, packets)
    assert states(datapath) == [state]


def test_secure_tcp_counts_from_the_next_packet_of_a_connection_on(datapath: Datapath) -> None:
    datapath.apply(WEB)
    play(datapath, ["S", "A", "FA"])
    datapath.apply("settings: {secure_tcp: 3}\n" + WEB)
    assert states(datapath) == [("FIN_WAIT", 120)]
    play(datapath, ["S"])
    assert states(datapath) == [("SYNACK", 120)]
    datapath.apply(WEB)
    play(datapath, ["S"])
    assert states(datapath) == [("SYN_RECV", 60)]


# ---------------------------------------------------------------------------------------- timeouts

SHORT = "settings: {timeout_tcp: 30, timeout_tcpfin: 20, timeout_udp: 10}\n"


def test_timeouts_that_are_set_are_those_of_their_states(datapath: Datapath) -> None:
    datapath.apply(SHORT + WEB)
    play(datapath, ["S", "A"], "198.51.100.1:1001")
    play(datapath, ["S", "A", "FA"], "198.51.100.2:1001")
    play(datapath, ["S"], "198.51.100.3:1001")
    datapath.backend_for(udp("198.51.100.4:1001", "192.0.2.10:53"))
    assert sorted(states(datapath)) == [
        ("ESTABLISHED", 30),
        ("FIN_WAIT", 20),
        ("SYN_RECV", 60),
        ("UDP", 10),
    ]
    datapath.later(11)
    assert sorted(state for state, _ in states(datapath)) == ["ESTABLISHED", "FIN_WAIT", "SYN_RECV"]
    datapath.later(10)
    assert sorted(state for state, _ in states(datapath)) == ["ESTABLISHED", "SYN_RECV"]
    datapath.later(10)
    assert play(datapath, ["A"], "198.51.100.1:1001") == [None]


def test_a_timeout_that_is_set_holds_for_connections_that_there_are(datapath: Datapath) -> None:
    datapath.apply(WEB)
    play(datapath, ["S", "A"])
    datapath.apply(SHORT + WEB)
    assert states(datapath) == [("ESTABLISHED", 30)]
    datapath.apply(WEB)
    assert states(datapath) == [("ESTABLISHED", 900)]


# ------------------------------------------------------------------------------------- drop_packet


def kept(datapath: Datapath, number: int, port: int = 2000) -> list[bool]:
    """Which of so many new connections' first packets a backend gets; the others are dropped."""
    found = []
    for each in range(number):
        verdict = datapath.deliver(tcp(f"198.51.100.7:{port + each}", VIP))
        assert verdict.action in ("redirect", "drop")
        found.append(verdict.action == "redirect")
    return found


def test_drop_packet_takes_the_first_of_each_so_many(datapath: Datapath) -> None:
    datapath.apply("settings: {drop_packet: 3, am_droprate: 3}\n" + WEB)
    assert kept(datapath, 7) == [False, True, True, False, True, True, False]
    assert datapath.reasons() == {"drop_packet": 3, "forwarded": 4}
    datapath.apply("settings: {drop_packet: 3, am_droprate: 1}\n" + WEB)
    assert kept(datapath, 3, port=3000) == [False] * 3
    datapath.apply("settings: {drop_packet: 0, am_droprate: 1}\n" + WEB)
    assert kept(datapath, 3, port=4000) == [True] * 3


def test_drop_packet_counts_only_what_may_open_a_connection_of_a_service(
    datapath: Datapath,
) -> None:
    datapath.apply("settings: {drop_packet: 3, am_droprate: 2}\n" + WEB)
    assert kept(datapath, 2) == [False, True]
    # the third would be dropped: none of these is one
    for flags, client, virtual in (
        ("A", "198.51.100.7:2001", VIP),
        ("S", "198.51.100.7:2001", VIP),
        ("A", "198.51.100.7:9999", VIP),
        ("S", "198.51.100.7:9999", "192.0.2.10:81"),
    ):
        assert datapath.deliver(tcp(client, virtual, flags)).action != "drop"
    assert kept(datapath, 2, port=3000) == [False, True]


def test_drop_packet_takes_clients_with_a_persistence_entry_too(datapath: Datapath) -> None:
    text = WEB.replace("scheduler: rr", "scheduler: rr, persistence: 60")
    datapath.apply("settings: {drop_packet: 3, am_droprate: 2}\n" + text)
    assert kept(datapath, 4) == [False, True, False, True]


def test_drop_packet_counts_what_comes_to_an_ftp_service_by_another_port(
    datapath: Datapath,
) -> None:
    # seen of Linux 6.12.117: a service that is not persistent gets no such packet, and it counts
    ftp = f"{{protocol: tcp, address: 192.0.2.10, port: 21, scheduler: rr, backends: {THREE}}}"
    datapath.apply(f"settings: {{drop_packet: 3, am_droprate: 3}}\nservices: [{ftp}]\n")
    control, data = "192.0.2.10:21", "192.0.2.10:5000"
    sent = [(2000, control), (2001, data), (2002, data), (2003, control), (2004, control)]
    found = [datapath.deliver(tcp(f"198.51.100.7:{port}", to)).action for port, to in sent]
    assert found == ["drop", "pass", "pass", "drop", "redirect"]
