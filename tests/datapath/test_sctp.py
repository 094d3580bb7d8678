"""SCTP: which packets open an association, its states, and its way through rules and services."""

from __future__ import annotations

import math
from typing import Any

import pytest
from scapy.layers.inet import IP
from scapy.layers.sctp import (
    SCTPChunkAbort,
    SCTPChunkCookieAck,
    SCTPChunkCookieEcho,
    SCTPChunkData,
    SCTPChunkError,
    SCTPChunkHeartbeatReq,
    SCTPChunkInit,
    SCTPChunkInitAck,
    SCTPChunkSACK,
    SCTPChunkShutdown,
    SCTPChunkShutdownAck,
    SCTPChunkShutdownComplete,
)
from scapy.packet import Raw

from tests.datapath.harness import Datapath, sctp, tcp

A, B, C = "10.0.0.11", "10.0.0.12", "10.0.0.13"
CLIENT, VIP = "198.51.100.7:1001", "192.0.2.10:2905"
THREE = f"[{{address: {A}}}, {{address: {B}}}, {{address: {C}}}]"
SIGNALLING = f"""
services:
  - {{protocol: sctp, address: 192.0.2.10, port: 2905, scheduler: rr, backends: {THREE}}}
"""
CHUNKS = {
    "INIT": lambda: SCTPChunkInit(init_tag=7),
    "INIT_ACK": lambda: SCTPChunkInitAck(init_tag=7),
    "COOKIE_ECHO": lambda: SCTPChunkCookieEcho(cookie=b"abcde"),
    "COOKIE_ACK": SCTPChunkCookieAck,
    "DATA": lambda: SCTPChunkData(data=b"x" * 5),
    "SACK": SCTPChunkSACK,
    "HEARTBEAT": SCTPChunkHeartbeatReq,
    "SHUTDOWN": SCTPChunkShutdown,
    "SHUTDOWN_ACK": SCTPChunkShutdownAck,
    "SHUTDOWN_COMPLETE": SCTPChunkShutdownComplete,
    "ERROR": SCTPChunkError,
    "ABORT": SCTPChunkAbort,
    # a type that nobody knows
    "OTHER": lambda: Raw(bytes([200, 0, 0, 4])),
}


def packet(chunks: str, client: str = CLIENT, virtual: str = VIP) -> Any:
    """A packet of the chunks that are named, with + between them."""
    return sctp(client, virtual, *(CHUNKS[name]() for name in chunks.split("+")))


def play(datapath: Datapath, packets: list[str], client: str = CLIENT) -> list[str | None]:
    """Sends a client's packets; the backends that they went to."""
    return [datapath.backend_for_soon(packet(chunks, client)) for chunks in packets]


def states(datapath: Datapath) -> list[tuple[str, int]]:
    """Each connection's state and whole seconds left."""
    return [(row["state"], math.ceil(row["expires_in"])) for row in datapath.connections()]


def carried(datapath: Datapath, backend: str = C) -> tuple[int, int]:
    """A backend's active and inactive connections."""
    row = datapath.backends()[backend]
    return row["active"], row["inactive"]


OPEN = ["INIT", "COOKIE_ECHO"]
# sctp_states of the vectors file, then its table for this view, row by row
ROWS = [
    (["INIT"], "INIT1", 4),
    (OPEN, "ESTABLISHED", 900),
    ([*OPEN, "DATA"], "ESTABLISHED", 900),
    (["INIT", "INIT"], "INIT", 61),
    (["INIT", "DATA"], "INIT1", 4),
    (["INIT", "INIT_ACK"], "C-ECHOED", 61),
    (["INIT", "INIT_ACK", "COOKIE_ACK"], "ESTABLISHED", 900),
    (["INIT", "SHUTDOWN_ACK"], "INIT", 61),
    (["INIT", "ABORT"], "CLOSED", 61),
    ([*OPEN, "SACK", "HEARTBEAT", "OTHER", "ERROR"], "ESTABLISHED", 900),
    ([*OPEN, "SHUTDOWN"], "S-RECEIVED", 61),
    ([*OPEN, "SHUTDOWN", "SHUTDOWN_COMPLETE"], "CLOSED", 61),
    ([*OPEN, "SHUTDOWN_ACK"], "CLOSED", 61),
    ([*OPEN, "ABORT"], "CLOSED", 61),
    ([*OPEN, "ABORT", "DATA"], "CLOSED", 61),
    # an ABORT in the same packet counts after these two alone
    (["INIT", "COOKIE_ECHO+DATA"], "ESTABLISHED", 900),
    (["INIT", "COOKIE_ECHO+ABORT"], "CLOSED", 61),
    ([*OPEN, "COOKIE_ACK+ABORT"], "CLOSED", 61),
    ([*OPEN, "SACK+ABORT"], "ESTABLISHED", 900),
    ([*OPEN, "DATA+SHUTDOWN"], "ESTABLISHED", 900),
]


@pytest.mark.parametrize(
    ("packets", "state", "timeout"), ROWS, ids=["-".join(row[0]) for row in ROWS]
)
def test_an_associations_states_are_ipvss(
    datapath: Datapath, packets: list[str], state: str, timeout: int
) -> None:
    datapath.apply(SIGNALLING)
    assert play(datapath, packets) == [C] * len(packets)
    assert states(datapath) == [(state, timeout)]
    assert carried(datapath) == ((1, 0) if state == "ESTABLISHED" else (0, 1))


@pytest.mark.parametrize("chunk", sorted(set(CHUNKS) - {"INIT"}))
def test_only_an_init_opens_an_association(datapath: Datapath, chunk: str) -> None:
    datapath.apply(SIGNALLING)
    assert play(datapath, [chunk]) == [None]
    assert (states(datapath), datapath.reasons()) == ([], {"not_opening": 1})


def test_a_packet_without_a_chunk_goes_up(datapath: Datapath) -> None:
    datapath.apply(SIGNALLING)
    assert datapath.deliver(sctp(CLIENT, VIP)).action == "pass"
    assert datapath.reasons() == {"malformed": 1}


def test_a_packet_is_forwarded_as_it_came_but_for_macs_and_ttl(datapath: Datapath) -> None:
    datapath.apply(SIGNALLING)
    verdict = datapath.deliver(packet("INIT"))
    expected = IP(bytes(packet("INIT")))
    expected.ttl -= 1
    del expected.chksum
    assert verdict.frame[14:] == bytes(expected)


def test_every_packet_gives_an_association_its_whole_time_again(datapath: Datapath) -> None:
    datapath.apply(SIGNALLING)
    play(datapath, OPEN)
    datapath.later(899)
    assert play(datapath, ["DATA"]) == [C]
    assert states(datapath) == [("ESTABLISHED", 900)]
    datapath.later(901)
    assert play(datapath, ["DATA"]) == [None]


def test_tcp_and_sctp_of_the_same_ends_are_two_connections(datapath: Datapath) -> None:
    both = SIGNALLING + f"  - {{protocol: tcp, address: 192.0.2.10, port: 2905, backends: {THREE}}}"
    datapath.apply(both)
    play(datapath, OPEN)
    datapath.backend_for(tcp(CLIENT, VIP))
    shown = sorted((row["protocol"], row["state"]) for row in datapath.connections())
    assert shown == [("sctp", "ESTABLISHED"), ("tcp", "SYN_RECV")]


def test_an_association_over_ipv6(datapath: Datapath) -> None:
    datapath.apply("""
services:
  - protocol: sctp
    address: "2001:db8::10"
    port: 2905
    backends: [{address: "2001:db8:0:2::11"}]
""")
    ends = ("[2001:db8:1::7]:1001", "[2001:db8::10]:2905")
    for chunks in OPEN:
        assert datapath.backend_for(packet(chunks, *ends)) == "2001:db8:0:2::11"
    (row,) = datapath.connections()
    assert (row["client"], row["protocol"], row["state"]) == (ends[0], "sctp", "ESTABLISHED")


# ------------------------------------------------------------------------------ marks, persistence

MARKED = f"""
marks:
  - {{mark: 1, address: 192.0.2.10, RULE}}
services:
  - {{mark: 1, scheduler: rr, persistence: 300, backends: {THREE}}}
"""


@pytest.mark.parametrize("rule", ["ports: [80, 2905]", "port: 2000-3000"], ids=["exact", "range"])
def test_a_mark_rule_without_protocols_is_met_by_sctp(datapath: Datapath, rule: str) -> None:
    datapath.apply(MARKED.replace("RULE", rule))
    assert play(datapath, ["INIT"]) == [C]
    assert [row["mark"] for row in datapath.connections()] == [1]


@pytest.mark.parametrize("rule", ["port: 2905", "port: 2000-3000"], ids=["exact", "range"])
def test_a_mark_rule_of_other_protocols_is_not_met_by_sctp(datapath: Datapath, rule: str) -> None:
    datapath.apply(MARKED.replace("RULE", f"{rule}, protocols: [tcp, udp]"))
    assert play(datapath, ["INIT"]) == [None]


def test_a_clients_tcp_and_sctp_under_one_mark_go_to_one_backend(datapath: Datapath) -> None:
    datapath.apply(MARKED.replace("RULE", "ports: [80, 2905]"))
    assert datapath.backend_for(tcp("198.51.100.7:5000", "192.0.2.10:80")) == C
    assert play(datapath, ["INIT"]) == [C]
    assert play(datapath, ["INIT"], "198.51.100.8:1001") == [B]
    assert sorted(row["connections"] for row in datapath.persistence()) == [1, 2]


def test_an_established_association_holds_its_persistence_entry(datapath: Datapath) -> None:
    datapath.apply(SIGNALLING.replace("rr,", "rr, persistence: 10,"))
    play(datapath, OPEN)
    datapath.later(11)
    assert play(datapath, ["INIT"], "198.51.100.7:1002") == [C]
    play(datapath, ["INIT", "ABORT"], "198.51.100.9:1001")
    # re-armed for 60 s while the first client's association lives
    assert {row["client"] for row in datapath.persistence()} == {"198.51.100.7", "198.51.100.9"}


# ------------------------------------------------------------------------------------------- reuse


@pytest.mark.parametrize(
    ("mode", "before", "backend"),
    [
        (1, [*OPEN, "ABORT"], B),
        (2, [*OPEN, "ABORT"], B),
        (0, [*OPEN, "ABORT"], C),
        (3, [*OPEN, "SHUTDOWN"], C),
        (3, OPEN, C),
        (3, ["INIT"], C),
    ],
)
def test_an_init_on_an_association_starts_afresh_only_where_it_is_closed(
    datapath: Datapath, mode: int, before: list[str], backend: str
) -> None:
    datapath.apply(f"settings: {{conn_reuse_mode: {mode}}}\n" + SIGNALLING)
    play(datapath, before)
    assert play(datapath, ["INIT"]) == [backend]


def test_a_persistent_clients_closed_association_goes_on(datapath: Datapath) -> None:
    datapath.apply(SIGNALLING.replace("rr,", "rr, persistence: 300,"))
    play(datapath, [*OPEN, "ABORT"])
    assert play(datapath, ["INIT"]) == [C]
    # CLOSED and an INIT: IPVS's table says INIT, where a new one would be INIT1
    assert states(datapath) == [("INIT", 61)]


@pytest.mark.parametrize(("expire", "backend"), [("false", C), ("true", B)])
def test_an_init_of_a_quiesced_backend_goes_on_unless_such_ones_expire(
    datapath: Datapath, expire: str, backend: str
) -> None:
    settings = f"settings: {{expire_nodest_conn: {expire}}}\n"
    datapath.apply(settings + SIGNALLING)
    play(datapath, OPEN)
    quiesced = SIGNALLING.replace(f"{{address: {C}}}", f"{{address: {C}, weight: 0}}")
    datapath.apply(settings + quiesced)
    assert play(datapath, ["INIT"]) == [backend]
