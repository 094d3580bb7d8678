"""Devices that only a full kernel has: run by scripts/test-vm on stock kernels."""

from __future__ import annotations

import json
import platform
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


def roads() -> dict[str, str]:
    """The road to each backend."""
    rows = json.loads(lvsxdp("backend", "list", "--json"))
    return {row["address"]: row["road"] for row in rows}


def counted(namespace: str, device: str, what: str) -> int:
    """The packets that a device has received (`rx`) or sent (`tx`)."""
    command = ["ip", "-n", namespace, "-j", "-s", "link", "show", "dev", device]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return int(json.loads(shown)[0]["stats64"][what]["packets"])


@pytest.mark.parametrize("mode", ["native", "generic", "tc"])
def test_clients_in_one_vlan_reach_a_backend_in_another(namespaces: Path, mode: str) -> None:
    cable(CLIENT, "eth0", BALANCER, "trunk")
    cable(BALANCER, "back", BACKEND, "eth0")
    tagged(CLIENT, "eth0", 10, "10.0.10.7/24")
    tagged(BALANCER, "trunk", 10, "10.0.10.1/24")
    tagged(BALANCER, "back", 20, "10.0.20.1/24")
    tagged(BACKEND, "eth0", 20, "10.0.20.11/24")
    ip(BALANCER, f"addr add {VIP}/32 dev trunk.10")
    forwarded = serve(namespaces, "trunk", mode)["forwarded"]
    assert forwarded >= 50
    assert counted(BACKEND, "eth0.20", "rx") >= forwarded
    assert roads() == {"10.0.20.11": "redirect" if mode == "native" else "tc"}
    # what XDP sends does not pass the VLAN device; what TC sends does
    by_device = counted(BALANCER, "back.20", "tx")
    assert by_device < forwarded / 2 if mode == "native" else by_device >= forwarded


def test_across_one_trunk_frames_go_back_with_another_tag(namespaces: Path) -> None:
    cable(CLIENT, "eth0", BALANCER, "trunk")
    cable(CLIENT, "port", BACKEND, "eth0")
    ip(CLIENT, "link add switch type bridge")
    ip(CLIENT, "link set switch up")
    for device in ("eth0", "port"):
        ip(CLIENT, f"link set {device} master switch")
    tagged(CLIENT, "switch", 10, "10.0.10.7/24")
    tagged(BALANCER, "trunk", 10, "10.0.10.1/24")
    tagged(BALANCER, "trunk", 20, "10.0.20.1/24")
    tagged(BACKEND, "eth0", 20, "10.0.20.11/24")
    ip(BALANCER, f"addr add {VIP}/32 dev trunk.10")
    forwarded = serve(namespaces, "trunk", "native")["forwarded"]
    assert forwarded >= 50
    assert counted(BACKEND, "eth0.20", "rx") >= forwarded
    assert roads() == {"10.0.20.11": "redirect"}
    assert counted(BALANCER, "trunk.20", "tx") < forwarded / 2


def test_the_kernel_sends_by_vlan_devices_that_xdp_does_not_know_or_cannot_tag_for(
    namespaces: Path,
) -> None:
    cable(CLIENT, "eth0", BALANCER, "front")
    cable(BALANCER, "back", BACKEND, "eth0")
    subnets = {21: "", 22: " protocol 802.1ad", 23: " egress-qos-map 0:5"}
    for number, words in subnets.items():
        ip(BALANCER, f"link add link back name v{number} type vlan id {number}{words}")
    ip(BALANCER, "link add link v21 name v24 type vlan id 24")
    for number in (*subnets, 24):
        ip(BALANCER, f"link set v{number} up")
        ip(BALANCER, f"addr add 10.0.{number}.1/24 dev v{number}")
    path = namespaces / "config.yaml"
    backends = ", ".join(f"{{address: 10.0.{number}.11}}" for number in range(21, 26))
    path.write_text(CONFIG.replace("{address: 10.0.20.11}", backends))
    lvsxdp("attach", "front", "-c", str(path), "--mode", "native", "--set-sysctl")
    ip(BALANCER, "link add link back name v25 type vlan id 25")
    ip(BALANCER, "link set v25 up")
    ip(BALANCER, "addr add 10.0.25.1/24 dev v25")
    known = {"10.0.21.11": "redirect", **{f"10.0.{n}.11": "tc" for n in (22, 23, 24)}}
    assert roads() == {**known, "10.0.25.11": "tc"}
    lvsxdp("apply", str(path))
    assert roads() == {**known, "10.0.25.11": "redirect"}


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


def test_hardware_is_attached_after_a_word_of_warning_and_its_mtu_refused_with_the_command(
    namespaces: Path,
) -> None:
    """VMware's network card, which scripts/test-vm has QEMU add; its driver has XDP since 6.6."""
    subprocess.run(["modprobe", "vmxnet3"], check=True)
    driver = "/sys/bus/pci/drivers/vmxnet3"
    (device,) = (path.name for path in Path(driver).glob("*/net/*"))
    subprocess.run(["ip", "link", "set", device, "netns", BALANCER], check=True)
    ip(BALANCER, f"link set {device} mtu 9000 up")
    path = namespaces / "config.yaml"
    path.write_text(CONFIG)
    words = [str(PROGRAM), "--netns", BALANCER, "attach", device, "-c", str(path)]
    words += ["--mode", "native"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600)
    note, refusal = done.stderr.splitlines()[-2:]
    assert note.startswith(f"note: {device}: native mode; its driver may reset the link")
    if tuple(map(int, platform.release().split(".")[:2])) < (6, 6):
        assert refusal.endswith("support XDP in native mode")
        return
    command = f"ip link set dev {device} mtu 1500"
    assert refusal.endswith(f"MTU 9000 too large for XDP; its MTU is 9000 now: {command}")
    ip(BALANCER, command.removeprefix("ip "))
    subprocess.run(words, check=True, capture_output=True, timeout=600)
