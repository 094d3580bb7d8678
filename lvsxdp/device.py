"""What a network device is set to, as `ethtool` shows it: channels and offloads, by its ioctl."""

from __future__ import annotations

import array
import contextlib
import fcntl
import socket
import struct
from collections.abc import Iterator

from lvsxdp.driver_refusals import Channels, Settings

SIOCETHTOOL = 0x8946
GET_STRINGS, GET_STRING_SETS, GET_FEATURES, GET_CHANNELS = 0x1B, 0x37, 0x3A, 0x3C
FEATURE_STRINGS = 4
STRING_SIZE = 32


# How the kernel names these offloads, and how `ethtool -K` does.
MERGING = {"rx-lro": "lro", "rx-gro-hw": "rx-gro-hw"}


def settings(name: str, mtu: int) -> Settings:
    """The settings of this namespace's device of that name; what it does not tell is left out."""
    merging, fixed = _merging(name)
    return Settings(mtu, _channels(name), merging, fixed)


def _channels(name: str) -> Channels | None:
    request = array.array("I", [GET_CHANNELS, *[0] * 8])
    if not _ask(name, request):
        return None
    _, max_rx, max_tx, _, max_combined, rx, tx, _, combined = request
    return Channels(max_rx, max_tx, max_combined, rx, tx, combined)


def _merging(name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The merging offloads that are on, and those of them that stay on whatever one asks for."""
    places = list(_feature_places(name))
    blocks = max((place for place, _ in places), default=0) // 32 + 1
    request = array.array("I", [GET_FEATURES, blocks, *[0] * (4 * blocks)])
    if not places or not _ask(name, request):
        return (), ()
    on, fixed = [], []
    for place, feature in places:
        available, _, active, never_changed = request[2 + place // 32 * 4 :][:4]
        bit = 1 << place % 32
        if active & bit:
            on.append(feature)
            if never_changed & bit or not available & bit:
                fixed.append(feature)
    return tuple(on), tuple(fixed)


def _feature_places(name: str) -> Iterator[tuple[int, str]]:
    """Which bits of the features the merging offloads are, and ethtool's names of them."""
    sizes = array.array("I", [GET_STRING_SETS, 0, 1 << FEATURE_STRINGS, 0, 0])
    if not _ask(name, sizes):
        return
    header = struct.pack("=3I", GET_STRINGS, FEATURE_STRINGS, sizes[4])
    request = array.array("B", header + bytes(sizes[4] * STRING_SIZE))
    if not _ask(name, request):
        return
    texts = request.tobytes()[len(header) :]
    for place in range(sizes[4]):
        text = texts[place * STRING_SIZE :][:STRING_SIZE].split(b"\0")[0].decode()
        if text in MERGING:
            yield place, MERGING[text]


def _ask(name: str, request: array.array[int]) -> bool:
    """Has the kernel answer into the request; whether the device has an answer."""
    asked = struct.pack("16sP16x", name.encode(), request.buffer_info()[0])
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_one:
        fcntl.ioctl(any_one, SIOCETHTOOL, asked)
        return True
    return False
