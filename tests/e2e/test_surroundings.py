"""At home on a real host: who listens there, what its firewall expects, what its drivers refuse."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.conftest import wait_for
from tests.e2e.pair import HERE, PROGRAM, Pair, config, pair, run

SSH = (
    "mount -t tmpfs run /run && mkdir /run/sshd && "
    'exec /usr/sbin/sshd -D -e -f /dev/null -h "$0" -o ListenAddress=0.0.0.0'
)
# no process answers there: where packets to port 22 go to it, nobody gets a banner
BACKENDS = "backends: [{address: 192.0.2.2}]"
COVERING = f"""
marks: [{{mark: 1, address: any, ports: 20-30}}]
services: [{{name: shop, mark: 1, {BACKENDS}}}]
"""
EXEMPTING = COVERING.replace("[{mark: 1, a", "[{mark: 0, port: 22, address: any}, {mark: 1, a")
# an address that nft and iptables rules name, a port at which nobody listens
HARMLESS = f"""
services: [{{name: dns, protocol: udp, address: {HERE}, port: 22, {BACKENDS}}}]
"""


@dataclass(frozen=True)
class Host:
    """A balancer on which sshd listens, on port 22 of every address."""

    lb: Pair
    sshd: str


@contextlib.contextmanager
def listening(folder: Path) -> Iterator[Host]:
    key = folder / "key"
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key)
    with pair() as lb:
        argv = ["ip", "netns", "exec", lb.ns, "sh", "-c", SSH, str(key)]
        sshd = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
        try:
            wait_for(lambda: banner(lb))
            yield Host(lb, f"sshd (process {sshd.pid})")
        finally:
            sshd.kill()
            sshd.wait()


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[Host]:
    with listening(tmp_path) as host:
        yield host


@pytest.fixture(scope="module")
def attached(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    folder = tmp_path_factory.mktemp("host")
    with listening(folder) as host:
        host.lb.lvsxdp("attach", "p0", "-c", config(HARMLESS, folder), "--set-sysctl")
        yield host


@pytest.fixture
def host(attached: Host, tmp_path: Path) -> Host:
    """The host with the configuration that every test begins with: it covers nothing."""
    attached.lb.lvsxdp("apply", config(HARMLESS, tmp_path))
    return attached


def banner(lb: Pair) -> str:
    """What the peer reads first from port 22; nothing where nobody answers."""
    code = (
        "import socket\n"
        f"try: print(socket.create_connection(('{HERE}', 22), 0.5).recv(99).decode())\n"
        "except OSError: pass"
    )
    return run("ip", "netns", "exec", lb.peer, "/usr/bin/python3", "-c", code).stdout


# ---- who listens there ----


def test_an_attach_that_covers_sshd_is_refused_by_its_name_unless_forced(
    bare: Host, tmp_path: Path
) -> None:
    before, file = bare.lb.picture(), config(COVERING, tmp_path)
    code, said = bare.lb.refused("attach", "p0", "-c", file)
    assert said.endswith(
        f"lvsxdp: marks[0]: takes tcp {HERE}:22, where {bare.sshd} listens (0.0.0.0:22)\n"
        f"put {{mark: 0, protocol: tcp, address: {HERE}, port: 22}} first among the mark rules, "
        "let it listen elsewhere, or --force\n"
    )
    assert (code, bare.lb.picture()) == (4, before)
    bare.lb.lvsxdp("attach", "p0", "-c", file, "--force", "--set-sysctl")
    assert banner(bare.lb) == ""
    # a listener that is covered already is no news
    bare.lb.lvsxdp("service", "add", f"tcp:{HERE}:22")


def test_a_rule_before_leaves_ssh_alone_and_may_not_go(host: Host, tmp_path: Path) -> None:
    host.lb.lvsxdp("apply", config(EXEMPTING, tmp_path))
    code, said = host.lb.refused("mark", "delete", 1)
    assert (code, f"where {host.sshd} listens" in said) == (4, True)
    assert banner(host.lb).startswith("SSH-2.0")


def test_what_runs_stays_where_an_edit_or_a_file_covers_sshd(host: Host, tmp_path: Path) -> None:
    host.lb.lvsxdp("service", "add", "mark:9")
    before = host.lb.lvsxdp("save").stdout
    file = config(COVERING, tmp_path, "covering.yaml")
    refused = f"takes tcp {HERE}:22, where {host.sshd} listens"
    for words in (
        ("service", "add", f"tcp:{HERE}:22"),
        ("apply", file),
        ("apply", file, "--dry-run"),
    ):
        code, said = host.lb.refused(*words)
        assert (code, refused in said) == (4, True), words
    # where no file holds the rule it goes by its number
    code, said = host.lb.refused("mark", "add", 9, "--address", HERE, "--port", 22)
    assert f"mark rule 1: {refused}" in said
    assert host.lb.lvsxdp("save").stdout == before
    host.lb.lvsxdp("mark", "add", 9, "--address", "192.0.2.0/24", "--force")
    host.lb.lvsxdp("apply", file)


def test_a_daemon_does_not_reload_a_file_that_covers_sshd(host: Host, tmp_path: Path) -> None:
    file, log = config(COVERING, tmp_path), tmp_path / "log"
    argv = [str(PROGRAM), "--netns", host.lb.ns, "run", "-c", str(file)]
    with log.open("w") as told, subprocess.Popen(argv, stderr=told) as daemon:
        try:
            wait_for(lambda: "event=started" in log.read_text())
            daemon.send_signal(signal.SIGHUP)
            wait_for(lambda: "event=not_reloaded" in log.read_text())
        finally:
            daemon.terminate()
    assert f"where {host.sshd} listens" in log.read_text()
    assert [row["name"] for row in host.lb.read("service", "list")] == ["dns"]


# ---- what the firewall expects ----

NFT = f"""
table inet filter {{
  set shops {{ type ipv4_addr; elements = {{ {HERE} }}; }}
  chain input {{
    type filter hook input priority 0;
    ip daddr @shops tcp dport 81 drop
    ip daddr 192.0.2.9 drop
    tcp dport 81 meta mark set 5
  }}
}}
"""
SHOPS = f"""
marks: [{{mark: 5, protocol: tcp, address: {HERE}, port: 81}}]
services: [{{name: shop, mark: 5, {BACKENDS}}}]
"""


def warned(said: str) -> list[str]:
    return [line for line in said.splitlines() if line.startswith("warning: ")]


def test_rules_of_nft_that_expect_what_is_balanced_are_told(host: Host, tmp_path: Path) -> None:
    host.lb.inside("nft", "-f", "-", stdin=NFT)
    try:
        listed = host.lb.inside("nft", "-a", "list", "ruleset").stdout
        by_hand = warned(host.lb.lvsxdp("service", "add", "tcp:192.0.2.9:81").stderr)
        by_file = warned(host.lb.lvsxdp("apply", config(SHOPS, tmp_path)).stderr)
    finally:
        host.lb.inside("nft", "flush", "ruleset")

    def place(part: str) -> str:
        found = re.search(rf"{part}.*# handle (\d+)", listed)
        assert found, listed
        return f"warning: nft rule inet filter input handle {found[1]}"

    # what runs named the other address before: no news
    assert by_hand == [
        f"{place('192.0.2.9')} names 192.0.2.9: packets that are balanced do not pass it"
    ]
    assert by_file == [
        f"{place('@shops')} names {HERE}: packets that are balanced do not pass it",
        f"{place('mark set')} sets mark 5 too late: packets are balanced before it, by the marks "
        "of lvsxdp's own rules (lvsxdp mark list)",
    ]


@pytest.mark.parametrize("kind", ["nft", "legacy"])
def test_rules_of_iptables_that_expect_what_is_balanced_are_told(
    host: Host, tmp_path: Path, kind: str
) -> None:
    rule = ["PREROUTING", "-d", HERE, "-j", "MARK", "--set-mark", "5"]
    host.lb.inside(f"iptables-{kind}", "-t", "mangle", "-A", *rule)
    try:
        found = warned(host.lb.lvsxdp("apply", config(SHOPS, tmp_path)).stderr)
    finally:
        host.lb.inside(f"iptables-{kind}", "-t", "mangle", "-D", *rule)
    place = f"iptables-{kind} -t mangle rule PREROUTING 1"
    assert [line.partition(": ")[2].partition(":")[0] for line in found] == [
        f"{'nft rule ip mangle PREROUTING handle 2' if kind == 'nft' else place} names {HERE}",
        f"{place} sets mark 5 too late",
    ]


# ---- what drivers refuse ----


def test_too_few_queues_are_refused_with_the_commands_that_mend_it(host: Host) -> None:
    of_few, of_many = ["numrxqueues", "2", "type", "veth", "peer"], ["numtxqueues", "4"]
    host.lb.inside("ip", "link", "add", "few", *of_few, "many", *of_many)
    try:
        host.lb.inside("ethtool", "-L", "few", "rx", "1")
        host.lb.inside("ethtool", "-L", "many", "tx", "4")
        for end in ("few", "many"):
            host.lb.inside("ip", "link", "set", end, "up")
        for now, remedy in ((1, "ethtool -L few rx 2"), (2, "ethtool -L PEER tx 2")):
            code, said = host.lb.refused("attach", "few", "--mode", "native")
            assert (code, "XDP expects number of rx queues not less than peer" in said) == (5, True)
            assert f"it has {now} rx queues now" in said
            assert said.strip().endswith(f": {remedy}")
            host.lb.inside(*remedy.replace("PEER", "many").split())
        said = host.lb.lvsxdp("attach", "few", "--mode", "native").stderr
        # no hardware, no reset
        assert "may reset the link" not in said
        host.lb.lvsxdp("detach", "few")
    finally:
        host.lb.inside("ip", "link", "del", "few")
