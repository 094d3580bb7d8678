"""What is compiled in when it is first used: nothing is lost, and nothing half done is left."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lab import layout
from lab.topology import PYTHON, Lab, Spawned
from tests.e2e.conftest import Balancer, ask, hold, wait_for
from tests.e2e.pair import FILES, PINS, PROGRAM, Pair, config, foreign, pair, run

ROOT = Path(__file__).resolve().parents[2]
PORT = 5001
IPV4 = """
marks:
  - {mark: 1, protocol: tcp, address: 192.0.2.10, port: 80}
  - {mark: 1, protocol: udp, address: 192.0.2.10, port: 5001}
services:
  - name: shop
    mark: 1
    scheduler: rr
    persistence: {timeout: 600}
    backends: [{address: 10.0.0.11}, {address: 10.0.0.12}, {address: 10.0.0.13}]
"""
SIX = """  - name: six
    protocol: tcp
    address: "2001:db8::10"
    port: 80
    backends: [{address: "2001:db8:0:2::12"}]
"""
LOCAL = """  - name: local
    protocol: tcp
    address: 192.0.2.10
    port: 8080
    scheduler: lblc
    backends: [{address: 10.0.0.12}]
"""
RULE = "  - {mark: 1, protocol: tcp, address: 192.0.2.0/24, port: 8080}\n"

# Sends numbers until it is told to stop, each fourth on a flow of its own; prints how many.
SENDER = """
import signal, socket, sys, time
going = [True]
signal.signal(signal.SIGTERM, lambda *_: going.clear())
def udp():
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.bind((sys.argv[1], 0))
    return made
kept, sent = udp(), 0
while going:
    used = udp() if sent % 4 == 3 else kept
    used.sendto(str(sent).encode(), (sys.argv[2], int(sys.argv[3])))
    if used is not kept:
        used.close()
    sent += 1
    time.sleep(0.002)
print(sent)
"""
# Takes numbers until it is told to stop; prints those that it got.
TAKER = """
import json, signal, socket, sys
taken = []
def end(*_):
    print(json.dumps(taken), flush=True)
    sys.exit()
signal.signal(signal.SIGTERM, end)
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
SO_RCVBUFFORCE = 33
udp.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 24)
udp.bind((sys.argv[1], int(sys.argv[2])))
print("ready", flush=True)
while True:
    taken.append(int(udp.recv(100)))
"""


@dataclass(frozen=True)
class Stream:
    """Numbered packets on their way from a client through the balancer to the backends."""

    sender: Spawned
    takers: list[Spawned]

    def lost(self) -> set[int]:
        """End it; the numbers that were sent and that no backend got."""
        self.sender.stop()
        sent = int(self.sender.output())
        assert sent > 100

        def taken() -> set[int]:
            lines = [taker.output().splitlines()[-1] for taker in self.takers]
            return {number for line in lines for number in json.loads(line)}

        # what is on its way arrives
        run("sleep", "0.5")
        for taker in self.takers:
            taker.stop()
        return set(range(sent)) - taken()


def stream(lab: Lab) -> Stream:
    """A stream that is flowing."""
    argv = [PYTHON, "-c", TAKER, layout.VIP4, str(PORT)]
    takers = [lab.spawn(ns, argv) for ns in layout.BACKENDS]
    wait_for(lambda: all(taker.output() == "ready\n" for taker in takers))
    argv = [PYTHON, "-c", SENDER, "198.51.100.77", layout.VIP4, str(PORT)]
    return Stream(lab.spawn("c1", argv), takers)


@pytest.fixture(params=["native", "tc"])
def lb(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Balancer]:
    """The balancer with IPv4 and rules found by hash alone."""
    made = Balancer(lab)
    try:
        made.attach(IPV4, request.param, "lb0")
        yield made
    finally:
        made.command("detach", "--all")


def compiled_in(lb: Balancer) -> list[str]:
    found: list[str] = lb.rows("status")["features"]
    return found


def programs(lb: Balancer) -> list[tuple[int, bool]]:
    return [(i["program_id"], i["attached"]) for i in lb.rows("status")["interfaces"]]


def connections(lb: Balancer, client: str) -> dict[str, str]:
    """Which backend each TCP flow of a client goes to."""
    rows = lb.rows("connection", "list")
    return {
        row["client"]: row["backend"]
        for row in rows
        if row["client"].startswith(client) and row["protocol"] == "tcp"
    }


@pytest.mark.parametrize(
    ("feature", "text"),
    {
        "ipv6": IPV4 + SIX,
        "rules": IPV4.replace("services:", RULE + "services:"),
        "locality": IPV4 + LOCAL,
    }.items(),
)
def test_a_feature_is_compiled_in_with_no_entry_and_no_packet_lost(
    lab: Lab, lb: Balancer, feature: str, text: str
) -> None:
    held = hold(lab, "c1", layout.VIP4, "198.51.100.10")
    flowing = stream(lab)
    wait_for(lambda: lb.entry("shop", "198.51.100.77"))
    kept = [lb.entry("shop", client)["backend"] for client in ("198.51.100.10", "198.51.100.77")]
    flows, before = connections(lb, "198.51.100.10"), programs(lb)
    done = lb.command("apply", lb.file(text))
    assert done.returncode == 0, done.stderr
    assert re.search(rf"^compiled in {feature} \(\d+\.\d s\)$", done.stderr, re.MULTILINE)
    assert flowing.lost() == set()
    answer = held.answers()[0]
    assert held.next_answer() == answer
    held.end()
    assert flows
    assert flows.items() <= connections(lb, "198.51.100.10").items()
    now = [lb.entry("shop", client)["backend"] for client in ("198.51.100.10", "198.51.100.77")]
    assert now == kept
    assert compiled_in(lb) == sorted({"ipv4", feature})
    assert all(attached for _, attached in programs(lb))
    assert not set(programs(lb)) & set(before)
    if feature == "ipv6":
        assert ask(lab, "c1", layout.VIP6) == "b2"
    elif feature == "locality":
        answered = lab.run("c1", ["curl", "-sS", f"http://{layout.VIP4}:8080/"], check=True)
        assert answered.stdout.strip() == "b2"
    else:
        answered = lab.run("c1", ["curl", "-sS", f"http://{layout.VIP4}:8080/"], check=True)
        assert answered.stdout.strip() == answer


def test_a_packet_of_a_family_that_is_compiled_out_goes_up(lab: Lab, lb: Balancer) -> None:
    before = lb.reason("no_service")
    refused = lab.run("c1", ["curl", "-sS", f"http://[{layout.VIP6}]/"])
    assert refused.returncode == 7
    assert lb.reason("no_service") > before


def test_other_edits_compile_nothing_nor_does_a_narrower_configuration(lb: Balancer) -> None:
    before = programs(lb)
    for words in (
        ("backend", "delete", "shop", "10.0.0.13", "--now"),
        ("backend", "add", "shop", "10.0.0.13"),
        ("backend", "edit", "shop", "10.0.0.13", "--weight", "2"),
        ("apply", lb.file(IPV4.replace("port: 80}", "ports: [80, 81]}"))),
    ):
        assert "compiled" not in lb.command(*words).stderr
    assert programs(lb) == before
    lb.lvsxdp("apply", lb.file(IPV4 + SIX))
    wider = programs(lb)
    assert wider != before
    for text in (IPV4, IPV4 + SIX):
        assert "compiled" not in lb.command("apply", lb.file(text)).stderr
    assert programs(lb) == wider
    assert compiled_in(lb) == ["ipv4", "ipv6"]


def test_a_dry_run_says_what_would_be_compiled_in_and_does_not(lb: Balancer) -> None:
    before = programs(lb)
    said = lb.lvsxdp("apply", "--dry-run", lb.file(IPV4 + SIX))
    assert "features: ipv6 to be compiled in" in said
    assert programs(lb) == before


def test_with_all_features_nothing_is_ever_compiled_in(lab: Lab) -> None:
    lb = Balancer(lab)
    try:
        lb.attach(IPV4 + "features: all\n", "native", "lb0")
        assert compiled_in(lb) == [
            "ftp",
            "fullnat",
            "ipsec",
            "ipv4",
            "ipv6",
            "locality",
            "nat",
            "rules",
            "sctp",
            "sip",
            "tunnel",
        ]
        assert "features: all" in lb.lvsxdp("save")
        assert "compiled" not in lb.command("apply", lb.file(IPV4 + SIX)).stderr
    finally:
        lb.command("detach", "--all")


# ---- what fails leaves everything as it was ----

SMALL = """
services:
- {name: shop, mark: 7, backends: [{address: 192.0.2.2}]}
marks:
- {mark: 7, protocol: udp, address: 192.0.2.1, port: 7777}
"""
RANGE = SMALL.replace("port: 7777", "ports: 7777-7778")
BOTH = SMALL.replace("marks:", "- {name: six, mark: 7, family: ipv6}\nmarks:")
# Attaches, or applies a file: `attach NS FOLDER IFACE...` or `apply NS FOLDER FAILING`.
STEP = """
import sys
from pathlib import Path
from lvsxdp import attaching, changes, config, controller, loading, network
from lvsxdp.controller import Balancer
from lvsxdp.errors import DatapathError, LvsxdpError

class Failing(network.Network):
    def replace_xdp(self, link, mode, descriptor, expected):
        if link.name == more[0]:
            raise DatapathError(f"{link.name} is not to be had")
        super().replace_xdp(link, mode, descriptor, expected)

verb, ns, folder, *more = sys.argv[1:]
network.leave_private_mounts()
network.enter_namespace(ns)
build = loading.Build(folder=Path(folder))
wanted = config.load(sys.stdin.read())[0]
with Failing() as net:
    try:
        if verb == "attach":
            attaching.attach(controller.here(), net, tuple(more), wanted, "auto", build=build)
        else:
            with Balancer.open(controller.here(), print, build) as balancer:
                balancer.apply(changes.follow(balancer.state.config, wanted), net)
    except LvsxdpError as err:
        print(type(err).__name__, err)
    except OSError as err:
        print("OSError", err)
"""


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """The C sources, which do not compile with rules, and do not load with IPv6."""
    folder = tmp_path / "bpf"
    shutil.copytree(ROOT / "bpf", folder)
    source = folder / "lvsxdp.c"
    text = source.read_text()
    at = text.index("\treturn entry_packet(ctx);")
    wild = "\tif (FEATURE_IPV6)\n\t\t*(volatile int *)8 = 1;\n"
    error = '\n#if FEATURE_RULES && defined(HOOK_TC)\n#error "no rules here"\n#endif\n'
    source.write_text(text[:at] + wild + text[at:] + error)
    return folder


@pytest.fixture
def two() -> Iterator[Pair]:
    """A pair with a second interface `q0`."""
    with pair() as made:
        made.inside("ip", "link", "add", "q0", "type", "veth", "peer", "q1")
        made.inside("ip", "link", "set", "q0", "up")
        yield made


def step(lb: Pair, verb: str, folder: Path, *more: str, text: str) -> str:
    argv = [PROGRAM.parent / "python", "-c", STEP, verb, lb.ns, folder, *more]
    return run(*argv, stdin=text, timeout=120).stdout


def everything(lb: Pair) -> dict[str, object]:
    """All that a failed command must leave: links, filters, pins, files, configuration."""
    status = lb.read("status")
    # what the peer sends by itself is counted, too; other namespaces come and go
    del status["reasons"], status["stale"]
    return {"status": status, "save": lb.lvsxdp("save").stdout, **lb.picture()}


def serves(lb: Pair) -> None:
    """A new client gets through all of the programs."""
    lb.send(7777)
    wait_for(lambda: [row["service"] for row in lb.read("connection", "list")] == ["shop"])


def test_what_does_not_compile_or_load_leaves_everything_as_it_was(
    two: Pair, sources: Path
) -> None:
    assert step(two, "attach", sources, "p0", text=SMALL) == ""
    before = everything(two)
    said = step(two, "apply", sources, "", text=RANGE)
    assert said.startswith("DatapathError compiling bpf/lvsxdp.c failed:")
    assert "no rules here" in said
    assert everything(two) == before
    said = step(two, "apply", sources, "", text=BOTH)
    assert said.startswith("DatapathError loading program entry failed")
    assert everything(two) == before
    said = step(two, "apply", ROOT / "bpf", "", text=BOTH)
    assert said.startswith("ConflictError features are compiled in from the C sources that were")
    assert everything(two) == before
    serves(two)


def test_a_swap_that_fails_halfway_is_undone(two: Pair) -> None:
    folder = ROOT / "bpf"
    assert step(two, "attach", folder, "p0", "q0", text=SMALL) == ""
    before = everything(two)
    assert step(two, "apply", folder, "q0", text=BOTH) == "DatapathError q0 is not to be had\n"
    assert everything(two) == before
    # a folder where the new record is to be written
    blocked = FILES / two.cookie() / "next.new"
    blocked.mkdir()
    assert step(two, "apply", folder, "", text=BOTH).startswith("OSError")
    blocked.rmdir()
    assert everything(two) == before
    assert not Path(f"{PINS / two.cookie()}_new").exists()
    serves(two)
    assert step(two, "apply", folder, "", text=BOTH).startswith("compiled in ipv6")
    assert [i["attached"] for i in two.read("status")["interfaces"]] == [True, True]
    two.lvsxdp("detach", "--all")
    assert "xdp" not in two.picture()["links"]


def test_what_cannot_be_applied_is_not_compiled_for(two: Pair, tmp_path: Path) -> None:
    two.lvsxdp("attach", "p0", "-c", config(SMALL, tmp_path))
    before = everything(two)
    text = SMALL.replace("udp,", "udp, interface: nope0,")
    code, said = two.refused("apply", config(text, tmp_path))
    assert (code, "compiled" in said) == (2, False)
    assert everything(two) == before


def test_a_program_that_took_our_place_stays_when_a_feature_is_compiled_in(
    two: Pair, tmp_path: Path
) -> None:
    two.lvsxdp("attach", "p0", "q0", "-c", config(SMALL, tmp_path))
    two.inside("ip", "link", "set", "dev", "p0", "xdp", "off")
    theirs = foreign(two)
    done = two.lvsxdp("apply", config(BOTH, tmp_path))
    assert "compiled in ipv6" in done.stderr
    assert "not attached again: p0 has an XDP program already: lvsxdp_other" in done.stderr
    assert [i["attached"] for i in two.read("status")["interfaces"]] == [False, True]
    assert f"id {theirs} " in two.inside("ip", "-d", "link", "show", "dev", "p0").stdout
