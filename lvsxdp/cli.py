"""The command line: nouns read, verbs change; every command ends with its error's exit code."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import ipaddress
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from lvsxdp import __version__
from lvsxdp.errors import ConflictError, LvsxdpError, NotFoundError
from lvsxdp.model import Backend, Config, Network, Service

EXITS = (
    "\n\nExit codes: 0 done, 1 failed, 2 wrong configuration or usage, "
    "3 not found, 4 conflict, 5 kernel."
)


class Command(click.Command):
    """A command whose errors end the program with their exit code and no traceback."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Adds the exit codes to the help text."""
        kwargs["help"] = inspect.cleandoc(kwargs.get("help") or "") + EXITS
        super().__init__(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command."""
        try:
            return super().invoke(ctx)
        except LvsxdpError as err:
            click.echo(f"lvsxdp: {err}", err=True)
            ctx.exit(err.exit_code)
        except PermissionError as err:
            click.echo(f"lvsxdp: {err} (are you root?)", err=True)
            ctx.exit(1)


class Group(click.Group):
    """A group of such commands."""

    command_class = Command


Group.group_class = Group


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """What stands before the command."""

    netns: str | None
    wait: float


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="lvsxdp")
@click.option("--netns", metavar="NAME", help="Work in this network namespace (ip netns).")
@click.option("--wait", default=10.0, show_default=True, help="Seconds to wait for the lock.")
@click.pass_context
def main(ctx: click.Context, netns: str | None, wait: float) -> None:
    """Linux Virtual Server semantics at XDP speed: marks, persistence, schedulers."""
    ctx.obj = Options(netns, wait)


pass_options = click.make_pass_decorator(Options)
as_json = click.option("--json", "json", is_flag=True, help="Print JSON.")


@contextlib.contextmanager
def _session(options: Options) -> Iterator[tuple[Any, Any]]:
    """The folders and the network of the namespace that the command is for, under its lock."""
    from lvsxdp import controller, network, state

    # a command that is told to end undoes what it has half done
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    network.leave_private_mounts()
    if options.netns:
        network.enter_namespace(options.netns)
    where = controller.here()
    with state.locked(where, options.wait), network.Network() as net:
        yield where, net


@contextlib.contextmanager
def _balancer(options: Options) -> Iterator[tuple[Any, Any]]:
    """The running balancer and its network."""
    from lvsxdp.controller import Balancer

    with _session(options) as (where, net), Balancer.open(where, _say) as balancer:
        yield balancer, net


def _read_config(path: Path) -> Config:
    """The configuration of a file; warnings go to standard error."""
    from lvsxdp import config
    from lvsxdp.errors import ConfigError

    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text()
    except (OSError, UnicodeDecodeError) as err:
        raise ConfigError(f"{path}: {err}") from err
    loaded, warnings = config.load(text, str(path))
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)
    return loaded


def _say(text: str) -> None:
    click.echo(text, err=True)


# --------------------------------------------------------------------------- configuration


@main.command()
@click.argument("config", type=click.Path(path_type=Path))
def check(config: Path) -> None:
    """Validate CONFIG; no root needed.

    Example: lvsxdp check shop.yaml
    """
    loaded = _read_config(config)
    backends = sum(len(service.backends) for service in loaded.services)
    click.echo(
        f"{config}: {len(loaded.marks)} mark rules, {len(loaded.services)} services, "
        f"{backends} backends"
    )


@main.command()
@click.argument("interfaces", nargs=-1, metavar="[IFACE]...")
@click.option("-c", "--config", type=click.Path(path_type=Path), help="Apply this file.")
@click.option(
    "--mode",
    type=click.Choice(["auto", "native", "generic", "tc"]),
    default="auto",
    show_default=True,
    help="How to attach; auto falls back and says so.",
)
@click.option("--force", is_flag=True, help="Replace what another program attached.")
@click.option("--set-sysctl", is_flag=True, help="Set net.ipv4/ipv6.conf.lo.forwarding to 1.")
@pass_options
def attach(
    options: Options,
    interfaces: tuple[str, ...],
    config: Path | None,
    mode: str,
    force: bool,
    set_sysctl: bool,
) -> None:
    """Attach interfaces; compile and load first where nothing runs yet: what the file uses.

    Example: lvsxdp attach eth0 -c shop.yaml --set-sysctl
    """
    from lvsxdp import attaching, views

    loaded = _read_config(config) if config else None
    names = interfaces or (loaded.interfaces if loaded else ())
    if not names:
        raise NotFoundError("no interface is named, here or under interfaces: in the file")
    with _session(options) as (where, net):
        _lo_forwarding(set_sysctl)
        attaching.attach(where, net, names, loaded, mode, force=force, say=_say)
        for warning in views.warnings(loaded or Config(), net):
            _say(f"warning: {warning}")
    click.echo(f"attached: {' '.join(names)}")


def _lo_forwarding(set_it: bool) -> None:
    """Sets the sysctls by which the kernel's FIB answers XDP, or says what they are for."""
    from lvsxdp import controller, network

    for name in controller.SYSCTLS:
        if network.sysctl(name) == "1":
            continue
        if set_it:
            network.set_sysctl(name, "1")
            continue
        dotted = name.replace("/", ".")
        _say(
            f"note: {dotted} is 0, so XDP cannot ask for routes and tc forwards; "
            f"it lets nothing through by itself: sysctl -w {dotted}=1, or --set-sysctl"
        )


@main.command()
@click.argument("interfaces", nargs=-1, metavar="[IFACE]...")
@click.option("--all", "everything", is_flag=True, help="Detach all and remove the tables.")
@click.option("--stale", is_flag=True, help="Remove what belonged to namespaces that are gone.")
@pass_options
def detach(options: Options, interfaces: tuple[str, ...], everything: bool, stale: bool) -> None:
    """Detach interfaces; the tables stay unless --all.

    Example: lvsxdp detach eth0
    """
    from lvsxdp import attaching

    if not (interfaces or everything or stale):
        raise click.UsageError("name interfaces, or use --all or --stale")
    with _session(options) as (where, net):
        if stale:
            gone = attaching.stale()
            attaching.remove_stale(gone)
            click.echo(f"removed what was left of {len(gone)} namespaces")
        elif everything:
            attaching.detach_all(where, net)
        else:
            attaching.detach(where, net, interfaces)


@main.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--dry-run", is_flag=True, help="Print the plan and stop.")
@click.option("--undrain", is_flag=True, help="End drains that the file does not ask for.")
@pass_options
def apply(options: Options, config: Path, dry_run: bool, undrain: bool) -> None:
    """Bring the running balancer to CONFIG; prints what differs.

    Compiles in first what CONFIG is the first to use, in seconds: a family, or ordered mark rules.

    Example: lvsxdp apply shop.yaml --dry-run
    """
    from lvsxdp import changes, features, views

    wanted = _read_config(config)
    with _balancer(options) as (balancer, net):
        running = balancer.state.config
        wanted = changes.follow(running, wanted, undrain=undrain)
        lines = changes.describe(running, wanted)
        for line in lines or ["nothing to do"]:
            click.echo(line)
        if balancer.missing(wanted):
            click.echo(f"features: {features.names(balancer.missing(wanted))} to be compiled in")
        if lines and not dry_run:
            balancer.apply(wanted, net)
        for warning in views.warnings(wanted, net):
            _say(f"warning: {warning}")


@main.command()
@pass_options
def save(options: Options) -> None:
    """Print the running configuration as YAML.

    Example: lvsxdp save > shop.yaml
    """
    from lvsxdp import config

    with _balancer(options) as (balancer, _):
        click.echo(config.dump(balancer.state.config), nl=False)


@main.command()
@click.option("--check", is_flag=True, help="Exit 1 when something attached is gone.")
@as_json
@pass_options
@click.pass_context
def status(ctx: click.Context, options: Options, check: bool, json: bool) -> None:
    """Show interfaces, tables and packets by reason.

    Example: lvsxdp status --json
    """
    from lvsxdp import attaching, show, views

    with _balancer(options) as (balancer, net):
        found = views.status(balancer, net)
    found["stale"] = attaching.stale()
    if json:
        click.echo(show.as_json(found))
    else:
        _print_status(found)
    if check and not all(interface["attached"] for interface in found["interfaces"]):
        ctx.exit(1)


def _print_status(found: dict[str, Any]) -> None:
    from lvsxdp import show

    click.echo(show.as_table(found["interfaces"], ("name", "mode", "program_id", "attached")))
    click.echo()
    click.echo(show.as_table(found["tables"], ("name", "used", "capacity")))
    click.echo()
    reasons = [{"reason": name, "packets": count} for name, count in found["reasons"].items()]
    click.echo(show.as_table(reasons, ("reason", "packets")))
    click.echo(f"\ncompiled in: {' '.join(found['features'])}")
    if found["local_addresses"] == "table":
        click.echo(
            "\nnet.ipv4.conf.lo.forwarding is 0: local addresses come from a table that "
            "attach and apply write, and tc forwards"
        )
    for warning in found["warnings"]:
        click.echo(f"\nwarning: {warning}")
    for cookie in found["stale"]:
        click.echo(f"\nstate of a namespace that is gone: {cookie} (lvsxdp detach --stale)")


@main.command()
@click.option("--interval", default=5.0, show_default=True, help="Seconds between sweeps.")
@pass_options
def run(options: Options, interval: float) -> None:
    """Sweep expired entries and heal counts, in the foreground.

    Example: lvsxdp run --interval 5
    """
    from lvsxdp import controller, daemon, network

    network.leave_private_mounts()
    if options.netns:
        network.enter_namespace(options.netns)
    daemon.run(controller.here(), interval, _say)


# ------------------------------------------------------------------------------------ nouns


@main.group(cls=Group)
def service() -> None:
    """Services: what clients reach."""


@main.group(cls=Group)
def backend() -> None:
    """Backends: the machines behind a service."""


@main.group(cls=Group)
def mark() -> None:
    """Mark rules: which packets get which mark."""


@main.group(cls=Group)
def persistence() -> None:
    """Persistence entries: which client keeps which backend."""


@main.group(cls=Group)
def connection() -> None:
    """Connections: which flow goes to which backend."""


def _print(rows: Iterator[Any] | list[Any], columns: tuple[str, ...], json: bool) -> None:
    from lvsxdp import show

    found = list(rows)
    click.echo(show.as_json(found) if json else show.as_table(found, columns))


def _print_entries(rows: Iterator[Any], columns: tuple[str, ...], json: bool) -> None:
    from lvsxdp import entries, show

    if not json:
        click.echo(show.as_table([entries.as_row(columns, row) for row in rows], columns))
        return
    for line in entries.as_json(columns, rows):
        sys.stdout.write(line)


@service.command("list")
@as_json
@pass_options
def service_list(options: Options, json: bool) -> None:
    """List services with their counters.

    Example: lvsxdp service list --json
    """
    from lvsxdp import views

    columns = (
        "service",
        "name",
        "scheduler",
        "persistence",
        "netmask",
        "backends",
        "connections",
        "packets",
        "bytes",
    )
    with _balancer(options) as (balancer, _):
        _print(views.services(balancer), columns, json)


@mark.command("list")
@as_json
@pass_options
def mark_list(options: Options, json: bool) -> None:
    """List mark rules in the order in which they are tried.

    Example: lvsxdp mark list
    """
    from lvsxdp import show

    columns = ("number", "mark", "protocols", "addresses", "ports", "sources", "interfaces")
    with _balancer(options) as (balancer, _):
        _print(show.mark_rows(balancer.state), columns, json)


def _parse_network(_: object, __: object, value: str | None) -> Network | None:
    from lvsxdp import scalars

    try:
        return None if value is None else scalars.parse_network(value)
    except LvsxdpError as err:
        raise click.BadParameter(str(err)) from err


def entry_filters(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that both lists of entries have."""
    options = (
        click.option(
            "--service",
            "service_name",
            metavar="SERVICE",
            help="Only of this service: mark:80, tcp:192.0.2.10:80 or its name.",
        ),
        click.option(
            "--client",
            metavar="NETWORK",
            callback=_parse_network,
            help="Only of clients in it: 198.51.100.7, 198.51.100.0/24, 2001:db8::/48.",
        ),
        click.option(
            "--backend",
            "backend_name",
            metavar="BACKEND",
            help="Only of this backend, in every service that has it.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


@connection.command("list")
@entry_filters
@as_json
@pass_options
def connection_list(
    options: Options,
    service_name: str | None,
    client: Network | None,
    backend_name: str | None,
    json: bool,
) -> None:
    """List live connections: all, or those to which every option given applies.

    Example: lvsxdp connection list --service mark:1 --client 198.51.100.0/24
    """
    from lvsxdp import entries, views

    with _balancer(options) as (balancer, _):
        wanted = views.wanted_entries(balancer, service_name, client, backend_name)
        _print_entries(views.connections(balancer, wanted), entries.CONNECTION, json)


@persistence.command("list")
@entry_filters
@as_json
@pass_options
def persistence_list(
    options: Options,
    service_name: str | None,
    client: Network | None,
    backend_name: str | None,
    json: bool,
) -> None:
    """List live persistence entries: all, or those to which every option given applies.

    An entry for a client network is listed by --client where the two share an address: where the
    entry's network lies in NETWORK or contains it.

    Example: lvsxdp persistence list --client 198.51.100.7
    """
    from lvsxdp import entries, views

    with _balancer(options) as (balancer, _):
        wanted = views.wanted_entries(balancer, service_name, client, backend_name)
        _print_entries(views.persistence(balancer, wanted), entries.PERSISTENCE, json)


@persistence.command("delete")
@click.argument("service_name", metavar="SERVICE")
@click.argument("client")
@pass_options
def persistence_delete(options: Options, service_name: str, client: str) -> None:
    """Delete the entry of one client of a service; its connections run on.

    Example: lvsxdp persistence delete mark:1 198.51.100.7
    """
    from lvsxdp import views
    from lvsxdp.entries import Wanted

    with _balancer(options) as (balancer, _):
        found, identity = _service(balancer, service_name)
        wanted = Wanted(service=identity, client=_masked(found, client))
        if not balancer.reap(views.places(balancer, views.PERSISTENCE, wanted), force=True):
            raise NotFoundError(f"service {found} has no persistence entry for {client}")


def _masked(found: Service, client: str) -> Network:
    """The client's address under the service's netmask, as a key holds it: one address."""
    from lvsxdp.errors import ConfigError

    try:
        address = ipaddress.ip_address(client.partition("/")[0])
    except ValueError as err:
        raise ConfigError(f'"{client}" is not an address') from err
    if found.persistence is None:
        raise ConflictError(f"service {found} is not persistent")
    mask = found.persistence.netmask
    if mask.version != address.version:
        raise ConfigError(f'"{client}" is not of the family of service {found}')
    return ipaddress.ip_network(type(address)(int(address) & int(mask)))


@persistence.command("flush")
@click.argument("service_name", metavar="[SERVICE]", required=False)
@pass_options
def persistence_flush(options: Options, service_name: str | None) -> None:
    """Delete all entries, of one service or of all; connections run on.

    Example: lvsxdp persistence flush mark:1
    """
    from lvsxdp import views
    from lvsxdp.entries import Wanted

    with _balancer(options) as (balancer, _):
        identity = _service(balancer, service_name)[1] if service_name else None
        places = views.places(balancer, views.PERSISTENCE, Wanted(service=identity))
        click.echo(f"{balancer.reap(places, force=True)} entries deleted")


# --------------------------------------------------------------------------------- backends


def _service(balancer: Any, text: str) -> tuple[Service, int]:
    """A service of the running configuration by key or name, with its id."""
    from lvsxdp import names

    found = names.find_service(balancer.state.config, text)
    return found, balancer.state.book.services[str(found.key)].id


@backend.command("list")
@click.argument("service_name", metavar="[SERVICE]", required=False)
@as_json
@pass_options
def backend_list(options: Options, service_name: str | None, json: bool) -> None:
    """List the backends of a service, or of all.

    Example: lvsxdp backend list mark:1
    """
    from lvsxdp import views

    columns = (
        "service",
        "address",
        "port",
        "weight",
        "forward",
        "state",
        "active",
        "inactive",
        "persistent",
        "connections",
        "packets",
        "bytes",
        "road",
    )
    with _balancer(options) as (balancer, net):
        only = _service(balancer, service_name)[0] if service_name else None
        _print(views.backends(balancer, net, only), columns, json)


Edit = Callable[[Service], Service]


def _edit(options: Options, service_name: str, edit: Edit) -> None:
    """Applies a change of one service."""
    from lvsxdp import changes, checks

    with _balancer(options) as (balancer, net):
        found, _ = _service(balancer, service_name)
        wanted = changes.replace_service(balancer.state.config, edit(found))
        checks.check(wanted)
        balancer.apply(wanted, net)


def _parse_weight(_: object, __: object, value: str | None) -> int | None:
    from lvsxdp import scalars

    try:
        return None if value is None else scalars.parse_weight(value)
    except (LvsxdpError, ValueError) as err:
        raise click.BadParameter(str(err)) from err


weight_option = click.option("--weight", callback=_parse_weight, help="0 to 2147483647.")


@backend.command("add")
@click.argument("service_name", metavar="SERVICE")
@click.argument("name", metavar="BACKEND")
@weight_option
@pass_options
def backend_add(options: Options, service_name: str, name: str, weight: int | None) -> None:
    """Add a backend; it comes first in the list, as under IPVS.

    Example: lvsxdp backend add mark:1 10.0.0.14 --weight 2
    """
    from lvsxdp import changes, names

    address, port = names.parse_backend_name(name)
    fresh = Backend(address, port, 1 if weight is None else weight)

    def edit(found: Service) -> Service:
        own = getattr(found.key, "port", None)
        return changes.add_backend(
            found, dataclasses.replace(fresh, port=None) if port == own else fresh
        )

    _edit(options, service_name, edit)


def _edit_backend(
    options: Options, service_name: str, name: str, edit: Callable[[Backend], Backend]
) -> None:
    """Applies a change of one backend."""
    from lvsxdp import changes, names

    def edit_service(found: Service) -> Service:
        return changes.replace_backend(found, edit(names.find_backend(found, name)))

    _edit(options, service_name, edit_service)


@backend.command("edit")
@click.argument("service_name", metavar="SERVICE")
@click.argument("name", metavar="BACKEND")
@weight_option
@pass_options
def backend_edit(options: Options, service_name: str, name: str, weight: int | None) -> None:
    """Change what is named; weight 0 quiesces: no new clients, persistent ones keep coming.

    Example: lvsxdp backend edit mark:1 10.0.0.11 --weight 3
    """
    if weight is None:
        raise click.UsageError("name what to change: --weight")
    _edit_backend(options, service_name, name, lambda b: dataclasses.replace(b, weight=weight))


@backend.command("drain")
@click.argument("service_name", metavar="SERVICE")
@click.argument("name", metavar="BACKEND")
@click.option("--undo", is_flag=True, help="End the drain.")
@pass_options
def backend_drain(options: Options, service_name: str, name: str, undo: bool) -> None:
    """Send new connections elsewhere, persistent clients' too; live connections run on.

    Example: lvsxdp backend drain mark:1 10.0.0.11
    """
    _edit_backend(options, service_name, name, lambda b: dataclasses.replace(b, draining=not undo))


@backend.command("delete")
@click.argument("service_name", metavar="SERVICE")
@click.argument("name", metavar="BACKEND")
@click.option("--now", is_flag=True, help="Even if connections or clients are stranded.")
@pass_options
def backend_delete(options: Options, service_name: str, name: str, now: bool) -> None:
    """Delete a backend; refuses while open connections or persistent clients use it.

    Example: lvsxdp backend delete mark:1 10.0.0.11
    """
    from lvsxdp import changes, names, views

    with _balancer(options) as (balancer, net):
        found, _ = _service(balancer, service_name)
        gone = names.find_backend(found, name)
        live, kept = views.stranded(balancer, found, gone)
        if (live or kept) and not now:
            raise ConflictError(
                f"{gone} has {live} open connections and {kept} persistent clients of service "
                f"{found}: drain it and wait, or --now"
            )
        slimmer = changes.remove_backend(found, gone)
        balancer.apply(changes.replace_service(balancer.state.config, slimmer), net)


if __name__ == "__main__":
    main()
