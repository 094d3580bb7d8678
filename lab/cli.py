"""The command behind `scripts/topology`: leaves a laboratory standing, shows it, takes it down."""

import argparse
import sys
from collections.abc import Sequence

from lab import layout, record, servers
from lab.errors import LabError
from lab.topology import Forwarding, Lab

EXAMPLES = """
try:
  ip netns exec {p}-c1 curl http://{vip4}/             a client asks the service
  ip netns exec {p}-c1 curl http://10.0.0.11/           ... or one backend, past the balancer
  ip netns exec {p}-c1 curl --interface 2001:db8:1::77 'http://[{vip6}]/'
  ip netns exec {p}-c2 dig +short @{vip4} whoami.lab TXT
  ip netns exec {p}-c2 curl -P - ftp://{vip4}/whoami   active FTP; without -P -, passive
  ip netns exec {p}-lb tcpdump -ni lb0
the balancer's devices: lb0 to the clients, lb1 to the backends, in the namespace {p}-lb"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    args = _parser().parse_args(argv)
    commands = {"up": up, "down": down, "show": show}
    try:
        commands[args.command](args)
    except LabError as err:
        print(f"topology: {err}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("topology: interrupted; nothing is left", file=sys.stderr)
        return 130
    return 0


def up(args: argparse.Namespace) -> None:
    """Leave the laboratory standing; one that stands already with the same options is kept."""
    options = _options(args)
    standing = record.load(args.prefix)
    if standing.is_standing and _is_whole(standing):
        if standing.options != options:
            raise LabError(f"it stands with other options ({standing.options}): take it down first")
        print(f"{args.prefix}: stands already")
        return
    if standing.is_standing:
        down(args)
    forwarding: Forwarding = args.forwarding
    with Lab(
        args.prefix,
        offload=args.offload,
        second_balancer=args.second_balancer,
        forwarding=forwarding,
    ) as lab:
        if args.servers:
            servers.start(lab)
        lab.leave_standing(options)
    show(args)


def down(args: argparse.Namespace) -> None:
    """Remove all that `up` made; nothing there is fine."""
    with record.locked(args.prefix):
        record.take_down(args.prefix)
    print(f"{args.prefix}: down")


def show(args: argparse.Namespace) -> None:
    """Print namespaces, devices, addresses and commands to try."""
    prefix: str = args.prefix
    roles = tuple(record.namespaces(prefix))
    if not roles:
        raise LabError(f'no lab "{prefix}" stands: scripts/topology up')
    print(f"{'namespace':<12} {'device':<7} {'MAC':<18} addresses")
    for end in layout.ends(roles):
        ns = record.netns(prefix, end.ns)
        print(f"{ns:<12} {end.dev:<7} {end.mac:<18} {' '.join(end.addresses)}")
    print(f"VIP: {layout.VIP4} {layout.VIP6} on {prefix}-lb lb0 and on every backend's lo")
    print(f"files: {record.load(prefix).directory}")
    print(EXAMPLES.format(p=prefix, vip4=layout.VIP4, vip6=layout.VIP6))


def _options(args: argparse.Namespace) -> dict[str, str | bool]:
    names = ("forwarding", "offload", "second_balancer", "servers")
    return {name: getattr(args, name) for name in names}


def _is_whole(standing: record.Record) -> bool:
    members = layout.roles(second_balancer=bool(standing.options["second_balancer"]))
    are_alive = all(process.is_alive() for process in standing.processes)
    return are_alive and set(members) <= set(record.namespaces(standing.prefix))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="topology", description=__doc__)
    parser.add_argument("--prefix", default="lvx", help="of the namespaces' names (lvx)")
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("up", help="build it and leave it standing")
    build.add_argument(
        "--forwarding", choices=("off", "lo", "on"), default="lo", help="of the balancers (lo)"
    )
    build.add_argument("--second-balancer", action="store_true", help="lb2, for fail-over")
    build.add_argument("--servers", action="store_true", help="nginx, vsftpd, dnsmasq")
    build.add_argument("--offload", action="store_true", help="keep checksum offloads, for TC")
    commands.add_parser("down", help="remove it")
    commands.add_parser("show", help="print what stands, and what to try")
    return parser
