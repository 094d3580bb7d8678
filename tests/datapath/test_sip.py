"""Persistence engine sip: calls by their Call-IDs, found where Linux 6.12.117 found them."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6

from lvsxdp import views
from tests.datapath.harness import Datapath

A, B, C = "10.0.0.11", "10.0.0.12", "10.0.0.13"
CLIENT, OTHER = "198.51.100.7", "198.51.100.8"
VIP, VIP6 = "192.0.2.10", "2001:db8::10"
TCP_SYN = TCP(sport=5060, dport=5060, flags="S")
CLIENT6, A6, B6 = "2001:db8:1::7", "2001:db8:0:2::11", "2001:db8:0:2::12"
PHONE = f"""
services:
  - {{protocol: udp, address: {VIP}, port: 5060, scheduler: rr,
     persistence: {{timeout: 60, engine: sip}},
     backends: [{{address: {A}}}, {{address: {B}}}, {{address: {C}}}]}}
  - {{protocol: udp, address: "{VIP6}", port: 5060, scheduler: rr,
     persistence: {{timeout: 60, engine: sip}},
     backends: [{{address: "{A6}"}}, {{address: "{B6}"}}]}}
"""
INVITE = b"INVITE sip:x SIP/2.0\r\n"
BROKEN = b"Call-ID: @\r\n"
# What was sent to IPVS of Linux 6.12.117, and the data that its template then had, or None where
# there was neither template nor connection.
SEEN: list[tuple[bytes, bytes | None]] = [
    (INVITE + b"Call-ID: aa@x\r\n\r\n", b"aa@x"),
    (INVITE + b"call-id: a1@x\r\n\r\n", b"a1@x"),
    (INVITE + b"CALL-ID: d6@x\r\n", b"d6@x"),
    (INVITE + b"i: a2@x\r\n\r\n", b"a2@x"),
    (INVITE + b"I: d7@x\r\n", b"d7@x"),
    (INVITE + b"ix: zz\r\nCall-ID: a3@x\r\n\r\n", b"a3@x"),
    (b"Call-ID: a4@x\r\n\r\n", None),
    (INVITE + b"Call-ID:\r\n a5@x\r\n\r\n", b"a5@x"),
    (INVITE + b"Call-ID:\r\n\ta6@x\r\n\r\n", b"a6@x"),
    (INVITE + b"Call-ID:\r\n   e1@x\r\n", b"e1@x"),
    (INVITE + b"Call-ID: \r\n \r\n d9@x\r\n", None),
    (INVITE + b"Call-ID\r\n : a7@x\r\n\r\n", b"a7@x"),
    (INVITE + b"i\r\n : d8@x\r\n", b"d8@x"),
    (INVITE + b"Call-ID:\ta8@x\r\n\r\n", b"a8@x"),
    (INVITE + b"Call-ID   :   a9@x\r\n\r\n", b"a9@x"),
    (b"INVITE x\nCall-ID: b1@x\n\n", b"b1@x"),
    (b"INVITE x\rCall-ID: b2@x\r\r", b"b2@x"),
    (INVITE + b"Call-ID: b3\r\n", b"b3"),
    (INVITE + b"Call-ID: b4@x@y\r\n", None),
    (INVITE + b"Call-ID: b5@\r\nCall-ID: b6@x\r\n", b"b6@x"),
    (INVITE + b"Call-ID: b7@x \r\n", None),
    (INVITE + b"Call-ID: b8@x;y\r\n", None),
    (INVITE + b"Call-ID: b9,@x\r\n", None),
    (INVITE + b"Call-ID: c1@x", None),
    (INVITE + b"Call-ID: c2@x\r", b"c2@x"),
    (INVITE + b"Call-ID: \r\nCall-ID: c3@x\r\n", None),
    (INVITE + b"Call-ID:\r\nCall-ID: c4@x\r\n", None),
    (INVITE + b"Call-IDs: zz\r\nCall-ID: c5@x\r\n", None),
    (INVITE + b"\r\nCall-ID: c6@x\r\n", b"c6@x"),
    (b"INVITE x\n\nCall-ID: c7@x\n", None),
    (INVITE + b"X: y\r\n Call-ID: zz@x\r\nCall-ID: c8@x\r\n", b"c8@x"),
    (INVITE + b"Call-ID: c9@x\r\nCall-ID: d1@x\r\n", b"c9@x"),
    (INVITE + b"Call-ID: " + b"q" * 255 + b"\r\n", b"q" * 255),
    (INVITE + b"Call-ID: " + b"r" * 256 + b"\r\n", None),
    (
        INVITE + b"Call-ID: d2!%*()_+`'~<>:\\\"/[]?{}-.@x\r\n",
        b"d2!%*()_+`'~<>:\\\"/[]?{}-.@x",
    ),
    (INVITE + b"Call-ID: d3#4\r\n", None),
    (INVITE + b"Call-ID: d4\xe9\r\n", b"d4\xe9"),
    (
        INVITE + b"".join(b"X-%d: %s\r\n" % (n, b"y" * 60) for n in range(18)) + b"i: d5@x\r\n",
        b"d5@x",
    ),
    (INVITE + BROKEN + b"Call-ID: f1@x\r\n", b"f1@x"),
    (INVITE + BROKEN * 2 + b"Call-ID: f2@x\r\n", None),
    (INVITE + BROKEN * 2 + b"X: " + b"y" * 100 + b"\r\nCall-ID: f3@x\r\n", b"f3@x"),
    (INVITE + BROKEN * 3 + b"X: " + b"y" * 40 + b"\r\nCall-ID: f4@x\r\n", b"f4@x"),
    (INVITE + b"Call-ID: b@\r\ni: c@ \r\nCall-ID: g4@x\r\n", None),
    (INVITE + b"Call-ID: " + b"q" * 300 + b"@\r\nCall-ID: f5@x\r\n", b"f5@x"),
    (INVITE + b"Call-ID: " + b"q" * 200 + b"@" + b"r" * 200 + b"\r\nCall-ID: f6@x\r\n", None),
    (INVITE + b"Call-ID: " + b"q" * 300 + b"\r\nCall-ID: f6@x\r\n", None),
    (INVITE + b"Call-ID: f7\xd7\r\n", None),
    (INVITE + b"i\xe9: zz\r\nCall-ID: f8@x\r\n", b"f8@x"),
    (INVITE + b"i\xb5: zz\r\nCall-ID: f9@x\r\n", None),
    (INVITE + b"X\0: y\r\nCall-ID: g1@x\r\n", b"g1@x"),
    (INVITE + b" Call-ID: g3@x\r\n", None),
    (b"", None),
    (INVITE + b"X: y\r\n\r\n", None),
    (INVITE + b"Call-I", None),
    (INVITE + b"Call-ID:", None),
]


def call(datapath: Datapath, text: bytes, port: int, client: str = CLIENT) -> str | None:
    """The backend that gets a datagram; None where it is dropped."""
    layer = IPv6 if ":" in client else IP
    packet = layer(src=client, dst=VIP6 if ":" in client else VIP)
    # else one packet a second takes the kernel's road, and has no backend's address yet
    datapath.confirm()
    verdict = datapath.deliver(packet / UDP(sport=port, dport=5060) / text)
    if verdict.action == "drop":
        return None
    return datapath.backend_of(verdict)


def message(identity: str) -> bytes:
    return INVITE + f"Via: x\r\nCall-ID: {identity}\r\n\r\n".encode()


def entries(datapath: Datapath) -> dict[str, tuple[str, str]]:
    """Client and backend of each persistence entry, by its Call-ID."""
    rows = datapath.persistence()
    assert {row["engine"] for row in rows} <= {"sip"}
    return {row["data"]: (row["client"], row["backend"]) for row in rows}


@pytest.mark.parametrize(("text", "found"), SEEN)
def test_a_call_id_is_found_where_ipvs_finds_it(
    datapath: Datapath, text: bytes, found: bytes | None
) -> None:
    datapath.apply(PHONE)
    for client, first in ((CLIENT, C), (CLIENT6, B6)):
        got = call(datapath, text, 2000, client)
        data = [row["data"] for row in datapath.persistence() if row["client"] == client]
        assert (got, data) == (
            (first, [found.decode("latin-1")]) if found is not None else (None, [])
        )
    assert set(datapath.reasons()) == ({"no_call_id"} if found is None else {"forwarded"})
    assert len(datapath.connections()) == (0 if found is None else 2)


@pytest.mark.parametrize(("before", "found"), [(2540, True), (2560, False)])
def test_a_call_id_is_looked_for_so_far_and_no_farther(
    datapath: Datapath, before: int, found: bool
) -> None:
    datapath.apply(PHONE)
    text = INVITE.ljust(before - 2, b"x") + b"\r\ni:a@x\r\n" + b"y" * 500
    # it is larger than the backend's link, and so TC's to refuse
    call(datapath, text, 2000)
    assert list(entries(datapath)) == (["a@x"] if found else [])


def test_a_client_has_a_backend_for_each_of_its_calls(datapath: Datapath) -> None:
    datapath.apply(PHONE)
    assert call(datapath, message("aa@x"), 5060) == C
    assert call(datapath, message("bb@x"), 5061) == B
    assert call(datapath, message("aa@x"), 5062) == C
    assert call(datapath, message("aa@x"), 5063, OTHER) == A
    assert call(datapath, message("bb@x"), 5064) == B
    assert call(datapath, INVITE, 5065, OTHER) is None
    # a connection that is there is followed, whatever it carries
    assert call(datapath, INVITE, 5060) == C
    assert sorted((row["data"], row["client"], row["backend"]) for row in datapath.persistence()) \
        == [("aa@x", CLIENT, C), ("aa@x", OTHER, A), ("bb@x", CLIENT, B)]  # fmt: skip


def test_an_entry_of_a_call_is_renewed_and_ends_like_any_other(datapath: Datapath) -> None:
    datapath.apply(PHONE.replace("timeout: 60", "timeout: 400"))
    assert call(datapath, message("aa@x"), 5060) == C
    datapath.later(390)
    assert call(datapath, message("aa@x"), 5061) == C
    datapath.later(390)
    assert call(datapath, message("aa@x"), 5062) == C
    datapath.later(900)
    assert entries(datapath) == {}
    assert call(datapath, message("aa@x"), 5063) == B


def test_calls_that_differ_in_one_byte_or_in_length_are_others(datapath: Datapath) -> None:
    datapath.apply(PHONE)
    identities = ["a" * length for length in range(1, 256, 7)]
    identities += ["a" * 100 + "b", "b" + "a" * 100, "a" * 254 + "b"]
    for number, identity in enumerate(identities):
        assert call(datapath, message(identity), 2000 + number) == [C, B, A][number % 3]
    for number, identity in enumerate(identities):
        assert call(datapath, message(identity), 3000 + number) == [C, B, A][number % 3]
    assert set(entries(datapath)) == set(identities)


def test_no_two_calls_have_one_hash_whatever_the_draw(datapath: Datapath) -> None:
    # the highest bit of one word, and of the next one what a product by any odd number leaves of it
    one = b"a" * 30
    two = bytes(byte ^ 0x80 if place in (14, 18, 22) else byte for place, byte in enumerate(one))
    datapath.apply(PHONE)
    text = INVITE + b"Call-ID: %s\r\n"
    for port in (2000, 3000):
        assert call(datapath, text % one, port) == C
        assert call(datapath, text % two, port + 1) == B
    assert set(entries(datapath)) == {one.decode(), two.decode("latin-1")}
    assert "table_full" not in datapath.reasons()


def test_an_entry_is_shown_as_it_was_made_whatever_its_service_has_by_now(
    datapath: Datapath,
) -> None:
    datapath.apply(PHONE)
    call(datapath, message("aa@x"), 5060)
    datapath.apply(PHONE.replace(", engine: sip", ""))
    call(datapath, message("bb@x"), 5061)
    shown = {(row["engine"], row["data"]) for row in datapath.persistence()}
    assert shown == {("sip", "aa@x"), (None, None)}
    datapath.apply(PHONE)
    assert {(row["engine"], row["data"]) for row in datapath.persistence()} == shown


def test_a_mark_service_takes_udp_with_a_call_id_alone(datapath: Datapath) -> None:
    datapath.apply(f"""
marks: [{{mark: 7, address: {VIP}, port: 5060}}]
services:
  - {{mark: 7, scheduler: rr, persistence: {{timeout: 60, engine: sip}},
     backends: [{{address: {A}}}, {{address: {B}}}]}}
""")
    assert call(datapath, message("aa@x"), 5060) == B
    packet = IP(src=CLIENT, dst=VIP) / TCP_SYN
    assert datapath.deliver(packet).action == "drop"
    assert datapath.reasons() == {"forwarded": 1, "no_call_id": 1}


def test_one_packet_scheduling_keeps_each_call_together(datapath: Datapath) -> None:
    datapath.apply(PHONE.replace("scheduler: rr,", "scheduler: rr, one_packet: true,"))
    first = [call(datapath, message(f"{n}@x"), 5060) for n in range(3)]
    assert first == [C, B, A]
    assert [call(datapath, message(f"{n}@x"), 5060) for n in range(3)] == first
    assert datapath.connections() == []


def test_tc_finds_the_same(datapath: Datapath) -> None:
    datapath.apply(PHONE)
    packet = IP(src=CLIENT, dst=VIP) / UDP(sport=5060, dport=5060) / message("aa@x")
    assert datapath.send_tc(datapath.to_host(packet)).action == "redirect"
    assert entries(datapath) == {"aa@x": (CLIENT, C)}


# ------------------------------------------------------------------------- the search, spelt out

SPACES, ENDS = b" \t", b"\r\n"
WORD = set(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
WORD |= set(b"!\"%'()*+-./:<>?[\\]_`{}~") | set(range(0xC0, 0x100)) - {0xD7, 0xF7}
LETTERS = {b for b in WORD if chr(b).isalpha()} - set(b"0123456789")


def lines(text: bytes, start: int) -> list[int]:
    """Where lines begin that the search looks at, from a place on."""
    found, at = [], start
    while at < len(text):
        if text[at] not in ENDS:
            at += 1
            continue
        at += 1
        if text[at - 1 : at + 1] == b"\r\n":
            at += 1
        if at < len(text):
            found.append(at)
        at += 1  # whatever is there is not looked at for an end of its own
    return found


def skipped(text: bytes, at: int) -> int | None:
    """The place after spaces and one fold; None where the line ends there."""
    while text[at : at + 1] and text[at] in SPACES:
        at += 1
    if text[at : at + 1] and text[at] in ENDS:
        at += 2 if text[at : at + 2] == b"\r\n" else 1
        if not text[at : at + 1] or text[at] not in SPACES:
            return None
        while text[at : at + 1] and text[at] in SPACES:
            at += 1
    return at if at < len(text) else None


def words(text: bytes, at: int) -> int:
    return next((n for n, b in enumerate(text[at:]) if b not in WORD), len(text) - at)


def searched(text: bytes, start: int = 0) -> bytes | None:
    """The Call-ID by a plain search."""
    for begin in lines(text, start):
        rest = text[begin:].lower()
        if rest.startswith(b"call-id"):
            at = skipped(text, begin + 7)
        elif rest[:1] == b"i" and len(rest) > 1 and text[begin + 1] not in LETTERS:
            at = skipped(text, begin + 1)
        else:
            continue
        if at is None or text[at : at + 1] != b":" or (at := skipped(text, at + 1)) is None:
            return None
        length = words(text, at)
        if length and text[at + length : at + length + 1] == b"@":
            second = words(text, at + length + 1)
            length = length + 1 + second if second else 0
        if not length:
            return searched(text, start + at)
        follows = text[at + length : at + length + 1]
        return text[at : at + length] if length <= 255 and follows in (b"\r", b"\n") else None
    return None


PARTS = (b"Call-ID", b"call-i", b"i", b"I", b"Via", b"x", b"a.b", b"y" * 60, b"z" * 130, b"\xe9")
MARKS = (b":", b"@", b" ", b"\t", b"\r\n", b"\r", b"\n", b",", b"-")
PIECES = st.sampled_from((*PARTS, *MARKS))


@pytest.fixture
def phone(datapath: Datapath) -> Datapath:
    """The services are there."""
    datapath.apply(PHONE)
    return datapath


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(parts=st.lists(PIECES, max_size=30))
def test_the_search_finds_what_a_plain_one_does(phone: Datapath, parts: list[bytes]) -> None:
    """All entries are removed before each message."""
    text = b"INVITE\r\n" + b"".join(parts)
    tables = (*views.CONNECTIONS, *views.PERSISTENCE)
    phone.balancer.reap(views.places(phone.balancer, tables), force=True)
    got = call(phone, text, 2000)
    wanted = searched(text)
    assert (got is not None) == (wanted is not None)
    assert list(entries(phone)) == ([] if wanted is None else [wanted.decode("latin-1")])


@pytest.mark.parametrize(("text", "found"), SEEN)
def test_the_plain_search_finds_what_ipvs_does(text: bytes, found: bytes | None) -> None:
    assert searched(text) == found
