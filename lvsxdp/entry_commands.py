"""The commands for connections and persistence entries."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Any

import click

from lvsxdp.command import (
    Group,
    Options,
    as_json,
    opened,
    parsed,
    pass_options,
    print_entries,
    service_named,
)
from lvsxdp.errors import ConflictError, NotFoundError
from lvsxdp.model import Network, Service


@click.group(cls=Group)
def persistence() -> None:
    """Persistence entries: which client keeps which backend.

    Example: lvsxdp persistence list
    """


@click.group(cls=Group)
def connection() -> None:
    """Connections: which flow goes to which backend.

    Example: lvsxdp connection list
    """


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
            callback=parsed("parse_network"),
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

    with opened(options) as (balancer, _):
        wanted = views.wanted_entries(balancer, service_name, client, backend_name)
        print_entries(views.connections(balancer, wanted), entries.CONNECTION, json)


@connection.command("delete")
@entry_filters
@pass_options
def connection_delete(
    options: Options, service_name: str | None, client: Network | None, backend_name: str | None
) -> None:
    """Delete the connections to which every option given applies; persistence entries stay.

    A packet of a TCP connection that is deleted opens nothing and goes up to this host.

    Example: lvsxdp connection delete --service mark:1 --client 198.51.100.7
    """
    from lvsxdp import views

    if service_name is None and client is None and backend_name is None:
        raise click.UsageError("name what to delete: --service, --client, --backend; all: flush")
    with opened(options) as (balancer, _):
        wanted = views.wanted_entries(balancer, service_name, client, backend_name)
        gone = balancer.reap(views.places(balancer, views.CONNECTIONS, wanted), force=True)
    if not gone:
        raise NotFoundError("there is no such connection (connection list)")
    click.echo(f"{gone} connections deleted")


@connection.command("flush")
@click.argument("service_name", metavar="[SERVICE]", required=False)
@pass_options
def connection_flush(options: Options, service_name: str | None) -> None:
    """Delete all connections, of one service or of all; persistence entries stay.

    Example: lvsxdp connection flush mark:1
    """
    from lvsxdp import views

    click.echo(f"{_flush(options, service_name, views.CONNECTIONS)} connections deleted")


def _flush(options: Options, service_name: str | None, tables: tuple[str, ...]) -> int:
    """Removes the entries of one service, or of all, from these tables; how many."""
    from lvsxdp import views
    from lvsxdp.entries import Wanted

    with opened(options) as (balancer, _):
        identity = service_named(balancer, service_name)[1] if service_name else None
        places = views.places(balancer, tables, Wanted(service=identity))
        return int(balancer.reap(places, force=True))


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

    with opened(options) as (balancer, _):
        wanted = views.wanted_entries(balancer, service_name, client, backend_name)
        print_entries(views.persistence(balancer, wanted), entries.PERSISTENCE, json)


@persistence.command("pin")
@click.argument("service_name", metavar="SERVICE")
@click.argument("client")
@click.argument("backend_name", metavar="BACKEND")
@click.option(
    "--timeout",
    metavar="SECONDS",
    callback=parsed("parse_timeout"),
    help="How long, and again from each new connection on; without: the service's time.",
)
@pass_options
def persistence_pin(
    options: Options, service_name: str, client: str, backend_name: str, timeout: int | None
) -> None:
    """Have a client's new connections go to BACKEND from now on, whatever its entry said.

    Under a netmask that is its whole network. Connections that there are keep their backend.

    Example: lvsxdp persistence pin mark:1 198.51.100.7 10.0.0.12 --timeout 3600
    """
    from lvsxdp import names, pinning

    with opened(options) as (balancer, _):
        found, _ = service_named(balancer, service_name)
        if found.persistence and found.persistence.engine:
            raise ConflictError(
                f"service {found} has the persistence engine {found.persistence.engine}: "
                "its entries are for calls, and no call can be pinned"
            )
        chosen = names.find_backend(found, backend_name)
        masked = _masked(found, client)
        pinning.pin(balancer, found, masked.network_address, chosen, timeout)


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

    with opened(options) as (balancer, _):
        found, identity = service_named(balancer, service_name)
        wanted = Wanted(service=identity, client=_masked(found, client))
        if not balancer.reap(views.places(balancer, views.PERSISTENCE, wanted), force=True):
            raise NotFoundError(f"service {found} has no persistence entry for {client}")


def _masked(found: Service, client: str) -> Network:
    """The client's address under the service's netmask, as a key holds it: one address."""
    from lvsxdp import scalars
    from lvsxdp.errors import ConfigError

    text, slash, written = client.partition("/")
    address = scalars.parse_address(text)
    if found.persistence is None:
        raise ConflictError(f"service {found} is not persistent")
    mask = found.persistence.netmask
    if mask.version != address.version:
        raise ConfigError(f'"{client}" is not a client of service {found}, which is {found.family}')
    if slash and scalars.parse_netmask(written, found.family) != mask:
        raise ConfigError(
            f'"{client}": the netmask of service {found} is {mask}; leave /{written} out'
        )
    return ipaddress.ip_network(type(address)(int(address) & int(mask)))


@persistence.command("flush")
@click.argument("service_name", metavar="[SERVICE]", required=False)
@pass_options
def persistence_flush(options: Options, service_name: str | None) -> None:
    """Delete all entries, of one service or of all; connections run on.

    Example: lvsxdp persistence flush mark:1
    """
    from lvsxdp import views

    click.echo(f"{_flush(options, service_name, views.PERSISTENCE)} entries deleted")
