"""The live benches' frames have the checksums that a kernel which forwards them asks for."""

from __future__ import annotations

import socket
import struct

from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

from bench import live, packet


def folded(total: int) -> int:
    """As the generator folds a sum, in the machine's byte order."""
    for _ in range(2):
        total = (total & 0xFFFF) + (total >> 16)
    return socket.ntohs(~total & 0xFFFF)


def test_the_parts_and_a_flow_s_own_make_the_checksums() -> None:
    case = packet.Case("", "", "192.0.2.10", "20.1.2.3", 1, packet.ACK, 0, None, 0, 0)
    frame = packet.frame(case, "02:00:00:00:00:01", packet.ACK)
    ip_sum, tcp_sum = live._sums(frame)
    source = sum(struct.unpack("<HH", frame[26:30]))
    port = struct.unpack("<H", frame[34:36])[0]
    wanted = Ether(frame)
    del wanted[IP].chksum, wanted[TCP].chksum
    wanted = Ether(bytes(wanted))
    assert folded(ip_sum + source) == wanted[IP].chksum
    assert folded(tcp_sum + source + port) == wanted[TCP].chksum
