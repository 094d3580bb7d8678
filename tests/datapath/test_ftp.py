"""FTP by nat: what control connections announce is expected, and PASV's reply is written anew."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from tests.datapath.harness import BACKENDS, Datapath, Verdict

ENDS = {
    4: ("172.31.0.21", "192.0.2.10", "10.0.0.11"),
    6: ("2001:db8:0:1::21", "2001:db8::10", "2001:db8:0:2::11"),
}


@dataclasses.dataclass(frozen=True)
class Session:
    """A client's control connection to a service with one backend by nat, on port `own`."""

    datapath: Datapath
    version: int = 4
    own: int = 21
    virtual: str = ""

    @property
    def service(self) -> str:
        """The service's address."""
        return self.virtual or ENDS[self.version][1]

    def open(self, more: str = "") -> Session:
        """Configures the service and opens the connection."""
        backend = ENDS[self.version][2]
        self.datapath.apply(f"""
settings: {{require_local: false}}
services:
  - protocol: tcp
    address: "{self.service}"
    port: 21
    forward: nat
    {more}
    backends: [{{address: "{backend}", port: {self.own}}}]
""")
        self.client("", flags="S")
        self.server("", flags="SA")
        self.client("", flags="A")
        return self

    def packet(self, source: str, destination: str, ports: tuple[int, int], **fields: Any) -> Any:
        """A TCP packet."""
        payload = fields.pop("payload", b"")
        network: Any = IP if self.version == 4 else IPv6
        hops = {"ttl" if self.version == 4 else "hlim": fields.pop("hops", 64)}
        sport, dport = ports
        layer = network(src=source, dst=destination, **hops)
        return layer / TCP(sport=sport, dport=dport, **fields) / payload

    def client(self, line: str, flags: str = "PA", ports: tuple[int, int] = (1001, 21)) -> Verdict:
        """What becomes of a client's packet."""
        packet = self.packet(
            ENDS[self.version][0], self.service, ports, flags=flags, payload=line.encode()
        )
        return self.datapath.send_tc(self.datapath.to_host(packet))

    def from_server(self, line: bytes, flags: str, ports: tuple[int, int]) -> Any:
        """A backend's frame."""
        backend = ENDS[self.version][2]
        packet = self.packet(backend, ENDS[self.version][0], ports, flags=flags, payload=line)
        return Ether(src=BACKENDS[backend], dst=self.datapath.mac["lb1"]) / packet

    def server(self, line: str, flags: str = "PA", ports: tuple[int, int] | None = None) -> Verdict:
        """What becomes of a backend's packet."""
        frame = self.from_server(line.encode(), flags, ports or (self.own, 1001))
        return self.datapath.send_tc(frame, "lb1")

    def said(self, line: str) -> str:
        """What the client hears of a backend's line, in a packet that is right in all else."""
        verdict = self.server(line)
        assert verdict.action == "redirect"
        heard = bytes(Ether(verdict.frame)[TCP].payload)[: len(line)]
        expected = self.packet(
            self.service,
            ENDS[self.version][0],
            (21, 1001),
            flags="PA",
            payload=heard,
            hops=63,
        )
        assert verdict.frame[14:] == bytes(expected)
        return heard.decode()

    def expected(self) -> list[tuple[str, str]]:
        """Client's and virtual port of each connection that is expected."""
        rows = self.datapath.connections()
        return [
            (row["client"].rpartition(":")[2], row["virtual"].rpartition(":")[2])
            for row in rows
            if row["state"] == "LISTEN"
        ]


MODE = "Entering Passive Mode"


@pytest.mark.parametrize(
    ("virtual", "line", "heard"),
    [
        # of the same length, longer by as much as the words can bear, and shorter
        (
            "",
            f"227 {MODE} (10,0,0,11,78,32).\r\n",
            "227 Entering Passive Mode(192,0,2,10,78,32).\r\n",
        ),
        ("10.0.0.99", f"227 {MODE} (10,0,0,11,78,32).\r\n", f"227 {MODE} (10,0,0,99,78,32).\r\n"),
        (
            *("203.113.100.200", f"227 {MODE} (10,0,0,11,78,32).\r\n"),
            "227 Entering Passive(203,113,100,200,78,32).\r\n",
        ),
        ("4.4.4.4", f"227 {MODE} (10,0,0,11,78,32).\r\n", f"227 {MODE}   (4,4,4,4,78,32).\r\n"),
        ("4.4.4.4", "227 =10,0,0,11,78,32\r\n", "227   =4,4,4,4,78,32\r\n"),
        # numbers among the words
        ("10.0.0.99", "227 v2 7 (10,0,0,11,78,32)\r\n", "227 v2 7 (10,0,0,99,78,32)\r\n"),
        ("10.0.0.99", "227 300,7 (10,0,0,11,78,32)\r\n", "227 300,7 (10,0,0,99,78,32)\r\n"),
        # there is no room for it, so that it stays
        ("203.113.100.200", "227 (10,0,0,11,78,32)\r\n", "227 (10,0,0,11,78,32)\r\n"),
        # it says what it should already
        ("", f"227 {MODE} (192,0,2,10,78,32).\r\n", f"227 {MODE} (192,0,2,10,78,32).\r\n"),
        ("", "229 Entering Extended Passive Mode (|||20000|)\r\n", None),
    ],
)
def test_a_reply_names_the_service_and_its_port_is_expected(
    datapath: Datapath, virtual: str, line: str, heard: str | None
) -> None:
    session = Session(datapath, virtual=virtual).open()
    assert session.said(line) == (heard or line)
    assert session.expected() == [("0", "20000")]
    assert session.said(line) == (heard or line)
    assert session.expected() == [("0", "20000")]


@pytest.mark.parametrize(
    "line",
    [
        *(
            "220 Welcome (10,0,0,11,78,32)\r\n",
            "227",
            "227 ",
            f"227 {MODE} (10,0,0,11,78",
            "229 x\r\n",
        ),
        *(f"227 {MODE} (10,0,0,11,78,256).\r\n", f"227 {MODE} (10,0,0,11,0,0).\r\n"),
        *(f"227 {MODE} (10,0,0;11,78,32).\r\n", "229 (|||70000|)\r\n", "229 (|||0|)\r\n"),
        *("229 (|||2x|)\r\n", "PORT 172,31,0,21,78,32\r\n", "\0\1\2\3\4\5" * 30, "9" * 400),
    ],
)
def test_of_any_other_line_nothing_comes(datapath: Datapath, line: str) -> None:
    session = Session(datapath).open()
    assert session.said(line) == line
    assert session.expected() == []


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(tail=st.text(st.sampled_from("0123456789,|() PORTEp\r\n"), max_size=200), data=st.data())
def test_no_line_breaks_its_packet(datapath: Datapath, tail: str, data: st.DataObject) -> None:
    """Whatever follows a word, only PASV's address may differ, and no length."""
    session = Session(datapath, virtual="10.0.0.99")
    if not datapath.connections():
        session.open()
    line = data.draw(st.sampled_from(("227 ", "229 ", "227 a (10,0,0,11,", ""))) + tail
    heard = session.said(line)
    assert heard == line or heard == line.replace("10,0,0,11,", "10,0,0,99,", 1)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("hook", ["xdp", "tc"])
def test_a_passive_connection_goes_where_its_announcement_came_from(
    datapath: Datapath, version: int, hook: str
) -> None:
    session = Session(datapath, version, own=2121).open()
    session.server("229 Entering Extended Passive Mode (|||20000|)\r\n")
    client, _, backend = ENDS[version]
    packet = session.packet(client, session.service, (1777, 20000), flags="S")
    send = datapath.deliver if hook == "xdp" else lambda p: datapath.send_tc(datapath.to_host(p))
    there = send(packet)
    assert there.action == "redirect"
    assert there.frame[14:] == bytes(
        session.packet(client, backend, (1777, 20000), flags="S", hops=63)
    )
    back = session.server("", flags="SA", ports=(20000, 1777))
    assert back.frame[14:] == bytes(
        session.packet(session.service, client, (20000, 1777), flags="SA", hops=63)
    )
    # it is expected once
    assert session.expected() == []
    assert send(session.packet(client, session.service, (1778, 20000), flags="S")).action == "pass"
    (row,) = datapath.backends().values()
    assert (row["active"] + row["inactive"], row["connections"]) == (2, 1)


@pytest.mark.parametrize(
    ("version", "line"),
    [
        *((4, "PORT 172,31,0,21,78,32\r\n"), (4, "port 172,31,0,21,78,32\r\n")),
        *((4, "EPRT |1|172.31.0.21|20000|\r\n"), (6, "EPRT |2|2001:db8:0:1::21|20000|\r\n")),
        (6, "eprt !2!2001:db8:0:1::21!20000!\r\n"),
    ],
)
def test_an_active_connection_comes_from_the_services_data_port(
    datapath: Datapath, version: int, line: str
) -> None:
    session = Session(datapath, version, own=2121).open()
    there = session.client(line)
    client, _, backend = ENDS[version]
    assert there.frame[14:] == bytes(
        session.packet(client, backend, (1001, 2121), flags="PA", payload=line.encode(), hops=63)
    )
    assert session.expected() == [("20000", "20")]
    frame = session.from_server(b"", "S", (2120, 20000))
    back = datapath.send(frame, "lb1")
    assert back.frame[14:] == bytes(
        session.packet(session.service, client, (20, 20000), flags="S", hops=63)
    )
    answer = session.packet(client, session.service, (20000, 20), flags="SA")
    assert datapath.deliver(answer).frame[14:] == bytes(
        session.packet(client, backend, (20000, 2120), flags="SA", hops=63)
    )


def test_xdp_leaves_control_connections_to_tc_and_data_to_itself(datapath: Datapath) -> None:
    session = Session(datapath).open()
    request = session.packet(
        ENDS[4][0], session.service, (1001, 21), flags="PA", payload=b"PASV\r\n"
    )
    handed = datapath.deliver(request)
    assert handed.handover is not None and handed.handover["reason"] == "forwarded"
    answer = session.from_server(b"220 hello\r\n", "PA", (21, 1001))
    handed = datapath.send(answer, "lb1")
    assert handed.handover is not None and handed.handover["reason"] == "answered"


def test_what_is_expected_is_so_for_two_minutes(datapath: Datapath) -> None:
    session = Session(datapath).open()
    session.server("229 Entering Extended Passive Mode (|||20000|)\r\n")
    datapath.later(119)
    assert session.expected() == [("0", "20000")]
    datapath.later(2)
    assert session.client("", flags="S", ports=(1777, 20000)).action == "pass"


def test_other_clients_are_not_expected(datapath: Datapath) -> None:
    session = Session(datapath).open()
    session.server("229 Entering Extended Passive Mode (|||20000|)\r\n")
    other = session.packet("172.31.0.22", session.service, (1777, 20000), flags="S")
    assert datapath.deliver(other).action == "pass"
    assert session.client("", flags="S", ports=(1777, 20001)).action == "pass"
    assert session.client("", flags="A", ports=(1777, 20000)).action == "pass"
    assert session.client("", flags="S", ports=(1777, 20000)).action == "redirect"


def test_data_keeps_its_control_connection_alive(datapath: Datapath) -> None:
    """A download takes longer than a control connection may be idle."""
    session = Session(datapath).open()
    session.server("229 Entering Extended Passive Mode (|||20000|)\r\n")
    session.client("", flags="S", ports=(1777, 20000))
    session.server("", flags="SA", ports=(20000, 1777))
    for _ in range(4):
        session.client("", flags="A", ports=(1777, 20000))
        datapath.later(600)
    rows = {row["virtual"]: row["state"] for row in datapath.connections()}
    assert rows == {
        f"{session.service}:21": "ESTABLISHED",
        f"{session.service}:20000": "ESTABLISHED",
    }
    assert session.said("226 Transfer complete.\r\n")


def test_a_persistent_service_expects_as_well(datapath: Datapath) -> None:
    session = Session(datapath).open("persistence: 300")
    heard = session.said(f"227 {MODE} (10,0,0,11,78,32).\r\n")
    assert "192,0,2,10" in heard
    assert session.client("", flags="S", ports=(1777, 20000)).action == "redirect"
    assert session.client("", flags="S", ports=(1778, 20001)).action == "redirect"


def test_a_port_that_another_backend_announces_is_its_own(datapath: Datapath) -> None:
    session = Session(datapath).open()
    session.server("229 Entering Extended Passive Mode (|||20000|)\r\n")
    (before,) = (row["backend"] for row in datapath.connections() if row["state"] == "LISTEN")
    session.server("229 Entering Extended Passive Mode (|||20000|)\r\n")
    (after,) = (row["backend"] for row in datapath.connections() if row["state"] == "LISTEN")
    assert before == after
    (row,) = datapath.backends().values()
    assert row["active"] + row["inactive"] == 2
