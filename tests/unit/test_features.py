"""Which features a configuration uses, and how they are told to the compiler."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lvsxdp import config, features, marks
from lvsxdp.features import EVERY, Feature
from lvsxdp.model import Config
from tests.unit.strategies import CONFIGS

ROOT = Path(__file__).resolve().parents[2]


FTP_MARK = """
marks: [{mark: 1, address: 192.0.2.1, port: 20-21, protocol: tcp}]
services: [{mark: 1, forward: nat, backends: [{address: 10.0.0.1}]}]
"""
FULLNAT = """
settings: {source_pool: 10.0.0.9}
services: [{mark: 1, forward: fullnat, backends: [{address: 10.0.0.1}]}]
"""


def used(text: str) -> str:
    return features.names(features.features_of(config.load(text)[0]))


@pytest.mark.parametrize(
    ("text", "names"),
    {
        "{}": "ipv4",
        "services: [{mark: 1, family: ipv4}]": "ipv4",
        "services: [{mark: 1, family: ipv6}]": "ipv6",
        "services: [{mark: 1, family: ipv4}, {mark: 1, family: ipv6}]": "ipv4 ipv6",
        "services: [{protocol: tcp, address: '2001:db8::1', port: 80}]": "ipv6",
        # found by hash
        "marks: [{mark: 1, address: 192.0.2.1, ports: [80, 443]}]": "ipv4 sctp",
        "marks: [{mark: 1, address: '2001:db8::1', port: 80}]": "ipv6 sctp",
        # compared in order
        "marks: [{mark: 1, address: 192.0.2.0/24, port: 80}]": "ipv4 rules sctp",
        "marks: [{mark: 1, address: 192.0.2.1, port: 80-81}]": "ipv4 rules sctp",
        "marks: [{mark: 1, address: 192.0.2.1, port: any}]": "ipsec ipv4 rules sctp",
        "marks: [{mark: 1, address: 192.0.2.1, port: 80, source: 10.0.0.1}]": "ipv4 rules sctp",
        "marks: [{mark: 1, address: 192.0.2.1, port: 80, interface: eth0}]": "ipv4 rules sctp",
        "marks: [{mark: 1, address: 192.0.2.1, port: 80, vlan: 7}]": "ipv4 rules sctp",
        "marks: [{mark: 1, address: any, source: '2001:db8::/32'}]": "ipsec ipv6 rules sctp",
        # marks packets of both families, whatever is balanced
        "marks: [{mark: 1, address: any, port: 80}]": "ipv4 ipv6 rules sctp",
        "services: [{protocol: sctp, address: 192.0.2.1, port: 80}]": "ipv4 sctp",
        "services: [{protocol: udp, address: 192.0.2.1, port: 500}]": "ipsec ipv4",
        "services: [{protocol: udp, address: 192.0.2.1, port: 501}]": "ipv4",
        "services: [{protocol: udp, address: 192.0.2.1, port: any, persistence: 9}]": "ipsec ipv4",
        "marks: [{mark: 1, protocol: udp, address: 192.0.2.1, port: 500}]": "ipsec ipv4",
        "marks: [{mark: 1, protocol: tcp, address: 192.0.2.1, port: 500}]": "ipv4",
        "marks: [{mark: 1, protocol: tcp, address: 192.0.2.1, port: 80}]": "ipv4",
        "features: used": "ipv4",
        "services: [{mark: 1, family: ipv4, scheduler: lblc}]": "ipv4 locality",
        "services: [{mark: 1, family: ipv6, scheduler: lblcr}]": "ipv6 locality",
        "services: [{mark: 1, forward: nat, backends: [{address: 10.0.0.1}]}]": "ipv4 nat",
        "services: [{mark: 1, family: ipv4, persistence: {engine: sip}}]": "ipv4 sip",
        "services: [{mark: 1, forward: tunnel, backends: [{address: 10.0.0.1}]}]": "ipv4 tunnel",
        FULLNAT: "fullnat ipv4 nat",
        "services: [{protocol: tcp, address: 192.0.2.1, port: 21, forward: nat,"
        " backends: [{address: 10.0.0.1}]}]": "ftp ipv4 nat",
        FTP_MARK: "ftp ipv4 nat rules",
        "features: all": "ftp fullnat ipsec ipv4 ipv6 locality nat rules sctp sip tunnel",
    }.items(),
)
def test_a_configuration_uses_what_it_names(text: str, names: str) -> None:
    assert used(text) == names


@settings(max_examples=50, deadline=None)
@given(drawn=CONFIGS)
def test_no_part_of_a_configuration_is_without_its_feature(drawn: Config) -> None:
    found = features.features_of(drawn)
    assert {Feature(service.family) for service in drawn.services} <= found
    assert Feature.RULES in found or not marks.expand(drawn.marks).ordered
    assert found & {Feature.IPV4, Feature.IPV6}


@given(chosen=st.frozensets(st.sampled_from(Feature)))
def test_programs_have_the_features_that_they_were_compiled_with(
    chosen: frozenset[Feature],
) -> None:
    assert features.compiled(features.defines(chosen)) == chosen


def test_the_loader_knows_the_features_that_the_c_sources_have() -> None:
    header = (ROOT / "bpf/config.h").read_text()
    known = set(re.findall(r"^#ifndef (FEATURE_\w+)", header, re.MULTILINE))
    assert known == set(features.defines(EVERY))
