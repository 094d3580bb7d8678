"""Clients of a service without backends learn it at once, from an ICMP error."""

import json
import sys
from typing import Any

import pytest

from lab import layout
from lab.topology import PYTHON, Lab
from tests.e2e.conftest import Balancer

VIPS = {"ipv4": layout.VIP4, "ipv6": layout.VIP6}
EMPTY = """
interfaces: [lb0]
services:
  - {protocol: tcp, address: 192.0.2.10, port: 80}
  - {protocol: udp, address: 192.0.2.10, port: 80}
  - {protocol: tcp, address: "2001:db8::10", port: 80}
  - {protocol: udp, address: "2001:db8::10", port: 80}
"""
# A TCP and a UDP client, the second with queries of three sizes; prints what each is told.
CLIENT = """
import json, socket, sys
vip = (sys.argv[1], 80)
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
told = []
def tell(act):
    try:
        told.append(repr(act()))
    except OSError as err:
        told.append(type(err).__name__)
tell(lambda: socket.create_connection(vip, 10))
for size in (0, 999, 1400):
    asking = socket.socket(family, socket.SOCK_DGRAM)
    asking.settimeout(10)
    asking.connect(vip)
    asking.send(bytes(size))
    tell(lambda: asking.recv(1))
print(json.dumps(told))
"""

# mov r0, 2 (XDP_PASS); exit.  A veth device delivers what XDP sends back at once only to a peer
# that has a program; to one that has GRO, with the next packet.
LISTENER = """
from lvsxdp import maps, network
code = bytes.fromhex("b700000002000000" "9500000000000000")
with network.Network() as net:
    program = maps.load_program("pass", code, maps.ProgramType.XDP)
    net.attach_xdp(net.link("front-lb"), program, "native")
"""


@pytest.fixture(scope="module", autouse=True)
def _switch_listens(lab: Lab) -> None:
    lab.run("sw", [sys.executable, "-c", LISTENER], check=True)


@pytest.fixture(scope="module", params=["native", "generic", "tc"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=VIPS)
def family(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_a_client_without_a_backend_is_refused(balancer: Balancer, family: str) -> None:
    balancer.use(EMPTY)
    done = balancer.lab.run("c1", [PYTHON, "-c", CLIENT, VIPS[family]], check=True)
    assert json.loads(done.stdout) == ["ConnectionRefusedError"] * 4
