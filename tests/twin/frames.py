"""Frames of clients, byte by byte, and what is told of frames that come back."""

from __future__ import annotations

import socket
import struct

from lvsxdp.model import Protocol
from tests.twin.script import Flow

ROUTER_MAC = bytes.fromhex("0200000000fe")
IP = {4: b"\x08\x00", 6: b"\x86\xdd"}
FLAGS = {"F": 1, "S": 2, "R": 4, "A": 16}
CHUNKS = {
    **{"DATA": 0, "INIT": 1, "INIT_ACK": 2, "HEARTBEAT": 4, "ABORT": 6, "SHUTDOWN": 7},
    **{"SHUTDOWN_ACK": 8, "ERROR": 9, "COOKIE_ECHO": 10, "COOKIE_ACK": 11, "SHUTDOWN_DONE": 14},
}
ICMP, ICMP6 = 1, 58
TUNNELS = (4, 41)


def checksum(data: bytes) -> int:
    """The internet's checksum, as a number in network byte order."""
    words = struct.unpack(f">{(len(data) + 1) // 2}H", data + bytes(len(data) % 2))
    total: int = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _segment(flow: Flow, flags: str) -> bytes:
    """The transport's part, its checksum still 0."""
    if flow.protocol is Protocol.TCP:
        bits = sum(FLAGS[letter] for letter in flags)
        return struct.pack(
            ">HHIIBBHHH", flow.client_port, flow.virtual_port, 1, 2, 5 << 4, bits, 8192, 0, 0
        )
    if flow.protocol is Protocol.SCTP:
        # the checksum is looked at by its ends alone
        ports = struct.pack(">HHII", flow.client_port, flow.virtual_port, 1, 0)
        return ports + struct.pack(">BBHI", CHUNKS[flags], 0, 8, 0)
    return struct.pack(">HHHH4s", flow.client_port, flow.virtual_port, 12, 0, b"twin")


def _with_checksum(flow: Flow, segment: bytes) -> bytes:
    if flow.protocol is Protocol.SCTP:
        return segment
    ends = flow.client.packed + flow.virtual.packed
    found = checksum(ends + struct.pack(">HH", flow.protocol.number, len(segment)) + segment)
    place = 16 if flow.protocol is Protocol.TCP else 6
    return segment[:place] + struct.pack(">H", found or 0xFFFF) + segment[place + 2 :]


def _header4(flow: Flow, size: int) -> bytes:
    header = struct.pack(
        ">BBHHHBBH4s4s",
        *(0x45, 0, 20 + size, flow.client_port, 0, 64, flow.protocol.number, 0),
        *(flow.client.packed, flow.virtual.packed),
    )
    return header[:10] + struct.pack(">H", checksum(header)) + header[12:]


def _header6(flow: Flow, size: int) -> bytes:
    ends = flow.client.packed, flow.virtual.packed
    return struct.pack(">IHBB16s16s", 6 << 28, size, flow.protocol.number, 64, *ends)


def packet(flow: Flow, flags: str) -> bytes:
    """The IP packet that a client sends."""
    segment = _with_checksum(flow, _segment(flow, flags))
    header = _header4 if flow.client.version == 4 else _header6
    return header(flow, len(segment)) + segment


def frame(flow: Flow, flags: str, balancer: bytes) -> bytes:
    """The frame that the clients' router sends to the balancer's MAC."""
    return balancer + ROUTER_MAC + IP[flow.client.version] + packet(flow, flags)


def is_answer(data: bytes) -> bool:
    """Whether a frame is one of IP to somebody, and not the kernel's talk with neighbours."""
    return data[12:14] in IP.values() and not data[0] & 1


def described(data: bytes, backends: dict[bytes, str]) -> str:
    """What two equal frames have in common, for people: who gets it, from whom, and every byte.

    Of an ICMP packet's IPv4 header the identification, which the kernel draws, is left out, with
    the checksum and the bit by which lvsxdp needs none: "don't fragment"; of a tunnel's, too, since
    no client here sends that.
    """
    whom = backends.get(data[:6], "router" if data[:6] == ROUTER_MAC else data[:6].hex(":"))
    return f"{whom}: {_described4(data[14:]) if data[14] >> 4 == 4 else _described6(data[14:])}"


def _described4(data: bytes) -> str:
    inside, size = bytearray(data), (data[0] & 15) * 4
    if data[9] in (ICMP, *TUNNELS):
        inside[4:8] = bytes(4)
        inside[10:12] = bytes(2)
    what = _kind(data[9], data[size:])
    return f"{what} {_address(data[12:16])} > {_address(data[16:20])} {inside.hex()}"


def _described6(data: bytes) -> str:
    what = _kind(data[6], data[40:])
    return f"{what} {_address(data[8:24])} > {_address(data[24:40])} {data.hex()}"


def _kind(protocol: int, data: bytes) -> str:
    if protocol in (ICMP, ICMP6):
        return f"icmp {data[0]}/{data[1]}"
    return {6: "tcp", 17: "udp", 132: "sctp"}.get(protocol, str(protocol))


def _address(raw: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET if len(raw) == 4 else socket.AF_INET6, raw)


def is_unreachable(line: str) -> bool:
    """Whether a described frame says that a port is unreachable."""
    return line.startswith(("router: icmp 3/3 ", "router: icmp 1/4 "))


def whom(lines: list[str]) -> str:
    """Who got a packet, or what its client did."""
    backends = [line.partition(": ")[0] for line in lines if not line.startswith("router: ")]
    return " ".join(backends) or outcome(lines)


def outcome(lines: list[str]) -> str:
    """In a word what became of a packet."""
    if not lines:
        return "swallowed"
    if is_unreachable(lines[0]):
        return "unreachable"
    return "reset" if lines[0].startswith("router: ") else "balanced"
