"""Backends whose kernel takes packets out of tunnels: run by scripts/test-vm on stock kernels."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.vm.test_devices import (
    BACKEND,
    BALANCER,
    CLIENT,
    VIP,
    cable,
    counted,
    ip,
    lvsxdp,
    namespaces,
    run,
)

__all__ = ["namespaces"]
HOME = {"4": "10.0.20.11", "6": "2001:db8:20::11"}
# What the backend has for it, and the device that packets come out of.
DEVICES = {
    "ipip": (("ipip",), (), "tunl0"),
    "gre": (("ip_gre",), (), "gre0"),
    "gre csum": (
        ("ip_gre",),
        ("link add gre1 type gre local 10.0.20.11 remote 10.0.20.1 icsum",),
        "gre1",
    ),
    "gue": (("ipip", "fou"), ("fou add port 6080 gue",), "tunl0"),
    "gue csum": (("ipip", "fou"), ("fou add port 6080 gue",), "tunl0"),
    "4-in-6": (
        ("ip6_tunnel",),
        (
            "link add tun46 type ip6tnl mode ipip6"
            " local 2001:db8:20::11 remote 2001:db8:20::1 encaplimit none",
        ),
        "tun46",
    ),
}


def configuration(kind: str) -> str:
    name, _, checksum = kind.partition(" ")
    family = "6" if name == "4-in-6" else "4"
    options = "ipip" if family == "6" else name
    port = ", port: 6080" if options == "gue" else ""
    more = f", checksum: {checksum}" if checksum else ""
    return f"""
capacity: {{connections: 4096, persistence: 4096}}
services:
  - protocol: tcp
    address: {VIP}
    port: 80
    forward: tunnel
    tunnel: {{type: {options}{port}{more}}}
    backends: [{{address: "{HOME[family]}"}}]
  - protocol: udp
    address: {VIP}
    port: 9
    forward: tunnel
    tunnel: {{type: {options}{port}{more}}}
    backends: [{{address: "{HOME[family]}"}}]
"""


@pytest.mark.parametrize("mode", ["native", "generic", "tc"])
@pytest.mark.parametrize("kind", DEVICES)
def test_the_kernels_own_devices_take_packets_out(namespaces: Path, kind: str, mode: str) -> None:
    modules, commands, device = DEVICES[kind]
    for module in modules:
        subprocess.run(["modprobe", module], check=True)
    cable(CLIENT, "eth0", BALANCER, "front")
    cable(BALANCER, "back", BACKEND, "eth0")
    ip(CLIENT, "addr add 10.0.10.7/24 dev eth0")
    ip(BALANCER, "addr add 10.0.10.1/24 dev front")
    ip(BALANCER, f"addr add {VIP}/32 dev front")
    for namespace, link, host in ((BALANCER, "back", "1"), (BACKEND, "eth0", "11")):
        ip(namespace, f"addr add 10.0.20.{host}/24 dev {link}")
        ip(namespace, f"addr add 2001:db8:20::{host}/64 dev {link} nodad")
    for command in commands:
        ip(BACKEND, command)
    ip(BACKEND, f"link set {device} up")
    for name in ("all", device):
        run(BACKEND, "sysctl", "-qw", f"net.ipv4.conf.{name}.rp_filter=0")
    path = namespaces / "config.yaml"
    path.write_text(configuration(kind))
    (namespaces / "big").write_bytes(bytes(range(256)) * 1024)
    lvsxdp("attach", "front", "-c", str(path), "--mode", mode, "--set-sysctl")
    ip(CLIENT, f"route replace {VIP}/32 via 10.0.10.1")
    curl = ("curl", "-sf", "--retry", "5", "--retry-connrefused", "--max-time", "60")
    run(CLIENT, *curl, "-o", str(namespaces / "down"), f"http://{VIP}/big")
    assert (namespaces / "down").read_bytes() == (namespaces / "big").read_bytes()
    forwarded = json.loads(lvsxdp("status", "--json"))["reasons"]["forwarded"]
    assert counted(BACKEND, device, "rx") == forwarded > 10
    # a datagram too large for what is put before it: cut on its way, and put together there
    before = int(udp_counter("InDatagrams") + udp_counter("NoPorts"))
    sender = "import socket; s=socket.socket(socket.AF_INET, socket.SOCK_DGRAM);"
    sender += "s.setsockopt(socket.IPPROTO_IP, 10, 0);"
    sender += f"s.sendto(bytes(1472), ('{VIP}', 9))"
    if kind != "4-in-6":
        run(CLIENT, "python3", "-c", sender)
        assert int(udp_counter("InDatagrams") + udp_counter("NoPorts")) > before


def udp_counter(name: str) -> int:
    """What the backend's kernel counted of UDP."""
    lines = [line.split() for line in run(BACKEND, "cat", "/proc/net/snmp").splitlines()]
    names, values = (line for line in lines if line[0] == "Udp:")
    return int(dict(zip(names, values, strict=True))[name])
