"""YAML to a configuration and back, and the names of services and backends."""

from __future__ import annotations

import dataclasses
import ipaddress
import pathlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lvsxdp import checks, config, dumping
from lvsxdp.errors import ConfigError, ConflictError, NotFoundError
from lvsxdp.model import (
    ANY_PORT,
    MAX_CAPACITY,
    MAX_MARK,
    MAX_PERSISTENCE,
    MAX_WEIGHT,
    AddressKey,
    Backend,
    Capacity,
    Config,
    Expiry,
    Family,
    Forward,
    MarkKey,
    MarkRule,
    Persistence,
    Ports,
    Protocol,
    Scheduler,
    SchedulerFlag,
    Service,
    Settings,
    Tunnel,
    TunnelChecksum,
    TunnelType,
)
from lvsxdp.names import by_name, find_backends
from tests.unit.strategies import CONFIGS

ROOT = pathlib.Path(__file__).parents[2]
SHOP = (ROOT / "examples" / "shop.yaml").read_text()

ip = ipaddress.ip_address
net = ipaddress.ip_network


def faults(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config.load(text, "f")
    return list(caught.value.problems)


def loaded(text: str) -> Config:
    return config.load(text)[0]


def warned(text: str) -> list[str]:
    return config.load(text, "f")[1]


def service(body: str) -> str:
    return f"services: [{{{body}}}]"


def backend(body: str) -> str:
    return service(f"mark: 1, family: ipv4, backends: [{{address: 10.0.0.1, {body}}}]")


def rule(body: str) -> str:
    return f"marks: [{{mark: 1, address: 192.0.2.1, {body}}}]"


# ---- what is read ----


def test_the_example_loads_without_warnings() -> None:
    read, warnings = config.load(SHOP, "shop.yaml")
    assert warnings == []
    assert [(str(s.key), s.name, len(s.backends)) for s in read.services] == [
        ("mark:1", "shop", 3),
        ("mark6:1", "shop6", 3),
        ("tcp:192.0.2.10:8080", "plain", 3),
    ]


def test_every_key_of_the_file_arrives_in_the_configuration() -> None:
    text = """
    interfaces: [eth0, eth1]
    marks:
      - mark: 7
        protocols: [tcp, sctp]
        addresses: [192.0.2.10, 192.0.2.128/25]
        ports: [80, 20-21]
        sources: [198.51.100.0/24]
        source_mac: 02:00:00:00:00:0A
        interfaces: [eth0]
        vlan: 5
    services:
      - name: shop
        mark: 7
        family: ipv4
        scheduler: sh
        flags: [sh-port, sh-fallback]
        persistence: {timeout: 600, netmask: 255.0.255.0, expiry: strict}
        forward: dr
        backends:
          - {address: 10.0.0.11, port: 80, weight: 3, forward: dr, draining: true,
             upper_threshold: 9, lower_threshold: 7}
          - {address: 10.0.0.12, upper_threshold: 2147483647}
    settings:
      expire_nodest_conn: 0
      expire_quiescent_template: true
      conn_reuse_mode: 3
      require_local: false
      lblc_expiration: 60
      lblcr_expiration: 70
    capacity:
      {connections: 1000, persistence: 2000, services: 10, backends: 20, destinations: 30,
       sources: 40}
    """
    assert loaded(text) == Config(
        interfaces=("eth0", "eth1"),
        marks=(
            MarkRule(
                mark=7,
                protocols=(Protocol.TCP, Protocol.SCTP),
                addresses=(net("192.0.2.10"), net("192.0.2.128/25")),
                ports=(Ports(80, 80), Ports(20, 21)),
                sources=(net("198.51.100.0/24"),),
                source_macs=("02:00:00:00:00:0a",),
                interfaces=("eth0",),
                vlans=(5,),
            ),
        ),
        services=(
            Service(
                key=MarkKey(7, Family.IPV4),
                name="shop",
                scheduler=Scheduler.SH,
                flags=(SchedulerFlag.SH_PORT, SchedulerFlag.SH_FALLBACK),
                persistence=Persistence(600, ip("255.0.255.0"), Expiry.STRICT),
                backends=(
                    Backend(ip("10.0.0.11"), 80, 3, Forward.DR, True, 9, 7),
                    Backend(ip("10.0.0.12"), upper_threshold=2147483647),
                ),
            ),
        ),
        settings=Settings(False, True, 3, False, lblc_expiration=60, lblcr_expiration=70),
        capacity=Capacity(1000, 2000, 10, 20, destinations=30, sources=40),
    )


def test_what_is_left_out_takes_its_default() -> None:
    assert loaded(
        "{marks: [{mark: 1, address: any}], services: [{mark: 1, family: ipv4}]}"
    ) == Config(marks=(MarkRule(1),), services=(Service(MarkKey(1, Family.IPV4)),))


def test_an_empty_mapping_is_a_configuration_of_nothing() -> None:
    assert config.load("{}") == (Config(), [])


def test_the_singular_and_a_scalar_stand_for_a_list_of_one() -> None:
    one = "{mark: 1, protocol: tcp, address: 192.0.2.1, port: 80, source: 10.0.0.0/8, interface: a}"
    scalar = one.replace("protocol:", "protocols:").replace("port:", "ports:")
    several = (
        "{mark: 1, protocols: [tcp], addresses: [192.0.2.1], ports: [80],"
        " sources: [10.0.0.0/8], interfaces: [a]}"
    )
    rules = {loaded(f"marks: [{text}]").marks for text in (one, scalar, several)}
    assert rules == {
        (
            MarkRule(
                1,
                (Protocol.TCP,),
                (net("192.0.2.1"),),
                (Ports(80, 80),),
                (net("10.0.0.0/8"),),
                interfaces=("a",),
            ),
        )
    }


def test_a_rule_for_any_address_and_any_port_restricts_neither() -> None:
    assert loaded("marks: [{mark: 0, address: any, port: any}]").marks == (MarkRule(0),)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("true", Persistence(360, ip("255.255.255.255"))),
        ("false", None),
        ("90", Persistence(90, ip("255.255.255.255"))),
        ("{}", Persistence(360, ip("255.255.255.255"))),
        ("{netmask: 24}", Persistence(360, ip("255.255.255.0"))),
        ("{netmask: 0}", Persistence(360, ip("0.0.0.0"))),
        ("{netmask: 0.0.0.255}", Persistence(360, ip("0.0.0.255"))),
        ("{timeout: 2678400, expiry: strict}", None),
    ],
)
def test_persistence_is_a_switch_a_number_or_a_mapping(
    text: str, expected: Persistence | None
) -> None:
    if "strict" in text:
        expected = Persistence(MAX_PERSISTENCE, ip("255.255.255.255"), Expiry.STRICT)
    read = loaded(service(f"mark: 1, family: ipv4, persistence: {text}"))
    assert read.services[0].persistence == expected


def test_an_ipv6_netmask_is_a_prefix_length_and_128_by_default() -> None:
    masks = [
        loaded(service(f"mark: 1, family: ipv6, persistence: {text}")).services[0].persistence
        for text in ("{netmask: 64}", "{netmask: 1}", "true")
    ]
    assert [str(mask.netmask) for mask in masks if mask] == [
        "ffff:ffff:ffff:ffff::",
        "8000::",
        "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    ]


def test_the_family_of_a_mark_service_follows_from_its_backends() -> None:
    text = service('mark: 1, backends: [{address: "2001:db8::1"}]')
    assert loaded(text).services[0].key == MarkKey(1, Family.IPV6)


def test_a_backend_port_equal_to_its_services_is_no_port_of_its_own() -> None:
    read = loaded(
        service("protocol: tcp, address: 192.0.2.1, port: 80,"
                " backends: [{address: 10.0.0.1, port: 80}]")
    )  # fmt: skip
    assert read.services[0].backends == (Backend(ip("10.0.0.1")),)


def test_tunnel_options_of_a_service_are_its_backends_defaults() -> None:
    text = """
    services:
      - protocol: tcp
        address: 192.0.2.1
        port: 80
        forward: tunnel
        tunnel: {type: gue, port: 6080, checksum: csum, source: 10.0.0.1}
        backends:
          - {address: 10.0.0.11}
          - {address: 10.0.0.12, tunnel: {checksum: remcsum}}
          - {address: 10.0.0.13, tunnel: {type: gre}}
          - {address: 10.0.0.14, tunnel: ipip}
          - {address: 10.0.0.15, tunnel: {port: 99, source: auto}}
          - {address: "2001:db8::1", tunnel: {source: "2001:db8::99"}}
          - {address: 10.0.0.16, forward: dr}
    """
    csum, source = TunnelChecksum.CSUM, ip("10.0.0.1")
    assert [backend.tunnel for backend in loaded(text).services[0].backends] == [
        Tunnel(TunnelType.GUE, 6080, csum, source),
        Tunnel(TunnelType.GUE, 6080, TunnelChecksum.REMCSUM, source),
        Tunnel(TunnelType.GRE, source=source),
        Tunnel(TunnelType.IPIP, source=source),
        Tunnel(TunnelType.GUE, 99, csum),
        Tunnel(TunnelType.GUE, 6080, csum, ip("2001:db8::99")),
        Tunnel(),
    ]


def test_a_service_of_any_port_is_written_any() -> None:
    read = loaded(service("protocol: udp, address: 192.0.2.1, port: any, persistence: true"))
    assert read.services[0].key == AddressKey(Protocol.UDP, ip("192.0.2.1"), ANY_PORT)


def test_backends_keep_the_order_of_the_file() -> None:
    text = service("mark: 1, backends: [{address: 10.0.0.3}, {address: 10.0.0.1}]")
    assert [str(b) for b in loaded(text).services[0].backends] == ["10.0.0.3", "10.0.0.1"]


def test_switches_are_read_in_all_of_yamls_words_and_as_numbers() -> None:
    words = ["true", "yes", "on", "1", "True"], ["false", "no", "off", "0", "FALSE"]
    read = [
        [loaded(f"settings: {{require_local: {word}}}").settings.require_local for word in row]
        for row in words
    ]
    assert read == [[True] * 5, [False] * 5]


def test_the_largest_and_smallest_legal_values_are_accepted() -> None:
    rules = f"[{{mark: {MAX_MARK}, address: any, ports: [1, 65535], vlan: [1, 4094]}}]"
    backends = f"[{{address: 10.0.0.1, weight: {MAX_WEIGHT}}}, {{address: 10.0.0.2, weight: 0}}]"
    read = loaded(f"{{marks: {rules}, services: [{{mark: {MAX_MARK}, backends: {backends}}}]}}")
    assert [b.weight for b in read.services[0].backends] == [MAX_WEIGHT, 0]


def test_an_anchor_may_be_used_again() -> None:
    text = """
    services:
      - {mark: 1, backends: &pool [{address: 10.0.0.1}]}
      - {mark: 2, backends: *pool}
    """
    first, second = loaded(text).services
    assert first.backends == second.backends


def test_text_in_quotes_is_never_a_trap() -> None:
    text = """
    interfaces: ["on"]
    marks: [{mark: "1", address: "192.0.2.1", port: "80", source_mac: "10:11:22:33:44:55"}]
    services: [{name: "080", mark: "1", family: "ipv4"}]
    """
    read = loaded(text)
    assert (read.interfaces, read.services[0].name) == (("on",), "080")


# ---- faults: place, value, remedy ----

SCHEDULERS = f"({', '.join(Scheduler)})"
FLAGS_OF_ALL = "(sh-port, sh-fallback, mh-port, mh-fallback)"
ADDRESSES = "(192.0.2.10, 2001:db8::10)"
NETWORKS = "(192.0.2.10, 192.0.2.0/24, 2001:db8::/32)"

FAULTS = {
    # documents and syntax
    "interfaces: []\n# \x07": "f:2: the character U+0007 has no place in YAML; leave it out",
    "marks:\n- " + "- " * 1000: "f:2: lists and mappings are nested more than 32 deep;"
    " a configuration needs 6",
    "": "f:1: the file is empty; {} is a configuration of nothing",
    "# nothing\n": "f:1: the file is empty; {} is a configuration of nothing",
    "- a": "f:1: a list stands where a mapping belongs,"
    " with keys of: interfaces, marks, services, settings, capacity, features",
    "hello": 'f:1: "hello" stands where a mapping belongs,'
    " with keys of: interfaces, marks, services, settings, capacity, features",
    "settings: {}\n---\nsettings: {}": "f:3: a second document starts here; leave out the ---",
    "marks:\n\t- {mark: 1}": "f:2: there is a tab; YAML is indented with spaces",
    "a: b: c": "f:1: this is not YAML, column 5: mapping values are not allowed here",
    "a: *b": "f:1: this is not YAML, column 4: found undefined alias 'b'",
    "[" * 5000: "f:1: lists and mappings are nested more than 32 deep; a configuration needs 6",
    "a: \x00": "f:1: the character U+0000 has no place in YAML; leave it out",
    # keys
    "service: []": "f:1: service: is no key here; did you mean services?",
    "zzz: 1": "f:1: zzz: is no key here;"
    " there is interfaces, marks, services, settings, capacity, features",
    "settings: {conn_reuse: 1}": "f:1: settings.conn_reuse: is no key here;"
    " did you mean conn_reuse_mode?",
    "{[1]: 2}": "f:1: a list: is no key here;"
    " there is interfaces, marks, services, settings, capacity, features",
    "settings:\n  require_local: 1\n  require_local: 0": "f:2: settings.require_local:"
    " is given again in line 3; YAML would keep only the last, leave one out",
    rule("ports: [1], port: 2"): "f:1: marks[0].ports: stands beside port; put all into ports",
    "Interface: 1": "f:1: Interface: is no key here; did you mean interfaces?",
    'marks: []\n"marks[0]": 1': 'f:2: "marks[0]": is no key here; did you mean marks?',
    '"\\e[31m": 1': r'f:1: "\u001b[31m": is no key here;'
    " there is interfaces, marks, services, settings, capacity, features",
    '"": 1': 'f:1: "": is no key here;'
    " there is interfaces, marks, services, settings, capacity, features",
    backend("<<: {weight: 1}"): 'f:1: services[0].backends[0]."<<": is no key here;'
    " merge keys do not work, write out what is meant",
    "capacity: {services: 1,024}": "f:1: capacity.024: is no key here; a number has no comma;"
    " there is connections, persistence, services, backends, marks, destinations, sources",
    # tags
    "services: !!python/object:os.system []": "f:1: services:"
    ' the tag "!!python/object:os.system" means nothing here; leave it out',
    "settings: !mine {}": 'f:1: settings: the tag "!mine" means nothing here; leave it out',
    service("mark: 1, family: !mine ipv4"): "f:1: services[0].family:"
    ' the tag "!mine" means nothing here; leave it out',
    service("mark: 1, family: ipv4, name: !!binary aGk="): "f:1: services[0].name:"
    ' the tag "!!binary" means nothing here; leave it out',
    # shapes
    "services:": "f:1: services: nothing stands where a list belongs; an empty list is []",
    "services: {name: a}": "f:1: services: a mapping stands where a list belongs;"
    " an empty list is []",
    "capacity: 5": 'f:1: capacity: "5" stands where a mapping belongs,'
    " with keys of: connections, persistence, services, backends, marks, destinations, sources",
    "marks: [1]": 'f:1: marks[0]: "1" stands where a mapping belongs, with keys of: mark, protocol,'
    " protocols, address, addresses, port, ports, source, sources, source_mac, source_macs,"
    " interface, interfaces, vlan, vlans",
    "services: [a]": 'f:1: services[0]: "a" stands where a mapping belongs, with keys of: name,'
    " mark, family, protocol, address, port, scheduler, flags, persistence, forward, tunnel,"
    " one_packet, sloppy_tcp, backends",
    service("mark: 1, family: ipv4, name: [a]"): "f:1: services[0].name:"
    " a list stands where one value belongs",
    service("mark: 1, backends: [10.0.0.1]"): 'f:1: services[0].backends[0]: "10.0.0.1" stands'
    " where a mapping belongs, with keys of: address, port, weight, upper_threshold,"
    " lower_threshold, forward, tunnel, draining",
    rule("ports: []"): "f:1: marks[0].ports: the list is empty;"
    " leave the key out where nothing is to be compared",
    # YAML's traps
    "interfaces: [on]": 'f:1: interfaces[0]: YAML reads on as true; write "on", in quotes',
    "interfaces: [2001-01-01]": "f:1: interfaces[0]: YAML reads 2001-01-01 as a timestamp,"
    ' 2001-01-01; write "2001-01-01", in quotes',
    service("mark: 1, family: ipv4, name: no"): "f:1: services[0].name:"
    ' YAML reads no as false; write "no", in quotes',
    service("mark: 1, family: ipv4, name: 80"): "f:1: services[0].name:"
    ' YAML reads 80 as a number; write "80", in quotes',
    service("mark: 1, family: ipv4, scheduler: off"): "f:1: services[0].scheduler:"
    f' "off" is not a scheduler {SCHEDULERS}; YAML reads it as false',
    rule("ports: [22:23]"): 'f:1: marks[0].ports[0]: "22:23" is not a port (1 to 65535)'
    " or a range (20-21); YAML reads it as 1343",
    rule("port: 010"): 'f:1: marks[0].port: "010" is not a port (1 to 65535)'
    " or a range (20-21); YAML reads it as 8",
    rule("source_mac: 10:11:22:33:44:55"): "f:1: marks[0].source_mac: YAML reads"
    ' 10:11:22:33:44:55 as 7923433495; write "10:11:22:33:44:55", in quotes',
    service("mark: 0x10, family: ipv4"): 'f:1: services[0].mark: "0x10" is not a service\'s mark'
    " (1 to 4294967295); YAML reads it as 16",
    service("mark: 1_0, family: ipv4"): 'f:1: services[0].mark: "1_0" is not a service\'s mark'
    " (1 to 4294967295); YAML reads it as 10",
    service("mark: 1e3, family: ipv4"): 'f:1: services[0].mark: "1e3" is not a service\'s mark'
    " (1 to 4294967295)",
    service("mark: yes, family: ipv4"): 'f:1: services[0].mark: "yes" is not a service\'s mark'
    " (1 to 4294967295); YAML reads it as true",
    backend("weight: 10.0"): 'f:1: services[0].backends[0].weight: "10.0" is not a weight'
    " (0 to 2147483647); YAML reads it as a float, 10.0",
    backend("weight: 2001-01-01"): 'f:1: services[0].backends[0].weight: "2001-01-01" is not a'
    " weight (0 to 2147483647); YAML reads it as a timestamp, 2001-01-01",
    backend("weight: 2001-99-99"): 'f:1: services[0].backends[0].weight: "2001-99-99" is not a'
    " weight (0 to 2147483647); YAML reads it as a malformed timestamp",
    backend("weight: "): 'f:1: services[0].backends[0].weight: "" is not a weight'
    " (0 to 2147483647); YAML reads it as nothing",
    backend("weight: !!int x"): 'f:1: services[0].backends[0].weight: "x" is not a weight'
    " (0 to 2147483647); YAML reads it as a malformed int",
    backend(f"weight: 0x{'f' * 5000}"): f'f:1: services[0].backends[0].weight: "0x{"f" * 58}..."'
    " is not a weight (0 to 2147483647); YAML reads it as a malformed int",
    service(r'mark: 1, family: "a\u202eb\ud800"'): r'f:1: services[0].family: "a\u202eb\ud800"'
    " is not a family (ipv4, ipv6)",
    service("mark: 65,536, family: ipv4"): "f:1: services[0].536: is no key here; a number has no"
    " comma; there is name, mark, family, protocol, address, port, scheduler, flags, persistence,"
    " forward, tunnel, one_packet, sloppy_tcp, backends",
    backend("weight: !!int ''"): 'f:1: services[0].backends[0].weight: "" is not a weight'
    " (0 to 2147483647); YAML reads it as a malformed int",
    # interfaces
    "interfaces: [a/b]": 'f:1: interfaces[0]: "a/b" is not an interface\'s name'
    " (1 to 15 bytes without white space, / and :)",
    "interfaces: sixteen_letters_": 'f:1: interfaces: "sixteen_letters_" is not an interface\'s'
    " name (1 to 15 bytes without white space, / and :)",
    "interfaces: [eth0, eth0]": 'f:1: interfaces[1]: "eth0" is listed twice',
    # mark rules
    "marks: [{address: 192.0.2.1}]": "f:1: marks[0]: a rule needs the mark that it gives;"
    " mark: 0 leaves packets alone",
    "marks: [{mark: 1}]": "f:1: marks[0]: a rule needs addresses;"
    " address: any stands for every one",
    "marks: [{mark: -1, address: any}]": 'f:1: marks[0].mark: "-1" is not a mark (0 to 4294967295)',
    "marks: [{mark: 4294967296, address: any}]": 'f:1: marks[0].mark: "4294967296" is not a mark'
    " (0 to 4294967295)",
    rule("protocol: icmp"): 'f:1: marks[0].protocol: "icmp" is not a protocol (tcp, udp, sctp)',
    rule("ports: [0]"): 'f:1: marks[0].ports[0]: "0" is not a port (1 to 65535) or a range (20-21)',
    rule("ports: [1-65536]"): 'f:1: marks[0].ports[0]: "1-65536" is not a port (1 to 65535)'
    " or a range (20-21)",
    rule("ports: [21-20]"): 'f:1: marks[0].ports[0]: "21-20" runs backwards; write 20-21',
    rule("ports: [80, 80]"): 'f:1: marks[0].ports[1]: "80" is listed twice',
    rule("source: 10.0.0.1/8"): 'f:1: marks[0].source: "10.0.0.1/8" has bits beyond its prefix;'
    " write 10.0.0.0/8",
    rule("source: 10.0.0.0/33"): 'f:1: marks[0].source: "10.0.0.0/33":'
    " a prefix is 0 to 32 bits long",
    rule("source: 10.0.0.0/255.0.0.0"): 'f:1: marks[0].source: "10.0.0.0/255.0.0.0" is not an'
    f" address or prefix {NETWORKS}",
    rule("source: example.org"): 'f:1: marks[0].source: "example.org" is not an address'
    f" or prefix {NETWORKS}",
    rule('source: "2001:db8::/32"'): "f:1: marks[0].sources: ipv6 beside addresses of ipv4;"
    " a packet has one family, write a rule for each",
    rule("source: /24"): f'f:1: marks[0].source: "/24" is not an address or prefix {NETWORKS}',
    rule("source: any"): f'f:1: marks[0].source: "any" is not an address or prefix {NETWORKS}',
    rule('source: "2001:db8::1%a/64"'): 'f:1: marks[0].source: "2001:db8::1%a/64" has a zone;'
    " leave out %a",
    rule('source: "::ffff:192.0.2.1"'): 'f:1: marks[0].source: "::ffff:192.0.2.1" is an IPv4'
    " address in IPv6 writing; write 192.0.2.1",
    "marks: [{mark: 1, addresses: []}]": "f:1: marks[0].addresses: the list is empty;"
    " write any where nothing is to be compared",
    "marks: [{mark: 1, address: [192.0.2.1, any]}]": 'f:1: marks[0].address[1]: "any" stands in a'
    " list; it says all by itself, addresses: any",
    rule("ports: [any]"): 'f:1: marks[0].ports[0]: "any" stands in a list; it says all by itself,'
    " ports: any",
    rule("interface: a b"): 'f:1: marks[0].interface: "a b" is not an interface\'s name'
    " (1 to 15 bytes without white space, / and :)",
    rule("vlan: 0"): 'f:1: marks[0].vlan: "0" is not a VLAN id (1 to 4094)',
    rule("source_mac: 02-00-00-00-00-01"): 'f:1: marks[0].source_mac: "02-00-00-00-00-01" is not'
    " a MAC address (02:00:00:00:00:01)",
    rule("vlan: 4095"): 'f:1: marks[0].vlan: "4095" is not a VLAN id (1 to 4094)',
    "capacity: {marks: 1}\nmarks: [{mark: 0, address: any}, {mark: 0, address: any, vlan: 1}]": (
        "f:1: capacity.marks: 1 is too few for 2 marks; raise it to 2 or more"
    ),
    # a service's key
    service("name: a"): "f:1: services[0]: a service needs a mark, or protocol, address and port",
    service("mark: 0, family: ipv4"): 'f:1: services[0].mark: "0" is not a service\'s mark'
    " (1 to 4294967295)",
    service("mark: 1, family: ipv4, port: 80"): "f:1: services[0].port: stands beside mark;"
    " a service has a mark or an address, not both",
    service("mark: 1"): "f:1: services[0]:"
    " a mark service without backends needs family: ipv4 or family: ipv6",
    service("mark: 1, family: ip6"): 'f:1: services[0].family: "ip6" is not a family (ipv4, ipv6)',
    service("mark: 1, family: ipv6, backends: [{address: 10.0.0.1}]"): "f:1: services[0]."
    "backends[0].address: 10.0.0.1 is ipv4 and the service is ipv6;"
    " each family is a service of its own",
    service("protocol: tcp, address: 192.0.2.1"): "f:1: services[0]:"
    " an address service needs port too; every port is port: any",
    service("port: 80"): "f:1: services[0]: an address service needs protocol and address too",
    service("protocol: icmp, address: 192.0.2.1, port: 80"): "f:1: services[0].protocol:"
    ' "icmp" is not a service\'s protocol (tcp, udp, sctp)',
    service("protocol: tcp, address: 192.0.2.1, port: http"): "f:1: services[0].port:"
    ' "http" is not a port (1 to 65535, or any)',
    service("protocol: tcp, address: 192.0.2.1, port: any"): "f:1: services[0].port:"
    " any needs persistence; give persistence, or one port",
    service("protocol: tcp, address: 192.0.2.1, port: 80, family: ipv4"): "f:1: services[0].family:"
    " is for mark services; here it follows from address, leave it out",
    # a service's other keys
    service('mark: 1, family: ipv4, name: "mark:1"'): "f:1: services[0].name:"
    ' "mark:1" looks like a service\'s key; a name has no colon',
    service("mark: 1, family: ipv4, name: a b"): "f:1: services[0].name:"
    ' "a b" is not a name (printable, without white space, not starting with -)',
    service("mark: 1, family: ipv4, scheduler: wr"): "f:1: services[0].scheduler:"
    f' "wr" is not a scheduler {SCHEDULERS}',
    service("mark: 1, family: ipv4, scheduler: wlc, flags: [sh-port]"): "f:1: services[0].flags:"
    " sh-port belongs to scheduler sh, and the scheduler is wlc",
    service("mark: 1, family: ipv4, scheduler: sh, flags: [sh-port, mh-port]"): "f:1:"
    " services[0].flags: mh-port belongs to scheduler mh, and the scheduler is sh",
    service("mark: 1, family: ipv4, scheduler: dh, flags: [sh-port]"): "f:1: services[0].flags:"
    " sh-port belongs to scheduler sh, and the scheduler is dh",
    service("mark: 1, family: ipv4, scheduler: sh, flags: [flag-1]"): "f:1: services[0].flags[0]:"
    f' "flag-1" is not available in this version {FLAGS_OF_ALL}',
    service("mark: 1, family: ipv4, scheduler: sh, flags: port"): "f:1: services[0].flags:"
    f' "port" is not a scheduler flag {FLAGS_OF_ALL}',
    service(
        "protocol: tcp, address: 192.0.2.1, port: 80, persistence: {engine: sip}"
    ): "f:1: services[0].persistence.engine: sip is for udp and mark services, and the service is"
    " tcp; leave it out",
    service("mark: 1, family: ipv4, persistence: {engine: h323}"): "f:1: services[0].persistence."
    'engine: "h323" is not a persistence engine (sip)',
    service("mark: 1, family: ipv4, tunnel: gre"): "f:1: services[0].tunnel: no backend has"
    " forward: tunnel; give that, or leave tunnel out",
    service("mark: 1, family: ipv4, forward: tunnel, tunnel: vxlan"): "f:1: services[0].tunnel:"
    ' "vxlan" is not a tunnel\'s type (ipip, gue, gre)',
    service("mark: 1, family: ipv4, forward: tunnel, tunnel: {checksum: yes please}"): "f:1: "
    'services[0].tunnel.checksum: "yes please" is not a tunnel\'s checksum (nocsum, csum, remcsum)',
    service("mark: 1, family: ipv4, forward: tunnel, tunnel: [gre]"): "f:1: services[0].tunnel:"
    " a list stands where a mapping belongs, with keys of: type, port, checksum, source",
    backend("tunnel: gre"): "f:1: services[0].backends[0].tunnel: is for forward: tunnel, and the"
    " method is dr; leave it out",
    backend("forward: tunnel, tunnel: gue"): "f:1: services[0].backends[0].tunnel.port: gue needs"
    " the UDP port on which the backend listens for it; give port",
    backend("forward: tunnel, tunnel: {type: gre, port: 1}"): "f:1: services[0].backends[0]."
    "tunnel.port: is for type: gue, and the type is gre; leave it out",
    backend("forward: tunnel, tunnel: {checksum: csum}"): "f:1: services[0].backends[0]."
    "tunnel.checksum: ipip has no csum; it has nocsum",
    backend("forward: tunnel, tunnel: {type: gre, checksum: remcsum}"): "f:1: services[0]."
    "backends[0].tunnel.checksum: gre has no remcsum; it has nocsum, csum",
    backend('forward: tunnel, tunnel: {source: "2001:db8::1"}'): "f:1: services[0].backends[0]."
    "tunnel.source: 2001:db8::1 is ipv6, and the backend is ipv4; give an address of this host of"
    " the backend's family",
    backend("forward: tunnel, port: 81"): "f:1: services[0].backends[0].port: 81 is given, and a"
    " mark service forwards to the packet's own port, which tunnel cannot change; leave port out",
    service("mark: 1, family: ipv4, forward: masq"): "f:1: services[0].forward:"
    ' "masq" is not a forwarding method (dr, nat, tunnel, fullnat)',
    service("protocol: tcp, address: 192.0.2.1, port: 80, one_packet: true"): "f:1: services[0]."
    "one_packet: is for udp and mark services, and the service is tcp; leave it out",
    service("protocol: sctp, address: 192.0.2.1, port: 80, sloppy_tcp: true"): "f:1: services[0]."
    "sloppy_tcp: is for tcp and mark services, and the service is sctp; leave it out",
    service("mark: 1, family: ipv4, one_packet: 2"): "f:1: services[0].one_packet:"
    ' "2" is not a switch (true, false, 1, 0)',
    # persistence
    service("mark: 1, family: ipv4, persistence: none"): "f:1: services[0].persistence:"
    ' "none" is not a timeout in whole seconds (1 to 2678400), nor true or false',
    service("mark: 1, family: ipv4, persistence: 0"): "f:1: services[0].persistence:"
    ' "0" is not a timeout in whole seconds (1 to 2678400), nor true or false',
    service("mark: 1, family: ipv4, persistence: 2678401"): "f:1: services[0].persistence:"
    ' "2678401" is not a timeout in whole seconds (1 to 2678400), nor true or false',
    service("mark: 1, family: ipv4, persistence: 1.5"): "f:1: services[0].persistence:"
    ' "1.5" is not a timeout in whole seconds (1 to 2678400), nor true or false;'
    " YAML reads it as a float, 1.5",
    service("mark: 1, family: ipv4, persistence: 10:00"): "f:1: services[0].persistence:"
    ' "10:00" is not a timeout in whole seconds (1 to 2678400), nor true or false;'
    " YAML reads it as 600",
    service("mark: 1, family: ipv4, persistence: [1]"): "f:1: services[0].persistence:"
    " a list stands where a mapping belongs, with keys of: timeout, netmask, expiry, engine",
    service("mark: 1, family: ipv4, persistence: {netmask: 33}"): "f:1: services[0].persistence."
    'netmask: "33" is not an IPv4 netmask (255.255.255.0, or a prefix length of 0 to 32)',
    service("mark: 1, family: ipv6, persistence: {netmask: 0}"): "f:1: services[0].persistence."
    'netmask: "0" is not an IPv6 netmask: a prefix length (1 to 128)',
    service("mark: 1, family: ipv6, persistence: {netmask: 255.0.0.0}"): "f:1: services[0]."
    'persistence.netmask: "255.0.0.0" is not an IPv6 netmask: a prefix length (1 to 128)',
    service("mark: 1, family: ipv4, persistence: {expiry: soon}"): "f:1: services[0].persistence."
    'expiry: "soon" is not an expiry (ipvs, strict)',
    # backends
    backend("upper_threshold: 2147483648"): "f:1: services[0].backends[0].upper_threshold:"
    ' "2147483648" is not a number of connections (0 to 2147483647)',
    backend("upper_threshold: 7, lower_threshold: 9"): "f:1: services[0].backends[0]"
    ".lower_threshold: 9 is above upper_threshold (7); give 9 or more as upper_threshold",
    backend("lower_threshold: 1"): "f:1: services[0].backends[0].lower_threshold: 1 is above"
    " upper_threshold (none); give 1 or more as upper_threshold",
    backend("weight: -1"): 'f:1: services[0].backends[0].weight: "-1" is not a weight'
    " (0 to 2147483647)",
    service("mark: 1, family: ipv4, backends: [{address: 10.0.0.1/32}]"): "f:1: services[0]."
    f'backends[0].address: "10.0.0.1/32" is not an IPv4 or IPv6 address {ADDRESSES}',
    service('mark: 1, family: ipv4, backends: [{address: "::ffff:192.0.2.1"}]'): "f:1: services[0]."
    'backends[0].address: "::ffff:192.0.2.1" is an IPv4 address in IPv6 writing; write 192.0.2.1',
    service("mark: 1, family: ipv4, backends: [{weight: 1}]"): "f:1: services[0].backends[0]:"
    " a backend needs an address",
    backend("weight: 2147483648"): 'f:1: services[0].backends[0].weight: "2147483648" is not a'
    " weight (0 to 2147483647)",
    backend("port: 65536"): 'f:1: services[0].backends[0].port: "65536" is not a port (1 to 65535)',
    backend("draining: soon"): 'f:1: services[0].backends[0].draining: "soon" is not a switch'
    " (true, false, 1, 0)",
    backend("port: 80"): "f:1: services[0].backends[0].port: 80 is given, and a mark service"
    " forwards to the packet's own port, which dr cannot change; leave port out",
    service("mark: 1, backends: [{address: 10.0.0.1}, {address: 10.0.0.1}]"): "f:1: services[0]."
    "backends[1]: 10.0.0.1 is already services[0].backends[0]; each may stand there once",
    "services: [{protocol: tcp, address: 192.0.2.1, port: 80,"
    " backends: [{address: 10.0.0.1, port: 81}]}]": "f:1: services[0].backends[0].port:"
    " 81 is not the service's port (80), which dr cannot change; leave port out",
    "services: [{protocol: tcp, address: 192.0.2.1, port: any, persistence: true,"
    " backends: [{address: 10.0.0.1, port: 81}]}]": "f:1: services[0].backends[0].port:"
    " 81 is not the service's port (any), which dr cannot change; leave port out",
    "services: [{protocol: tcp, address: 192.0.2.1, port: 80,"
    " backends: [{address: 10.0.0.1, port: 80}, {address: 10.0.0.1}]}]": "f:1: services[0]."
    "backends[1]: 10.0.0.1 is already services[0].backends[0]; each may stand there once",
    # several services
    "services:\n- {mark: 1, family: ipv4}\n- {mark: 1, family: ipv4}": "f:3: services[1]:"
    " mark:1 is already services[0]; each may stand there once",
    "services:\n- {name: a, mark: 1, family: ipv4}\n- {name: a, mark: 2, family: ipv4}": "f:3:"
    " services[1].name: a is already services[0].name; each may stand there once",
    # settings, capacity and features
    "capacity: {backends: 1}\nservices: [{mark: 1, backends: [{address: 10.0.0.1},"
    " {address: 10.0.0.2}]}]": "f:1: capacity.backends: 1 is too few for 2 backends;"
    " raise it to 2 or more",
    "features: some": 'f:1: features: "some" is not a choice of features (used, all)',
    "settings: {conn_reuse_mode: 4}": 'f:1: settings.conn_reuse_mode: "4" is not a value'
    " of conn_reuse_mode (0 to 3)",
    "settings: {lblc_expiration: 0}": 'f:1: settings.lblc_expiration: "0" is not a value'
    " of lblc_expiration (1 to 2678400)",
    "settings: {require_local: 2}": 'f:1: settings.require_local: "2" is not a switch'
    " (true, false, 1, 0)",
    "capacity: {connections: 2097153}": 'f:1: capacity.connections: "2097153" is not a number of'
    " entries (1 to 2097152)",
    "capacity: {backends: 0}": 'f:1: capacity.backends: "0" is not a number of entries'
    " (1 to 131072)",
    "capacity: {services: 1}\nservices: [{mark: 1, family: ipv4}, {mark: 2, family: ipv4}]": "f:1:"
    " capacity.services: 1 is too few for 2 services; raise it to 2 or more",
}


@pytest.mark.parametrize(("text", "expected"), FAULTS.items(), ids=range(len(FAULTS)))
def test_a_fault_is_told_with_its_place_its_value_and_what_would_be_right(
    text: str, expected: str
) -> None:
    assert faults(text) == [expected]


@pytest.mark.parametrize(
    ("address", "what"),
    [
        ("0.0.0.0", "the unspecified address"),
        ("127.0.0.1", "a loopback address"),
        ("224.0.0.1", "a multicast address"),
        ("255.255.255.255", "the broadcast address"),
        ("::", "the unspecified address"),
        ("::1", "a loopback address"),
        ("ff02::1", "a multicast address"),
        ("fe80::1", "a link-local address"),
    ],
)
def test_neither_a_service_nor_a_backend_may_have_an_address_that_is_not_unicast(
    address: str, what: str
) -> None:
    told = f'"{address}" is {what}; a service or backend needs a unicast address'
    assert faults(
        f'services: [{{protocol: tcp, address: "{address}", port: 80}},'
        f' {{mark: 1, family: ipv4, backends: [{{address: "{address}"}}]}}]'
    ) == [
        f"f:1: services[0].address: {told}",
        f"f:1: services[1].backends[0].address: {told}",
    ]


def test_an_address_with_a_zone_is_refused() -> None:
    assert faults(service('mark: 1, family: ipv6, backends: [{address: "fe80::1%eth0"}]')) == [
        'f:1: services[0].backends[0].address: "fe80::1%eth0" has a zone; leave out %eth0'
    ]


def test_all_faults_of_a_file_are_told_at_once_in_the_order_of_its_lines() -> None:
    text = """\
capacity: {backends: 0}
services:
  - name: shop
    mark: 1
    scheduler: wr
    backends:
      - {address: 10.0.0.1, weight: 1.5}
      - {address: "2001:db8::1"}
  - mark: 1
    family: ipv4
    nam: shop
marks:
  - {mark: 1}
"""
    assert faults(text) == [
        'f:1: capacity.backends: "0" is not a number of entries (1 to 131072)',
        f'f:5: services[0].scheduler: "wr" is not a scheduler {SCHEDULERS}',
        'f:7: services[0].backends[0].weight: "1.5" is not a weight (0 to 2147483647);'
        " YAML reads it as a float, 1.5",
        "f:8: services[0].backends[1].address: 2001:db8::1 is ipv6 and the service is ipv4;"
        " each family is a service of its own",
        "f:9: services[1]: mark:1 is already services[0]; each may stand there once",
        "f:11: services[1].nam: is no key here; did you mean name?",
        "f:13: marks[0]: a rule needs addresses; address: any stands for every one",
    ]


def test_places_count_the_entries_that_could_not_be_read() -> None:
    text = """\
services:
  - nonsense
  - mark: 1
    backends:
      - {weight: 1}
      - {address: 10.0.0.1, port: 80}
"""
    assert [line.split(": ")[1] for line in faults(text)] == [
        "services[0]",
        "services[1].backends[0]",
        "services[1].backends[1].port",
    ]


def test_a_faulty_value_causes_no_second_fault() -> None:
    text = service(
        "protocol: tcp, address: 192.0.2.1, port: any, scheduler: x, flags: [sh-port],"
        " persistence: {timeout: 0}"
    )
    assert {line.split(": ")[1] for line in faults(text)} == {
        "services[0].scheduler",
        "services[0].persistence.timeout",
    }


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_file_with_anything_in_it_loads_or_is_refused_with_a_config_error(
    data: st.DataObject,
) -> None:
    pieces = st.sampled_from([*"{}[]:-,&*!#|>'\"\t\n ", "<<: ", "!!int ", "~", "on", "0x", "80"])
    at = data.draw(st.integers(0, len(SHOP)))
    cut = data.draw(st.integers(0, 12))
    junk = "".join(data.draw(st.lists(st.one_of(pieces, st.characters()), max_size=4)))
    try:
        config.load(SHOP[:at] + junk + SHOP[at + cut :])
    except ConfigError as err:
        assert all(line.startswith("<config>:") for line in err.problems)


# ---- warnings ----


def test_a_rule_whose_mark_has_no_service_is_a_warning() -> None:
    assert warned(rule("port: 80")) == [
        "f:1: marks[0].mark: there is no service mark:1; give one, or leave the rule out"
    ]


def test_a_rule_for_any_address_needs_a_service_of_one_family_only() -> None:
    text = "marks: [{mark: 1, address: any}]\nservices: [{mark: 1, family: ipv6}]"
    assert warned(text) == []
    assert warned("marks: [{mark: 1, address: any}]") == [
        "f:1: marks[0].mark: there is no service mark6:1 or mark:1; give one, or leave the rule out"
    ]


def test_a_mark_without_a_service_is_told_at_its_first_rule_only() -> None:
    text = "marks:\n" + "".join(f"- {{mark: 1, address: 192.0.2.{n}}}\n" for n in (1, 2))
    assert len(warned(text)) == 1


def test_rules_of_mark_zero_need_no_service() -> None:
    assert warned("marks: [{mark: 0, address: 192.0.2.1}]") == []


def test_a_mark_service_that_no_rule_leads_to_is_a_warning() -> None:
    text = """\
marks: [{mark: 1, address: 192.0.2.1}]
services:
  - {mark: 1, family: ipv4}
  - {mark: 1, family: ipv6}
"""
    assert warned(text) == [
        "f:4: services[1].mark: no mark rule gives mark6:1;"
        " only packets that an earlier tc filter marked will reach it"
    ]


def test_a_backend_port_under_a_persistent_mark_is_a_warning_and_is_kept() -> None:
    text = """\
marks: [{mark: 1, address: 192.0.2.1}]
services:
  - mark: 1
    persistence: true
    backends: [{address: 10.0.0.1, port: 80}]
"""
    read, warnings = config.load(text, "f")
    assert warnings == [
        "f:5: services[0].backends[0].port: 80 is ignored:"
        " a persistent mark service forwards to the packet's own port; leave it out"
    ]
    assert read.services[0].backends == (Backend(ip("10.0.0.1"), 80),)


def test_a_rule_that_is_repeated_or_never_reached_is_a_warning() -> None:
    text = """\
marks:
  - {mark: 0, address: 192.0.2.0/24}
  - {mark: 0, address: 192.0.2.1, port: 80}
  - {mark: 0, address: 192.0.2.0/24}
"""
    assert warned(text) == [
        "f:3: marks[1]: is never reached, after marks[0]; move it up or leave it out",
        "f:4: marks[2]: repeats marks[0]; leave one of them out",
    ]


# ---- the same rules for values that never were a file ----


def test_a_legal_configuration_of_values_passes_with_its_warnings() -> None:
    lonely = Config(services=(Service(MarkKey(5, Family.IPV4)),))
    assert checks.check(lonely) == [
        "services[0].mark: no mark rule gives mark:5;"
        " only packets that an earlier tc filter marked will reach it"
    ]


def test_an_illegal_configuration_of_values_is_refused_with_all_its_faults() -> None:
    one = Service(MarkKey(1, Family.IPV4), flags=(SchedulerFlag.SH_PORT,))
    with pytest.raises(ConfigError) as caught:
        checks.check(Config(services=(one, one)))
    assert caught.value.problems == (
        "services[0].flags: sh-port belongs to scheduler sh, and the scheduler is wlc",
        "services[1].flags: sh-port belongs to scheduler sh, and the scheduler is wlc",
        "services[1]: mark:1 is already services[0]; each may stand there once",
    )


def test_mh_has_a_slot_for_each_backend_or_is_refused() -> None:
    hosts = [Backend(ip("10.0.0.0") + n) for n in range(1, 4096)]
    for count, told in ((4093, []), (4094, ["4094 are more than the 4093 slots of mh's table"])):
        service = Service(
            MarkKey(1, Family.IPV4), scheduler=Scheduler.MH, backends=tuple(hosts[:count])
        )
        draft = checks._placed(Config(services=(service,)), None)
        found = [message.partition(";")[0] for _, message in checks.faults(draft)]
        assert found == told


def test_what_runs_is_told_that_its_tables_are_as_large_as_they_are() -> None:
    full = Config(services=(Service(MarkKey(1, Family.IPV4)),), capacity=Capacity(services=1))
    more = dataclasses.replace(full, services=(*full.services, Service(MarkKey(2, Family.IPV4))))
    with pytest.raises(ConfigError) as caught:
        checks.check(more, full)
    assert caught.value.problems == (
        "capacity.services: 1 is too few for 2 services;"
        " save, raise it to 2 or more, detach --all, attach -c",
    )


def test_more_than_a_table_can_ever_hold_is_not_told_to_raise_it() -> None:
    most = MAX_CAPACITY["backends"]
    crowd = Service(MarkKey(1, Family.IPV4), backends=(Backend(ip("10.0.0.1")),) * (most + 1))
    full = Config(services=(crowd,), capacity=Capacity(backends=most))
    with pytest.raises(ConfigError) as caught:
        checks.check(full, full)
    assert caught.value.problems == (
        "capacity.backends: 131072 is too few for 131073 backends;"
        " 131072 is the most, leave some out",
    )


# ---- dump ----


def test_what_is_written_leaves_out_defaults_and_stays_short() -> None:
    assert dumping.dump(loaded(SHOP)).splitlines()[:14] == [
        "interfaces: [lb0]",
        "marks:",
        "- {mark: 1, protocol: tcp, address: 192.0.2.10, ports: [80, 443]}",
        "- {mark: 1, protocol: udp, address: 192.0.2.10, ports: [53, 443]}",
        "- {mark: 1, protocol: tcp, address: 192.0.2.10, ports: [20-21, 10000-10100]}",
        "- {mark: 1, protocol: tcp, address: '2001:db8::10', ports: [80, 443]}",
        "- {mark: 1, protocol: udp, address: '2001:db8::10', ports: [53, 443]}",
        "- {mark: 1, protocol: tcp, address: '2001:db8::10', ports: [20-21, 10000-10100]}",
        "services:",
        "- name: shop",
        "  mark: 1",
        "  scheduler: rr",
        "  persistence: {timeout: 600, netmask: 255.255.255.0}",
        "  backends:",
    ]


def test_a_configuration_of_nothing_is_written_as_an_empty_mapping() -> None:
    assert dumping.dump(Config()) == "{}\n"


def test_a_drained_backend_is_written_as_draining() -> None:
    drained = Service(MarkKey(1, Family.IPV4), backends=(Backend(ip("10.0.0.1"), draining=True),))
    assert dumping.dump(Config(services=(drained,))) == (
        "services:\n- mark: 1\n  backends:\n  - {address: 10.0.0.1, draining: true}\n"
    )


@settings(max_examples=100, deadline=None)
@given(legal=CONFIGS)
def test_every_legal_configuration_is_the_same_after_it_was_written_and_read(
    legal: Config,
) -> None:
    assert loaded(dumping.dump(legal)) == legal


# ---- names of services and backends ----


@pytest.mark.parametrize(
    ("finding", "told"),
    [
        ("services[0].flags: sh-port belongs to sh", "service shop: flags: sh-port belongs to sh"),
        ("services[2].backends[1].port: 81", "service plain: backend 10.0.0.12: port: 81"),
        ("services[1]: it is already services[0];", "service shop6: it is already service shop;"),
        ("marks[1]: repeats marks[0]; leave", "mark rule 2: repeats mark rule 1; leave"),
        ("marks[2].sources: ipv6", "mark rule 3: sources: ipv6"),
        ("capacity.marks: 1 is too few", "capacity.marks: 1 is too few"),
        ("services[9].name: no such place", "services[9].name: no such place"),
    ],
)
def test_a_finding_about_what_runs_names_what_the_command_line_names(
    finding: str, told: str
) -> None:
    assert by_name(loaded(SHOP), finding) == told


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("mark:80", MarkKey(80, Family.IPV4)),
        ("mark6:80", MarkKey(80, Family.IPV6)),
        ("tcp:192.0.2.10:80", AddressKey(Protocol.TCP, ip("192.0.2.10"), 80)),
        ("udp:[2001:db8::1]:53", AddressKey(Protocol.UDP, ip("2001:db8::1"), 53)),
        ("tcp:192.0.2.10:any", AddressKey(Protocol.TCP, ip("192.0.2.10"), ANY_PORT)),
    ],
)
def test_a_services_key_is_read_and_written_alike(text: str, key: MarkKey | AddressKey) -> None:
    assert config.parse_service_key(text) == key
    assert str(key) == text


FORMS = "mark:80, mark6:80, tcp:192.0.2.10:80, udp:[2001:db8::1]:53, tcp:192.0.2.10:any"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("mark:0", '"mark:0": "0" is not a service\'s mark (1 to 4294967295)'),
        ("mark:", '"mark:": "" is not a service\'s mark (1 to 4294967295)'),
        ("shop", f'"shop" is not a service ({FORMS})'),
        ("tpc:192.0.2.10:80", f'"tpc:192.0.2.10:80" is not a service ({FORMS})'),
        ("tcp:192.0.2.10", f'"tcp:192.0.2.10" is not a service ({FORMS})'),
        (
            "tcp:192.0.2.10:0",
            '"tcp:192.0.2.10:0": "0" is not a port (1 to 65535, or any)',
        ),
        (
            "tcp:2001:db8::1:80",
            '"tcp:2001:db8::1:80": IPv6 addresses stand in brackets: [2001:db8::1]',
        ),
        (
            "tcp:[192.0.2.10]:80",
            '"tcp:[192.0.2.10]:80": only IPv6 addresses stand in brackets: 192.0.2.10',
        ),
    ],
)
def test_a_wrong_services_key_is_told_with_what_would_be_right(text: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.parse_service_key(text)
    assert str(caught.value) == told


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("10.0.0.1", (ip("10.0.0.1"), None)),
        ("10.0.0.1:80", (ip("10.0.0.1"), 80)),
        ("2001:db8::1", (ip("2001:db8::1"), None)),
        ("[2001:db8::1]", (ip("2001:db8::1"), None)),
        ("[2001:db8::1]:80", (ip("2001:db8::1"), 80)),
    ],
)
def test_a_backends_name_is_an_address_and_perhaps_a_port(text: str, name: object) -> None:
    assert config.parse_backend_name(text) == name


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("10.0.0.1:x", '"10.0.0.1:x": "x" is not a port (1 to 65535)'),
        (
            "[2001:db8::1:80",
            f'"[2001:db8::1:80": "[2001:db8::1" is not an IPv4 or IPv6 address {ADDRESSES}',
        ),
        (
            "web1",
            '"web1" is not a backend (10.0.0.11, 10.0.0.11:80, 2001:db8::11, [2001:db8::11]:80)',
        ),
    ],
)
def test_a_wrong_backends_name_is_told_with_what_would_be_right(text: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.parse_backend_name(text)
    assert str(caught.value) == told


def test_a_service_is_found_by_its_key_and_by_its_name() -> None:
    shop = loaded(SHOP)
    found = [
        config.find_service(shop, text) for text in ("shop6", "mark6:1", "tcp:192.0.2.10:8080")
    ]
    assert [each.name for each in found] == ["shop6", "shop6", "plain"]


def test_a_service_without_a_name_is_not_found_by_a_malformed_one() -> None:
    with pytest.raises(NotFoundError):
        config.find_service(Config(services=(Service(MarkKey(1, Family.IPV4)),)), "None")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("shpo", 'no service "shpo"; did you mean shop or shop6?'),
        ("mark:2", 'no service "mark:2"; did you mean mark:1 or mark6:1?'),
        (
            "zzz",
            'no service "zzz"; there is mark:1, mark6:1, tcp:192.0.2.10:8080, shop, shop6, plain',
        ),
    ],
)
def test_a_service_that_is_not_there_is_told_with_those_that_come_close(
    text: str, told: str
) -> None:
    with pytest.raises(NotFoundError) as caught:
        config.find_service(loaded(SHOP), text)
    assert str(caught.value) == told


def test_where_there_is_no_service_at_all_that_is_said() -> None:
    with pytest.raises(NotFoundError) as caught:
        config.find_service(Config(), "shop")
    assert str(caught.value) == 'no service "shop"; there is none'


POOL = Service(
    MarkKey(1, Family.IPV4),
    name="pool",
    persistence=Persistence(360, ip("255.255.255.255")),
    backends=(
        Backend(ip("10.0.0.1")),
        Backend(ip("10.0.0.1"), 81),
        Backend(ip("10.0.0.2"), 80),
        Backend(ip("10.0.0.2"), 81),
        Backend(ip("10.0.0.3"), 80),
    ),
)
WEB = Service(AddressKey(Protocol.TCP, ip("192.0.2.10"), 80), backends=(Backend(ip("10.0.0.1")),))


@pytest.mark.parametrize(
    ("service", "text", "found"),
    [
        (POOL, "10.0.0.1", "10.0.0.1"),
        (POOL, "10.0.0.1:81", "10.0.0.1:81"),
        (POOL, "10.0.0.3", "10.0.0.3:80"),
        (WEB, "10.0.0.1", "10.0.0.1"),
        (WEB, "10.0.0.1:80", "10.0.0.1"),
    ],
)
def test_a_backend_is_found_by_its_full_name_and_by_a_short_one_that_fits_no_other(
    service: Service, text: str, found: str
) -> None:
    assert str(config.find_backend(service, text)) == found


def test_a_short_name_of_two_backends_is_a_conflict_that_names_both() -> None:
    with pytest.raises(ConflictError) as caught:
        config.find_backend(POOL, "10.0.0.2")
    assert str(caught.value) == ("10.0.0.2 is ambiguous in pool; write 10.0.0.2:80 or 10.0.0.2:81")


@pytest.mark.parametrize(
    ("service", "text", "told"),
    [
        (WEB, "10.0.0.2", 'no backend "10.0.0.2" in tcp:192.0.2.10:80; did you mean 10.0.0.1?'),
        (
            WEB,
            "10.0.0.1:81",
            'no backend "10.0.0.1:81" in tcp:192.0.2.10:80; did you mean 10.0.0.1?',
        ),
        (WEB, "2001:db8::1", 'no backend "2001:db8::1" in tcp:192.0.2.10:80; there is 10.0.0.1'),
    ],
)
def test_a_backend_that_is_not_there_is_told_with_those_that_come_close(
    service: Service, text: str, told: str
) -> None:
    with pytest.raises(NotFoundError) as caught:
        config.find_backend(service, text)
    assert str(caught.value) == told


@pytest.mark.parametrize(
    ("services", "text", "found"),
    [
        ([POOL, WEB], "10.0.0.1", [("pool", "10.0.0.1"), (str(WEB), "10.0.0.1")]),
        ([POOL, WEB], "10.0.0.1:81", [("pool", "10.0.0.1:81")]),
        ([POOL, WEB], "10.0.0.1:80", [(str(WEB), "10.0.0.1")]),
        ([POOL, WEB], "10.0.0.2", [("pool", "10.0.0.2:80"), ("pool", "10.0.0.2:81")]),
        ([WEB], "10.0.0.1", [(str(WEB), "10.0.0.1")]),
    ],
)
def test_backends_of_several_services_are_found_by_one_name(
    services: list[Service], text: str, found: list[tuple[str, str]]
) -> None:
    named = find_backends(services, text)
    assert [(str(service), str(backend)) for service, backend in named] == found


@pytest.mark.parametrize(
    ("services", "told"),
    [
        ([WEB, POOL], 'no backend "10.9.9.9" in any service; did you mean 10.0.0.1?'),
        ([WEB], 'no backend "10.9.9.9" in tcp:192.0.2.10:80; did you mean 10.0.0.1?'),
        ([], 'no backend "10.9.9.9" in any service; there is none'),
    ],
)
def test_a_backend_that_no_service_has_is_told_with_those_that_come_close(
    services: list[Service], told: str
) -> None:
    with pytest.raises(NotFoundError) as caught:
        find_backends(services, "10.9.9.9")
    assert str(caught.value) == told


def test_a_netmask_is_dotted_bits_or_a_prefix_length() -> None:
    read = [config.parse_netmask(value, Family.IPV4) for value in ("255.0.255.0", 24, "0")]
    assert read == [ip("255.0.255.0"), ip("255.255.255.0"), ip("0.0.0.0")]
    assert config.parse_netmask("64", Family.IPV6) == ip("ffff:ffff:ffff:ffff::")


def test_a_weight_is_a_whole_number_in_decimal_digits() -> None:
    assert config.parse_weight("3") == 3
    with pytest.raises(ConfigError, match=r'"3\.0" is not a weight \(0 to 2147483647\)'):
        config.parse_weight("3.0")
