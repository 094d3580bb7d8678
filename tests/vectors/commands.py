"""ipvsadm's commands as timelines write them, and what they do to services."""

from __future__ import annotations

import dataclasses
import ipaddress
import re
import shlex

from tests.vectors.services import FLAGS, PORTS, SCHEDULERS, Server, Service, server_address
from tests.vectors.words import end

VERBS = {
    **{"-A": "add-service", "-E": "edit-service", "-D": "delete-service", "-C": "clear"},
    **{"-a": "add-server", "-e": "edit-server", "-d": "delete-server", "-L": "list", "-l": "list"},
}
LONG = {f"--{verb}": verb for verb in VERBS.values()} | {"--set": "set"}
# every option's short name, and whether a value follows
OPTIONS = {
    **{"-t": True, "-u": True, "--sctp-service": True, "-f": True, "-6": False, "-s": True},
    **{"-p": True, "-M": True, "-o": False, "-b": True, "-r": True, "-g": False, "-i": False},
    **{"-m": False, "-w": True, "-x": True, "-y": True, "-n": False, "-c": False},
    **{"--stats": False, "--thresholds": False, "--persistent-conn": False, "--exact": False},
    **{"--rate": False},
}
ALIASES = {
    **{"--tcp-service": "-t", "--udp-service": "-u", "--fwmark-service": "-f", "--ipv6": "-6"},
    **{"--scheduler": "-s", "--persistent": "-p", "--netmask": "-M", "--ops": "-o"},
    **{"--sched-flags": "-b", "--real-server": "-r", "--gatewaying": "-g", "--ipip": "-i"},
    **{"--masquerading": "-m", "--weight": "-w", "--u-threshold": "-x", "--l-threshold": "-y"},
    **{"--numeric": "-n", "--connection": "-c"},
}


@dataclasses.dataclass(frozen=True)
class Command:
    """A verb with its options; without a service, the case's own is meant."""

    verb: str
    options: tuple[tuple[str, str], ...]
    text: str

    def get(self, name: str) -> str | None:
        """An option's value, None where it is not given."""
        return dict(self.options).get(name)


def command(text: str) -> Command:
    """The command of a line; ValueError where it is not understood."""
    words = shlex.split(text)
    words = _split(words[1:] if words[:1] == ["ipvsadm"] else words)
    verbs, options = [], list[tuple[str, str]]()
    rest = [word for word in words if word != "..."]
    while rest:
        word = ALIASES.get(rest[0], rest[0])
        rest = rest[1:]
        if found := VERBS.get(word) or LONG.get(word):
            verbs.append(found)
            if found == "set":
                options, rest = [("set", _three(rest))], []
            continue
        if word not in OPTIONS:
            raise ValueError(f"{word!r} in {text!r} is no option that is known here")
        value = _value(word, rest)
        rest = rest[1:] if value is not None else rest
        options.append((word, value or ""))
    if len(verbs) != 1:
        raise ValueError(f"{text!r} is not one command of ipvsadm")
    return Command(verbs[0], tuple(options), text)


def _three(numbers: list[str]) -> str:
    if len(numbers) != 3 or not all(number.isdigit() for number in numbers):
        raise ValueError("--set option requires 3 timeout values")
    return " ".join(numbers)


def _split(words: list[str]) -> list[str]:
    """Short options written together, `-Ln`, one by one."""
    found: list[str] = []
    for word in words:
        together = re.fullmatch(r"-[A-Za-z0-9]{2,}", word)
        parts = [f"-{letter}" for letter in word[1:]]
        if together and all(part in VERBS or OPTIONS.get(part) is False for part in parts):
            found += parts
        elif together and OPTIONS.get(parts[0]):
            found += [parts[0], word[2:]]
        else:
            found.append(word)
    return found


def _value(option: str, rest: list[str]) -> str | None:
    if not OPTIONS[option]:
        return None
    given = bool(rest) and not re.match(r"-\D", rest[0])
    if not given and option != "-p":
        raise ValueError(f"{option} needs a value")
    return rest[0] if given else None


def settings(command: Command) -> dict[str, int]:
    """What `--set TCP TCPFIN UDP` sets."""
    numbers = (command.get("set") or "").split()
    names = ("timeout_tcp", "timeout_tcpfin", "timeout_udp")
    return {name: int(n) for name, n in zip(names, numbers, strict=True) if int(n)}


# ---------------------------------------------------------------------------------------- carrying


class Refused(Exception):
    """ipvsadm itself would refuse the command."""


def carried_out(command: Command, services: tuple[Service, ...]) -> tuple[Service, ...]:
    """The services after the command; Refused where there is nothing to carry it out on."""
    if command.verb == "clear":
        return ()
    if command.verb == "add-service":
        return _added(command, services)
    target = _target(command, services)
    if command.verb == "delete-service":
        return tuple(each for each in services if each != target)
    change = _options if command.verb == "edit-service" else _servers
    after = change(command, target)
    return tuple(after if each == target else each for each in services)


def _added(command: Command, services: tuple[Service, ...]) -> tuple[Service, ...]:
    made = _options(command, _named(command))
    if any(each.key == made.key for each in services):
        raise Refused("Service already exists")
    return (*services, made)


def _named(command: Command) -> Service:
    """The service that the options name, with nothing else."""
    family = "ipv6" if command.get("-6") is not None else "ipv4"
    if (mark := command.get("-f")) is not None:
        address = "2001:db8:ff::100" if family == "ipv6" else "172.16.0.100"
        return Service(mark=_whole(mark), address=address)
    for option, protocol in (("-t", "tcp"), ("-u", "udp"), ("--sctp-service", "sctp")):
        if (text := command.get(option)) is not None:
            found = end(text)
            port = PORTS[protocol] if found.port is None else found.port
            return Service(protocol, found.address or Service.address, port)
    raise Refused("You need to supply the 'service-address' option")


def _target(command: Command, services: tuple[Service, ...]) -> Service:
    """The service that the command is about; `...` is the only one, or the one with the server."""
    options = dict(command.options)
    if not {"-t", "-u", "-f", "--sctp-service"} & options.keys():
        having = [s for s in services if any(x.name == command.get("-r") for x in s.servers)]
        found = having if len(services) > 1 else list(services)
        if len(found) != 1:
            raise ValueError(f"{command.text!r} does not say which service")
        return found[0]
    key = _named(command).key
    for each in services:
        if each.key == key:
            return each
    raise Refused("No such service")


def _options(command: Command, service: Service) -> Service:
    """The service with the command's options: what it does not name is reset."""
    persistent, mask = command.get("-p"), command.get("-M")
    flags = tuple((command.get("-b") or "").split(",")) if command.get("-b") else ()
    if unknown := set(flags) - FLAGS:
        raise ValueError(f"{', '.join(sorted(unknown))}: no flag that is known here")
    if (scheduler := command.get("-s") or "wlc") not in SCHEDULERS:
        raise Refused("Scheduler or persistence engine not found")
    return dataclasses.replace(
        service,
        scheduler=scheduler,
        flags=flags,
        persistent=None if persistent is None else _whole(persistent or "360"),
        netmask=None if mask is None else _netmask(mask, service.family),
        one_packet=command.get("-o") is not None,
    )


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise ValueError(f"{text!r} is no whole number")
    return int(text)


def _netmask(text: str, family: str) -> str | int:
    """IPv6's is a length; IPv4's an address, and so is a bare number."""
    if family == "ipv6":
        return _whole(text)
    return str(ipaddress.IPv4Address(int(text) if text.isdigit() else text))


def _servers(command: Command, service: Service) -> Service:
    """The service after a server of it was added, edited or deleted."""
    name = command.get("-r")
    if not name:
        raise Refused("You need to supply the 'real-server' option")
    wanted = _server(command, name, service)
    present = any(each.address == wanted.address for each in service.servers)
    if present and command.verb == "add-server":
        raise Refused("Destination already exists")
    if not present and command.verb != "add-server":
        raise Refused("No such destination")
    others = tuple(each for each in service.servers if each.address != wanted.address)
    if command.verb == "add-server":
        others = (*others, wanted)
    elif command.verb == "edit-server":
        edit = {
            each.address: wanted if each.address == wanted.address else each
            for each in service.servers
        }
        others = tuple(edit.values())
    return dataclasses.replace(service, servers=others)


def _server(command: Command, text: str, service: Service) -> Server:
    """The server that the options describe, ipvsadm's defaults for what they do not name."""
    numbers = [_whole(command.get(option) or default) for option, default in _NUMBERS]
    name, _, port = text.partition(":")
    known = {each.name: each for each in service.servers}
    if name == "RS":
        name = "A"
    if name in known:
        address = known[name].address
    elif re.fullmatch("[A-Z]", name):
        address = server_address(name, service.family)
    else:
        found = end(text)
        if found.address is None:
            raise ValueError(f"{text!r} is no server")
        address, port = found.address, str(found.port or "")
        name = {each.address: each.name for each in service.servers}.get(address, address)
    return Server(name, address, int(port) if port else None, *numbers)


_NUMBERS = (("-w", "1"), ("-x", "0"), ("-y", "0"))
