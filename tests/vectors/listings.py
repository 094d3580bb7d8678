"""Lines of ipvsadm's listings and of /proc/net/ip_vs_conn, and the short form of entries."""

from __future__ import annotations

import ipaddress
import re

from tests.vectors.places import Node
from tests.vectors.services import Service, server_end
from tests.vectors.steps import Counts, Entry, Listed, ServiceListed
from tests.vectors.words import PROTOCOLS, end

STATES = {
    *("NONE", "ASSURED", "ESTABLISHED", "SYN_SENT", "SYN_RECV", "FIN_WAIT", "TIME_WAIT", "CLOSE"),
    *("CLOSE_WAIT", "LAST_ACK", "LISTEN", "SYNACK", "UDP", "INIT1", "INIT", "C-SENT", "C-REPLIED"),
    *("C-WAIT", "COOKIE", "C-ECHOED", "S-SENT", "S-RECEIVED", "S-ACK-SENT", "REJECTED", "CLOSED"),
}
COLUMNS = {
    **{"conns": "connections", "inpkts": "packets", "inbytes": "bytes", "outpkts": "out"},
    **{"outbytes": "out", "active": "active", "activeconn": "active", "inactive": "inactive"},
    **{"inact": "inactive", "inactconn": "inactive", "persist": "persistent"},
    **{"persistconn": "persistent", "uthreshold": "upper_threshold", "u": "upper_threshold"},
    **{"lthreshold": "lower_threshold", "l": "lower_threshold", "weight": "weight", "w": "weight"},
    **{"connections": "connections", "packets": "packets", "total": "total"},
}


def state(text: str) -> str:
    """A state by ipvsadm's name."""
    if text.upper() not in STATES:
        raise ValueError(f"{text!r} is no state of a connection or template")
    return text.upper()


def protocol(text: str) -> int:
    """A protocol's number: `TCP`, `IP`."""
    if text.lower() not in PROTOCOLS:
        raise ValueError(f"{text!r} is no protocol (TCP, UDP, SCTP, IP)")
    return PROTOCOLS[text.lower()]


def column(text: str) -> str:
    """A column of `backend list` by ipvsadm's name."""
    if text.lower() not in COLUMNS:
        raise ValueError(f"{text!r} is no column of a listing")
    return COLUMNS[text.lower()]


def place(text: str, services: tuple[Service, ...]) -> tuple[str, int]:
    """An address and a port; VIP is the first service's address."""
    found = end(text)
    vip = services[0].address if services else "172.16.0.100"
    if found.port is None:
        raise ValueError(f"{text!r} has no port")
    return found.address or vip, found.port


# --------------------------------------------------------------------------------------- short form


def template(node: Node, services: tuple[Service, ...]) -> Entry:
    """`[TCP, "10.0.0.1:0", "VIP:80", "C:80", ASSURED, 6]`; the last two may be left out."""
    parts = node.entries()
    if not 4 <= len(parts) <= 6:
        raise node.error("an entry is [protocol, client, virtual, server, state, seconds]")
    return Entry(
        parts[0].read(protocol),
        parts[1].read(lambda text: place(text, services)),
        parts[2].read(lambda text: place(text, services)),
        parts[3].read(lambda text: server_end(text, services)),
        parts[4].read(state) if len(parts) > 4 else None,
        parts[5].number() if len(parts) > 5 else None,
    )


# -------------------------------------------------------------------------------------------- lines


def connection_line(text: str, services: tuple[Service, ...]) -> Listed:
    """A line of `ipvsadm -Lnc`: protocol, time left, state, and three ends."""
    words = text.split()
    if len(words) != 6 or not (time := re.fullmatch(r"(\d+):(\d\d)", words[1])):
        raise ValueError(f"{text!r} is no line of ipvsadm -Lnc")
    return Listed(
        Entry(
            protocol(words[0]),
            place(words[3], services),
            place(words[4], services),
            server_end(words[5], services),
            state(words[2]),
            int(time[1]) * 60 + int(time[2]),
        )
    )


def service_line(text: str, services: tuple[Service, ...]) -> ServiceListed | Counts:
    """A line of `ipvsadm -Ln`: a service, or one of its servers."""
    words = text.split()
    if words[:1] == ["->"]:
        return _server_line(words, services)
    if len(words) < 3 or words[0] not in ("FWM", "TCP", "UDP", "SCTP"):
        raise ValueError(f"{text!r} is no line of ipvsadm -Ln")
    if words[0] == "FWM":
        mark, words = int(words[1]) % 2**32, words[2:]
        family = "ipv6" if words[:1] == ["IPv6"] else "ipv4"
        words = words[1:] if family == "ipv6" else words
        key: tuple[object, ...] = (mark, family)
    else:
        key = (words[0].lower(), *place(words[1], services))
        words = words[2:]
    found = [each for each in services if each.key == key]
    if not found:
        raise ValueError(f"{text!r}: no service of the case is that")
    return ServiceListed(found[0], _service_columns(text, words))


def _service_columns(text: str, words: list[str]) -> dict[str, object]:
    columns: dict[str, object] = {"scheduler": words[0], "persistence": None}
    rest = words[1:]
    while rest:
        if rest[0] == "persistent" and rest[1:]:
            columns["persistence"] = int(rest[1])
        elif rest[0] == "mask" and rest[1:]:
            columns["netmask"] = rest[1]
        elif rest[0] == "ops":
            columns["one_packet"] = True
            rest = [rest[0], *rest]
        elif re.fullmatch("([sm]h-(port|fallback),?)+", rest[0]):
            columns["flags"] = tuple(rest[0].split(","))
            rest = [rest[0], *rest]
        else:
            raise ValueError(f"{rest[0]!r} in {text!r} is not known here")
        rest = rest[2:]
    return columns


def _server_line(words: list[str], services: tuple[Service, ...]) -> Counts:
    if len(words) != 6 or words[2] != "Route" or not all(w.isdigit() for w in words[3:]):
        raise ValueError(f"{' '.join(words)!r} is no line of a server with direct routing")
    letter, _ = server_end(words[1], services)
    names = ("weight", "active", "inactive")
    return Counts(letter, dict(zip(names, map(int, words[3:]), strict=True)))


def proc_line(text: str, services: tuple[Service, ...]) -> Listed:
    """A line of /proc/net/ip_vs_conn, or its beginning: all in hexadecimal but the time left."""
    words = text.split()
    if len(words) not in (5, 7, 8, 9):
        raise ValueError(f"{text!r} is no line of ip_vs_conn")
    ends = [
        (_hex_address(words[i]), int(words[i + 1], 16)) for i in range(1, min(len(words), 7), 2)
    ]
    server = ("", 0)
    if len(words) >= 7:
        by_address = {each.address: each.name for s in services for each in s.servers}
        server = (by_address.get(ends[2][0], ends[2][0]), ends[2][1])
    return Listed(
        Entry(
            protocol(words[0]),
            ends[0],
            ends[1],
            server,
            state(words[7]) if len(words) > 7 else None,
            int(words[8]) if len(words) > 8 else None,
        )
    )


def _hex_address(text: str) -> str:
    if ":" in text:
        return str(ipaddress.ip_address(text))
    if not re.fullmatch("[0-9A-Fa-f]{8}", text):
        raise ValueError(f"{text!r} is no address of ip_vs_conn")
    return str(ipaddress.ip_address(int(text, 16)))


# -------------------------------------------------------------------------------------------- shows


def expected_columns(node: Node) -> list[Counts]:
    """What `expect` says of servers: `{A: {active: 2}}`, or `A: ActiveConn 5 with Weight 2`."""
    if isinstance(node.value, dict):
        return [Counts(name, _row(row)) for name, row in node.fields().items()]
    return [node.read(_columns, part) for part in re.split(r"[,;]\s*(?=\w+:)", node.text())]


def _row(node: Node) -> dict[str, int]:
    return {value.read(column, name): value.whole() for name, value in node.fields().items()}


def _columns(text: str) -> Counts:
    name, colon, rest = text.partition(":")
    pairs = re.findall(r"(\w+)\s*(?:=|is)?\s*(\d+)", rest)
    left = re.sub(r"(\w+)\s*(?:=|is)?\s*(\d+)|,|;|\bwith\b|\band\b", " ", rest).split()
    if not colon or not pairs or left or not re.fullmatch(r"\w+", name):
        raise ValueError(f"{text!r} says no columns of a server (A: ActiveConn 5, Weight 2)")
    return Counts(name, {column(key): int(value) for key, value in pairs})
