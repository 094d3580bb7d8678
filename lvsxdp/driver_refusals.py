"""Why a driver refuses a program, and the commands that mend it, by its words and settings."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

# What every driver takes; those that say what they take name it.
SAFE_MTU = 1500
ABOUT_MTU = re.compile(r"mtu|jumbo|frame size|single page|numerical result out of range", re.I)
ABOUT_MERGING = re.compile(r"\blro\b|gro_hw|hw.gro|hw.lro|guest_tso", re.I)
ABOUT_QUEUES = re.compile(r"queue|\brings?\b|channel", re.I)
NOT_AT_ALL = re.compile(r"(does not|doesn't) support XDP", re.I)


@dataclasses.dataclass(frozen=True, slots=True)
class Channels:
    """How many queues a device has now, and at most, by what they do."""

    max_rx: int = 0
    max_tx: int = 0
    max_combined: int = 0
    rx: int = 0
    tx: int = 0
    combined: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """What XDP in the driver may depend on.

    `merging` are the offloads that are on and hand up several packets as one, by ethtool's names;
    `fixed` those of them that cannot be turned off here.  No channels: the driver tells none.
    """

    mtu: int
    channels: Channels | None = None
    merging: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()


def explain(name: str, refusal: str, found: Settings) -> str:
    """The refusal with what the device is set to now and the commands that may mend it.

    Where the driver says nothing of its reasons, all that is known to be one somewhere is named.
    """
    hints = list(_hints(name, refusal, found))
    if not hints and not NOT_AT_ALL.search(refusal):
        hints = list(_suspects(name, found))
    return "; ".join([refusal, *hints])


def _hints(name: str, refusal: str, found: Settings) -> Iterator[str]:
    of_the_peer = "peer" in refusal.lower()
    if ABOUT_MTU.search(refusal):
        yield _mtu_of_the_peer(found) if of_the_peer else _mtu(name, refusal, found)
    if ABOUT_MERGING.search(refusal):
        yield from _merging(name, found)
    if ABOUT_QUEUES.search(refusal) and found.channels:
        yield _queues(name, found.channels, of_the_peer)


def _suspects(name: str, found: Settings) -> Iterator[str]:
    if found.mtu > SAFE_MTU:
        yield _mtu(name, "", found)
    yield from _merging(name, found)
    channels = found.channels
    if channels and channels.combined > max(channels.max_combined // 2, 1):
        yield _queues(name, channels, False)


def _mtu(name: str, refusal: str, found: Settings) -> str:
    """The MTU now and the command; the largest that the driver itself names, if it does."""
    named = [int(number) for number in re.findall(r"\b\d+\b", refusal)]
    fitting = max((n for n in named if SAFE_MTU <= n < found.mtu), default=SAFE_MTU)
    return f"its MTU is {found.mtu} now: ip link set dev {name} mtu {fitting}"


def _mtu_of_the_peer(found: Settings) -> str:
    return f"its own MTU is {found.mtu} now; at its other end: ip link set dev PEER mtu {SAFE_MTU}"


def _merging(name: str, found: Settings) -> Iterator[str]:
    for feature in found.merging:
        if feature in found.fixed:
            yield (
                f"{feature} is on and fixed here; turn it off at the host of this machine "
                "(QEMU: guest_tso4=off,guest_tso6=off,guest_ecn=off,guest_ufo=off,guest_csum=off)"
            )
        else:
            yield f"{feature} is on now: ethtool -K {name} {feature} off"


def _queues(name: str, channels: Channels, of_the_peer: bool) -> str:
    """How many queues there are, and the command: more to receive by, or fewer that share rings."""
    if of_the_peer and channels.rx < channels.max_rx:
        return f"it has {channels.rx} rx queues now: ethtool -L {name} rx {channels.max_rx}"
    if of_the_peer:
        return (
            f"it has {channels.rx} rx queues now, and can have no more; "
            f"at its other end: ethtool -L PEER tx {channels.rx}"
        )
    half = [max(most // 2, 1) for most in (channels.max_combined, channels.max_rx, channels.max_tx)]
    now, fewer = f"{channels.rx} rx and {channels.tx} tx", f"rx {half[1]} tx {half[2]}"
    if channels.max_combined:
        now, fewer = f"{channels.combined} combined", f"combined {half[0]}"
    return (
        f"it has {now} channels now, and XDP may need a queue more for each: "
        f"ethtool -L {name} {fewer}"
    )
