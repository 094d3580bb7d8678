"""A million mutated and truncated frames: nothing breaks, and each is counted once."""

from __future__ import annotations

import ctypes
import os
import random
from collections import Counter

from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import ICMPv6DestUnreach, IPv6, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop
from scapy.layers.l2 import ARP, Dot1Q

from lvsxdp import libbpf
from tests.datapath.harness import Datapath, tcp, udp

# An emulated machine runs fewer (scripts/test-vm).
FRAMES = int(os.environ.get("LVSXDP_MUTATED_FRAMES", "1000000"))
SHORTEST = 14  # the kernel's test run takes no less than an Ethernet header
HANDOVER_BYTES = 24
SERVICES = """
marks:
  - {mark: 7, address: 192.0.2.11, ports: [80, 443]}
  - {mark: 8, address: 192.0.2.0/25, port: 53-100, source: 198.51.100.0/25}
  - {mark: 0, address: any, vlan: 7}
  - {mark: 9, address: "2001:db8::10/127", port: any}
settings: {source_pool: "2001:db8:0:2::200", source_ports: 5000-5031}
services:
  - {mark: 7, persistence: {timeout: 60, netmask: 255.255.255.0}, forward: tunnel,
     tunnel: {type: gue, port: 6080, checksum: csum}, backends: [{address: 10.0.0.11}]}
  - {mark: 9, family: ipv6, scheduler: sh, forward: tunnel, backends: [{address: 10.0.0.11},
     {address: "2001:db8:0:2::11"}, {address: "2001:db8:0:2::13", tunnel: gre}]}
  - {protocol: tcp, address: 192.0.2.10, port: 80, scheduler: wrr,
     backends: [{address: 10.0.0.12, weight: 3}, {address: 10.0.0.13, forward: tunnel},
     {address: 172.31.0.11, forward: nat, port: 8080}]}
  - {protocol: tcp, address: 192.0.2.10, port: 21, persistence: 60, forward: nat,
     backends: [{address: 10.0.0.14}]}
  - {protocol: udp, address: 192.0.2.10, port: any, persistence: 5, scheduler: rr,
     backends: [{address: 10.0.0.15}, {address: 10.0.0.99}]}
  - {protocol: udp, address: "2001:db8::10", port: 53, persistence: {timeout: 9, netmask: 64},
     forward: fullnat,
     backends: [{address: "2001:db8:0:2::12"}]}
"""
BASES = (
    tcp("198.51.100.7:1001", "192.0.2.10:80"),
    tcp("198.51.100.7:1001", "192.0.2.10:80", "A") / b"hello",
    tcp("198.51.100.200:1002", "192.0.2.10:50000"),
    tcp("198.51.100.200:1003", "192.0.2.11:443"),
    udp("198.51.100.7:5000", "192.0.2.10:53") / b"question",
    Dot1Q(vlan=5) / Dot1Q(vlan=7) / udp("198.51.100.7:5000", "192.0.2.10:53"),
    IP(src="198.51.100.7", dst="192.0.2.10", options=[IPOption_NOP()] * 8)
    / TCP(sport=1004, dport=80, flags="S"),
    udp("[2001:db8:1::7]:5000", "[2001:db8::10]:53") / b"question",
    tcp("[2001:db8:1::7]:5000", "[2001:db8::11]:80"),
    IPv6(src="2001:db8:1::7", dst="2001:db8::10")
    / IPv6ExtHdrHopByHop()
    / UDP(sport=5000, dport=53),
    IPv6(src="2001:db8:1::7", dst="2001:db8::10")
    / IPv6ExtHdrFragment(m=1, id=5)
    / UDP(sport=5000, dport=53),
    IP(src="198.51.100.7", dst="192.0.2.10", flags="MF", id=9)
    / UDP(sport=5000, dport=53)
    / bytes(24),
    IP(src="198.51.100.7", dst="192.0.2.10", frag=4, id=9, proto=17) / bytes(24),
    IP(src="198.51.100.254", dst="10.0.0.1")
    / ICMP(type=3, code=4, nexthopmtu=1400)
    / IP(src="10.0.0.1", dst="10.0.0.13")
    / tcp("198.51.100.7:1001", "192.0.2.10:80", "A"),
    IP(src="198.51.100.254", dst="10.0.0.1")
    / ICMP(type=3, code=4, nexthopmtu=1400)
    / IP(src="10.0.0.1", dst="10.0.0.11")
    / UDP(sport=40000, dport=6080)
    / bytes([0, 4, 0, 0])
    / tcp("198.51.100.200:1003", "192.0.2.11:443", "A"),
    udp("[2001:db8:0:2::12]:53", "[2001:db8:0:2::200]:5000") / b"answer",
    IPv6(src="2001:db8:0:2::12", dst="2001:db8:0:2::200")
    / ICMPv6DestUnreach()
    / udp("[2001:db8:0:2::200]:5000", "[2001:db8:0:2::12]:53"),
    ARP(pdst="192.0.2.10"),
)


class Runner:
    """Runs the XDP entry on frames that are written into one buffer."""

    def __init__(self, datapath: Datapath, longest: int) -> None:
        self.frame = (ctypes.c_ubyte * longest)()
        self.output = (ctypes.c_char * (longest + 512))()
        self.before, self.after = (ctypes.c_uint32 * 6)(), (ctypes.c_uint32 * 6)()
        self.before[3] = datapath.ifindex["lb0"]
        self.entry = datapath.entry["xdp"]
        self.options = libbpf.RunOptions(size=ctypes.sizeof(libbpf.RunOptions), repeat=1)
        self.options.data_in = ctypes.addressof(self.frame)
        self.options.data_out = ctypes.addressof(self.output)
        self.options.context_in = ctypes.addressof(self.before)
        self.options.context_out = ctypes.addressof(self.after)
        self.call = libbpf.library().bpf_prog_test_run_opts

    def run(self, frame: bytes) -> tuple[int, bool]:
        """The verdict on a frame, and whether it was handed over."""
        options = self.options
        self.before[1] = options.data_size_in = len(frame)
        ctypes.memmove(self.frame, frame, len(frame))
        options.data_size_out = len(self.output)
        options.context_size_in = options.context_size_out = 24
        assert self.call(self.entry, ctypes.byref(options)) == 0
        return options.verdict, self.after[0] == HANDOVER_BYTES


def mutated(frame: bytes, choice: random.Random) -> bytes:
    """The frame with up to seven bytes changed behind its destination MAC, and perhaps cut."""
    copy = bytearray(frame)
    for _ in range(int(choice.random() * 8)):
        copy[6 + int(choice.random() * (len(copy) - 6))] = int(choice.random() * 256)
    if choice.random() < 0.25:
        del copy[SHORTEST + int(choice.random() * (len(copy) - SHORTEST)) :]
    return bytes(copy)


def test_a_million_mutated_frames_are_each_counted_once_and_the_next_good_one_is_served(
    datapath: Datapath,
) -> None:
    datapath.apply(SERVICES)
    bases = [bytes(datapath.to_host(packet)) for packet in BASES]
    choice = random.Random(20240607)
    runner = Runner(datapath, max(map(len, bases)))
    outcomes: Counter[tuple[int, bool]] = Counter()
    for number in range(FRAMES):
        outcomes[runner.run(mutated(bases[number % len(bases)], choice))] += 1
    handed_over = sum(count for (_, handed), count in outcomes.items() if handed)
    counted = datapath.reasons()
    assert sum(counted.values()) + handed_over == FRAMES
    assert {verdict for verdict, _ in outcomes} == {1, 2, 4}  # nothing was aborted
    assert "internal" not in counted
    datapath.confirm()
    assert datapath.backend_for(tcp("198.51.100.99:1", "192.0.2.10:80")) is not None
