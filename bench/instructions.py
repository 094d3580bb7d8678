"""`python -m bench.instructions`: instructions a packet, beside kernel IPVS in the same guest.

To be run where `scripts/vm --icount` runs it: there an instruction takes a nanosecond, so that the
clock counts instructions.  They say nothing of cache misses.  Each figure is what a packet takes
beyond the generator, whose frames end where a balancer would get them; every subject has the same
veth pairs, and the same program at the far end.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from bench import live, packet, record, throughput
from bench.live import Balancer, Ends, Flows
from bench.packet import ACK, SYN
from lvsxdp import compiler, loading
from lvsxdp.loading import Build

PACKETS = 20_000
VIP = live.VIPS[0]
BACKEND = live.BACKENDS[0]
METHODS = {"dr": "-g", "nat": "-m", "tunnel": "-i"}
# The guest's, so that its programs can be compiled on the host, which takes seconds.
DEFINES = {"HZ": 250, "CPUS": 1, "INTERFACE_CAPACITY": 1024}
CACHE = Path("/var/cache/lvsxdp")
FLOWS = Flows("20.1.0.0", 1, ACK, VIP)


def configuration(method: str) -> str:
    """One service, one backend; by nat with another port."""
    port = ", port: 8080" if method == "nat" else ""
    return f"""
capacity: {{connections: 4096, persistence: 4096}}
services:
  - {{protocol: tcp, address: {VIP}, port: 80, scheduler: rr, forward: {method},
     backends: [{{address: {BACKEND}{port}}}]}}
"""


@dataclasses.dataclass
class Subject:
    """One way to forward: its namespace, and what a packet took in each round."""

    name: str
    balancer: Balancer
    address: str  # the destination of what the backend gets
    taken: list[float] = dataclasses.field(default_factory=list)


def compile_ahead() -> None:
    """Compiles for the guest all that it will load."""
    for method in METHODS:
        wanted = throughput.loaded(configuration(method))
        build = Build(DEFINES)
        defines = {**loading.defines_of(wanted, build), "CPUS": 1}
        loading.compile_control(defines, build)
        for hook in loading.HOOKS:
            mine = {**defines, f"HOOK_{hook.upper()}": 1}
            compiler.compile_source("lvsxdp.c", mine, cache=CACHE)
    compiler.compile_source("live.c", {}, cache=CACHE, folder=packet.HERE)


def _ipvs(balancer: Balancer, method: str) -> None:
    """Kernel IPVS in a balancer's namespace."""
    name = balancer.namespace
    port = ":8080" if method == "nat" else ""
    live.ip(name, "addr", "add", f"{VIP}/32", "dev", "lb0")
    for setting in ("net.ipv4.ip_forward=1", "net.ipv4.conf.all.rp_filter=0"):
        live.inside(name, "sysctl", "-qw", setting)
    live.inside(name, "sysctl", "-qw", "net.ipv4.conf.lb0.rp_filter=0")
    live.inside(name, "ipvsadm", "-A", "-t", f"{VIP}:80", "-s", "rr")
    server = f"{BACKEND}{port}"
    live.inside(name, "ipvsadm", "-a", "-t", f"{VIP}:80", "-r", server, METHODS[method])


@contextlib.contextmanager
def subjects(outer: Ends) -> Iterator[list[Subject]]:
    """All that is compared, each in its own namespace."""
    with contextlib.ExitStack() as stack:

        def made(number: int) -> Balancer:
            return stack.enter_context(live.balancer(outer, number))

        found = [Subject("generator", made(0), VIP)]
        throughput.drain(outer, found[0].balancer)
        for number, method in enumerate(METHODS, 1):
            address = VIP if method == "dr" else BACKEND
            ours, theirs = made(2 * number), made(2 * number + 1)
            text = configuration(method)
            stack.enter_context(throughput.lvsxdp(ours, CACHE, text, DEFINES))
            found.append(Subject(f"lvsxdp_{method}", ours, address))
            _ipvs(theirs, method)
            found.append(Subject(f"ipvs_{method}", theirs, address))
        yield found


def measure(outer: Ends, subject: Subject) -> None:
    """One round; raises where not every frame arrived as it had to."""
    outer.expect(subject.address, subject.address)
    seconds, arrived = outer.pump(subject.balancer, FLOWS, PACKETS)
    counts = [sum(row) for row in arrived]
    if counts[0] != PACKETS:
        raise SystemExit(f"{subject.name} did not do its work: {counts} of {PACKETS} frames")
    subject.taken.append(seconds / PACKETS * 1e9)


def results(found: list[Subject]) -> list[record.Result]:
    """Instructions a packet beyond the generator, and lvsxdp's share of IPVS's."""
    generator = min(found[0].taken)
    net = {subject.name: min(subject.taken) - generator for subject in found}
    made = []
    for subject in found:
        kind, _, method = subject.name.partition("_")
        more: dict[str, object] = {"above_generator": round(net[subject.name])}
        if kind == "lvsxdp":
            more["ipvs_by_ours"] = round(net[f"ipvs_{method}"] / net[subject.name], 2)
        made.append(record.Result(subject.name, "instructions", subject.taken, more=more))
    return made


def main() -> None:
    """Runs all subjects in turn and prints what a packet takes."""
    parser = argparse.ArgumentParser(prog="python -m bench.instructions", description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="compile for the guest, no more")
    options = parser.parse_args()
    if options.compile:
        compile_ahead()
        return
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    subprocess.run(["modprobe", "-a", "ip_vs", "ip_vs_rr", "ipip"], check=True)
    with packet.workplace(), live.ends(CACHE) as outer, subjects(outer) as found:
        for subject in found:
            outer.expect(subject.address, subject.address)
            for flags in (SYN, ACK, ACK):
                outer.pump(subject.balancer, dataclasses.replace(FLOWS, flags=flags), 64)
        for _ in range(options.rounds):
            for subject in found:
                measure(outer, subject)
    how = {"flows": 1, "packets": PACKETS, "kernel": os.uname().release}
    record.write(
        record.document("instructions", options.rounds, results(found), **how), options.json
    )


if __name__ == "__main__":
    main()
