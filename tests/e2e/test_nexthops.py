"""Where backends are on the wire changes under running traffic, and no daemon is there to see it.

A client sends a numbered datagram to a VIP of each family every 20 ms; a backend says which came
by which of its devices.  Backend b1 has two: eth0 on the common link, and alt on one of its own.
"""

import dataclasses
import time
from collections.abc import Iterator

import pytest

from lab import layout, topology
from lab.topology import PYTHON, Lab, Spawned
from tests.e2e.conftest import PREFIX, Balancer, wait_for

PORT = 9999
FAMILIES = ("4", "6")
VIPS = {"4": layout.VIP4, "6": layout.VIP6}
BACKENDS = {"4": layout.BACKEND4["b1"], "6": layout.BACKEND6["b1"]}
ALT = {"4": "10.9.0.11", "6": "2001:db8:9::11"}
ROUTER = {"4": "10.0.0.254", "6": "2001:db8:0:2::fe"}
BEHIND = {"4": layout.BACKEND4["b2"], "6": layout.BACKEND6["b2"]}
NEW_MAC = "02:00:00:00:0b:99"
# How long a next hop is remembered, and a tick of the programs' clock.
LANE = 1.01
# A known connection takes the kernel's road every other second, or when the third is over.
PROBE_INTERVAL = 3 * LANE
# What the kernel does then, as set here: it waits, and asks the old MAC so many times.
DELAY, SOLICITS, RETRANSMIT = 1.0, 3, 0.2
TIMERS = 0.2  # the kernel's may be late

CONFIG = f"""
capacity: {{connections: 4096, persistence: 4096}}
services:
  - {{protocol: udp, address: {VIPS["4"]}, port: {PORT}, backends: [{{address: {BACKENDS["4"]}}}]}}
  - protocol: udp
    address: "{VIPS["6"]}"
    port: {PORT}
    backends: [{{address: "{BACKENDS["6"]}"}}]
"""

SENDER = """
import socket, sys, time
ends = [(socket.socket(family, socket.SOCK_DGRAM), vip)
        for family, vip in ((socket.AF_INET, sys.argv[1]), (socket.AF_INET6, sys.argv[2]))]
number = 0
while True:
    print(number, time.monotonic(), flush=True)
    for sender, vip in ends:
        sender.sendto(str(number).encode(), (vip, int(sys.argv[3])))
    number += 1
    time.sleep(0.02)
"""

RECEIVER = """
import select, socket, struct, sys
port = int(sys.argv[3])
ends = {}
for name, family, level, option, layout, vip in (
    ("4", socket.AF_INET, socket.IPPROTO_IP, 8, "I", sys.argv[1]),
    ("6", socket.AF_INET6, socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, "16xI", sys.argv[2]),
):
    end = socket.socket(family, socket.SOCK_DGRAM)
    end.setsockopt(level, option, 1)
    end.bind((vip, port))
    ends[end] = name, layout
while True:
    for end in select.select(list(ends), [], [])[0]:
        data, extra, _, _ = end.recvmsg(64, 128)
        name, layout = ends[end]
        index, = struct.unpack_from(layout, extra[0][2])
        print(name, data.decode(), socket.if_indextoname(index), flush=True)
"""


@dataclasses.dataclass(frozen=True)
class Flow:
    """A client's datagrams to both VIPs, and what the backends got."""

    sender: Spawned
    receivers: dict[str, Spawned]

    def sent(self, since: float) -> list[int]:
        """Return the numbers of those that were sent from then on."""
        lines = self.sender.output().splitlines()[:-1]
        return [int(n) for n, at in map(str.split, lines) if float(at) >= since]

    def arrived(self, backend: str, family: str) -> dict[int, str]:
        """Return the device by which each number of a family came to a backend."""
        lines = self.receivers[backend].output().splitlines()[:-1]
        rows = [line.split() for line in lines if line.startswith(family)]
        return {int(number): device for _, number, device in rows}

    def ways(self, backend: str, family: str, numbers: list[int]) -> set[str]:
        """Return the devices by which these came, "lost" among them if any did not."""
        came = self.arrived(backend, family)
        return {came.get(number, "lost") for number in numbers}

    def ways_from(self, backend: str, since: float) -> dict[str, set[str]]:
        """Return by family how what is sent from then on comes, by the 20 first."""
        wait_for(lambda: len(self.sent(since)) > 25)
        numbers = self.sent(since)[:20]
        return {family: self.ways(backend, family, numbers) for family in FAMILIES}

    def outage(self, backend: str, family: str, since: float) -> float:
        """Return the seconds from then on until the first that came was sent."""
        wait_for(lambda: set(self.sent(since)) & set(self.arrived(backend, family)))
        came = set(self.arrived(backend, family))
        lines = map(str.split, self.sender.output().splitlines()[:-1])
        return next(float(at) - since for n, at in lines if float(at) >= since and int(n) in came)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A laboratory without servers, in which b1 has a second link to the balancer."""
    with Lab(PREFIX, forwarding="lo") as lab:
        far = f"peer name alt netns {lab.netns('b1')}"
        ip(lab, "lb", f"link add alt type veth {far}")
        for ns, host in (("lb", "1"), ("b1", "11")):
            ip(lab, ns, f"address add 10.9.0.{host}/24 dev alt")
            ip(lab, ns, f"address add 2001:db8:9::{host}/64 dev alt nodad")
            ip(lab, ns, "link set alt up")
        # what XDP sends into a veth needs GRO at the other end, turned on while both are up
        lab.run("b1", ["ethtool", "-K", "alt", "gro", "on"], check=True)
        yield lab


@pytest.fixture(scope="module")
def balancer(lab: Lab) -> Iterator[Balancer]:
    """The balancer in native mode with a service of each family, both on b1."""
    balancer = Balancer(lab)
    try:
        balancer.attach(CONFIG, "native", "lb0")
        yield balancer
    finally:
        balancer.command("detach", "--all")


@pytest.fixture(scope="module")
def flow(balancer: Balancer) -> Flow:
    """Datagrams that are under way and arrive."""
    lab, ends = balancer.lab, [*VIPS.values(), str(PORT)]
    receivers = {ns: lab.spawn(ns, [PYTHON, "-c", RECEIVER, *ends]) for ns in ("b1", "b2")}
    flow = Flow(lab.spawn("c1", [PYTHON, "-c", SENDER, *ends]), receivers)
    wait_for(lambda: all(flow.arrived("b1", family) for family in FAMILIES))
    return flow


def ip(lab: Lab, ns: str, words: str) -> None:
    """Run `ip` inside a namespace."""
    lab.run(ns, ["ip", *words.split()], check=True)


def routes(lab: Lab, verb: str, words: dict[str, str]) -> float:
    """Change the balancer's routes to b1 itself, and return when that was done."""
    for family in FAMILIES:
        address = layout.host_prefix(BACKENDS[family])
        ip(lab, "lb", f"-{family} route {verb} {words[family].format(address)}")
    return time.monotonic()


@pytest.fixture
def mac(flow: Flow, lab: Lab) -> Iterator[None]:
    """B1's MAC as it was before, with the balancer told and following."""
    yield
    change_mac(lab, layout.mac("b1", "eth0"))
    assert flow.ways_from("b1", announce(lab) + LANE) == {"4": {"eth0"}, "6": {"eth0"}}


def change_mac(lab: Lab, mac: str) -> float:
    """Give b1's device another MAC, and return when it had it."""
    ip(lab, "b1", f"link set dev eth0 address {mac}")
    return time.monotonic()


def announce(lab: Lab) -> float:
    """Have b1 tell everyone where its addresses are, and return when that was done."""
    for family in FAMILIES:
        script = [PYTHON, str(topology.HERE / "announce.py"), "eth0", BACKENDS[family]]
        lab.run("b1", script, check=True)
    return time.monotonic()


def roads(balancer: Balancer) -> set[str]:
    return {row["road"] for row in balancer.rows("backend", "list")}


@pytest.mark.usefixtures("mac")
def test_a_mac_that_is_announced_is_followed_within_a_second(lab: Lab, flow: Flow) -> None:
    change_mac(lab, NEW_MAC)
    announced = announce(lab)
    assert flow.ways_from("b1", announced + LANE) == {"4": {"eth0"}, "6": {"eth0"}}


@pytest.mark.usefixtures("mac")
def test_a_mac_that_changed_in_silence_is_found_within_the_kernels_probe_time(
    lab: Lab, flow: Flow
) -> None:
    short = (f"delay_first_probe_time={DELAY:.0f}", f"retrans_time_ms={RETRANSMIT * 1000:.0f}")
    solicits = f"ucast_solicit={SOLICITS}"
    settings = [f"net.ipv{f}.neigh.lb1.{s}" for f in FAMILIES for s in (*short, solicits)]
    lab.run("lb", ["sysctl", "-qw", *settings], check=True)
    for family in FAMILIES:
        known = f"{BACKENDS[family]} lladdr {layout.mac('b1', 'eth0')} dev lb1"
        ip(lab, "lb", f"-{family} neigh replace {known} nud stale")
    changed = change_mac(lab, NEW_MAC)
    outages = [flow.outage("b1", family, changed) for family in FAMILIES]
    assert min(outages) > DELAY
    assert max(outages) < PROBE_INTERVAL + DELAY + SOLICITS * RETRANSMIT + LANE + TIMERS
    assert lab.neighbour("lb", BACKENDS["4"]) == NEW_MAC


def test_a_route_that_changes_to_a_gateway_behind_another_interface_is_followed_within_a_second(
    balancer: Balancer, flow: Flow
) -> None:
    lab, begun = balancer.lab, time.monotonic()
    by_alt = {family: f"{{}} via {ALT[family]} dev alt" for family in FAMILIES}
    changed = routes(lab, "replace", by_alt)
    try:
        assert flow.ways_from("b1", changed + LANE) == {"4": {"alt"}, "6": {"alt"}}
        assert roads(balancer) == {"redirect"}
    finally:
        back = routes(lab, "del", dict.fromkeys(FAMILIES, "{}"))
    assert flow.ways_from("b1", back + LANE) == {"4": {"eth0"}, "6": {"eth0"}}
    # both ways are there all the time, so nothing is lost
    between = flow.sent(begun)[: -len(flow.sent(back + LANE))]
    for family in FAMILIES:
        assert flow.ways("b1", family, between) == {"eth0", "alt"}


def test_without_a_route_packets_are_counted_and_flow_again_when_it_is_back(
    balancer: Balancer, flow: Flow
) -> None:
    lab, before = balancer.lab, balancer.reason("no_route")
    gone = routes(lab, "add", dict.fromkeys(FAMILIES, "unreachable {}"))
    try:
        assert flow.ways_from("b1", gone + LANE) == {"4": {"lost"}, "6": {"lost"}}
        counted = balancer.reason("no_route") - before
    finally:
        back = routes(lab, "del", dict.fromkeys(FAMILIES, "unreachable {}"))
    assert counted >= 2 * 20
    # that there was no route is not remembered
    assert max(flow.outage("b1", family, back) for family in FAMILIES) < LANE / 2


def test_a_backend_behind_a_router_is_sent_to_by_the_routers_mac(
    balancer: Balancer, flow: Flow
) -> None:
    lab = balancer.lab
    # direct routing keeps the service's address: the router has to know whose it is behind it
    for family in FAMILIES:
        ip(lab, "rt", f"-{family} rule add iif back lookup 100")
        service = layout.host_prefix(VIPS[family])
        ip(lab, "rt", f"-{family} route add {service} via {BEHIND[family]} dev back table 100")
    by_router = {family: f"{{}} via {ROUTER[family]} dev lb1" for family in FAMILIES}
    changed = routes(lab, "add", by_router)
    try:
        assert flow.ways_from("b2", changed + LANE) == {"4": {"eth0"}, "6": {"eth0"}}
        assert roads(balancer) == {"redirect"}
    finally:
        routes(lab, "del", dict.fromkeys(FAMILIES, "{}"))
        for family in FAMILIES:
            ip(lab, "rt", f"-{family} rule del iif back lookup 100")


def test_an_interface_that_appears_is_sent_to_by_tc_until_an_apply(
    balancer: Balancer, flow: Flow
) -> None:
    lab = balancer.lab
    ip(lab, "lb", f"link add late up type veth peer name late netns {lab.netns('b1')}")
    try:
        ip(lab, "b1", "link set late up")
        for family, words in {"4": "10.10.0.1/24", "6": "2001:db8:10::1/64 nodad"}.items():
            ip(lab, "lb", f"-{family} address add {words} dev late")
        routes(lab, "replace", {"4": "{} via 10.10.0.11", "6": "{} via 2001:db8:10::11"})
        assert roads(balancer) == {"tc"}
        assert balancer.lvsxdp("apply", balancer.file(CONFIG)) == "nothing to do\n"
        assert roads(balancer) == {"redirect"}
    finally:
        ip(lab, "lb", "link del late")
    wait_for(lambda: flow.ways_from("b1", time.monotonic())["4"] == {"eth0"})
