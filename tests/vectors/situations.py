"""What a client meets where no server gets its packet: situations in words, and what is sent."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

from tests.vectors.services import VIPS, Server, Service, server_address
from tests.vectors.words import End, Kind, Packet

CLIENT = End("10.0.0.1", 1001)
# a situation's services, and the packets that its client sends
Situation = tuple[tuple[Service, ...], tuple[Packet, ...]]


def situation(text: str) -> Situation:
    """The situation of a text; ValueError where it is not understood."""
    lower = " ".join(text.lower().split())
    protocol = "udp" if re.search(r"\budp\b", lower) else "tcp"
    for pattern, build in _SITUATIONS:
        if re.search(pattern, lower):
            services, packets = build(lower, protocol)
            return tuple(_described(each, lower) for each in services), packets
    raise ValueError(f"{text!r} is no case that is known here")


def _described(service: Service, text: str) -> Service:
    """The service with what else the text says of it."""
    if re.search(r"\b(fw)?mark\b", text):
        service = dataclasses.replace(service, mark=7)
    if re.search(r"(?<!non-)(?<!non )(?<!not )\bpersistent\b", text):
        service = dataclasses.replace(service, persistent=10)
    return service


def _service(protocol: str, port: int, weight: int = 1) -> Service:
    servers = tuple(Server(name, server_address(name, "ipv4"), weight=weight) for name in "ABC")
    return Service(protocol, VIPS["ipv4"], port, scheduler="rr", servers=servers)


def _opening(protocol: str, port: int, client: End = CLIENT) -> Packet:
    kind = Kind("udp") if protocol == "udp" else Kind("tcp", "S")
    return Packet(kind, client, End(None, port))


def _ping(_: str, protocol: str) -> Situation:
    return (_service(protocol, 80),), (Packet(Kind("icmp"), CLIENT),)


def _source_port_20(_: str, protocol: str) -> Situation:
    return (_service(protocol, 80),), (_opening(protocol, 80, End(CLIENT.address, 20)),)


def _ftp(text: str, _: str) -> Situation:
    """Ports that a service on port 21 is reached by, which has no persistence."""
    asked = re.search(r"\bports? (\d+(?:(?:,| or| and) ?\d+)*)$", text)
    if asked is None or not re.search(r"\b(non|not)[- ]persistent", text):
        raise ValueError(f"{text!r} is not understood: which ports of a non-persistent service?")
    ports = map(int, re.findall(r"\d+", asked[1]))
    return (_service("tcp", 21),), tuple(_opening("tcp", port) for port in ports)


def _quiesced(_: str, protocol: str) -> Situation:
    return (_service(protocol, 80, weight=0),), (_opening(protocol, 80),)


def _empty(_: str, protocol: str) -> Situation:
    service = Service(protocol, VIPS["ipv4"], 80, scheduler="rr")
    return (service,), (_opening(protocol, 80),)


def _stray(_: str, protocol: str) -> Situation:
    return (_service(protocol, 80),), (Packet(Kind("tcp", "A"), CLIENT, End(None, 80)),)


def _nothing(_: str, protocol: str) -> Situation:
    return (), (_opening(protocol, 80),)


_SERVICE = "(an? )?((tcp|udp|mark|fwmark|persistent),? )*service"
# the first that fits is meant
_SITUATIONS: tuple[tuple[str, Callable[[str, str], Situation]], ...] = (
    (r"^ping\b", _ping),
    (r"\bsource port 20\b", _source_port_20),
    (r"\bftp\b", _ftp),
    (rf"^{_SERVICE} without (any )?usable servers?$", _quiesced),
    (
        rf"^{_SERVICE} (whose|with all) servers? (are |have |has |of )*(weight 0|quiesced)$",
        _quiesced,
    ),
    (rf"^{_SERVICE} without (any )?servers?$", _empty),
    (r"^(an? )?ack without (a )?connection", _stray),
    (r"^no service(,? (for )?(tcp|udp))?$", _nothing),
)
