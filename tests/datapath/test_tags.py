"""Next hops behind VLAN devices: whole frames in, and out of the lower interface with the tag."""

from __future__ import annotations

import contextlib
import itertools
from typing import Any

import pytest
from scapy.layers.inet import IP
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether

from lvsxdp import records
from lvsxdp.model import Config
from tests.datapath.harness import BACKENDS, Datapath, ip, tcp

CLIENTS = {"ipv4": "198.51.100.7:1001", "ipv6": "[2001:db8:1::7]:1001"}
VIPS = {"ipv4": "192.0.2.10:80", "ipv6": "[2001:db8::10]:80"}
BACKEND = {"ipv4": "10.0.0.11", "ipv6": "2001:db8:0:2::11"}
WEB = """
services:
  - {protocol: tcp, address: 192.0.2.10, port: 80, backends: [{address: 10.0.0.11}]}
  - {protocol: tcp, address: "2001:db8::10", port: 80, backends: [{address: "2001:db8:0:2::11"}]}
"""
TAGS = {
    "untagged": [],
    "tagged": [Dot1Q(vlan=10)],
    "other-priority": [Dot1Q(vlan=20, prio=5)],
    "802.1ad": [Dot1AD(vlan=10), Dot1Q(vlan=20)],
}


def tagged(tags: list[Any], packet: Any) -> Any:
    """The packet behind these tags."""
    for tag in reversed(tags):
        packet = tag / packet
    return packet


def one_hop_less(packet: Any) -> Any:
    """The packet as it is to leave."""
    aged = packet.copy()
    if IP in aged:
        aged.ttl -= 1
    else:
        aged.hlim -= 1
    return aged


@pytest.mark.parametrize("out", [[], [Dot1Q(vlan=20)]], ids=["to-untagged", "to-tagged"])
@pytest.mark.parametrize("tags", TAGS.values(), ids=TAGS.keys())
def test_a_flows_frames_leave_with_the_next_hops_tag_and_no_other(
    datapath: Datapath, tags: list[Any], out: list[Any]
) -> None:
    datapath.apply(WEB)
    with contextlib.ExitStack() as stack:
        for tag in out:
            stack.enter_context(datapath.taken_for_vlan("lb1", "lb0", tag.vlan))
        for family, flags in itertools.product(VIPS, ("S", "A", "A")):
            packet = tcp(CLIENTS[family], VIPS[family], flags)
            verdict = datapath.deliver(tagged(tags, packet))
            head = Ether(src=datapath.mac["lb1"], dst=BACKENDS[BACKEND[family]])
            expected = head / tagged(out, one_hop_less(packet))
            assert (verdict.action, verdict.frame.hex()) == ("redirect", bytes(expected).hex())
    assert datapath.reasons() == {"forwarded": 6}


def test_what_comes_by_another_interface_is_redirected_to_the_lower_one(
    datapath: Datapath,
) -> None:
    datapath.apply(WEB)
    packet = tcp(CLIENTS["ipv4"], VIPS["ipv4"])
    with datapath.taken_for_nic("lb0"), datapath.taken_for_vlan("lb1", "lb0", 20):
        actions = [datapath.send(datapath.to_host(packet, by), by).action for by in ("lb1", "lb0")]
    assert actions == ["redirect", "tx"]


def test_a_device_that_has_the_index_of_a_known_vlan_device_gets_no_tag(
    datapath: Datapath,
) -> None:
    datapath.apply(WEB)
    # the kernel answers with the MAC of the device that is there now
    with datapath.taken_for_vlan("lb1", "lb0", 20, mac="02:00:00:00:99:99"):
        verdict = datapath.deliver(tcp(CLIENTS["ipv4"], VIPS["ipv4"]))
        assert verdict.action == "pass"
        assert verdict.handover is not None and verdict.handover["reason"] == "forwarded"
        assert datapath.backends()["10.0.0.11"]["road"] == "tc"
    with datapath.taken_for_vlan("lb1", "lb0", 20):
        assert datapath.backends()["10.0.0.11"]["road"] == "redirect"
    with datapath.taken_for_nic("lb0"), datapath.taken_for_vlan("lb1", "lb0", 20):
        assert datapath.backends()["10.0.0.11"]["road"] == "tx"


def test_the_row_of_a_device_that_is_gone_goes_with_the_next_change(datapath: Datapath) -> None:
    ip("link", "add", "lbx", "type", "veth", "peer", "name", "lbxp")
    try:
        index = records.number(datapath.net.link("lbx").index)
        datapath.balancer.apply(Config(capacity=datapath.capacity), datapath.net)
        table = datapath.balancer.map("interfaces")
        before = table.look_up(index)
    finally:
        ip("link", "del", "lbx")
    datapath.balancer.apply(Config(capacity=datapath.capacity), datapath.net)
    assert before != bytes(16) == table.look_up(index)
