"""How a timeline writes packets: `SYN, ACK 10.0.0.1:1001 -> VIP:80`, `3 x UDP from 10.0.0.2`."""

from __future__ import annotations

import dataclasses
import ipaddress
import re

COUNTS = [
    *("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven"),
    "twelve",
]
PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132, "icmp": 1, "ip": 0}
CHUNKS = {
    **{"data": 0, "init": 1, "init_ack": 2, "sack": 3, "heartbeat": 4, "heartbeat_ack": 5},
    **{"abort": 6, "shutdown": 7, "shutdown_ack": 8, "error": 9, "cookie_echo": 10},
    **{"cookie_ack": 11, "ecne": 12, "cwr": 13, "shutdown_complete": 14},
}
FLAGS = {"syn": "S", "ack": "A", "fin": "F", "rst": "R", "psh": "P", "push": "P", "urg": "U"}
# what one word says of more than one packet
MACROS = {
    "tcp_open": ("SYN", "ACK"),
    "udp_open": ("UDP",),
    "sctp_open": ("INIT", "COOKIE_ECHO"),
}
# what opens a connection, where only the protocol is named
OPENING = {"tcp": "SYN", "udp": "UDP", "sctp": "INIT"}
ADDRESS = r"(?:\[[0-9A-Fa-f:.]+\]|\d+(?:\.\d+){3}|VIP|(?:[0-9A-Fa-f]*:){2,}[0-9A-Fa-f]*)"
END = rf"(?:{ADDRESS}(?::\d+)?|:\d+)"


@dataclasses.dataclass(frozen=True)
class End:
    """One end of a packet; None where the case's own is meant."""

    address: str | None = None
    port: int | None = None


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a packet is: a protocol with TCP's flags or an SCTP chunk, or UDP with data."""

    protocol: str
    what: str = ""
    data: bytes = b""


@dataclasses.dataclass(frozen=True)
class Packet:
    """A packet from a client; an end that is not named is the case's, or a fresh one."""

    kind: Kind
    client: End = End()
    virtual: End = End()


@dataclasses.dataclass(frozen=True)
class Flow:
    """Packets that go from one client's port to one place, in their order."""

    packets: tuple[Packet, ...]


def count(text: str) -> int:
    """A number in digits or in words; `a` and `another` are 1."""
    word = text.lower()
    if word in ("a", "an", "another", "single"):
        return 1
    if word in COUNTS:
        return COUNTS.index(word) + 1
    if not word.isdigit():
        raise ValueError(f"{text!r} is no number")
    return int(word)


NUMBER = rf"(?:\d+|an?|another|single|{'|'.join(COUNTS)})"


def bare(text: str) -> str:
    """The text without what stands in parentheses, in single spaces."""
    while (shorter := re.sub(r"\([^()]*\)", " ", text)) != text:
        text = shorter
    return " ".join(text.split())


def end(text: str) -> End:
    """An address and a port: `10.0.0.1:80`, `[2001:db8::1]:80`, `VIP:80`, `:80`, `10.0.0.1`."""
    if not re.fullmatch(END, text):
        raise ValueError(f"{text!r} is no address with a port")
    host, port = text, ""
    if not (text.endswith("]") or _is_address(text)):
        host, _, port = text.rpartition(":") if ":" in text else (text, "", "")
    if port and int(port) > 65535:
        raise ValueError(f"{port} is no port")
    return End(_address(host.strip("[]")), int(port) if port else None)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _address(text: str) -> str | None:
    if text in ("VIP", ""):
        return None
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise ValueError(f"{text!r} is no address") from None


# ------------------------------------------------------------------------------------------ kinds


def kind(text: str, protocol: str | None = None) -> Kind:
    """One packet's kind: `SYN`, `SYN+ACK`, `FA`, `UDP`, `INIT`, `COOKIE-ECHO`."""
    word = text.lower().replace("-", "_")
    if word in ("udp", "datagram") or (protocol == "udp" and word == "packet"):
        return Kind("udp")
    if word in ("ping", "echo"):
        return Kind("icmp")
    if word in CHUNKS and protocol in (None, "sctp"):
        return Kind("sctp", word)
    if protocol not in (None, "tcp"):
        raise ValueError(f"{text!r} is no packet of {protocol}")
    return Kind("tcp", flags(text))


def flags(text: str) -> str:
    """TCP's flags: `SYN`, `SYN+ACK`, `S`, `SA`, `none`."""
    if text.lower() in ("none", "null"):
        return ""
    words = [word for word in re.split(r"[-+/&|]", text) if word]
    if words and all(word.lower() in FLAGS for word in words):
        return "".join(FLAGS[word.lower()] for word in words)
    if text and set(text) <= set("SAFRPU") and len(set(text)) == len(text):
        return text
    raise ValueError(f"{text!r} is no kind of packet (SYN, SYN+ACK, UDP, INIT, ...)")


def kinds(text: str) -> tuple[Kind, ...]:
    """The kinds that a phrase lists: `SYN, ACK, RST`, `TCP SYN`, `UDP`, `tcp_open`."""
    found: list[Kind] = []
    protocol: str | None = None
    named = False
    for word in re.sub(r",|;|\band\b|\bthen\b", " ", text).split():
        lower = word.lower()
        if lower in ("packet", "packets") and named:
            continue
        if lower in MACROS:
            found += [kind(each) for each in MACROS[lower]]
        elif lower in ("tcp", "sctp"):
            protocol = lower
        else:
            found.append(kind(word, protocol))
            protocol, named = protocol or found[-1].protocol, True
    if not found and protocol is not None:
        found.append(kind(OPENING[protocol], protocol))
    if not found:
        raise ValueError(f"{text!r} names no packet")
    return tuple(found)


# ------------------------------------------------------------------------------------------- flows

_FLOWS = re.compile(
    rf"(?:(?P<count>{NUMBER})\s*(?:x\s|times\s|\s)\s*(?:more\s+)?(?:x\s+)?)?"
    r"(?P<kinds>[A-Za-z][A-Za-z_+/&,;| -]*?)"
    rf"(?:\s+(?:from\s+)?(?P<client>{END})"
    rf"(?:\s*(?:\.{{2,3}})\s*(?P<last>{END}))?)?"
    r"(?:\s*,?\s*(?P<each>one|once|1)\s+each)?"
    rf"(?:\s*(?:->|\bto\b)\s*(?P<virtual>{END}))?"
    r"(?:\s*,?\s*(?P<each2>one|once|1)\s+each)?",
    re.IGNORECASE,
)


_CALL = re.compile(
    rf"(?P<client>{END})\s+(?:Call-ID\s+(?P<identity>\S+)|payload without Call-ID)", re.IGNORECASE
)


def _call(identity: str | None) -> Kind:
    """A datagram of SIP, with this Call-ID or without one."""
    header = f"Call-ID: {identity}\r\n" if identity else ""
    return Kind("udp", data=f"INVITE sip:x SIP/2.0\r\n{header}\r\n".encode())


def flows(text: str) -> tuple[Flow, ...]:
    """The flows that a phrase sends packets of; ValueError where it is not understood.

    What is said to go somewhere without a word on what it is opens a TCP connection.
    """
    if spoken := _CALL.fullmatch(bare(text)):
        return (Flow((Packet(_call(spoken["identity"]), end(spoken["client"])),)),)
    whole = bare(text).rstrip(".")
    found = _FLOWS.fullmatch(f"TCP {whole}" if whole.startswith("->") else whole)
    if found is None:
        raise ValueError(f"{text!r} is not understood as packets")
    number = count(found["count"]) if found["count"] else 1
    virtual = end(found["virtual"]) if found["virtual"] else End()
    each = kinds(found["kinds"])
    return tuple(
        Flow(tuple(Packet(one, client, virtual) for one in each))
        for _ in range(number)
        for client in _clients(found["client"], found["last"])
    )


def _clients(first: str | None, last: str | None) -> list[End]:
    """The client, or each of a range."""
    begin = end(first) if first else End()
    if last is None:
        return [begin]
    until = end(last)
    if begin.address is None or until.address is None or begin.port != until.port:
        raise ValueError(f"{first} .. {last} is no range of clients")
    low, high = ipaddress.ip_address(begin.address), ipaddress.ip_address(until.address)
    if low.version != high.version or not 0 <= int(high) - int(low) < 4096:
        raise ValueError(f"{first} .. {last} is no range of clients")
    return [End(str(low + n), begin.port) for n in range(int(high) - int(low) + 1)]
