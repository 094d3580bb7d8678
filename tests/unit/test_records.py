"""Structs as bytes, and the enums of the C sources."""

from __future__ import annotations

import ipaddress
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvsxdp import records
from lvsxdp.errors import DatapathError
from lvsxdp.model import Family
from lvsxdp.records import Field, Layout
from tests.unit.headers import TYPES, described, schema

KEY = [
    "key",
    [
        ["address", "unsigned int", [4]],
        ["port", "unsigned short"],
        ["protocol", "unsigned char"],
        ["family", "unsigned char"],
        ["mark", "unsigned int"],
    ],
    "struct",
]


def test_a_struct_has_its_fields_one_after_the_other() -> None:
    assert records.layout_of(KEY) == Layout(
        24,
        {
            "address": Field(0, 4, 4),
            "port": Field(16, 2, 1),
            "protocol": Field(18, 1, 1),
            "family": Field(19, 1, 1),
            "mark": Field(20, 4, 1),
        },
    )


def test_the_fields_of_a_struct_inside_a_struct_stand_among_its_own() -> None:
    inner = ["inner", [["port", "unsigned short"], ["mark", "unsigned short"]], "struct"]
    outer = ["outer", [["table", "unsigned int"], ["key", inner]], "struct"]
    assert records.layout_of(outer) == Layout(
        8, {"table": Field(0, 4, 1), "port": Field(4, 2, 1), "mark": Field(6, 2, 1)}
    )


@pytest.mark.parametrize(
    ("kind", "size"),
    [("unsigned int", 4), ("unsigned long long", 8), ("unsigned char", 1), ("int", 4)],
)
def test_a_plain_number_is_the_field_value(kind: str, size: int) -> None:
    assert records.layout_of(kind) == Layout(size, {"value": Field(0, size, 1)})


def test_implicit_padding_is_refused() -> None:
    padded = ["loose", [["a", "unsigned int"], ["__pad_1", "char", [4]]], "struct"]
    with pytest.raises(DatapathError, match="struct loose has implicit padding before __pad_1"):
        records.layout_of(padded)


def test_a_type_of_unknown_size_is_refused() -> None:
    with pytest.raises(DatapathError, match="no size is known for the type double"):
        records.layout_of("double")


def test_what_is_no_description_is_refused() -> None:
    with pytest.raises(DatapathError, match="not a description of a struct: 7"):
        records.layout_of(7)


def test_fields_that_are_not_given_are_zero() -> None:
    raw = records.layout_of(KEY).encode(mark=7, port=b"\x00\x50")
    assert raw == bytes(16) + b"\x00\x50" + bytes(2) + b"\x07\x00\x00\x00"


def test_bytes_that_do_not_fit_their_field_are_refused() -> None:
    with pytest.raises(DatapathError, match="3 bytes do not fit field port"):
        records.layout_of(KEY).encode(port=b"abc")


@given(
    address=st.lists(st.integers(0, 2**32 - 1), min_size=4, max_size=4),
    protocol=st.integers(0, 255),
    mark=st.integers(0, 2**32 - 1),
)
def test_what_was_encoded_is_read_again(address: list[int], protocol: int, mark: int) -> None:
    layout = records.layout_of(KEY)
    raw = layout.encode(address=address, protocol=protocol, mark=mark)
    assert (layout.number(raw, "protocol"), layout.number(raw, "mark")) == (protocol, mark)
    assert layout.octets(raw, "address") == b"".join(n.to_bytes(4, "little") for n in address)


# ---- the sources ----


def test_every_value_of_every_enum_is_written_out() -> None:
    for name, body in records.ENUM.findall(TYPES):
        bare = re.sub(r"/\*.*?\*/", "", body, flags=re.DOTALL)
        written = [part.strip() for part in bare.split(",") if part.strip()]
        assert [p for p in written if not re.fullmatch(r"[A-Z0-9_]+ = \d+", p)] == [], name
        assert len(written) == len(records.enums_of(TYPES)[name]), name


def test_no_enum_uses_a_value_twice() -> None:
    enums = records.enums_of(TYPES)
    assert {name: len(set(values.values())) for name, values in enums.items()} == {
        name: len(values) for name, values in enums.items()
    }


def test_the_names_of_an_enums_values_are_short_and_lower_case() -> None:
    enums = records.enums_of(TYPES)
    assert enums["scheduler"] == {
        **{"rr": 0, "wrr": 1, "wlc": 2, "sh": 3},
        **{"lc": 4, "sed": 5, "nq": 6, "fo": 7, "ovf": 8},
        **{"dh": 9, "twos": 10, "mh": 11, "lblc": 12, "lblcr": 13},
    }
    assert enums["backend_flag"] == {"present": 1, "quiesced": 2, "draining": 4}
    assert enums["family"] == {"ipv4": 4, "ipv6": 6}


def test_no_struct_of_a_map_has_a_field_off_its_alignment() -> None:
    found = schema()
    for name, layout in [*found.keys.items(), *found.values.items()]:
        loose = [n for n, field in layout.fields.items() if field.offset % field.size]
        widest = max(field.size for field in layout.fields.values())
        assert (name, loose, layout.size % widest) == (name, [], 0)


def test_a_slot_is_a_cache_line_or_two() -> None:
    values = schema().values
    tables = ("connections4", "persistence4", "connections6", "persistence6")
    assert [values[table].size for table in tables] == [64, 64, 128, 128]


def test_a_slots_word_comes_first_and_its_key_where_struct_slot_says() -> None:
    values, slot = schema().values, records.layout_of(described("struct slot"))
    for table in ("connections4", "persistence4", "connections6", "persistence6"):
        fields = values[table].fields
        assert fields["word"].offset == slot.fields["word"].offset == 0, table
        assert fields["client"].offset == slot.fields["key"].offset, table


def test_what_one_instruction_reads_or_changes_is_aligned_to_eight_bytes() -> None:
    for table, layout in schema().values.items():
        words = {name: f.offset for name, f in layout.fields.items() if f.size == 8}
        assert [name for name, offset in words.items() if offset % 8] == [], table
        assert not words or layout.size % 8 == 0, table


# ---- byte order ----


def test_what_stands_on_the_wire_is_big_endian() -> None:
    assert records.wire_port(80) == b"\x00\x50"
    assert records.wire_address(ipaddress.ip_address("192.0.2.1")) == b"\xc0\x00\x02\x01" + bytes(
        12
    )
    six = ipaddress.ip_address("2001:db8::1")
    assert records.wire_address(six) == six.packed
    assert [records.family_number(family) for family in Family] == [4, 6]


def test_a_mac_is_the_first_six_bytes_of_a_word() -> None:
    assert records.mac_word("02:00:00:00:00:0a").to_bytes(8, "little") == b"\x02\0\0\0\0\x0a\0\0"


def test_values_of_all_cpus_stand_at_multiples_of_eight_bytes() -> None:
    raw = b"abcd\0\0\0\0efgh\0\0\0\0"
    assert records.per_cpu(raw, 4) == [b"abcd", b"efgh"]
