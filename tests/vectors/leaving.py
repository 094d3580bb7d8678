"""What the section `forwarding` compares: whole packets on their way to a server or a client."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Iterator
from typing import Any

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import GRE, Ether
from scapy.packet import Raw

from tests.datapath.harness import ip
from tests.vectors.lab import Lab
from tests.vectors.runs import Failed, Run, perform
from tests.vectors.services import VIPS, server_address
from tests.vectors.steps import Error, Leaves

CLIENT = "10.0.0.1"
OUTGOING = 4  # an AF_PACKET socket's word for what it sees leave


def request(given: Any) -> Any:
    """The client's packet as a case describes it."""
    is_whole = given.get("df", given.get("flags") == "DF")
    header = IP(src=given["src"], dst=given["dst"], ttl=given["ttl"], tos=given["tos"])
    header.id, header.flags = given["id"], "DF" if is_whole else 0
    if "udp_checksum" in given:
        return header / UDP(sport=1001, dport=80, chksum=given["udp_checksum"]) / Raw(b"x")
    return header / TCP(sport=1001, dport=80, flags="S", seq=1000) / bytes(given["ip_len"] - 40)


@contextlib.contextmanager
def narrow(lab: Lab, mtu: int | None) -> Iterator[None]:
    """The road to the server takes so many bytes."""
    if mtu is None:
        yield
        return
    address = server_address("A", "ipv4")
    name = lab.stage.name
    ip("route", "replace", address, "dev", "lb1", "mtu", "lock", str(mtu), namespace=name)
    try:
        yield
    finally:
        ip("route", "replace", address, "dev", "lb1", namespace=name)


@contextlib.contextmanager
def at_home(lab: Lab, act: Leaves) -> Iterator[None]:
    """The server's address is one of the balancer's, where the case says so."""
    if not act.is_local:
        yield
        return
    words = (f"{act.service.servers[0].address}/32", "dev", "lo")
    ip("addr", "add", *words, namespace=lab.stage.name)
    try:
        lab.balancer.follow_network(lab.datapath.net)
        yield
    finally:
        ip("addr", "del", *words, namespace=lab.stage.name)
        lab.balancer.follow_network(lab.datapath.net)


def sent_by_tc(lab: Lab, packet: Any) -> tuple[str, list[Any]]:
    """What TC does with a packet, and all the IP packets that leave for the servers or back."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as wire:
        wire.bind(("lb1p", 3))
        wire.setblocking(False)
        got = lab.datapath.send_tc(lab.datapath.to_host(packet))
        frames = []
        with contextlib.suppress(BlockingIOError):
            while True:
                data, (_, _, direction, *_) = wire.recvfrom(65536)
                if direction != OUTGOING and data[12:14] == b"\x08\x00":
                    frames.append(data)
    return got.action, [IP(each[14:]) for each in (*frames, got.frame)]


@perform.register
def _(act: Leaves, run: Run) -> None:
    with narrow(run.lab, act.mtu), at_home(run.lab, act):
        run.lab.datapath.confirm()
        packet = request(act.request)
        verdict = run.lab.datapath.deliver(packet)
        action, left = sent_by_tc(run.lab, packet)
    if "result" in act.expected:
        _compare_result(act, run, action, left)
        return
    if verdict.action != "redirect" or action != "redirect":
        raise Failed("a packet that leaves", f"{verdict.action} and {action}")
    for found in (IP(verdict.frame[14:]), *left):
        _compare(act, found)


def _same(what: str, expected: object, got: object) -> None:
    if expected != got:
        raise Failed(f"{what} {expected}", got)


def _compare(act: Leaves, found: Any) -> None:
    """A packet with the fields that a case names."""
    frag = int(found.flags) << 13 | found.frag
    fields = {
        **{"src": found.src, "dst": found.dst, "ttl": found.ttl, "tos": found.tos},
        **{"id": found.id, "frag": frag, "len": found.len, "proto": found.proto},
    }
    for name, value in act.expected.get("ip", {}).items():
        if value == "random":
            # 0 is one of 65,536 that may be drawn, too; what never is, is that of a packet with DF
            _same("DF", False, bool(found.flags.DF))
        else:
            _same(name, value, fields[name])
    if "inner_ttl" in act.expected:
        _same("inner_ttl", act.expected["inner_ttl"], found.payload.ttl)
        _same("inner_tos", act.expected["inner_tos"], found.payload.tos)
    if "udp" in act.expected:
        _compare_udp(act, found[UDP])
    if "gre" in act.expected:
        pattern = str(act.expected["gre"]).replace("x", "[0-9a-f]")
        if not re.match(pattern, bytes(found[GRE]).hex()):
            raise Failed(f"gre {act.expected['gre']}", bytes(found[GRE])[:8].hex())


def _compare_udp(act: Leaves, udp: Any) -> None:
    wanted = dict(act.expected["udp"])
    if wanted.pop("check", 0) == "non-zero":
        again = IP(bytes(udp.underlayer))
        del again[UDP].chksum
        _same("check", IP(bytes(again))[UDP].chksum, udp.chksum)
    else:
        _same("check", 0, udp.chksum)
    if wanted.pop("sport", None) and not 32768 <= udp.sport <= 60999:
        raise Failed("a source port of this host's range", udp.sport)
    for name, value in wanted.items():
        _same(name, value, getattr(udp, name))
    if "gue" in act.expected:
        _same("gue", act.expected["gue"], bytes(udp.payload)[:4].hex())


def _compare_result(act: Leaves, run: Run, action: str, left: list[Any]) -> None:
    """What becomes of a packet in words."""
    text = str(act.expected["result"])
    error = re.match(r"ICMP (\d+)/(\d+)(?: mtu (\d+))?", text)
    lengths = re.search(r"fragmented: (\d+) \+ (\d+) bytes", text)
    if error:
        (back,) = left
        _same("to", CLIENT, back.dst)
        _same("from", VIPS["ipv4"], back.src)
        found = (back[ICMP].type, back[ICMP].code)
        _same("ICMP", (int(error[1]), int(error[2])), found)
        if error[3]:
            _same("mtu", int(error[3]), back[ICMP].nexthopmtu)
        if "SYN_RECV" in text:
            rows = run.lab.datapath.connections()
            _same("states", ["SYN_RECV"], [row["state"] for row in rows])
    elif lengths:
        _same("lengths", [int(lengths[1]), int(lengths[2])], [each.len for each in left])
    elif "fragmented, DF not copied" in text:
        _same("DF", {False}, {bool(each.flags.DF) for each in left})
        if len(left) < 2:
            raise Failed("fragments", left)
    elif text.startswith("udp "):
        _same("payload", text.split()[1].rstrip(":"), bytes(left[-1].payload).hex())
    elif text.startswith("accepted locally"):
        _same("action", "pass", action)
        _same("reason", {"local_backend": 2}, run.lab.datapath.reasons())
    else:
        raise Failed("a result that is known here", text)


@perform.register
def _(act: Error, run: Run) -> None:
    lab, said = run.lab, act.said
    client = CLIENT, 2001
    opening = IP(src=CLIENT, dst=VIPS["ipv4"]) / TCP(sport=client[1], dport=80, flags="S")
    _same("opening", "redirect", lab.datapath.deliver(opening).action)
    quoted = IP(src=said["source"], dst=said["destination"], ttl=64, id=0x1234, flags="DF", len=40)
    ports = TCP(sport=int(said["sport"] or 0), dport=int(said["dport"] or 0), seq=1000)
    message = ICMP(type=int(said["type"] or 0), code=int(said["code"] or 0))
    if said["mtu"]:
        message.nexthopmtu = int(said["mtu"])
    body = message / Raw(bytes(quoted / ports)[:28])
    server = server_address("A", "ipv4")
    if said["who"] == "RS":
        mac = next(mac for mac, at in lab.stage.macs.items() if at == server)
        frame = Ether(src=mac, dst=lab.datapath.mac["lb1"]) / IP(src=server, dst=CLIENT) / body
        found = lab.datapath.send_tc(frame, "lb1")
    else:
        found = lab.datapath.deliver(IP(src=said["router"], dst=VIPS["ipv4"]) / body)
    _same("action", "redirect", found.action)
    packet = IP(found.frame[14:])
    for name in ("src", "dst"):
        if name in act.expected:
            _same(name, act.expected[name], getattr(packet, name))
    _same("payload", act.expected["payload"], bytes(packet.payload).hex())
