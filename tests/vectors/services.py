"""Services as a case describes them and as ipvsadm's commands change them, and lvsxdp's YAML."""

from __future__ import annotations

import dataclasses
import functools
import ipaddress
import re
from collections.abc import Mapping
from typing import Any

from tests.vectors.places import Node
from tests.vectors.words import Kind, end

VIPS = {"ipv4": "172.16.0.100", "ipv6": "2001:db8:ff::100"}
PORTS = {"tcp": 80, "udp": 53, "sctp": 80}
SCHEDULERS = {
    *("rr", "wrr", "lc", "wlc", "sed", "nq", "fo", "ovf"),
    *("sh", "dh", "mh", "twos", "lblc", "lblcr"),
}
FLAGS = {"sh-port", "sh-fallback", "mh-port", "mh-fallback"}
SERVER_KEYS = {"name", "w", "weight", "u", "l", "addr", "port"}
SERVICE_KEYS = {
    *("proto", "protocol", "port", "vip", "address", "fwmark", "family", "scheduler", "flags"),
    *("persistent", "netmask", "one_packet", "pe", "servers", "weight"),
}


@dataclasses.dataclass(frozen=True)
class Server:
    """A real server by its letter; port None is the service's."""

    name: str
    address: str
    port: int | None = None
    weight: int = 1
    upper: int = 0
    lower: int = 0


@dataclasses.dataclass(frozen=True)
class Service:
    """A virtual service: by `mark`, or by protocol, address and port (0: any)."""

    protocol: str = "tcp"
    address: str = VIPS["ipv4"]
    port: int = 80
    mark: int | None = None
    scheduler: str = "wlc"
    flags: tuple[str, ...] = ()
    persistent: int | None = None
    netmask: str | int | None = None
    one_packet: bool = False
    servers: tuple[Server, ...] = ()
    forward: str = "dr"
    engine: str | None = None
    tunnel: tuple[tuple[str, object], ...] = ()  # keys and values

    @property
    def family(self) -> str:
        """ipv4 or ipv6."""
        return "ipv6" if ":" in self.address else "ipv4"

    @property
    def key(self) -> tuple[object, ...]:
        """What names it."""
        if self.mark is not None:
            return (self.mark, self.family)
        return (self.protocol, self.address, self.port)

    def opening(self) -> Kind:
        """The packet that opens a connection to it."""
        return {"udp": Kind("udp"), "sctp": Kind("sctp", "init")}.get(
            self.protocol, Kind("tcp", "S")
        )


@dataclasses.dataclass(frozen=True)
class Mark:
    """A rule that gives packets a mark; empty fields do not restrict."""

    mark: int
    address: str = "any"
    protocols: tuple[str, ...] = ()
    ports: tuple[str, ...] = ()


def server_address(name: str, family: str) -> str:
    """The address of server A, B, C, ... where the case gives none."""
    if not re.fullmatch("[A-Z]", name):
        raise ValueError(f"server {name!r} needs an address")
    place = ord(name) - ord("A") + 1
    return f"2001:db8:2::{place:x}" if family == "ipv6" else f"192.168.1.{place}"


# ---------------------------------------------------------------------------------------- reading


def server(node: Node, family: str) -> Server:
    """A server: a letter, a letter with a port, or a mapping."""
    if not isinstance(node.value, dict):
        name, _, port = node.text().partition(":")
        if port and not port.isdigit():
            raise node.error(f"{port!r} is no port")
        address = node.read(lambda text: server_address(text.partition(":")[0], family))
        return Server(name, address, int(port) if port else None)
    fields = node.fields(SERVER_KEYS)
    if "name" not in fields:
        raise node.error("a server needs a name")
    name = fields["name"].text()
    found = fields["addr"].address() if "addr" in fields else None
    return Server(
        name,
        found or fields["name"].read(lambda text: server_address(text, family)),
        fields["port"].whole() if "port" in fields else None,
        *(_number(fields, default, *names) for default, *names in _SERVER_NUMBERS),
    )


_SERVER_NUMBERS: tuple[tuple[Any, ...], ...] = ((1, "w", "weight"), (0, "u"), (0, "l"))


def _number(fields: Mapping[str, Node], default: int, *names: str) -> int:
    for name in names:
        if name in fields:
            return fields[name].whole()
    return default


def service(node: Node) -> Service:
    """A service of a timeline: with rr, and servers A, B and C, where it says nothing else."""
    fields = node.fields(SERVICE_KEYS)
    protocol = (fields.get("proto") or fields.get("protocol") or _word("tcp")).text().lower()
    if protocol not in PORTS:
        raise node.error(f"{protocol!r} is no protocol (tcp, udp, sctp)")
    family = family_of(fields)
    address = (fields.get("vip") or fields.get("address") or _word(VIPS[family])).address()
    family = "ipv6" if ":" in address else family
    names = fields["servers"].entries() if "servers" in fields else [_word(n) for n in "ABC"]
    return Service(
        protocol,
        address,
        fields["port"].whole() if "port" in fields else PORTS[protocol],
        fields["fwmark"].whole() if "fwmark" in fields else None,
        scheduler(fields["scheduler"]) if "scheduler" in fields else "rr",
        flags(fields.get("flags")),
        persistence(fields.get("persistent")),
        netmask(fields.get("netmask"), family),
        "one_packet" in fields and fields["one_packet"].switch(),
        tuple(server(entry, family) for entry in names),
        engine=engine(fields.get("pe")),
    )


def engine(node: Node | None) -> str | None:
    """A persistence engine: sip is the only one."""
    if node is not None and node.text() != "sip":
        raise node.error(f"{node.text()!r} is no persistence engine (sip)")
    return None if node is None else "sip"


def _word(text: str) -> Node:
    return Node(text, "the default", 0)


def family_of(fields: Mapping[str, Node]) -> str:
    """The family that a mapping names; ipv4 where it names none."""
    if "family" not in fields:
        return "ipv4"
    if (family := fields["family"].text().lower()) not in VIPS:
        raise fields["family"].error(f"{family!r} is no family (ipv4, ipv6)")
    return family


def flags(node: Node | None) -> tuple[str, ...]:
    """A scheduler's flags by ipvsadm's names."""
    if node is None:
        return ()
    for flag in (words := node.words()):
        if flag not in FLAGS:
            raise node.error(f"{flag!r} is no flag ({', '.join(sorted(FLAGS))})")
    return words


def persistence(node: Node | None) -> int | None:
    """Seconds; true stands for ipvsadm's -p without a value."""
    if node is None or node.value is False:
        return None
    return 360 if node.value is True else node.whole()


def netmask(node: Node | None, family: str) -> str | int | None:
    """IPv4's dotted mask, or the length of IPv6's prefix."""
    if node is None:
        return None
    return node.whole() if family == "ipv6" else node.address()


def scheduler(node: Node) -> str:
    """A scheduler's name."""
    if (name := node.text()) not in SCHEDULERS:
        raise node.error(f"{name!r} is no scheduler ({', '.join(sorted(SCHEDULERS))})")
    return name


def mark_rule(node: Node) -> Mark:
    """A rule `{match: "172.16.0.100 tcp 80,443", mark: 7}`."""
    fields = node.fields({"match", "mark"})
    if len(fields) < 2:
        raise node.error("a rule has `match` and `mark`")
    found = Mark(fields["mark"].whole())
    return fields["match"].read(lambda text: functools.reduce(_narrowed, text.split(), found))


def _narrowed(rule: Mark, word: str) -> Mark:
    lower = word.lower().rstrip(",")
    if lower in PORTS or re.fullmatch("(tcp|udp|sctp)([,/](tcp|udp|sctp))+", lower):
        return dataclasses.replace(rule, protocols=tuple(re.split("[,/]", lower)))
    if re.fullmatch(r"\d+([-:]\d+)?(,\d+([-:]\d+)?)*", lower):
        ports = tuple(port.replace(":", "-") for port in lower.split(","))
        return dataclasses.replace(rule, ports=(*rule.ports, *ports))
    if lower in ("port", "ports", "any"):
        return rule
    try:
        network = ipaddress.ip_network(lower.strip("[]"), strict=False)
    except ValueError:
        raise ValueError(f"{word!r} is no address, protocol or port") from None
    return dataclasses.replace(rule, address=str(network))


# ----------------------------------------------------------------------------------- lvsxdp's YAML


def configuration(
    services: tuple[Service, ...], marks: tuple[Mark, ...], settings: Mapping[str, int]
) -> dict[str, Any]:
    """What lvsxdp's file says for these services; marks that no rule gives are given to all."""
    return {
        "marks": [_mark_row(rule) for rule in marks],
        "services": [_service_row(each) for each in services],
        "settings": dict(settings),
    }


def _mark_row(rule: Mark) -> dict[str, Any]:
    row: dict[str, Any] = {"mark": rule.mark, "address": rule.address}
    if rule.protocols:
        row["protocols"] = list(rule.protocols)
    if rule.ports:
        row["ports"] = [int(port) if port.isdigit() else port for port in rule.ports]
    return row


def _service_row(service: Service) -> dict[str, Any]:
    row: dict[str, Any] = {"scheduler": service.scheduler}
    if service.mark is not None:
        row |= {"mark": service.mark, "family": service.family}
    else:
        row |= {"protocol": service.protocol, "address": service.address}
        row["port"] = service.port or "any"
    if service.flags:
        row["flags"] = list(service.flags)
    if service.persistent is not None:
        row["persistence"] = {"timeout": service.persistent}
        if service.netmask is not None:
            row["persistence"]["netmask"] = service.netmask
        if service.engine is not None:
            row["persistence"]["engine"] = service.engine
    if service.one_packet:
        row["one_packet"] = True
    if service.forward != "dr":
        row["forward"] = service.forward
    if service.tunnel:
        row["tunnel"] = dict(service.tunnel)
    row["backends"] = [_backend_row(each, service.forward) for each in service.servers]
    return row


def _backend_row(server: Server, forward: str) -> dict[str, Any]:
    row: dict[str, Any] = {"address": server.address, "weight": server.weight}
    # dr changes no port: what a server's own would be is not said
    if forward == "nat" and server.port:
        row["port"] = server.port
    if server.upper:
        row["upper_threshold"] = server.upper
    if server.lower:
        row["lower_threshold"] = server.lower
    return row


def letters(services: tuple[Service, ...]) -> dict[str, str]:
    """The letter of each server's address."""
    return {each.address: each.name for service in services for each in service.servers}


def server_end(text: str, services: tuple[Service, ...]) -> tuple[str, int]:
    """The letter and port of a server in a listing: `C:80`, `192.168.1.3:0`."""
    name, _, port = text.rpartition(":")
    if re.fullmatch(r"\w+", name) and port.isdigit() and not name.isdigit():
        return name, int(port)
    found = end(text)
    if found.address is None or found.port is None:
        raise ValueError(f"{text!r} is no server with a port")
    return letters(services).get(found.address, found.address), found.port
