"""The commands for services, their backends and the mark rules."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import click

from lvsxdp import backend_options
from lvsxdp.command import (
    Group,
    Options,
    as_json,
    change,
    choose_columns,
    counters_or_rates,
    force_covering,
    opened,
    parsed,
    pass_options,
    print_rows,
    put,
    service_named,
)
from lvsxdp.errors import ConflictError
from lvsxdp.model import Backend, Config, MarkRule, Service

BACKEND_COLUMNS = (
    "service",
    "address",
    "port",
    "weight",
    "upper_threshold",
    "lower_threshold",
    "forward",
    "state",
    "active",
    "inactive",
    "persistent",
    "connections",
    "packets",
    "bytes",
    "interface",
    "road",
)
BACKEND_NAMES = ("service", "address", "port")
SERVICE_NAMES = ("service", "name")


@click.group(cls=Group)
def service() -> None:
    """Services: what clients reach.

    Example: lvsxdp service list
    """


@click.group(cls=Group)
def backend() -> None:
    """Backends: the machines behind a service.

    Example: lvsxdp backend list
    """


@click.group(cls=Group)
def mark() -> None:
    """Mark rules: which packets get which mark.

    Example: lvsxdp mark list
    """


@service.command("list")
@choose_columns
@as_json
@pass_options
def service_list(options: Options, json: bool, stats: bool, rate: bool) -> None:
    """List services with their counters.

    Example: lvsxdp service list --rate
    """
    from lvsxdp import views

    columns = counters_or_rates(SERVICE_NAMES, stats, rate) or (
        *("service", "name", "scheduler", "persistence", "netmask", "backends"),
        *("connections", "packets", "bytes"),
    )
    with opened(options) as (balancer, _):
        print_rows(views.services(balancer), columns, json)


@service.command("show")
@click.argument("service_name", metavar="SERVICE")
@as_json
@pass_options
def service_show(options: Options, service_name: str, json: bool) -> None:
    """Show one service: its settings, its counters and its backends.

    Example: lvsxdp service show mark:1
    """
    from lvsxdp import show, views

    with opened(options) as (balancer, net):
        found, _ = service_named(balancer, service_name)
        row = views.service(balancer, found)
        row["backends"] = views.backends(balancer, net, found)
    if json:
        click.echo(show.as_json(row))
        return
    backends = row.pop("backends")
    for name, value in row.items():
        click.echo(f"{name}: {show.cell(value)}")
    click.echo()
    click.echo(show.as_table(backends, BACKEND_COLUMNS[1:]))


def service_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What can be said of a service."""
    options = (
        click.option("--name", callback=parsed("parse_name"), help="Another name of it."),
        click.option(
            "--scheduler",
            callback=parsed("parse_scheduler"),
            help="wlc (default), rr, wrr, lc, sed, nq, fo, ovf, sh, dh, mh, twos, lblc, lblcr.",
        ),
        click.option(
            "--flag",
            "flags",
            multiple=True,
            callback=parsed("parse_flag"),
            help="sh-port or sh-fallback of sh, mh-port or mh-fallback of mh.",
        ),
        click.option(
            "--persistence",
            "timeout",
            metavar="SECONDS",
            callback=parsed("parse_timeout_or_none"),
            help="How long a client keeps its backend; none: it does not.",
        ),
        click.option("--netmask", help="Clients that are one: 255.255.255.0, 24, 64."),
        click.option("--expiry", callback=parsed("parse_expiry"), help="ipvs or strict."),
        click.option(
            "--engine",
            callback=parsed("parse_engine_or_none"),
            help="sip: a client is one by its Call-ID, too; none: it is not.",
        ),
        click.option(
            "--one-packet/--no-one-packet", "-o", default=None, help="UDP packets one by one."
        ),
        click.option(
            "--sloppy-tcp/--no-sloppy-tcp", default=None, help="Not only a SYN opens connections."
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


@service.command("add")
@click.argument("service_name", metavar="SERVICE")
@service_options
@force_covering
@pass_options
def service_add(options: Options, /, service_name: str, force: bool, **edits: Any) -> None:
    """Add a service, by mark or by address; backends follow with `backend add`.

    Example: lvsxdp service add tcp:192.0.2.10:443 --scheduler wrr --persistence 600
    """
    from lvsxdp import changes, names

    fresh = changes.edit_service(
        Service(names.parse_service_key(service_name)), changes.Edits(**edits)
    )
    change(options, lambda config: changes.add_service(config, fresh), force=force)


@service.command("edit")
@click.argument("service_name", metavar="SERVICE")
@service_options
@pass_options
def service_edit(options: Options, /, service_name: str, **edits: Any) -> None:
    """Change what is named; entries and connections that there are keep what they have.

    Example: lvsxdp service edit mark:1 --persistence 900 --netmask 24
    """
    from lvsxdp import changes

    if not any(value not in (None, ()) for value in edits.values()):
        raise click.UsageError("name what to change: --scheduler, --persistence, ...")
    _edit(options, service_name, lambda s: changes.edit_service(s, changes.Edits(**edits)))


@service.command("delete")
@click.argument("service_name", metavar="SERVICE")
@click.option("--now", is_flag=True, help="Even if connections or clients are stranded.")
@pass_options
def service_delete(options: Options, service_name: str, now: bool) -> None:
    """Delete a service; refuses while open connections or persistent clients use it.

    Example: lvsxdp service delete tcp:192.0.2.10:443
    """
    from lvsxdp import changes, views

    with opened(options) as (balancer, net):
        found, _ = service_named(balancer, service_name)
        live, kept = views.stranded(balancer, found, found.backends)
        if (live or kept) and not now:
            raise ConflictError(
                f"service {found} has {live} open connections and {kept} persistent clients: "
                "drain its backends and wait, or --now"
            )
        put(balancer, net, changes.remove_service(balancer.state.config, found))


@service.command("zero")
@click.argument("service_name", metavar="[SERVICE]", required=False)
@pass_options
def service_zero(options: Options, service_name: str | None) -> None:
    """Set counters and rates to 0: a service's with its backends', or all and the total.

    Example: lvsxdp service zero mark:1
    """
    from lvsxdp import counting

    with opened(options) as (balancer, _):
        only = service_named(balancer, service_name)[0] if service_name is not None else None
        counting.zero(balancer, only)


@mark.command("list")
@as_json
@pass_options
def mark_list(options: Options, json: bool) -> None:
    """List mark rules in the order in which they are tried.

    Example: lvsxdp mark list
    """
    from lvsxdp import show

    columns = ("number", "mark", "protocols", "addresses", "ports", "sources", "interfaces")
    with opened(options) as (balancer, _):
        print_rows(show.mark_rows(balancer.state), columns, json)


def rule_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The conditions of a mark rule, each of which may be given several times."""
    kinds = (
        ("--protocol", "protocols", "parse_protocol", "tcp, udp or sctp; without: all."),
        ("--address", "addresses", "parse_network_or_any", "192.0.2.10, 192.0.2.0/24, any."),
        ("--port", "ports", "parse_ports_or_any", "80, 10000-20000, any."),
        ("--source", "sources", "parse_network", "Of clients in it."),
        ("--source-mac", "source_macs", "parse_mac", "From this sender on the link."),
        ("--interface", "interfaces", "parse_interface", "That come by it."),
        ("--vlan", "vlans", "parse_vlan", "In this VLAN."),
    )
    for flag, name, parser, text in reversed(kinds):
        option = click.option(flag, name, multiple=True, callback=parsed(parser), help=text)
        command = option(command)
    return command


@mark.command("add")
@click.argument("value", metavar="MARK", callback=parsed("parse_rule_mark"))
@rule_options
@click.option("--before", type=int, metavar="N", help="Tried before the rule of this number.")
@force_covering
@pass_options
def mark_add(
    options: Options, /, value: int, before: int | None, force: bool, **conditions: Any
) -> None:
    """Add a rule: packets that meet all that is given get MARK; the first rule that does wins.

    MARK 0 keeps packets from being balanced.

    Example: lvsxdp mark add 1 --protocol tcp --address 192.0.2.10 --port 80 --port 443
    """
    from lvsxdp import changes

    if not conditions["addresses"]:
        raise click.UsageError("a rule needs --address; --address any stands for every one")
    for flag, name in (("--address", "addresses"), ("--port", "ports")):
        if None in conditions[name] and len(conditions[name]) > 1:
            raise click.UsageError(f"{flag} any stands for every one; leave out the others")
        if None in conditions[name]:
            conditions[name] = ()
    rule = MarkRule(value, **{name: given for name, given in conditions.items() if given})
    change(options, lambda config: changes.add_rule(config, rule, before), force=force)


@mark.command("delete")
@click.argument("numbers", type=int, nargs=-1, required=True, metavar="N...")
@force_covering
@pass_options
def mark_delete(options: Options, numbers: tuple[int, ...], force: bool) -> None:
    """Delete the rules of these numbers, as `mark list` has them; those after them move up.

    Example: lvsxdp mark delete 3
    """
    from lvsxdp import changes

    change(options, lambda config: changes.remove_rules(config, numbers), force=force)


@backend.command("list")
@click.argument("service_name", metavar="[SERVICE]", required=False)
@choose_columns
@as_json
@pass_options
def backend_list(
    options: Options, service_name: str | None, json: bool, stats: bool, rate: bool
) -> None:
    """List the backends of a service, or of all.

    Example: lvsxdp backend list mark:1
    """
    from lvsxdp import views

    columns = counters_or_rates(BACKEND_NAMES, stats, rate) or BACKEND_COLUMNS
    with opened(options) as (balancer, net):
        only = service_named(balancer, service_name)[0] if service_name else None
        print_rows(views.backends(balancer, net, only), columns, json)


Edit = Callable[[Service], Service]


def _edit(options: Options, service_name: str, edit: Edit) -> None:
    """Applies a change of one service."""
    from lvsxdp import changes, names

    def edited(config: Config) -> Config:
        return changes.replace_service(config, edit(names.find_service(config, service_name)))

    change(options, edited)


@backend.command("add")
@click.argument("service_name", metavar="SERVICE")
@click.argument("name", metavar="BACKEND")
@backend_options.share_options
@pass_options
def backend_add(
    options: Options, /, service_name: str, name: str, **shares: int | str | None
) -> None:
    """Add a backend; it comes first in the list, as under IPVS.

    Example: lvsxdp backend add mark:1 10.0.0.14 --weight 2
    """
    from lvsxdp import changes, names

    address, port = names.parse_backend_name(name)
    fresh = backend_options.changed(Backend(address, port), backend_options.given(shares))

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
@backend_options.share_options
@pass_options
def backend_edit(
    options: Options, /, service_name: str, name: str, **shares: int | str | None
) -> None:
    """Change what is named; weight 0 quiesces: no new clients, persistent ones keep coming.

    Example: lvsxdp backend edit mark:1 10.0.0.11 --weight 3
    """
    given = backend_options.given(shares)
    if not given:
        raise click.UsageError(f"name what to change: {backend_options.NAMES}")
    _edit_backend(options, service_name, name, lambda b: backend_options.changed(b, given))


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

    with opened(options) as (balancer, net):
        found, _ = service_named(balancer, service_name)
        gone = names.find_backend(found, name)
        live, kept = views.stranded(balancer, found, [gone])
        if (live or kept) and not now:
            raise ConflictError(
                f"{gone} has {live} open connections and {kept} persistent clients of service "
                f"{found}: drain it and wait, or --now"
            )
        slimmer = changes.remove_backend(found, gone)
        put(balancer, net, changes.replace_service(balancer.state.config, slimmer))
