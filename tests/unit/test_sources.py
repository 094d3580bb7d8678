"""The pool of addresses that backends by fullnat get packets from."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvsxdp import sources
from lvsxdp.book import Book
from lvsxdp.errors import ConfigError, ConflictError
from lvsxdp.model import Capacity, Config, Settings
from lvsxdp.writes import Block, Delete, Rows, Update
from tests.unit.headers import schema

SCHEMA = schema()


@pytest.mark.parametrize(
    ("text", "kept", "ends", "count"),
    [
        ("", "", (), 0),
        (" 10.0.0.1 ", "10.0.0.1", ("10.0.0.1", "10.0.0.1"), 1),
        ("10.0.0.1-10.0.0.4", "10.0.0.1-10.0.0.4", ("10.0.0.1", "10.0.0.4"), 4),
        ("10.0.0.254 - 10.0.1.1", "10.0.0.254 - 10.0.1.1", ("10.0.0.254", "10.0.1.1"), 4),
        ("10.0.0.8/30,2001:db8::1", "10.0.0.8/30, 2001:db8::1", ("10.0.0.8", "2001:db8::1"), 5),
        ("2001:db8::/119", "2001:db8::/119", ("2001:db8::", "2001:db8::1ff"), 512),
    ],
)
def test_a_pool_is_addresses_ranges_and_prefixes(
    text: str, kept: str, ends: tuple[str, ...], count: int
) -> None:
    assert sources.parse_pool(text) == kept
    found = sources.addresses(kept)
    assert len(found) == count
    assert [str(found[0]), str(found[-1])] == list(ends) if count else not ends


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("10.0.0.1,", '"" is not'),
        ("10.0.0.1, 10.0.0.0/30", "10.0.0.1 is in it twice"),
        ("10.0.0.4-10.0.0.1", "runs backwards; write 10.0.0.1-10.0.0.4"),
        ("10.0.0.1-2001:db8::1", "different families"),
        ("10.0.0.0/16", "more than 512 addresses"),
        ("10.0.0.0-10.0.255.0", "more than 512 addresses"),
        ("10.0.0.0/24, 10.0.1.0/24, 10.0.2.0/24", "768 addresses are more than the 512"),
        ("127.0.0.1", "a loopback address"),
        ("224.0.0.0/30", "a multicast address"),
        ("fe80::1-fe80::2", "a link-local address"),
    ],
)
def test_a_pool_that_is_none_is_told_with_what_would_be_right(text: str, fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        sources.parse_pool(text)


def test_ports_begin_at_1() -> None:
    assert sources.parse_ports("7") == "7-7"
    assert sources.parse_ports("1-65535") == "1-65535"
    for text in ("0-7", "0", "7-6", "65536", ""):
        with pytest.raises(ConfigError):
            sources.parse_ports(text)


POOLS = st.lists(st.integers(0, 11), unique=True, max_size=6).map(
    lambda numbers: ", ".join(
        f"10.0.0.{n + 1}" if n % 2 else f"2001:db8::{n + 1:x}" for n in numbers
    )
)


@given(pools=st.lists(POOLS, min_size=1, max_size=8), used=st.sets(st.integers(0, 7)))
def test_each_address_of_the_pool_has_a_number_of_its_own(pools: list[str], used: set[int]) -> None:
    """Those that connections have are never given away, whatever pools follow each other."""
    book, old = Book(), Config(capacity=Capacity(sources=8))
    rows: dict[int, str] = {}
    for pool in pools:
        new = Config(settings=Settings(source_pool=pool), capacity=Capacity(sources=8))
        before = dict(book.sources)
        trial = book.copy()
        try:
            writes = list(
                sources.pool_writes(SCHEMA, trial, old, new, used.__contains__, first=False)
            )
        except ConflictError:
            wanted = set(map(str, sources.addresses(pool)))
            left = {name for name, n in before.items() if name not in wanted and n not in used}
            assert len(wanted | (before.keys() - left)) > 8
            assert book.sources == before
            continue
        book = trial
        assert len(set(book.sources.values())) == len(book.sources)
        assert set(book.sources.values()) <= set(range(8))
        assert all(book.sources.get(name) == n for name, n in before.items() if n in used)
        for _, write in writes:
            if isinstance(write, Rows):
                packed = write.value[:4] if any(write.value[4:]) is False else write.value
                rows[write.index] = str(ipaddress.ip_address(packed))
            assert isinstance(write, Rows | Update | Delete | Block)
        for address in sources.addresses(pool):
            assert rows[book.sources[str(address)]] == str(address)
        old = new
