"""`scripts/bench throughput`: packets a second through lvsxdp, nftables and plain forwarding."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from bench import live, packet, record
from bench.live import Balancer, Ends, Flows
from bench.packet import ACK, SYN
from lvsxdp import attaching, config, controller, loading, network
from lvsxdp.model import Config
from lvsxdp.network import Network

FLOWS = 1 << 14
PACKETS = 400_000
VIP = live.VIPS[0]
CONFIG = f"""
services:
  - {{protocol: tcp, address: {VIP}, port: 80, scheduler: rr,
     backends: [{{address: 10.0.0.11}}, {{address: 10.0.0.12}}]}}
"""
NFT_NUMGEN = f"""
table ip balance {{
  chain prerouting {{
    type nat hook prerouting priority dstnat;
    ip daddr {VIP} tcp dport 80 dnat to numgen inc mod 2 map {{ 0 : 10.0.0.11, 1 : 10.0.0.12 }}
  }}
}}
"""
# As kube-proxy writes it: a map of services, a chain a service, a chain a backend.
NFT_MAP = f"""
table ip balance {{
  chain backend1 {{ meta l4proto tcp dnat to 10.0.0.11:80; }}
  chain backend2 {{ meta l4proto tcp dnat to 10.0.0.12:80; }}
  chain service {{ numgen random mod 2 vmap {{ 0 : goto backend1, 1 : goto backend2 }}; }}
  map services {{
    type ipv4_addr . inet_proto . inet_service : verdict
    elements = {{ {VIP} . tcp . 80 : goto service }}
  }}
  chain prerouting {{
    type nat hook prerouting priority dstnat;
    ip daddr . meta l4proto . th dport vmap @services
  }}
}}
"""


@dataclasses.dataclass
class Subject:
    """One way to forward: its namespace, and what arrived in each round."""

    name: str
    balancer: Balancer
    addresses: tuple[str, ...]  # the destination of what each backend gets
    opening: tuple[int, ...]  # flags of the packets that open a flow
    backends: int
    rates: list[float] = dataclasses.field(default_factory=list)
    cpus: Counter[str] = dataclasses.field(default_factory=Counter)
    lost: int = 0


def loaded(text: str) -> Config:
    """A configuration with its tables' sizes settled."""
    wanted = config.load(text)[0]
    return dataclasses.replace(wanted, capacity=loading.sized(wanted.capacity, loading.memory()))


@contextlib.contextmanager
def lvsxdp(
    balancer: Balancer,
    cache: Path,
    text: str = CONFIG,
    defines: Mapping[str, object] | None = None,
) -> Iterator[controller.Balancer]:
    """lvsxdp in native mode in a balancer's namespace."""
    for vip in live.VIPS:
        live.ip(balancer.namespace, "addr", "add", f"{vip}/32", "dev", "lb0")
    network.enter_namespace(balancer.namespace)
    where = controller.here()
    try:
        for sysctl in controller.SYSCTLS:
            network.set_sysctl(sysctl, "1")
        with Network() as net:
            build = loading.Build(defines or {}, cache=cache)
            attaching.attach(where, net, ("lb0",), config.load(text)[0], "native", build=build)
        with controller.Balancer.open(where) as opened:
            yield opened
    finally:
        loading.remove_pins(where.pins)
        shutil.rmtree(where.files, ignore_errors=True)


def drain(outer: Ends, balancer: Balancer) -> None:
    """Nothing is forwarded: each frame ends where a balancer would get it."""
    network.enter_namespace(balancer.namespace)
    with Network() as net:
        net.attach_xdp(net.link("lb0"), outer.programs["drain"], "native")


def _forwarding(balancer: Balancer, rules: str = "") -> None:
    """The kernel forwards; by the rules, or by a route for the service's address."""
    live.inside(balancer.namespace, "sysctl", "-qw", "net.ipv4.ip_forward=1")
    if rules:
        live.inside(balancer.namespace, "nft", "-f", "-", text=rules)
    else:
        live.ip(balancer.namespace, "route", "add", f"{VIP}/32", "via", live.BACKENDS[0])


@contextlib.contextmanager
def subjects(outer: Ends, cache: Path) -> Iterator[list[Subject]]:
    """All that is compared, each in its own namespace."""
    direct, translated = (VIP, VIP), live.BACKENDS
    kernel: list[tuple[str, Callable[[Balancer], None], tuple[str, ...], int]] = [
        ("generator", lambda b: drain(outer, b), direct, 1),
        ("nft_dnat_numgen", lambda b: _forwarding(b, NFT_NUMGEN), translated, 2),
        ("nft_dnat_map", lambda b: _forwarding(b, NFT_MAP), translated, 2),
        ("forward", _forwarding, direct, 1),
    ]
    with contextlib.ExitStack() as stack:
        made = stack.enter_context(live.balancer(outer, 0))
        stack.enter_context(lvsxdp(made, cache))
        found = [Subject("lvsxdp_dr", made, direct, (SYN, ACK), 2)]
        for number, (name, set_up, addresses, backends) in enumerate(kernel, 1):
            made = stack.enter_context(live.balancer(outer, number))
            set_up(made)
            found.append(Subject(name, made, addresses, (ACK,), backends))
        yield found


def measure(outer: Ends, subject: Subject, packets: int) -> None:
    """One round; raises where what arrived is not what the subject is to do."""
    outer.expect(*subject.addresses)
    flows = Flows("20.1.0.0", FLOWS, ACK, VIP)
    seconds, arrived = outer.pump(subject.balancer, flows, packets)
    counts = [sum(row) for row in arrived]
    total = sum(counts[: live.WRONG])
    if counts[live.WRONG]:
        raise SystemExit(f"{subject.name}: {counts[live.WRONG]} frames were for no backend")
    if total < packets * 0.9 or min(counts[: subject.backends]) < total * 0.4 / subject.backends:
        raise SystemExit(f"{subject.name} did not do its work: {counts} of {packets} frames")
    subject.rates.append(total / seconds)
    subject.lost += max(packets - total, 0)
    for row in arrived:
        subject.cpus.update({str(cpu): count for cpu, count in enumerate(row) if count})


def prepare(outer: Ends, subject: Subject) -> None:
    """Opens all flows."""
    outer.expect(*subject.addresses)
    for flags in subject.opening:
        flows = Flows("20.1.0.0", FLOWS, flags, VIP, spread=False)
        outer.pump(subject.balancer, flows, FLOWS)


def results(found: list[Subject]) -> list[record.Result]:
    """Packets a second, and what a packet takes beyond being generated."""
    generator = next(max(s.rates) for s in found if s.name == "generator")
    fastest = {s.name: max(s.rates) for s in found}
    return [
        record.Result(
            s.name,
            "packets/s",
            [round(rate) for rate in s.rates],
            more={
                "ns_above_generator": round(1e9 / fastest[s.name] - 1e9 / generator),
                "lost": s.lost,
                "arrived_by_cpu": dict(sorted(s.cpus.items())),
            },
        )
        for s in found
    ]


def main() -> None:
    """Runs all subjects in turn and prints what each forwarded."""
    parser = argparse.ArgumentParser(prog="scripts/bench throughput", description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--packets", type=int, default=PACKETS, help="a round and subject")
    options = parser.parse_args()
    cpu = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cpu})
    with (
        packet.workplace() as cache,
        live.ends(cache) as outer,
        subjects(outer, cache) as found,
    ):
        for subject in found:
            prepare(outer, subject)
        for _ in range(options.rounds):
            for subject in found:
                measure(outer, subject, options.packets)
    how = {"flows": FLOWS, "backends": len(live.BACKENDS), "generated_on_cpu": cpu}
    record.write(record.document("throughput", options.rounds, results(found), **how), options.json)


if __name__ == "__main__":
    main()
