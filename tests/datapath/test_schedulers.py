"""Each scheduler picks what IPVS picks: the scheduler cases of the vectors file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from tests.datapath.harness import ROUTER_MAC, Datapath

VECTORS = Path(__file__).parent.parent / "vectors/ipvs-vectors.yaml"
SCHEDULERS = {"rr", "wrr", "wlc", "lc", "sed", "nq", "fo", "ovf", "sh"}
VIPS = {"ipv4": "192.0.2.10", "ipv6": "2001:db8::10"}


def cases() -> list[Any]:
    """The cases of the schedulers that are there."""
    found = yaml.safe_load(VECTORS.read_text())["schedulers"]
    return [pytest.param(case, id=case["id"]) for case in found if case["scheduler"] in SCHEDULERS]


def address(name: str, family: str) -> str:
    """The backend that stands for server A, B, C, ..."""
    place = ord(name) - ord("A")
    return f"10.0.0.{11 + place}" if family == "ipv4" else f"2001:db8:0:2::{0x11 + place:x}"


def text(case: dict[str, Any], servers: dict[str, int]) -> str:
    """The configuration of a case's service with these servers and weights."""
    family = case.get("family", "ipv4")
    limits = {
        server["name"]: {"upper_threshold": server["u"], "lower_threshold": server["l"]}
        for server in case.get("servers", [])
        if "u" in server
    }
    backends = [
        {"address": address(n, family), "weight": w, **limits.get(n, {})}
        for n, w in servers.items()
    ]
    service = {
        "protocol": case.get("proto", "tcp"),
        "address": VIPS[family],
        "port": 80,
        "scheduler": case["scheduler"],
        "backends": backends,
    }
    if case.get("flags"):
        service["flags"] = case["flags"]
    return yaml.safe_dump({"services": [service]})


def pick(datapath: Datapath, case: dict[str, Any], number: int) -> str:
    """The letter of the backend that the case's next new connection gets, `-` for none."""
    family = case.get("family", "ipv4")
    default = ["198.51.100.7" if family == "ipv4" else "2001:db8:1::7", 20000 + number]
    source, port = (case["clients"][number] if "clients" in case else default)[:2]
    layer = IP if family == "ipv4" else IPv6
    transport: Any = TCP(sport=port, dport=80, flags="S")
    if case.get("proto") == "udp":
        transport = UDP(sport=port, dport=80)
    frame = Ether(src=ROUTER_MAC, dst=datapath.mac["lb0"])
    verdict = datapath.send(frame / layer(src=source, dst=VIPS[family]) / transport)
    chosen = datapath.backend_of(verdict)
    letters = {address(name, family): name for name in "ABCDEFGHIJ"}
    return letters[chosen] if chosen else "-"


def give_load(datapath: Datapath, case: dict[str, Any]) -> None:
    """Sets the counts that the case begins with: active and inactive by server."""
    (place,) = datapath.balancer.state.book.services.values()
    for name, (active, inactive) in case.get("initial", {}).items():
        backend = place.backends[address(name, "ipv4")]
        datapath.balancer.heal("loads", backend.id, 0, active)
        datapath.balancer.heal("loads", backend.id, 1, active + inactive)


@pytest.mark.parametrize("case", cases())
def test_new_connections_go_where_ipvs_sends_them(datapath: Datapath, case: dict[str, Any]) -> None:
    servers = {server["name"]: server["w"] for server in case["servers"]}
    datapath.apply(text(case, servers))
    give_load(datapath, case)
    got, expected, number = "", "", 0
    for step in [{"picks": case["picks"]}, *case.get("steps", [])]:
        if "picks" not in step:
            servers = changed(servers, step)
            datapath.apply(text(case, servers))
            continue
        for _ in step["picks"]:
            got += pick(datapath, case, number)
            number += 1
        expected += step["picks"]
    assert got == expected


def changed(servers: dict[str, int], step: dict[str, Any]) -> dict[str, int]:
    """The servers after one step: edit, add or delete."""
    if "delete" in step:
        return {name: weight for name, weight in servers.items() if name != step["delete"]}
    return {**servers, step.get("edit") or step["add"]: step["w"]}


@pytest.mark.parametrize("count", [63, 64, 65, 200])
@pytest.mark.parametrize("scheduler", ["rr", "wrr", "wlc"])
def test_a_list_longer_than_one_step_is_walked_to_its_end(
    datapath: Datapath, scheduler: str, count: int
) -> None:
    heavy, light = "10.0.0.11", "10.0.0.12"
    others = [{"address": f"10.0.1.{n + 1}", "weight": 0} for n in range(count)]
    backends = [{"address": light}, *others, {"address": heavy}]
    service = {
        "protocol": "tcp",
        "address": "192.0.2.10",
        "port": 80,
        "scheduler": scheduler,
        "backends": backends,
    }
    datapath.apply(yaml.safe_dump({"services": [service]}))
    case = {"scheduler": scheduler}
    assert "".join(pick(datapath, case, n) for n in range(6)) == "ABABAB"
