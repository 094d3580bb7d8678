"""IPVS's netlink: services and servers are put, deleted and read, as ipvsadm does."""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import socket
import struct
from collections.abc import Iterator

from lvsxdp import model
from lvsxdp.model import Address, AddressKey, Family, Forward, MarkKey, Service, ServiceKey

NETLINK_GENERIC, GENL_ID_CTRL, CTRL_CMD_GETFAMILY = 16, 16, 3
CTRL_ATTR_FAMILY_ID, CTRL_ATTR_FAMILY_NAME = 1, 2
NLMSG_ERROR, NLMSG_DONE = 2, 3
REQUEST, ACK, DUMP = 1, 4, 0x300
NEW_SERVICE, SET_SERVICE, DELETE_SERVICE = 1, 2, 3
SET_CONFIG = 12
TIMEOUTS = {"timeout_tcp": 4, "timeout_tcpfin": 5, "timeout_udp": 6}
NEW_DEST, SET_DEST, DELETE_DEST, GET_DEST = 5, 6, 7, 8
SERVICE, DEST = 1, 2
PERSISTENT, ONE_PACKET = 1, 4
METHODS = {Forward.NAT: 0, Forward.TUNNEL: 2, Forward.DR: 3}
# The bits of a scheduler's flags.
FLAGS = {"sh-fallback": 8, "sh-port": 16, "mh-fallback": 8, "mh-port": 16}
NUMBERS = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}


@dataclasses.dataclass(frozen=True, slots=True)
class Backend:
    """What IPVS shows of a server."""

    address: str
    weight: int
    active: int
    inactive: int
    connections: int
    packets: int
    bytes: int


def _attribute(number: int, value: bytes) -> bytes:
    header = struct.pack("<HH", 4 + len(value), number)
    return header + value + bytes(-len(value) % 4)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= 4:
        size, number = struct.unpack_from("<HH", data)
        yield number & 0x3FFF, data[4:size]
        data = data[size + 3 & ~3 :]


def _u16(number: int) -> bytes:
    return struct.pack("<H", number)


def _u32(number: int) -> bytes:
    return struct.pack("<I", number)


def _port(number: int) -> bytes:
    return struct.pack(">H", number)


def _whole(address: Address) -> bytes:
    return address.packed.ljust(16, b"\0")


def _key(key: ServiceKey) -> bytes:
    """What names a service."""
    parts = [_attribute(1, _u16(NUMBERS[key.family]))]
    if isinstance(key, MarkKey):
        parts.append(_attribute(5, _u32(key.mark)))
    else:
        parts.append(_attribute(2, _u16(key.protocol.number)))
        parts.append(_attribute(3, _whole(key.address)))
        parts.append(_attribute(4, _port(key.port)))
    return b"".join(parts)


def _service(service: Service) -> bytes:
    """A service with all that can be said of it."""
    kept = service.persistence
    flags = sum(FLAGS[flag] for flag in service.flags) | (PERSISTENT if kept else 0)
    flags |= ONE_PACKET if service.one_packet else 0
    parts = [
        _attribute(6, service.scheduler.encode() + b"\0"),
        _attribute(7, struct.pack("<II", flags, 2**32 - 1)),
        _attribute(8, _u32(kept.timeout if kept else 0)),
        _attribute(9, _u32(_mask(service))),
    ]
    return _key(service.key) + b"".join(parts)


def _mask(service: Service) -> int:
    """The netmask of IPv4 as it is on the wire, the prefix length of IPv6."""
    kept = service.persistence
    if service.family is Family.IPV6:
        return int(kept.netmask).bit_count() if kept else 128
    return int.from_bytes(kept.netmask.packed, "little") if kept else 2**32 - 1


def _server(key: ServiceKey, address: Address) -> bytes:
    """What names a server, which has the service's port."""
    port = key.port if isinstance(key, AddressKey) else 0
    family = _attribute(11, _u16(NUMBERS[Family.of(address)]))
    return _attribute(1, _whole(address)) + _attribute(2, _port(port)) + family


class Ipvs:
    """A socket to the IPVS of the namespace in which it is opened."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_GENERIC)
        self.socket.bind((0, 0))
        name = _attribute(CTRL_ATTR_FAMILY_NAME, b"IPVS\0")
        (answer,) = self._ask(GENL_ID_CTRL, CTRL_CMD_GETFAMILY, name, REQUEST | ACK)
        (self.family,) = struct.unpack("<H", dict(_attributes(answer))[CTRL_ATTR_FAMILY_ID])

    def __enter__(self) -> Ipvs:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def put_service(self, service: Service, fresh: bool) -> None:
        """Adds a service without servers, or edits it."""
        command = NEW_SERVICE if fresh else SET_SERVICE
        self._change(command, _attribute(SERVICE, _service(service)))

    def delete_service(self, key: ServiceKey) -> None:
        """Deletes a service with its servers."""
        self._change(DELETE_SERVICE, _attribute(SERVICE, _key(key)))

    def put_backend(self, key: ServiceKey, backend: model.Backend, fresh: bool) -> None:
        """Adds a server, or gives it another weight, other thresholds or another method."""
        method = METHODS[backend.forward]
        numbers = method, backend.weight, backend.upper_threshold, backend.lower_threshold
        more = b"".join(_attribute(3 + n, _u32(number)) for n, number in enumerate(numbers))
        command = NEW_DEST if fresh else SET_DEST
        self._change_server(command, key, _server(key, backend.address) + more)

    def delete_backend(self, key: ServiceKey, address: Address) -> None:
        """Deletes a server."""
        self._change_server(DELETE_DEST, key, _server(key, address))

    def set_timeout(self, name: str, seconds: int) -> None:
        """Sets one of the timeouts, as `ipvsadm --set` does."""
        self._change(SET_CONFIG, _attribute(TIMEOUTS[name], _u32(seconds)))

    def _change_server(self, command: int, key: ServiceKey, server: bytes) -> None:
        self._change(command, _attribute(SERVICE, _key(key)) + _attribute(DEST, server))

    def _change(self, command: int, body: bytes) -> None:
        for _ in self._ask(self.family, command, body, REQUEST | ACK):
            pass

    def backends(self, key: ServiceKey) -> list[Backend]:
        """A service's servers, the head of the list first."""
        body = _attribute(SERVICE, _key(key))
        answers = self._ask(self.family, GET_DEST, body, REQUEST | DUMP)
        return [_backend(dict(_attributes(answer))[DEST]) for answer in answers]

    def _ask(self, family: int, command: int, body: bytes, flags: int) -> list[bytes]:
        """The attributes of each answer; OSError with the kernel's number where it refuses."""
        message = struct.pack("<BBxx", command, 1) + body
        header = struct.pack("<IHHII", 16 + len(message), family, flags, 0, 0)
        self.socket.send(header + message)
        answers: list[bytes] = []
        while True:
            for kind, data in _messages(self.socket.recv(1 << 20)):
                if kind == NLMSG_DONE:
                    return answers
                if kind == NLMSG_ERROR:
                    _raise(-struct.unpack_from("<i", data)[0])
                    return answers
                answers.append(data[4:])


def _raise(number: int) -> None:
    if number:
        raise OSError(number, f"IPVS refuses: {os.strerror(number)}")


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= 16:
        size, kind = struct.unpack_from("<IH", data)
        yield kind, data[16:size]
        data = data[size + 3 & ~3 :]


def _backend(data: bytes) -> Backend:
    found = dict(_attributes(data))
    counted = dict(_attributes(found[12]))
    width = 4 if found[11] == _u16(socket.AF_INET) else 16
    numbers = {number: int.from_bytes(value, "little") for number, value in found.items()}
    return Backend(
        address=str(ipaddress.ip_address(found[1][:width])),
        weight=numbers[4],
        active=numbers[7],
        inactive=numbers[8],
        connections=int.from_bytes(counted[1], "little"),
        packets=int.from_bytes(counted[2], "little"),
        bytes=int.from_bytes(counted[4], "little"),
    )
