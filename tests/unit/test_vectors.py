"""A vectors file is understood whole, or refused with the place of what is not understood."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.vectors import commands, listings, outcomes, sections, services, words
from tests.vectors.__main__ import main
from tests.vectors.commands import Refused, carried_out
from tests.vectors.places import VectorsError
from tests.vectors.services import Server, Service
from tests.vectors.situations import situation
from tests.vectors.steps import Close, Connections, Counts, Entry, Picks, Reach, Send, Wait
from tests.vectors.words import End, Flow, Kind, Packet

VECTORS = Path(__file__).parent.parent / "vectors/ipvs-vectors.yaml"
ABC = tuple(Server(name, services.server_address(name, "ipv4")) for name in "ABC")
SERVICE = Service(scheduler="rr", servers=ABC)


NOBODY = End()


def tcp(flags: str, client: End = NOBODY, virtual: End = NOBODY) -> Packet:
    return Packet(Kind("tcp", flags), client, virtual)


# -------------------------------------------------------------------------------------- whole files


def test_every_section_of_the_given_file_is_understood() -> None:
    cases = sections.read(VECTORS)
    assert Counter(case.section for case in cases if not case.left) == {
        **{"hash_values": 10, "mh_servers": 7, "tables": 6, "schedulers": 78, "thresholds": 3},
        **{"persistence": 12, "fwmark": 2, "tcp_states": 37, "sctp_states": 5, "no_service": 6},
        **{"drop_packet": 1, "transition_tables": 54, "forwarding": 17},
    }
    assert all(case.steps for case in cases if not case.left)


CASE = "persistence:\n- id: x\n  service: {proto: tcp}\n  events: [%s]\n"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("shedulers: []", "line 1: shedulers: 'shedulers' is not known here (did you mean"),
        ("format: 2", "line 1: format: format 1 is the one"),
        ("schedulers:\n- {id: x, scheduler: rr, servers: []}", "line 2: schedulers[0]: picks is"),
        (
            "schedulers:\n- {id: x, scheduler: rr, servers: [A], picks: A, setps: []}",
            "line 2: schedulers[0].setps: 'setps' is not known here (did you mean 'steps'?)",
        ),
        (CASE % '{packet: "SIN 10.0.0.1:1"}', "line 4: persistence[0].events[0].packet: 'SIN' is"),
        (CASE % "{t: soon}", "persistence[0].events[0].t: 'soon' is no number"),
        (CASE % "{serve: C}", "persistence[0].events[0].serve: 'serve' is not known here"),
        (CASE % "{server: C}", "events[0].server: there is no packet that this could be of"),
        (CASE % '{command: "ipvsadm -Q"}', "events[0].command: '-Q' in 'ipvsadm -Q' is no option"),
        (CASE % "{sysctl: {nope: 1}}", "events[0].sysctl.nope: 'nope' is not known here"),
        (CASE % '{packet: "SYN, ACK 10.0.0.1:1", server: [A, B, C]}', "3 servers for 2 packets"),
        (CASE % '{do: "something odd"}', "events[0].do: 'something' is no kind of packet"),
        (CASE % '{packet: SYN, result: "who knows"}', "result: 'who knows' says no outcome"),
        (CASE % "{template: [TCP, x]}", "template: an entry is [protocol, client, virtual"),
        (CASE % "{t: 1, t: 2}", "line 4: persistence[0].events[0]: a key stands there twice"),
        ("persistence:\n- {id: x, continues: y, service: {}}", "there is no case 'y' before"),
        ("no_service: {cases: [{case: odd, client_gets: RST}]}", "'odd' is no case that is known"),
        ("tcp_states: {reuse: [{before: LISTEN, server: C}]}", "a client alone brings no"),
        ("tables: [{scheduler: rr, weights: [1], owners: {A: 1}}]", "'rr' has no table"),
        ("hash_values: [{addr: 10.0.0.1, crc: 1}]", "hash_values[0].crc: 'crc' is no hash value"),
        ("hash_values: [{addr: 10.0.0.1, fold: 4294967296}]", "fold: 4294967296 has more than 32"),
        ("mh_servers: [{addr: 10.0.0.1, start: 1, step: 0}]", "step: 0 is not from 1 to 4092"),
        ("schedulers:\n- {id: x, scheduler: rx, servers: [], picks: ''}", "'rx' is no scheduler"),
        (
            "schedulers: [{id: x, scheduler: rr, servers: [A], picks: A, steps: [{delete: B}]}]",
            "schedulers[0]: steps[0]: there is no server 'B'",
        ),
        (CASE % '{command: "ipvsadm -a -t VIP -r Zoe"}', "'Zoe' is no address with a port"),
        (CASE % '{command: "ipvsadm -e ... -r A -w many"}', "'many' is no whole number"),
        (CASE % "{template: null, service: nat}", "events[0].service: 'nat' is no service (tcp"),
        ("tcp_states: {nat: [{step: 'x:S', result: none}]}", "c: the client sends, s: the server"),
        ("drop_packet: {setup: {}}", "the section has setup, twelve_new_syns_kept"),
        (CASE % '{show: "-Ln", expect: {A: {speed: 1}}}', "expect.A.speed: 'speed' is no column"),
        ("a: [", "while parsing"),
        ("", "there is nothing in it"),
    ],
)
def test_what_is_not_understood_is_told_with_its_place(
    tmp_path: Path, text: str, complaint: str
) -> None:
    file = tmp_path / "vectors.yaml"
    file.write_text(text)
    with pytest.raises(VectorsError, match=re.escape(complaint)):
        sections.read(file)


def test_a_file_that_cannot_be_read_ends_the_run_before_it_begins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(VECTORS), str(tmp_path / "none.yaml")]) == 2
    out, err = capsys.readouterr()
    assert (out, "none.yaml" in err) == ("", True)


def test_two_cases_of_one_name_are_refused() -> None:
    case = "- {id: x, scheduler: rr, servers: [{name: A, w: 1}], picks: A}\n"
    with pytest.raises(VectorsError, match="there are two cases 'x'"):
        sections.parse("schedulers:\n" + case + case)


def test_what_belongs_to_later_issues_is_counted_and_not_run() -> None:
    cases = sections.parse("cli: {cases: [{args: -q}, {args: -C}]}\nunverified: [{id: x}]\n")
    assert [(case.section, bool(case.left), case.steps) for case in cases] == [
        ("cli", True, ()),
        ("cli", True, ()),
        ("unverified", True, ()),
    ]


def test_picks_by_more_than_one_destination_go_through_a_mark() -> None:
    (case,) = sections.parse(
        "schedulers:\n- {id: x, scheduler: dh, servers: [{name: A, w: 1}], picks: AA,"
        " clients: [[10.0.0.1, 1, 172.16.0.1], [10.0.0.1, 2, 172.16.0.2]]}\n"
    )
    assert [rule.address for rule in case.marks] == ["172.16.0.1", "172.16.0.2"]
    assert case.services[0].mark == case.marks[0].mark


def test_further_picks_go_on_with_the_clients() -> None:
    (case,) = sections.parse(
        "schedulers:\n- {id: x, scheduler: rr, servers: [{name: A, w: 1}], picks: AA,"
        " steps: [{edit: A, w: 2}, {picks: A}]}\n"
    )
    picks = [step.act for step in case.steps if isinstance(step.act, Picks)]
    assert [port for each in picks for _, port, _ in each.clients] == [20000, 20001, 20002]


# ------------------------------------------------------------------------------------------ packets

CLIENT = End("10.0.0.1", 1001)


@pytest.mark.parametrize(
    ("text", "flows"),
    [
        ("SYN 10.0.0.1:1001", [[tcp("S", CLIENT)]]),
        ("SYN, ACK, RST 10.0.0.1:1001", [[tcp("S", CLIENT), tcp("A", CLIENT), tcp("R", CLIENT)]]),
        ("SYN and FIN+ACK  from 10.0.0.1:1001.", [[tcp("S", CLIENT), tcp("FA", CLIENT)]]),
        ("3 x UDP 10.0.0.1:1001", [[Packet(Kind("udp"), CLIENT)]] * 3),
        ("3x UDP 10.0.0.1:1001", [[Packet(Kind("udp"), CLIENT)]] * 3),
        ("two SYN from 10.0.0.1", [[tcp("S", End("10.0.0.1"))]] * 2),
        (
            "SYN from 10.0.0.1 .. 10.0.0.3, one each",
            [[tcp("S", End(f"10.0.0.{n}"))] for n in (1, 2, 3)],
        ),
        ("3 more SYN from 10.0.0.2 (A is full)", [[tcp("S", End("10.0.0.2"))]] * 3),
        ("5 x tcp_open", [[tcp("S"), tcp("A")]] * 5),
        ("TCP SYN 10.0.0.1:1001 -> VIP:21", [[tcp("S", CLIENT, End(None, 21))]]),
        ("SYN 10.0.0.1:1001 to VIP:21 (no mark)", [[tcp("S", CLIENT, End(None, 21))]]),
        (
            "TCP [2001:db8:1::1]:7 -> [2001:db8:ff::100]:80",
            [[tcp("S", End("2001:db8:1::1", 7), End("2001:db8:ff::100", 80))]],
        ),
        ("SCTP INIT 10.0.0.1:1001", [[Packet(Kind("sctp", "init"), CLIENT)]]),
        ("COOKIE-ECHO 10.0.0.1:1001", [[Packet(Kind("sctp", "cookie_echo"), CLIENT)]]),
    ],
)
def test_packets_are_read_as_timelines_write_them(text: str, flows: list[list[Packet]]) -> None:
    assert words.flows(text) == tuple(Flow(tuple(packets)) for packets in flows)


@pytest.mark.parametrize(
    "text",
    [
        *("", "10.0.0.1:1", "SYNN 10.0.0.1:1", "SYN 10.0.0:1", "SYN 10.0.0.1:70000", "UDP SYN"),
        *("SYN 10.0.0.1:1 10.0.0.2:1", "SYN 10.0.0.9 .. 10.0.0.1", "SYN 300.0.0.1:1", "x SYN"),
        *("SYN 10.0.0.1:1 -> nowhere:80", "SCTP SYN 10.0.0.1:1", "SS 10.0.0.1:1"),
    ],
)
def test_packets_that_are_not_understood_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        words.flows(text)


addresses = st.one_of(st.ip_addresses(v=4).map(str), st.ip_addresses(v=6).map(str))
ports = st.integers(1, 65535)


def written(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


@given(addresses, ports, addresses, ports, st.integers(1, 40), st.sampled_from(["S", "A", "FA"]))
def test_every_end_and_count_is_read_back(
    client: str, sport: int, virtual: str, dport: int, count: int, flags: str
) -> None:
    text = f"{count} x {flags} {written(client, sport)} -> {written(virtual, dport)}"
    packet = tcp(flags, End(client, sport), End(virtual, dport))
    assert words.flows(text) == (Flow((packet,)),) * count


@given(st.text(max_size=60))
def test_any_text_is_packets_or_refused(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert words.flows(text)


# ------------------------------------------------------------------------------------------- events


def acts(event: str) -> list[object]:
    (case,) = sections.parse(f"thresholds:\n- {{id: x, service: {{}}, events: [{event}]}}\n")
    return [step.act for step in case.steps]


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        ("{t: 4}", [Reach(4)]),
        ("{do: wait 10 s}", [Wait(10.0)]),
        ("{do: 10 s later}", [Wait(10.0)]),
        (
            '{do: "one A connection ends (entry gone, A has 3)"}',
            [Close("A", 1, True), Connections(3, "A")],
        ),
        ("{do: another B connection ends}", [Close("B", 1, True)]),
        ("{do: all C connections expire}", [Close("C", None, True)]),
        ("{do: rst of two A connections}", [Close("A", 2, False)]),
        (
            '{do: "ipvsadm -Ln --thresholds", expect: "A: ActiveConn 5 with Uthreshold 2"}',
            [Counts("A", {"active": 5, "upper_threshold": 2})],
        ),
        (
            "{show: --stats, expect: {C: {conns: 4, inpkts: 5}}}",
            [Counts("C", {"connections": 4, "packets": 5})],
        ),
        (
            "{connections_of: B, expect: none}",
            [Connections(0, "B", templates=True)],
        ),
    ],
)
def test_events_are_read_as_timelines_write_them(event: str, expected: list[object]) -> None:
    assert acts(event) == expected


def test_one_server_stands_for_all_packets_and_one_of_a_list_for_a_packet_or_a_flow() -> None:
    (all_,) = acts('{packet: "SYN, ACK 10.0.0.1:1", server: C}')
    (packets,) = acts('{packet: "SYN, ACK 10.0.0.1:1", server: [C, B]}')
    (flows,) = acts('{do: "2 x tcp_open", expect: [C, B]}')
    assert isinstance(all_, Send) and isinstance(packets, Send) and isinstance(flows, Send)
    assert all_.servers == ("C", "C")
    assert packets.servers == ("C", "B")
    assert flows.servers == ("C", "C", "B", "B")


def test_situations_are_read_from_words() -> None:
    ((service,), (packet,)) = situation("persistent mark service without any usable server")
    assert (service.mark, service.persistent, {s.weight for s in service.servers}) == (7, 10, {0})
    assert packet == tcp("S", CLIENT, End(None, 80))
    ((ftp,), packets) = situation("non-persistent FTP service, SYN to port 50000 or 80")
    assert (ftp.port, ftp.persistent) == (21, None)
    assert [packet.virtual.port for packet in packets] == [50000, 80]
    for text in ("IPv6 service without any server", "FTP service, SYN to port 80", "no luck"):
        with pytest.raises(ValueError, match=r"."):
            situation(text)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("dropped-silently", "dropped"),
        ("TCP RST from the director's own stack", "reset"),
        ("accepted to the local stack (RST+ACK)", "reset"),
        ("ICMP 3/3, packet dropped", "unreachable"),
        ("echo reply from the director", "echo"),
        ("accepted", "accepted"),
    ],
)
def test_outcomes_are_read_from_words(text: str, name: str) -> None:
    assert outcomes.outcome(text) == name


# ----------------------------------------------------------------------------------------- commands


def after(line: str, *before: Service) -> tuple[Service, ...]:
    return carried_out(commands.command(line), before)


def test_a_server_is_edited_where_it_stands_and_what_is_not_said_is_reset() -> None:
    heavy = Service(servers=(ABC[0], Server("B", "192.168.1.2", None, 5, 9, 3), ABC[2]))
    (edited,) = after("ipvsadm -e ... -r B -w 0", heavy)
    assert edited.servers == (ABC[0], Server("B", "192.168.1.2", weight=0), ABC[2])


def test_a_server_that_comes_back_is_the_last_added() -> None:
    (gone,) = after("ipvsadm -d -t VIP:80 -r 192.168.1.1", SERVICE)
    assert [server.name for server in gone.servers] == ["B", "C"]
    (back,) = after("ipvsadm -a -t 172.16.0.100:80 -r A:80 -w 3 -g", gone)
    assert [(server.name, server.weight) for server in back.servers] == [
        *(("B", 1), ("C", 1), ("A", 3)),
    ]


def test_a_service_that_is_edited_keeps_nothing_that_is_not_said() -> None:
    kept = Service(scheduler="sh", persistent=10, flags=("sh-port",), servers=ABC)
    assert after("ipvsadm -E -t VIP:80 -p 500", kept) == (
        Service(scheduler="wlc", persistent=500, servers=ABC),
    )


@pytest.mark.parametrize(
    "line",
    [
        *("ipvsadm -a ... -r A", "ipvsadm -d ... -r D", "ipvsadm -e -t VIP:80 -r D"),
        *("ipvsadm -A -t VIP:80 -s rr", "ipvsadm -D -t VIP:81", "ipvsadm -E -f 7 -s rr"),
    ],
)
def test_what_ipvsadm_refuses_is_refused(line: str) -> None:
    with pytest.raises(Refused):
        after(line, SERVICE)


def test_the_service_that_has_the_server_is_meant_where_there_are_several() -> None:
    other = Service(port=21, servers=(Server("D", "192.168.1.4"),))
    assert after("ipvsadm -d ... -r D", SERVICE, other) == (SERVICE, Service(port=21))
    with pytest.raises(ValueError, match="does not say which service"):
        after("ipvsadm -a ... -r E", SERVICE, other)


@given(st.text(max_size=40))
def test_any_line_is_a_command_or_refused(line: str) -> None:
    with contextlib.suppress(ValueError):
        assert commands.command(f"ipvsadm {line}").verb


# ----------------------------------------------------------------------------------------- listings


def test_lines_of_listings_are_read() -> None:
    mark = Service(mark=7, scheduler="rr", persistent=10, servers=ABC)
    entry = Entry(0, ("10.0.0.1", 0), ("0.0.0.7", 0), ("C", 0), "NONE", 8)
    line = "IP  00:08  NONE        10.0.0.1:0         0.0.0.7:0          192.168.1.3:0"
    assert listings.connection_line(line, (mark,)).entry == entry
    proc = "IP  0A000001 0000 00000007 0000 C0A80103 0000 NONE              8"
    assert listings.proc_line(proc, (mark,)).entry == entry
    shown = listings.service_line("FWM  7 rr persistent 10", (mark,))
    assert shown.columns == {"scheduler": "rr", "persistence": 10}
