"""What XDP sends and the kernel then loses is counted, and `attach` says why roads are bad."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from lvsxdp import libbpf, maps
from lvsxdp.watching import TRACEPOINTS
from tests.e2e.conftest import wait_for
from tests.e2e.pair import HERE, PEER, PINS, PROGRAM, Pair, config, pair, run

SHOP = f"""
services:
- {{name: shop, mark: 7, backends: [{{address: 10.9.9.2}}]}}
marks:
- {{mark: 7, protocol: udp, address: {HERE}, port: 7777}}
"""
ROOT = Path(__file__).resolve().parents[2]
MAC = "02:00:00:00:09:02"
FIRST, COUNT = 5, 200
# From the one CPU on which the next hop was remembered, before it is asked for again: some packets,
# a command, then the others, of so many bytes.
AROUND = f"""
import os, socket, subprocess, sys
os.sched_setaffinity(0, {{min(os.sched_getaffinity(0))}})
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sender.bind(("{PEER}", 4000))
def send(count):
    for _ in range(count):
        sender.sendto(bytes(int(sys.argv[1])), ("{HERE}", 7777))
send({FIRST})
subprocess.run(sys.argv[2:], check=True)
send({COUNT})
"""
# lvsxdp ARGUMENTS on a kernel that does not have one of the tracepoints.
WITHOUT = """
import sys
from lvsxdp import cli, watching
watching.TRACEPOINTS["watch_exception"] = "xdp_nothing"
cli.main(sys.argv[1:])
"""


@contextlib.contextmanager
def branched() -> Iterator[Pair]:
    """A pair whose balancer has a second way out, `q0`, to the backend behind `q1` at the peer."""
    with pair() as made:
        made.inside("sysctl", "-qw", "net.ipv4.conf.lo.forwarding=1")
        made.inside("ip", "link", "add", "q0", "type", "veth", "peer", "q1", "netns", made.peer)
        run("ip", "-n", made.peer, "link", "set", "q1", "address", MAC, "up")
        made.inside("ip", "address", "add", "10.9.9.1/24", "dev", "q0")
        made.inside("ip", "link", "set", "q0", "up")
        made.inside("ip", "neigh", "add", "10.9.9.2", "lladdr", MAC, "dev", "q0")
        yield made


@pytest.fixture
def lb() -> Iterator[Pair]:
    with branched() as made:
        yield made


def gro(lb: Pair, wanted: str) -> None:
    """With GRO on, and only then, q1 takes what XDP sends."""
    run("ip", "netns", "exec", lb.peer, "ethtool", "-K", "q1", "gro", wanted)


def send_around(lb: Pair, size: int, *command: object) -> None:
    """Sends FIRST packets, has the command done at once, and sends COUNT packets."""
    words = map(str, (size, *command))
    run("ip", "netns", "exec", lb.peer, "/usr/bin/python3", "-c", AROUND, *words)


def arrived(lb: Pair) -> int:
    """Packets that came out at the backend's end."""
    shown = run("ip", "-n", lb.peer, "-j", "-s", "link", "show", "dev", "q1").stdout
    return int(json.loads(shown)[0]["stats64"]["rx"]["packets"])


def reason(lb: Pair, name: str) -> int:
    return int(lb.read("status")["reasons"].get(name, 0))


def warnings(lb: Pair) -> list[str]:
    return list(lb.read("status")["warnings"])


def index(lb: Pair, device: str) -> int:
    return int(lb.inside("cat", f"/sys/class/net/{device}/ifindex").stdout)


def link_ids(lb: Pair) -> list[int]:
    """The ids of the links to tracepoints."""
    found = []
    for name in TRACEPOINTS:
        link = maps.open_pin(PINS / lb.cookie() / name)
        info, size = (ctypes.c_uint32 * 32)(), ctypes.c_uint32(128)
        libbpf.library().bpf_obj_get_info_by_fd(link, info, ctypes.byref(size))
        os.close(link)
        found.append(info[1])
    return found


def is_link(identity: int) -> bool:
    """Whether there is a link of this id."""
    link = int(libbpf.library().bpf_link_get_fd_by_id(ctypes.c_uint32(identity)))
    if link >= 0:
        os.close(link)
    return link >= 0


# ---- what is lost is counted ----


def test_every_packet_that_a_veth_without_gro_loses_is_counted(lb: Pair, tmp_path: Path) -> None:
    gro(lb, "off")
    lb.lvsxdp("attach", "p0", "-c", config(SHOP, tmp_path))
    before = arrived(lb)
    lb.send(7777, COUNT)
    wait_for(lambda: reason(lb, "forwarded") == COUNT)
    lost = COUNT - (arrived(lb) - before)
    assert lost > COUNT // 2
    assert reason(lb, "redirect_failed") == lost
    assert lb.read("status")["redirect_failures"] == {"q0": lost}
    assert warnings(lb) == [
        f"q0 lost {lost} packets that XDP had sent out of it (redirect_failed): "
        "its far end needs GRO (ethtool -K DEV gro on, there) and an MTU that is not smaller"
    ]


def test_every_packet_that_the_driver_does_not_take_is_counted(lb: Pair, tmp_path: Path) -> None:
    gro(lb, "on")
    lb.lvsxdp("attach", "p0", "-c", config(SHOP, tmp_path))
    before = arrived(lb)
    # what is longer than the far end's MTU, the device refuses when the packets are flushed
    send_around(lb, 900, "ip", "-n", lb.peer, "link", "set", "q1", "mtu", 800)
    wait_for(lambda: reason(lb, "forwarded") == FIRST + COUNT)
    lost = FIRST + COUNT - (arrived(lb) - before)
    assert lost > COUNT // 2
    assert reason(lb, "redirect_failed") == lost
    assert lb.read("status")["redirect_failures"] == {"q0": lost}


def test_nothing_is_counted_where_all_arrives_or_another_balancer_loses_it(
    lb: Pair, tmp_path: Path
) -> None:
    gro(lb, "on")
    lb.lvsxdp("attach", "p0", "-c", config(SHOP, tmp_path))
    before = arrived(lb)
    with branched() as other:
        gro(other, "off")
        # by its index alone the other's interface could be taken for ours
        assert index(other, "p0") == index(lb, "p0")
        other.lvsxdp("attach", "p0", "-c", config(SHOP, tmp_path))
        other.send(7777, COUNT)
        lb.send(7777, COUNT)
        wait_for(lambda: reason(other, "redirect_failed") > COUNT // 2)
        wait_for(lambda: arrived(lb) - before == COUNT)
    assert (reason(lb, "redirect_failed"), warnings(lb)) == (0, [])


@pytest.mark.parametrize("mode", ["native", "generic"])
def test_what_is_sent_to_an_interface_that_went_down_is_counted(
    lb: Pair, tmp_path: Path, mode: str
) -> None:
    gro(lb, "on")
    lb.lvsxdp("attach", "p0", "-c", config(SHOP, tmp_path), "--mode", mode)
    before = arrived(lb)
    send_around(lb, 1, "ip", "-n", lb.ns, "link", "set", "q0", "down")
    wait_for(lambda: reason(lb, "forwarded") + reason(lb, "no_route") == FIRST + COUNT)
    lost = reason(lb, "redirect_failed")
    assert lost == reason(lb, "forwarded") - (arrived(lb) - before)
    assert lost > 0
    assert warnings(lb)[0].endswith("(redirect_failed): it is down: ip link set q0 up")


def test_what_goes_back_out_of_a_veth_without_gro_is_counted(lb: Pair, tmp_path: Path) -> None:
    run("ip", "netns", "exec", lb.peer, "ethtool", "-K", "p1", "gro", "off")
    lb.lvsxdp("attach", "p0", "-c", config(SHOP.replace("10.9.9.2", PEER), tmp_path))
    lb.send(7777, COUNT)
    wait_for(lambda: reason(lb, "forwarded") == COUNT)
    assert [row["road"] for row in lb.read("backend", "list")] == ["redirect"]
    lost = reason(lb, "redirect_failed")
    assert lost > COUNT // 2
    assert lb.read("status")["redirect_failures"] == {"p0": lost}


# ---- who counts comes and goes with the tables ----


def test_programs_that_others_take_the_place_of_are_watched_no_more(
    lb: Pair, tmp_path: Path
) -> None:
    gro(lb, "off")
    package = tmp_path / "other"
    for name in ("lvsxdp", "bpf"):
        shutil.copytree(ROOT / name, package / name)
    source = package / "bpf" / "watch.h"
    source.write_text(source.read_text() + "/* another version */\n")
    older = ("env", "-C", package, PROGRAM.parent / "python", "-m", "lvsxdp.cli", "--netns", lb.ns)
    run(*older, "attach", "p0", "-c", config(SHOP, tmp_path))
    links = link_ids(lb)
    assert "exchanged the programs" in lb.lvsxdp("attach", "p0").stderr
    wait_for(lambda: not any(map(is_link, links)))
    before = arrived(lb)
    lb.send(7777, COUNT)
    wait_for(lambda: reason(lb, "forwarded") == COUNT)
    assert reason(lb, "redirect_failed") == COUNT - (arrived(lb) - before)
    assert reason(lb, "redirect_failed") > COUNT // 2


def test_nothing_watches_any_more_after_detach_all(lb: Pair, tmp_path: Path) -> None:
    lb.lvsxdp("attach", "p0", "-c", config(SHOP, tmp_path))
    links = link_ids(lb)
    assert [is_link(identity) for identity in links] == [True] * len(TRACEPOINTS)
    lb.lvsxdp("detach", "--all")
    wait_for(lambda: not any(map(is_link, links)))


def test_a_kernel_that_cannot_tell_is_attached_to_all_the_same(lb: Pair, tmp_path: Path) -> None:
    argv = ["--netns", lb.ns, "attach", "p0", "-c", config(SHOP, tmp_path)]
    done = run(PROGRAM.parent / "python", "-c", WITHOUT, *argv)
    reads = (
        "failed redirects are not counted (redirect_failed): attaching to the tracepoint "
        "xdp_nothing failed: No such file or directory (ENOENT)"
    )
    assert f"warning: {reads}\n" in done.stderr
    assert warnings(lb) == [reads]
    assert [i["attached"] for i in lb.read("status")["interfaces"]] == [True]
    assert not set(TRACEPOINTS) & {path.name for path in (PINS / lb.cookie()).iterdir()}


# ---- what attach and edits say of roads ----


def test_backends_are_listed_with_interface_and_road(lb: Pair, tmp_path: Path) -> None:
    text = SHOP.replace("}]}", "}, {address: 192.0.2.2}, {address: 203.0.113.9}]}")
    said = lb.lvsxdp("attach", "p0", "-c", config(text, tmp_path)).stderr
    assert "warning: backend 203.0.113.9: no route leads there, so its packets are dropped" in said
    rows = lb.read("backend", "list")
    assert [(row["address"], row["interface"], row["road"]) for row in rows] == [
        ("10.9.9.2", "q0", "redirect"),
        ("192.0.2.2", "p0", "redirect"),
        ("203.0.113.9", None, None),
    ]


def test_a_new_backend_with_a_bad_road_is_told_and_one_that_stays_is_not(
    lb: Pair, tmp_path: Path
) -> None:
    lb.inside("ip", "link", "add", "r0", "type", "veth", "peer", "r1")
    for words in ("address add 10.8.8.1/24 dev r0", "link set r0 up", "link set r1 up"):
        lb.inside("ip", *words.split())
    lb.lvsxdp("attach", "p0", "-c", config(SHOP, tmp_path))
    lossy = (
        "what XDP sends out of r0 is lost, as GRO is off at its far end r1: ethtool -K r1 gro on"
    )
    said = lb.lvsxdp("backend", "add", "shop", "10.8.8.2").stderr
    assert said == f"warning: backend 10.8.8.2: {lossy}\n"
    lb.inside("ethtool", "-K", "r1", "gro", "on")
    assert lb.lvsxdp("backend", "add", "shop", "10.8.8.3").stderr == ""
    lb.inside("sysctl", "-qw", "net.ipv4.conf.lo.forwarding=0")
    file = config(SHOP.replace("}]}", "}, {address: 10.8.8.4}, {address: 10.8.8.5}]}"), tmp_path)
    assert lb.lvsxdp("apply", file).stderr.splitlines()[-1] == (
        "warning: backend 10.8.8.4 and 1 more: tc forwards, as net.ipv4.conf.lo.forwarding is 0: "
        "sysctl -w net.ipv4.conf.lo.forwarding=1"
    )
