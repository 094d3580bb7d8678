"""Devices that only a full kernel has: run by scripts/test-vm on stock kernels."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PROGRAM = Path(sys.executable).parent / "lvsxdp"
VIP = "192.0.2.10"
NAMES = ("lvxvm-c", "lvxvm-lb", "lvxvm-b")
CLIENT, BALANCER, BACKEND = NAMES
CONFIG = """
services:
  - {protocol: tcp, address: 192.0.2.10, port: 80, backends: [{address: 10.0.20.11}]}
"""


def ip(namespace: str, words: str) -> None:
    """Runs `ip` inside a namespace."""
    subprocess.run(["ip", "-n", namespace, *words.split()], check=True)


def run(namespace: str, *argv: str) -> str:
    """What a command inside a namespace printed."""
    command = ["ip", "netns", "exec", namespace, *argv]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


def lvsxdp(*words: str) -> str:
    """What an lvsxdp command for the balancer printed."""
    command = [str(PROGRAM), "--netns", BALANCER, *words]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout


def cable(left: str, left_device: str, right: str, right_device: str) -> None:
    """A veth pair whose ends finish checksums and take XDP frames."""
    ip(left, f"link add {left_device} type veth peer name {right_device} netns {right}")
    for namespace, device in ((left, left_device), (right, right_device)):
        ip(namespace, f"link set {device} up")
        run(
            namespace, "ethtool", "-K", device, "gro", "on", "tx", "off", "tso", "off", "gso", "off"
        )


def tagged(namespace: str, device: str, tag: int, address: str) -> None:
    """A VLAN device with an address."""
    ip(namespace, f"link add link {device} name {device}.{tag} type vlan id {tag}")
    ip(namespace, f"link set {device}.{tag} up")
    ip(namespace, f"addr add {address} dev {device}.{tag}")


@pytest.fixture
def namespaces(tmp_path: Path) -> Iterator[Path]:
    """Client, balancer and backend; the backend answers the client by a link of their own."""
    for name in NAMES:
        subprocess.run(["ip", "netns", "add", name], check=True)
        ip(name, "link set lo up")
    cable(BACKEND, "direct", CLIENT, "direct")
    ip(CLIENT, "addr add 10.0.30.1/24 dev direct")
    ip(BACKEND, "addr add 10.0.30.2/24 dev direct")
    ip(BACKEND, f"addr add {VIP}/32 dev lo")
    ip(BACKEND, "route add 10.0.10.0/24 via 10.0.30.1")
    for name in ("all", "default", "direct"):
        for end in NAMES[::2]:
            run(end, "sysctl", "-qw", f"net.ipv4.conf.{name}.rp_filter=0")
    run(BACKEND, "sysctl", "-qw", "net.ipv4.conf.all.arp_ignore=1")
    (tmp_path / "index.html").write_text("b1\n")
    server = subprocess.Popen(
        ["ip", "netns", "exec", BACKEND, sys.executable, "-m", "http.server", "80"],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield tmp_path
    finally:
        server.kill()
        server.wait()
        subprocess.run([str(PROGRAM), "--netns", BALANCER, "detach", "--all"], capture_output=True)
        for name in NAMES:
            subprocess.run(["ip", "netns", "del", name], check=True)


def serve(folder: Path, device: str, mode: str) -> dict[str, int]:
    """Attaches, asks ten times, and gives the packets by reason."""
    path = folder / "config.yaml"
    path.write_text(CONFIG)
    lvsxdp("attach", device, "-c", str(path), "--mode", mode, "--set-sysctl")
    ip(CLIENT, f"route replace {VIP}/32 via 10.0.10.1")
    for _ in range(10):
        curl = ("curl", "-sf", "--retry", "5", "--retry-connrefused", "--max-time", "20")
        assert run(CLIENT, *curl, f"http://{VIP}/") == "b1\n"
    reasons: dict[str, int] = json.loads(lvsxdp("status", "--json"))["reasons"]
    return reasons


@pytest.mark.parametrize("mode", ["native", "generic", "tc"])
def test_clients_in_one_vlan_reach_a_backend_in_another_across_one_trunk(
    namespaces: Path, mode: str
) -> None:
    cable(CLIENT, "eth0", BALANCER, "trunk")
    cable(BALANCER, "back", BACKEND, "eth0")
    tagged(CLIENT, "eth0", 10, "10.0.10.7/24")
    tagged(BALANCER, "trunk", 10, "10.0.10.1/24")
    tagged(BALANCER, "back", 20, "10.0.20.1/24")
    tagged(BACKEND, "eth0", 20, "10.0.20.11/24")
    ip(BALANCER, f"addr add {VIP}/32 dev trunk.10")
    assert serve(namespaces, "trunk", mode)["forwarded"] >= 50


@pytest.mark.parametrize("mode", ["native", "generic", "tc"])
def test_a_bond_balances_as_one_interface(namespaces: Path, mode: str) -> None:
    ip(BALANCER, "link add bond0 type bond mode active-backup miimon 100")
    cable(CLIENT, "eth0", BALANCER, "leg0")
    cable(BALANCER, "back", BACKEND, "eth0")
    ip(BALANCER, "link set leg0 down")
    ip(BALANCER, "link set leg0 master bond0")
    ip(BALANCER, "link set bond0 up")
    ip(CLIENT, "addr add 10.0.10.7/24 dev eth0")
    ip(BALANCER, "addr add 10.0.10.1/24 dev bond0")
    ip(BALANCER, f"addr add {VIP}/32 dev bond0")
    ip(BALANCER, "addr add 10.0.20.1/24 dev back")
    ip(BACKEND, "addr add 10.0.20.11/24 dev eth0")
    assert serve(namespaces, "bond0", mode)["forwarded"] >= 50
