"""Sends a gratuitous ARP or an unsolicited neighbour advertisement: `announce.py DEV ADDRESS`.

A script of its own, since it runs inside the namespace whose neighbours are to be told.
"""

import ipaddress
import socket
import struct
import sys

ETH_P_ARP = 0x0806
ETH_P_IPV6 = 0x86DD
ARP_REQUEST = 1
NEIGHBOUR_ADVERTISEMENT = 136
OVERRIDE = 0x20000000
TARGET_LINK_ADDRESS = 2
EVERYONE = b"\xff" * 6
ALL_NODES = ipaddress.IPv6Address("ff02::1").packed
ALL_NODES_MAC = bytes.fromhex("333300000001")


def gratuitous_arp(mac: bytes, address: bytes) -> bytes:
    """Return the frame of an ARP announcement: a request for one's own address (RFC 5227)."""
    fixed = struct.pack("!HHBBH", 1, 0x0800, 6, 4, ARP_REQUEST)
    arp = fixed + mac + address + bytes(6) + address
    return EVERYONE + mac + struct.pack("!H", ETH_P_ARP) + arp


def unsolicited_advertisement(mac: bytes, address: bytes) -> bytes:
    """Return the frame of an advertisement to all nodes that overrides (RFC 4861, 7.2.6)."""
    flags = struct.pack("!I", OVERRIDE)
    body = flags + address + struct.pack("!BB", TARGET_LINK_ADDRESS, 1) + mac
    pseudo = address + ALL_NODES + struct.pack("!II", len(body) + 4, socket.IPPROTO_ICMPV6)
    start = struct.pack("!BB", NEIGHBOUR_ADVERTISEMENT, 0)
    checksum = _checksum(pseudo + start + bytes(2) + body)
    icmp = start + struct.pack("!H", checksum) + body
    # A hop limit below 255 would be refused as not from this link.
    ip = struct.pack("!IHBB", 6 << 28, len(icmp), socket.IPPROTO_ICMPV6, 255)
    ethernet = ALL_NODES_MAC + mac + struct.pack("!H", ETH_P_IPV6)
    return ethernet + ip + address + ALL_NODES + icmp


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def main(dev: str, text: str) -> None:
    """Send one announcement of the address out of the device."""
    address = ipaddress.ip_address(text)
    build = gratuitous_arp if address.version == 4 else unsolicited_advertisement
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind((dev, 0))
        raw.send(build(raw.getsockname()[4], address.packed))


if __name__ == "__main__":
    main(*sys.argv[1:])
