"""What bpf/mark.h finds in a set of mark rules, written once more in Python and slowly."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from lvsxdp import mark_words, records
from lvsxdp.marks import Packet
from lvsxdp.schema import Schema

LIMIT = 100


class Reader:
    """A rule set in the words that `word` gives by their places."""

    def __init__(
        self, schema: Schema, word: Callable[[int], int], ifindexes: Mapping[str, int]
    ) -> None:
        self.schema, self.word, self.ifindexes = schema, word, ifindexes
        self.fields = schema.enums["mark_header"]
        self.most_steps = 0

    def header(self, name: str) -> int:
        return self.word(self.fields[name])

    def found(self, packet: Packet, *, exact: bool, ordered: bool) -> int | None:
        """The mark that the packet gets, None where no rule matches."""
        verdicts = [self.exact(packet) if exact else 0, self.ordered(packet) if ordered else 0]
        matching = [verdict for verdict in verdicts if verdict]
        return min(matching, key=lambda v: v >> 32) & 0xFFFFFFFF if matching else None

    def probe(self, key: tuple[int, int, int]) -> int:
        at = self.schema.hashing.scattered(key) & self.header("slot_mask")
        for n in range(mark_words.PROBES):
            place = self.header("table") + 4 * (at + n)
            if tuple(self.word(place + i) for i in range(3)) == key:
                return self.word(place + 3)
            if not self.word(place + 3):
                break
        return 0

    def exact(self, packet: Packet) -> int:
        search = self.schema.enums["mark_search"][f"exact{packet.destination.version}"]
        port = int.from_bytes(records.wire_port(packet.port), "little")
        low = packet.protocol.number << 16 | port
        return self.probe((*mark_words._halves(packet.destination.packed), search << 32 | low))

    def search(self, root: int, first: int, second: int = 0) -> int:
        place, found = root, self.fields["words"]
        for n in range(LIMIT):
            if not place:
                return found
            self.most_steps = max(self.most_steps, n + 1)
            masks = self.word(place), self.word(place + 1)
            value = self.probe((first & masks[0], second & masks[1], self.word(place + 3)))
            following = self.word(place + 2)
            place = following & 0xFFFFFFFF if value else following >> 32
            found = value or found
        raise AssertionError("no end of steps")

    def ports(self, port: int) -> int:
        def pick(at: int, index: int) -> int:
            return self.word(at + index // 2) >> 32 * (index % 2) & 0xFFFFFFFF

        place = pick(self.header("ports"), port >> 8)
        return pick(place - 1, port & 255) if place & 1 else place

    def members(self, place: int) -> set[int]:
        """The rules in a set that keeps the words that are not 0."""
        found, rank = set(), 0
        for part in range(4):
            summary = self.word(place + part)
            assert self.word(place + 4) >> 16 * part & 0xFFFF == rank
            for index in (64 * part + n for n in range(64) if summary >> n & 1):
                found |= {64 * index + n for n in _bits(self.word(place + 5 + rank))}
                rank += 1
        return found

    def wide(self, place: int) -> set[int]:
        """The rules in a set that keeps every word."""
        found = set()
        for index in range(64 * self.header("summaries")):
            if self.word(place + index // 64) >> index % 64 & 1:
                found |= {64 * index + n for n in _bits(self.word(place + 8 + index))}
        return found

    def ordered(self, packet: Packet) -> int:
        version = packet.destination.version
        searched: dict[str, tuple[str, bytes | int]] = {
            "destination": (f"destination{version}", packet.destination.packed),
            "source": (f"source{version}", packet.source.packed),
            "interface": ("interface", self.ifindexes[packet.interface]),
            "vlan": ("vlan", 0 if packet.vlan is None else packet.vlan + 1),
            "source_mac": ("source_mac", records.mac_word(packet.source_mac)),
        }
        fitting = self.wide(self.header(packet.protocol.value))
        for name, number in self.schema.enums["mark_dimension"].items():
            if name == "max" or not self.header("used") >> number & 1:
                continue
            if name == "port":
                place = self.ports(packet.port)
            else:
                root, value = searched[name]
                halves = mark_words._halves(value) if isinstance(value, bytes) else (value, 0)
                place = self.search(self.header(root), *halves)
            wide = self.wide(self.word(self.fields["wide"] + number))
            fitting &= self.members(place) | wide
        return self.word(self.header("rules") + min(fitting)) if fitting else 0


def _bits(word: int) -> set[int]:
    return {n for n in range(64) if word >> n & 1}
