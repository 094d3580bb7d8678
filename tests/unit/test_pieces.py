"""A file that is read piece by piece is what it is when read as a whole."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lvsxdp import config, dumping, pieces
from lvsxdp.errors import ConfigError
from lvsxdp.model import Config, Service
from tests.unit.strategies import CONFIGS
from tests.unit.test_config import FAULTS

FILE = """\
# what we balance
capacity: {services: 64}
services:
  # the shop
  - name: shop
    protocol: tcp
    address: 192.0.2.1
    port: 80
    backends:
      - {address: 10.0.0.1}
      - {address: 10.0.0.2, weight: 3}

  - {name: news, protocol: tcp, address: 192.0.2.2, port: 80, backends: []}
  - name: mail
    protocol: tcp
    address: 192.0.2.3
    port: 25
settings: {require_local: false}
"""


def known(text: str) -> dict[str, Service]:
    """What is known by its text once the file was read."""
    loaded, _, sources = config.load_beside(text, "f", {})
    by_key = {str(service.key): service for service in loaded.services}
    return {digest: by_key[key] for key, digest in sources.items()}


def reused(text: str, after: str) -> set[str]:
    """The services of a second file that are the very ones of the first."""
    before = known(text)
    loaded, _, _ = config.load_beside(after, "f", before)
    assert loaded == config.load(after, "f")[0]
    same = set(map(id, before.values()))
    return {str(service) for service in loaded.services if id(service) in same}


def test_only_services_whose_text_has_changed_are_read_again() -> None:
    assert set(map(str, known(FILE).values())) == {"shop", "news", "mail"}
    assert reused(FILE, FILE) == {"shop", "news", "mail"}
    assert reused(FILE, FILE.replace("weight: 3", "weight: 4")) == {"news", "mail"}
    assert reused(FILE, FILE.replace("port: 25", "port: 26")) == {"shop", "news"}
    assert reused(FILE, FILE.replace("settings: {require_local: false}\n", "")) == {
        *("shop", "news", "mail")
    }
    assert reused(FILE, re.sub("  - name: mail.*25\n", "", FILE, flags=re.DOTALL)) == {
        *("shop", "news")
    }


@pytest.mark.parametrize(
    ("old", "new"),
    [
        # a text that goes on in the next lines, and takes in what looks like an item
        ("name: shop", 'name: "shop'),
        ("name: mail", "name: 'mail"),
        ("name: shop", "name: |\n      shop"),
        ("name: shop", "name: &a shop"),
        ("name: mail", "name: *a"),
        ("name: mail", "name: !!str mail"),
        ("port: 25", "port: 25\nservices: []"),
        ("port: 25\n", "port: 25\n---\n"),
        ("    port: 25", "\tport: 25"),
        ("  - name: mail", " - name: mail"),
        ("  - name: mail", "- name: mail"),
        ("port: 25", "port: 99999"),
        ("name: mail", "name: shop"),
        ("10.0.0.2", "10.0.0.1"),
        ("services:\n", "services: []\n"),
    ],
)
def test_what_is_wrong_or_out_of_the_way_is_told_as_of_the_whole_file(old: str, new: str) -> None:
    before, after = known(FILE), FILE.replace(old, new)
    assert after != FILE

    def outcome(load: Callable[[], object]) -> object:
        try:
            return load()
        except ConfigError as err:
            return str(err)

    assert outcome(lambda: config.load_beside(after, "f", before)[:2]) == outcome(
        lambda: config.load(after, "f")
    )


LARGE = "services:\n" + "".join(
    f"- name: s{n}\n  mark: {n}\n  backends:\n  - {{address: 10.0.0.{n}}}\n" for n in range(1, 41)
)
OF_A_SERVICE = [text for text in FAULTS if text.startswith("services: [{")]


def test_every_fault_of_a_service_is_told_alike_amid_many_that_are_known() -> None:
    assert len(OF_A_SERVICE) > 50
    before = known(LARGE)
    for text in OF_A_SERVICE:
        bad = text.removeprefix("services: [").removesuffix("]")
        after = LARGE.replace("- name: s20\n", f"- {bad}\n- name: s20\n")
        with pytest.raises(ConfigError) as whole:
            config.load(after, "f")
        with pytest.raises(ConfigError) as beside:
            config.load_beside(after, "f", before)
        assert beside.value.problems == whole.value.problems
        assert whole.value.problems[0].startswith("f:78: services[19]")


def test_a_line_break_of_another_kind_is_no_way_to_hide_a_service() -> None:
    assert pieces.split(LARGE) is not None
    for character in "\x85\u2028\u2029":
        assert pieces.split(LARGE.replace("name: s7", f"name: s7 # {character}")) is None


def test_a_service_that_one_is_warned_of_is_read_each_time() -> None:
    text = FILE.replace("settings:", "  - {mark: 7, family: ipv4}\nsettings:")
    assert len(config.load(text)[1]) == 1
    assert set(map(str, known(text).values())) == {"shop", "news", "mail"}


@settings(max_examples=60, deadline=None)
@given(pair=st.tuples(CONFIGS, CONFIGS), seed=st.integers(0, 99))
def test_any_file_read_beside_another_is_what_it_is_by_itself(
    pair: tuple[Config, Config], seed: int
) -> None:
    texts = [dumping.dump(one) for one in pair]
    mixed = _mixed(texts, random.Random(seed))
    for text in (*texts, mixed):
        before = known(texts[0])
        try:
            whole = config.load(text)
        except ConfigError as err:
            with pytest.raises(ConfigError, match=re.escape(str(err))):
                config.load_beside(text, "<config>", before)
            continue
        assert config.load_beside(text, "<config>", before)[0] == whole[0]


def _mixed(texts: list[str], dice: random.Random) -> str:
    """The first file with some of the second one's services, where both have any."""
    parts = [pieces.split(text) for text in texts]
    if parts[0] is None or parts[1] is None:
        return texts[0]
    services = [*parts[0].services, *parts[1].services]
    dice.shuffle(services)
    return "".join((parts[0].before, *services, parts[0].after))


ROWS = (
    "- {address: 10.0.0.1}",
    "- {address: 10.0.0.1, weight: 7}",
    "- {address: 10.0.0.2, weight: 0}",
    "- {address: 10.0.0.3, weight: 2}",
    "- {address: 10.0.0.4, weight: 999999999}",
    "- {address: 10.0.0.5, weight: 9999999999}",
    "- {address: 10.0.0.6, weight: 010}",
    "- {address: 10.0.0.7, weight: 1_0}",
    "- {address: 10.0.0.8, port: 80}",
    "- {address: 10.0.0.9} # spare",
    '- {address: "2001:db8::1"}',
    "- {address: 10.0.0.256}",
    "- {address: 010.0.0.1}",
    "- {address: 224.0.0.1}",
    "- {address: 10.0.0.10, draining: yes}",
    "- 10.0.0.11",
    "",
    "# a comment",
    "- address: 10.0.0.12",
    "  weight: 3",
)
ENDS = (
    "",
    "    scheduler: rr\n",
    "    forward: dr\n",
    "    persistence: 600\n",
    "    nonsense: 1\n",
)


@settings(max_examples=300, deadline=None)
@given(
    rows=st.lists(st.sampled_from(ROWS[:4]) | st.sampled_from(ROWS), max_size=6),
    indent=st.sampled_from(["      ", "    ", "        ", "  "]),
    key=st.sampled_from(["protocol: tcp\n    address: 192.0.2.9\n    port: 80", "mark: 1"]),
    end=st.sampled_from(ENDS),
)
def test_rows_of_backends_are_what_yaml_makes_of_them(
    rows: list[str], indent: str, key: str, end: str
) -> None:
    listed = "".join(f"{indent}{row}\n" if row else "\n" for row in rows)
    text = f"services:\n  - name: shop\n    {key}\n    backends:\n{listed}{end}"
    text += "  - {name: last, protocol: tcp, address: 192.0.2.1, port: 80}\n"
    assert outcome(lambda: config.load_beside(text, "f", {})[:2]) == outcome(
        lambda: config.load(text, "f")
    )


def outcome(read: Callable[[], object]) -> object:
    """What is read, or what is said of it."""
    try:
        return read()
    except ConfigError as err:
        return str(err)


def test_plain_rows_are_read_without_yaml_and_others_with_it() -> None:
    split = pieces.split(FILE)
    assert split is not None
    assert {place: rows.backends for place, rows in split.rows({}).items()} == {
        0: (("10.0.0.1", ""), ("10.0.0.2", "3"))
    }
    assert split.rows({0}) == {}
    for odd in ("- {address: 10.0.0.2, port: 80}", "- {address: 10.0.0.2} # two"):
        changed = pieces.split(FILE.replace("- {address: 10.0.0.2, weight: 3}", odd))
        assert changed is not None
        assert changed.rows({}) == {}
