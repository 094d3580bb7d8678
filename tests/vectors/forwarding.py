"""The section `forwarding`: what leaves for a server, field by field, and what comes of errors."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping

from tests.vectors.places import Node
from tests.vectors.services import VIPS, Server, Service, server_address
from tests.vectors.steps import Case, Error, Leaves, Set, Step

TUNNELS = ("ipip", "gue", "gre")
METHODS = {"dr": "dr", "nat": "nat", "any": "dr", **dict.fromkeys(TUNNELS, "tunnel")}
KEYS = {
    *("method", "ip", "inner_ttl", "inner_tos", "request_override", "tun_port", "csum", "udp"),
    *("gue", "gre", "out_mtu", "request_len", "df", "pmtu_disc", "result", "udp_checksum"),
    *("id", "server_port"),
}
LATER = {"nat_icmp_send": "nat_icmp_send is not built yet"}
ERROR = re.compile(
    r"(?P<who>RS|router (?P<router>[0-9.]+) to VIP): ICMP (?P<type>\d+)/(?P<code>\d+)"
    r"( mtu (?P<mtu>\d+))? quoting (?P<source>[0-9.]+):(?P<sport>\d+) -> "
    r"(?P<destination>[0-9.]+):(?P<dport>\d+)"
)


def forwards(node: Node) -> Iterator[Case]:
    """A case for each packet, then for each error."""
    fields = node.fields({"request", "cases", "icmp_nat"})
    request = _plain(fields["request"])
    for number, entry in enumerate(fields["cases"].entries() if "cases" in fields else []):
        yield _case(number, entry, request)
    for number, entry in enumerate(fields["icmp_nat"].entries() if "icmp_nat" in fields else []):
        yield _error(number, entry)


def _plain(node: Node) -> dict[str, object]:
    """A mapping's values as YAML has them."""
    return {name: each.value for name, each in node.fields().items()}


def _case(number: int, entry: Node, request: Mapping[str, object]) -> Case:
    fields = entry.fields(KEYS)
    said = fields["method"].text()
    is_local = said.startswith("local")
    method = "dr" if is_local else said
    if method not in METHODS:
        raise fields["method"].error(f"{said!r} is no method ({', '.join(METHODS)})")
    given = dict(request)
    if "request_override" in fields:
        given |= _plain(fields["request_override"])
    for name, key in (("request_len", "ip_len"), ("df", "df"), ("udp_checksum", "udp_checksum")):
        if name in fields:
            given[key] = fields[name].value
    expected: dict[str, object] = {
        name: _plain(fields[name]) if name in ("ip", "udp") else fields[name].value
        for name in ("ip", "udp", "gue", "gre", "inner_ttl", "inner_tos", "result")
        if name in fields
    }
    if not expected:
        raise entry.error("a case says what leaves, or what its result is")
    port = fields["server_port"].whole() if "server_port" in fields else None
    address = VIPS["ipv4"].replace("100", "101") if is_local else server_address("A", "ipv4")
    tunnel: dict[str, object] = {}
    if METHODS[method] == "tunnel":
        tunnel["type"] = method
        if "tun_port" in fields:
            tunnel["port"] = fields["tun_port"].whole()
        if "csum" in fields and fields["csum"].text() != "none":
            tunnel["checksum"] = fields["csum"].text()
    service = Service(
        *("udp" if "udp_checksum" in fields else "tcp", VIPS["ipv4"], 80),
        scheduler="rr",
        servers=(Server("A", address, port),),
        forward=METHODS[method],
        tunnel=tuple(tunnel.items()),
    )
    settings = [Step("pmtu_disc", Set({"pmtu_disc": 0}))] if "pmtu_disc" in fields else []
    mtu = fields["out_mtu"].whole() if "out_mtu" in fields else None
    act = Leaves(dataclasses.replace(service), given, mtu, expected, is_local)
    name = f"cases[{number}]-{method if not is_local else 'local'}"
    return Case("forwarding", name, (service,), (), (*settings, Step("leaves", act)))


def _error(number: int, entry: Node) -> Case:
    fields = entry.fields({"id", "setup", "from", "to_client", "to_rs"})
    name = f"icmp_nat[{number}]"
    if "setup" in fields:
        setting = fields["setup"].text().partition("=")[0]
        if setting not in LATER:
            raise fields["setup"].error(f"{setting!r} is not known here")
        return Case("forwarding", name, left=LATER[setting])
    found = ERROR.fullmatch(fields["from"].text())
    if found is None:
        raise fields["from"].error("which error, of whom, and what does it quote?")
    to = "to_client" if "to_client" in fields else "to_rs"
    service = Service(
        *("tcp", VIPS["ipv4"], 80),
        scheduler="rr",
        servers=(Server("A", server_address("A", "ipv4"), 8080),),
        forward="nat",
    )
    act = Error(found.groupdict(), to, {n: str(v) for n, v in _plain(fields[to]).items()})
    return Case("forwarding", name, (service,), (), (Step("error", act),))
