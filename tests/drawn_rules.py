"""Mark rules by the thousand, and packets that meet some of them."""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Callable
from typing import Any

from lvsxdp.marks import Packet
from lvsxdp.model import Address, MarkRule, Network, Ports, Protocol

MACS = tuple(f"02:00:00:00:00:{n:02x}" for n in range(8))
ROOTS = {
    4: [ipaddress.ip_network(f"{n}.0.0.0/8") for n in (10, 20, 30)],
    6: [ipaddress.ip_network(f"2001:db8:{n}::/48") for n in (1, 2, 3)],
}
EVERY6 = ipaddress.ip_network("::/0")


def network(dice: random.Random, version: int, few: bool) -> Network:
    """A prefix of any length below one of three; `few` makes most of them the same ones."""
    root = dice.choice(ROOTS[version])
    longest = root.max_prefixlen
    usual = (24, 25, 28, 32) if version == 4 else (64, 65, 96, 128)
    length = dice.choice((*usual, dice.randint(root.prefixlen + 4, longest)))
    bits = dice.getrandbits(longest - root.prefixlen)
    if few:
        bits &= 0x30003 << max(longest - root.prefixlen - 20, 0)
    address = root.network_address + bits
    return ipaddress.ip_network((address, length), strict=False)


def ports(dice: random.Random) -> Ports:
    """One port or a range, of which a few are wide."""
    first = dice.choice((80, 443, dice.randint(0, 65535)))
    span = 20_000 if dice.random() < 0.02 else dice.choice((0, 0, 1, 100))
    return Ports(first, min(first + span, 65535))


def rule(dice: random.Random, mark: int) -> MarkRule:
    """A rule that looks at some of what rules can look at."""
    version = dice.choice((4, 4, 6))

    def some(chance: float, draw: Callable[[], Any]) -> tuple[Any, ...]:
        count = dice.choice((1, 1, 1, 2, 3)) if dice.random() < chance else 0
        return tuple(dict.fromkeys(draw() for _ in range(count)))

    few = dice.random() < 0.5
    # what names no address takes little, else few rules after it would be met
    narrow = dice.random() < 0.1
    return MarkRule(
        mark=mark,
        protocols=dice.choice(((Protocol.TCP,), (Protocol.UDP,), tuple(Protocol))),
        addresses=some(0 if narrow else 1, lambda: network(dice, version, few)),
        ports=some(1 if narrow else 0.6, lambda: ports(dice)),
        sources=some(1 if narrow else 0.3, lambda: network(dice, version, few)),
        source_macs=some(0.05, lambda: dice.choice(MACS)),
        interfaces=some(0.1, lambda: dice.choice(("lb0", "lb1"))),
        vlans=some(0.1, lambda: dice.choice((0, 5, 4094))),
    )


def rules(dice: random.Random, count: int) -> tuple[MarkRule, ...]:
    """So many of them, one in ten giving mark 0, and before the last of them some that are wide."""
    drawn = [rule(dice, dice.choice((0, *range(1, 10)))) for _ in range(count)]
    wide = [
        MarkRule(11, addresses=tuple(ROOTS[4][:2])),
        MarkRule(12, vlans=(5,), addresses=(EVERY6,)),
    ]
    return (*drawn[: count - count // 10], *wide, *drawn[count - count // 10 :])


def within(dice: random.Random, network: Network) -> Address:
    """An address of a network."""
    return network[dice.randrange(network.num_addresses)]


def packet(dice: random.Random, drawn: tuple[MarkRule, ...]) -> Packet:
    """A packet that mostly fits one of the rules, or nearly."""
    met = dice.choice(drawn)
    named = met.addresses or met.sources or (ROOTS[4][0],)
    version = dice.choice(named).version

    def address(networks: tuple[Network, ...]) -> Address:
        alike = [n for n in networks if n.version == version]
        if not alike or dice.random() < 0.05:
            alike = ROOTS[version]
        return within(dice, dice.choice(alike))

    stretch = dice.choice(met.ports or (Ports(0, 65535),))
    port = dice.choice((stretch.first, stretch.last, stretch.first - 1, stretch.last + 1))
    return Packet(
        protocol=dice.choice(met.protocols or tuple(Protocol)),
        source=address(met.sources),
        destination=address(met.addresses),
        port=min(max(port, 0), 65535),
        interface=dice.choice(met.interfaces or ("lb0", "lb1")),
        vlan=dice.choice(met.vlans or (None, 5)),
        source_mac=dice.choice(met.source_macs or MACS),
    )
