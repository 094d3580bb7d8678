"""A set of mark rules as the words in which the data plane looks a packet up: bpf/mark.h."""

from __future__ import annotations

import dataclasses
from array import array
from collections.abc import Iterator, Mapping, Sequence

from lvsxdp import records
from lvsxdp.errors import ConflictError
from lvsxdp.filtering import Hashing
from lvsxdp.marks import RuleTable, Verdict
from lvsxdp.model import Protocol
from lvsxdp.rule_index import PortRanges, Prefixes, RuleIndex, Values

# As in bpf/config.h and bpf/mark.h.
PROBES = 8
MAX_ORDERED = 64 * 256
WIDE_WORDS = 8
SUMMARY_WORDS = 4
# Records and lists of places stand at multiples of this many words.
ALIGNMENT = 8
WORD = 2**64 - 1
PORTS = 65536
Key = tuple[int, int, int]


def words_for(rules: int) -> int:
    """Words that a set of so many rules may take: a power of two."""
    return 64 << max(rules - 1, 1023).bit_length()


def build(
    table: RuleTable,
    enums: Mapping[str, Mapping[str, int]],
    hashing: Hashing,
    ifindexes: Mapping[str, int],
    room: int,
) -> bytes:
    """The words of a rule set, at most `room` of them, else ConflictError.

    `ifindexes` gives the index of every interface that a rule names.
    """
    if len(table.ordered) > MAX_ORDERED:
        raise ConflictError(
            f"{len(table.ordered)} rules are more than addresses with ports, and {MAX_ORDERED} "
            "such rules is the most: one rule may list several values"
        )
    words = _Builder(enums, hashing, ifindexes).built(table)
    if len(words) > room:
        need = 1 << (len(words) - 1).bit_length()
        raise ConflictError(
            f"the mark rules need {len(words) * 8 >> 10} KiB and have {room * 8 >> 10}: "
            f"raise capacity.marks to {need // 64} and attach anew"
        )
    return words.tobytes()


@dataclasses.dataclass
class _Builder:
    enums: Mapping[str, Mapping[str, int]]
    hashing: Hashing
    ifindexes: Mapping[str, int]
    words: array[int] = dataclasses.field(default_factory=lambda: array("Q"))
    records: dict[int, int] = dataclasses.field(default_factory=dict)
    slots: dict[Key, int] = dataclasses.field(default_factory=dict)

    def built(self, table: RuleTable) -> array[int]:
        fields = self.enums["mark_header"]
        self.searches = self.enums["mark_search"]["max"]
        self.words.extend([0] * fields["words"])
        self.record(0)
        header = self.ordered(table) if table.ordered else {}
        for exact, verdict in table.exact.items():
            search = self.enums["mark_search"][f"exact{exact.address.version}"]
            port = int.from_bytes(records.wire_port(exact.port), "little")
            low = exact.protocol.number << 16 | port
            self.slots[*_halves(exact.address.packed), search << 32 | low] = _word(verdict)
        header["table"], header["slot_mask"] = self.place_slots()
        dimensions = {f"wide_{n}": number for n, number in self.enums["mark_dimension"].items()}
        for name, value in header.items():
            place = fields["wide"] + dimensions[name] if name in dimensions else fields[name]
            self.words[place] = value
        return self.words

    def ordered(self, table: RuleTable) -> dict[str, int]:
        """Sets and searches of the rules that have bits; what the header says of them."""
        index = RuleIndex([rule for _, rule in table.ordered])
        wide = {
            "destination": index.destinations.wide,
            "source": index.sources.wide,
            "port": index.ports.wide,
            "interface": index.interfaces.wide,
            "vlan": index.vlans.wide,
            "source_mac": index.source_macs.wide,
        }
        every = (1 << index.count) - 1
        used = {name: rules for name, rules in wide.items() if rules != every}
        numbers = self.enums["mark_dimension"]
        verdicts = (_word(Verdict(rule.mark, position)) for position, rule in table.ordered)
        header = {
            "summaries": -(-index.count // 64**2),
            "rules": self.append(verdicts),
            "used": sum(1 << numbers[name] for name in used),
            **self.searches_of(index),
        }
        for protocol in Protocol:
            header[protocol.value] = self.wide(index.protocols.around(protocol), index.count)
        for name, rules in used.items():
            header[f"wide_{name}"] = self.wide(rules, index.count)
        return header

    def searches_of(self, index: RuleIndex) -> dict[str, int]:
        """Where the search for the packet's value begins, by dimension."""
        interfaces = {name: self.ifindexes[str(name)] for name in index.interfaces.of}
        vlans = {vlan: int(str(vlan)) + 1 for vlan in index.vlans.of}
        macs = {mac: records.mac_word(str(mac)) for mac in index.source_macs.of}
        return {
            "destination4": self.prefix_search(index.destinations, 4),
            "destination6": self.prefix_search(index.destinations, 6),
            "source4": self.prefix_search(index.sources, 4),
            "source6": self.prefix_search(index.sources, 6),
            "ports": self.port_lists(index.ports),
            "interface": self.value_search(index.interfaces, interfaces),
            "vlan": self.value_search(index.vlans, vlans),
            "source_mac": self.value_search(index.source_macs, macs),
        }

    # ------------------------------------------------------------------------------- parts

    def append(self, values: Iterator[int] | Sequence[int]) -> int:
        """Where the words, put at the end, begin."""
        self.words.extend([0] * (-len(self.words) % ALIGNMENT))
        start = len(self.words)
        self.words.extend(values)
        return start

    def wide(self, rules: int, count: int) -> int:
        """A set with every word."""
        values = [rules >> 64 * n & WORD for n in range(-(-count // 64))]
        summary = sum(1 << n for n, value in enumerate(values) if value)
        return self.append([*_quarters(summary), *[0] * (WIDE_WORDS - SUMMARY_WORDS), *values])

    def record(self, rules: int) -> int:
        """A set with the words that are not 0; the same one for the same rules."""
        if rules not in self.records:
            summary, values = 0, []
            left = rules
            while left:
                at = ((left & -left).bit_length() - 1) // 64
                value = left >> 64 * at & WORD
                summary |= 1 << at
                values.append(value)
                left ^= value << 64 * at
            quarters = _quarters(summary)
            counts = [part.bit_count() for part in quarters]
            ranks = sum(sum(counts[:n]) << 16 * n for n in range(SUMMARY_WORDS))
            self.records[rules] = self.append([*quarters, ranks, *values])
        return self.records[rules]

    def prefix_search(self, prefixes: Prefixes, version: int) -> int:
        """A binary search over the prefix lengths of a family; 0 where there is none."""
        own = prefixes.own[version]
        bits = 32 if version == 4 else 128

        def packed(number: int) -> tuple[int, int]:
            return _halves(number.to_bytes(bits // 8, "big"))

        def step(lengths: Sequence[int]) -> int:
            if not lengths:
                return 0
            middle = len(lengths) // 2
            length, search = lengths[middle], self.new_search()
            mask = (2**length - 1) << (bits - length)
            missed, found = step(lengths[:middle]), step(lengths[middle + 1 :])
            # the prefixes of this length, and what leads on to longer ones
            for address in (address for n in lengths[middle:] for address in own[n]):
                rules = prefixes.naming(version, address & mask, length)
                self.slots[*packed(address & mask), search << 32] = self.record(rules)
            return self.append([*packed(mask), missed << 32 | found, search << 32])

        return step(sorted(own))

    def value_search(self, values: Values, numbers: Mapping[object, int]) -> int:
        """A search of one step; 0 where no value is named."""
        if not numbers:
            return 0
        search = self.new_search()
        for value, number in numbers.items():
            self.slots[number, 0, search << 32] = self.record(values.of[value])
        return self.append([WORD, 0, 0, search << 32])

    def new_search(self) -> int:
        """The number of one more step of a search."""
        self.searches += 1
        return self.searches - 1

    def port_lists(self, ranges: PortRanges) -> int:
        """A list by the ports' upper halves: a record, or with bit 0 a list by the lower halves."""
        ports = [0] * PORTS
        ends = [*ranges.starts[1:], PORTS]
        for start, end, rules in zip(ranges.starts, ends, ranges.rules, strict=True):
            ports[start:end] = [self.record(rules)] * (min(end, PORTS) - start)
        uppers = []
        known: dict[tuple[int, ...], int] = {}
        for start in range(0, PORTS, 256):
            block = tuple(ports[start : start + 256])
            if len(set(block)) == 1:
                uppers.append(block[0])
                continue
            if block not in known:
                known[block] = self.append(_pairs(block)) | 1
            uppers.append(known[block])
        return self.append(_pairs(uppers))

    def place_slots(self) -> tuple[int, int]:
        """The hash table: where it is, and the mask of its slots' numbers."""
        count = 1 << max(2 * len(self.slots) - 1, 1).bit_length()
        hashed = [(self.hashing.scattered(key), key) for key in self.slots]
        while (placed := self._placed(hashed, count)) is None:
            count *= 2
        # keys at the end go over it
        values = array("Q", bytes(32 * (count + PROBES)))
        for at, key in placed:
            values[4 * at : 4 * at + 4] = array("Q", [*key, self.slots[key]])
        return self.append(values), count - 1

    @staticmethod
    def _placed(hashed: Sequence[tuple[int, Key]], count: int) -> list[tuple[int, Key]] | None:
        """Each key's slot, in `PROBES` slots from the one that its hash names; None if not so."""
        free, placed = 0, []
        for at, key in sorted((number & (count - 1), key) for number, key in hashed):
            free = max(free, at)
            if free >= at + PROBES:
                return None
            placed.append((free, key))
            free += 1
        return placed


def _word(verdict: Verdict) -> int:
    """A verdict in one word that is not 0."""
    return (verdict.position + 1) << 32 | verdict.mark


def _halves(packed: bytes) -> tuple[int, int]:
    """An address or mask as two words as a program reads them."""
    padded = packed.ljust(16, b"\0")
    return int.from_bytes(padded[:8], "little"), int.from_bytes(padded[8:], "little")


def _quarters(summary: int) -> list[int]:
    return [summary >> 64 * n & WORD for n in range(SUMMARY_WORDS)]


def _pairs(places: Sequence[int]) -> list[int]:
    return [low | high << 32 for low, high in zip(places[::2], places[1::2], strict=True)]
