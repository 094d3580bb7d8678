"""The JSON Schema takes what the loader takes, and knows its keys and its forms."""

from __future__ import annotations

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


BACKENDS = "backends: [{address: 10.0.0.1}]"
LEGAL = {
    "one interface": "interfaces: eth0",
    "one of each": "marks: [{mark: 1, address: 192.0.2.1, port: 80, protocol: tcp, vlan: 7}]",
    "lists of them": "marks: [{mark: 0, addresses: [192.0.2.1], ports: [80, 20-21]}]",
    "any port": "marks: [{mark: 0, address: any, port: any}]",
    "persistence as true": f"services: [{{mark: 1, persistence: true, {BACKENDS}}}]",
    "persistence as seconds": f"services: [{{mark: 1, persistence: 60, {BACKENDS}}}]",
    "a netmask as a number": f"services: [{{mark: 1, persistence: {{netmask: 24}}, {BACKENDS}}}]",
    "a number in quotes": f"services: [{{mark: '1', {BACKENDS}}}]",
    "settings": "settings: {expire_nodest_conn: 1, require_local: false, conn_reuse_mode: 2}",
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
    "a port beyond the last": "marks: [{mark: 1, address: any, port: 65536}]",
    "a rule without a mark": "marks: [{address: any}]",
    "a rule without an address": "marks: [{mark: 1}]",
    "a condition of nothing": "marks: [{mark: 1, addresses: [192.0.2.1], sources: []}]",
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
