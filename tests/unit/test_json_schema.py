"""The JSON Schema takes what the loader takes, and knows its keys and its forms."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given, settings

from lvsxdp import config, dumping
from lvsxdp.errors import ConfigError
from lvsxdp.json_schema import json_schema
from lvsxdp.model import Config
from tests.unit.strategies import CONFIGS
from tests.unit.test_config import FAULTS

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SCHEMA = json_schema(config.MAX_CAPACITY)
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def holds(tree: Any) -> bool:
    return bool(VALIDATOR.is_valid(tree))


def test_it_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@settings(max_examples=200, deadline=None)
@given(CONFIGS)
def test_it_takes_every_file_that_is_written(wanted: Config) -> None:
    assert holds(yaml.safe_load(dumping.dump(wanted)) or {})


def described(schema: Any) -> Iterator[tuple[str, bool]]:
    """Every key of the schema's mappings, and whether it says what the key is for."""
    if isinstance(schema, dict):
        for key, about in schema.get("properties", {}).items():
            if about is not False:
                yield key, bool(about.get("description", "").endswith("."))
    for part in schema.values() if isinstance(schema, dict) else schema:
        if isinstance(part, dict | list):
            yield from described(part)


def test_every_key_says_what_it_is_for() -> None:
    told = dict(described(SCHEMA))
    assert {"interfaces", "source_macs", "expiry", "draining", "require_local"} <= told.keys()
    assert [key for key, is_told in told.items() if not is_told] == []


BACKENDS = "backends: [{address: 10.0.0.1}]"
LEGAL = {
    "one interface": "interfaces: eth0",
    "one of each": "marks: [{mark: 1, address: 192.0.2.1, port: 80, protocol: tcp, vlan: 7}]",
    "lists of them": "marks: [{mark: 0, addresses: [192.0.2.1], ports: [80, 20-21]}]",
    "any port": "marks: [{mark: 0, address: any, port: any}]",
    "persistence as true": f"services: [{{mark: 1, persistence: true, {BACKENDS}}}]",
    "persistence as false": f"services: [{{mark: 1, persistence: false, {BACKENDS}}}]",
    "persistence as one second": f"services: [{{mark: 1, persistence: 1, {BACKENDS}}}]",
    "a mask of any bits": (
        f"services: [{{mark: 1, persistence: {{netmask: 255.0.255.0}}, {BACKENDS}}}]"
    ),
    "any port of an address": (
        "services: [{protocol: udp, address: 192.0.2.1, port: any, persistence: true}]"
    ),
    "one flag": f"services: [{{mark: 1, scheduler: sh, flags: sh-port, {BACKENDS}}}]",
    "a name": f"services: [{{name: 'on-1', mark: 1, {BACKENDS}}}]",
    "a list of interfaces": "interfaces: [eth0.5, 'on']",
    "prefixes": "marks: [{mark: 0, address: 192.0.2.0/24, source: '198.51.100.0/24'}]",
    "nothing": "{}",
    "persistence as seconds": f"services: [{{mark: 1, persistence: 60, {BACKENDS}}}]",
    "a netmask as a number": f"services: [{{mark: 1, persistence: {{netmask: 24}}, {BACKENDS}}}]",
    "a number in quotes": f"services: [{{mark: '1', {BACKENDS}}}]",
    "settings": "settings: {expire_nodest_conn: 1, require_local: false, conn_reuse_mode: 2}",
    "thresholds": (
        "services: [{mark: 1, backends: [{address: 10.0.0.1, upper_threshold: 7,"
        " lower_threshold: 5}]}]"
    ),
    "capacity": "capacity: {connections: 5000, services: 10}",
}


@pytest.mark.parametrize("text", LEGAL.values(), ids=LEGAL)
def test_it_takes_what_the_loader_takes(text: str) -> None:
    config.load(text)
    assert holds(yaml.safe_load(text))


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_it_takes_the_examples(path: Path) -> None:
    assert holds(yaml.safe_load(path.read_text()))


WRONG = {
    "an unknown key": "servces: []",
    "an unknown key of a backend": "services: [{mark: 1, backends: [{address: a, wieght: 1}]}]",
    "an unknown scheduler": f"services: [{{mark: 1, scheduler: wr, {BACKENDS}}}]",
    "a mark beside an address": (
        f"services: [{{mark: 1, protocol: tcp, address: 192.0.2.1, port: 80, {BACKENDS}}}]"
    ),
    "an address without a port": f"services: [{{protocol: tcp, address: 192.0.2.1, {BACKENDS}}}]",
    "a backend without an address": "services: [{mark: 1, backends: [{weight: 1}]}]",
    "a weight below 0": "services: [{mark: 1, backends: [{address: 10.0.0.1, weight: -1}]}]",
    "a threshold below 0": (
        "services: [{mark: 1, backends: [{address: 10.0.0.1, upper_threshold: -1}]}]"
    ),
    "a port beyond the last": "marks: [{mark: 1, address: any, port: 65536}]",
    "a rule without a mark": "marks: [{address: any}]",
    "a rule without an address": "marks: [{mark: 1}]",
    "a condition of nothing": "marks: [{mark: 1, addresses: [192.0.2.1], sources: []}]",
    "a value twice": "marks: [{mark: 1, addresses: [192.0.2.1], vlans: [1, 1]}]",
    "persistence of 0 seconds": f"services: [{{mark: 1, persistence: 0, {BACKENDS}}}]",
    "persistence in other words": f"services: [{{mark: 1, persistence: 'true', {BACKENDS}}}]",
    "a name with a space": f"services: [{{name: a b, mark: 1, {BACKENDS}}}]",
    "an interface with a slash": "interfaces: [a/b]",
    "a name in place of an address": "services: [{mark: 1, backends: [{address: web1}]}]",
    "a list of marks": "marks: {mark: 1}",
    "a MAC that is none": "marks: [{mark: 1, address: any, source_mac: '02:00'}]",
    "a capacity of nothing": "capacity: {connections: 0}",
    "an unknown setting": "settings: {sloppy: 1}",
}


@pytest.mark.parametrize("text", WRONG.values(), ids=WRONG)
def test_neither_takes(text: str) -> None:
    with pytest.raises(ConfigError):
        config.load(text)
    assert not holds(yaml.safe_load(text))


# What no schema can say: what YAML reads otherwise than it is written, and how values fit together.
BEYOND = (
    *("YAML reads it as", "is given again", "is already", "is too few", "the service is"),
    *("is for forward: tunnel", "no backend has forward", "gue needs", "is for type: gue"),
    *("has no csum", "has no remcsum", "and the backend is", "tunnel cannot change"),
    *("is above upper_threshold", "slots of mh"),
    *("needs persistence", "needs family", "belongs to scheduler", "dr cannot change"),
    *("beside addresses", "runs backwards", "1-65536", "beyond its prefix", "bits long"),
    *("not an IPv4 netmask", "not an IPv6 netmask", "in IPv6 writing", "the tag"),
    "merge keys",
)


def test_it_refuses_all_that_the_loader_does_but_how_values_fit_together() -> None:
    taken = []
    for text, fault in FAULTS.items():
        with contextlib.suppress(yaml.YAMLError, ValueError, LookupError):
            tree = None if "nested" in fault else yaml.safe_load(text)
            if tree is not None and holds(tree):
                taken.append(fault)
    assert len(taken) > 10
    assert [fault for fault in taken if not any(part in fault for part in BEYOND)] == []
