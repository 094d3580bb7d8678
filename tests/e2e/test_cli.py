"""The command line: what each command says, changes, and ends with."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.pair import FILES, PROGRAM, Pair, config, pair, run

PATIENCE = 15.0
SHOP = """
marks:
- {mark: 1, protocol: udp, address: 192.0.2.1, port: 5001}
- {mark: 7, protocol: udp, address: 192.0.2.1, port: 7777}
services:
- name: shop
  mark: 1
  scheduler: rr
  persistence: {timeout: 300, netmask: 255.255.255.0}
  backends:
  - {address: 192.0.2.2, weight: 2}
  - {address: 192.0.2.3}
- {name: web, protocol: tcp, address: 192.0.2.1, port: 80, backends: [{address: 192.0.2.2}]}
"""


@pytest.fixture(scope="module")
def attached(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with pair() as made:
        file = config(SHOP, tmp_path_factory.mktemp("cli"))
        made.lvsxdp("attach", "p0", "-c", file, "--set-sysctl")
        yield made


@pytest.fixture
def lb(attached: Pair, tmp_path: Path) -> Pair:
    """The balancer with the configuration and empty tables that every test begins with."""
    attached.lvsxdp("apply", "--undrain", config(SHOP, tmp_path))
    attached.lvsxdp("persistence", "flush")
    return attached


@pytest.fixture(scope="module")
def settled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Pair, str]]:
    """A balancer that no test changes, and its configuration."""
    with pair() as made:
        made.lvsxdp(
            "attach", "p0", "-c", config(SHOP, tmp_path_factory.mktemp("settled")), "--set-sysctl"
        )
        yield made, made.lvsxdp("save").stdout


@pytest.fixture
def bare() -> Iterator[Pair]:
    with pair() as made:
        yield made


def until(holds: Callable[[], bool]) -> None:
    limit = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < limit, "it does not come to hold"
        time.sleep(0.05)


def backends(lb: Pair, service: str = "shop") -> list[tuple[str, int, str]]:
    rows = lb.read("backend", "list", service)
    return [(row["address"], row["weight"], row["state"]) for row in rows]


# ---- configuration ----


def test_check_says_what_a_good_file_holds(tmp_path: Path) -> None:
    file = config(SHOP, tmp_path)
    done = run(PROGRAM, "check", file)
    assert done.stdout == f"{file}: 2 mark rules, 2 services, 3 backends\n"


def test_check_names_every_fault_of_a_bad_file(tmp_path: Path) -> None:
    bad = SHOP.replace("scheduler: rr", "scheduler: wr").replace("weight: 2", "weight: -2")
    done = run(PROGRAM, "check", config(bad, tmp_path), check=False)
    assert done.returncode == 2
    assert 'services[0].scheduler: "wr" is not a scheduler (rr, wrr, lc, wlc, ' in done.stderr
    assert 'services[0].backends[0].weight: "-2" is not a weight' in done.stderr


def test_check_of_a_file_that_is_not_there_is_a_wrong_configuration(tmp_path: Path) -> None:
    done = run(PROGRAM, "check", tmp_path / "nope.yaml", check=False)
    assert (done.returncode, "nope.yaml" in done.stderr) == (2, True)
    assert "Traceback" not in done.stderr


def test_apply_prints_its_plan_and_does_it(lb: Pair, tmp_path: Path) -> None:
    file = config(SHOP.replace("weight: 2", "weight: 5"), tmp_path, "five.yaml")
    said = lb.lvsxdp("apply", file).stdout
    assert said == "service shop: backend 192.0.2.2 weight 2 becomes 5\n"
    assert backends(lb) == [("192.0.2.2", 5, "active"), ("192.0.2.3", 1, "active")]


def test_a_dry_run_prints_the_plan_and_changes_nothing(lb: Pair, tmp_path: Path) -> None:
    file = config(SHOP.replace("weight: 2", "weight: 5"), tmp_path, "five.yaml")
    before = lb.lvsxdp("save").stdout
    said = lb.lvsxdp("apply", "--dry-run", file).stdout
    assert said == "service shop: backend 192.0.2.2 weight 2 becomes 5\n"
    assert lb.lvsxdp("save").stdout == before


def test_what_was_saved_plans_nothing(lb: Pair) -> None:
    lb.lvsxdp("backend", "drain", "shop", "192.0.2.3")
    saved = lb.lvsxdp("save").stdout
    assert lb.lvsxdp("apply", "-", stdin=saved).stdout == "nothing to do\n"


def test_apply_does_not_change_the_capacity(lb: Pair, tmp_path: Path) -> None:
    file = config(SHOP + "capacity: {services: 7}\n", tmp_path, "seven.yaml")
    code, said = lb.refused("apply", file)
    assert (code, "capacity cannot change while attached" in said) == (4, True)


def test_a_file_that_is_no_text_is_refused_in_words(tmp_path: Path) -> None:
    file = tmp_path / "lb.yaml"
    file.write_bytes(b"services: []\n# \xff\n")
    plain = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for name in (str(file), "-"):
        with file.open("rb") as given:
            argv = [str(PROGRAM), "check", name]
            done = subprocess.run(argv, stdin=given, capture_output=True, text=True, env=plain)
        assert done.returncode == 2
        assert done.stderr == (
            f"lvsxdp: {name}:2: byte 0xff is not UTF-8; save the file as UTF-8\n"
        )


def test_apply_keeps_a_drain_unless_told_otherwise(lb: Pair, tmp_path: Path) -> None:
    lb.lvsxdp("backend", "drain", "shop", "192.0.2.3")
    file = config(SHOP, tmp_path)
    assert lb.lvsxdp("apply", file).stdout == "nothing to do\n"
    said = lb.lvsxdp("apply", "--undrain", file).stdout
    assert said == "service shop: backend 192.0.2.3 draining True becomes False\n"


# ---- backends ----

ROW = {
    *("service", "address", "port", "weight", "forward", "tunnel", "state"),
    *("active", "inactive"),
    *("persistent", "packets", "bytes", "connections", "interface", "road"),
    *("upper_threshold", "lower_threshold"),
    *("out_packets", "out_bytes", "cps", "in_pps", "out_pps", "in_bps", "out_bps"),
}


def test_a_backend_has_these_keys_in_json(lb: Pair) -> None:
    rows = lb.read("backend", "list")
    assert {(row["service"], row["address"]) for row in rows} == {
        ("shop", "192.0.2.2"),
        ("shop", "192.0.2.3"),
        ("web", "192.0.2.2"),
    }
    assert [set(row) for row in rows] == [ROW] * 3
    assert [row["port"] for row in rows] == [None, None, 80]


def test_a_backend_is_added_edited_drained_and_deleted(lb: Pair) -> None:
    first = [("192.0.2.2", 2, "active"), ("192.0.2.3", 1, "active")]
    lb.lvsxdp("backend", "add", "shop", "192.0.2.4", "--weight", "3")
    assert backends(lb) == [*first, ("192.0.2.4", 3, "active")]
    lb.lvsxdp("backend", "edit", "mark:1", "192.0.2.4", "--weight", "0")
    assert backends(lb)[-1] == ("192.0.2.4", 0, "quiesced")
    lb.lvsxdp("backend", "drain", "shop", "192.0.2.4")
    assert backends(lb)[-1] == ("192.0.2.4", 0, "draining")
    lb.lvsxdp("backend", "drain", "--undo", "shop", "192.0.2.4")
    assert backends(lb)[-1] == ("192.0.2.4", 0, "quiesced")
    lb.lvsxdp("backend", "delete", "shop", "192.0.2.4")
    assert backends(lb) == first


def test_a_backend_goes_by_tunnel_and_back(lb: Pair) -> None:
    def tunnel() -> dict[str, object] | None:
        rows = lb.read("backend", "list", "shop")
        found: dict[str, object] | None
        (found,) = (row["tunnel"] for row in rows if row["address"] == "192.0.2.2")
        return found

    mere = {"type": "ipip", "port": None, "checksum": "nocsum", "source": "auto"}
    edit = ("backend", "edit", "shop", "192.0.2.2")
    assert tunnel() is None
    lb.lvsxdp(*edit, "--forward", "tunnel")
    assert tunnel() == mere
    code, said = lb.refused(*edit, "--tun-type", "gue")
    assert (code, "gue needs the UDP port" in said) == (2, True)
    lb.lvsxdp(*edit, "--tun-type", "gue", "--tun-port", "6080", "--tun-csum")
    assert tunnel() == {**mere, "type": "gue", "port": 6080, "checksum": "csum"}
    lb.lvsxdp(*edit, "--tun-source", "192.0.2.1", "--tun-nocsum")
    assert tunnel() == {**mere, "type": "gue", "port": 6080, "source": "192.0.2.1"}
    # of another type, port and checksum begin anew
    lb.lvsxdp(*edit, "--tun-type", "gre")
    assert tunnel() == {**mere, "type": "gre", "source": "192.0.2.1"}
    lb.lvsxdp(*edit, "--tun-source", "auto")
    assert tunnel() == {**mere, "type": "gre"}
    lb.lvsxdp(*edit, "--forward", "dr")
    assert tunnel() is None
    assert "tunnel" not in lb.lvsxdp("save").stdout


def test_a_backend_with_persistent_clients_is_deleted_only_now(lb: Pair) -> None:
    lb.send(5001)
    (entry,) = lb.read("persistence", "list")
    code, said = lb.refused("backend", "delete", "shop", entry["backend"])
    assert (code, "1 persistent clients" in said) == (4, True)
    lb.lvsxdp("backend", "delete", "shop", entry["backend"], "--now")
    assert entry["backend"] not in [address for address, *_ in backends(lb)]


REFUSALS = {
    "a service that is not there": (["backend", "list", "mark:99"], 3, 'no service "mark:99"'),
    "a misspelt service": (["backend", "list", "shpo"], 3, "did you mean shop?"),
    "a backend that is not there": (
        ["backend", "drain", "shop", "192.0.2.9"],
        3,
        'no backend "192.0.2.9" in shop',
    ),
    "a backend that is there": (["backend", "add", "shop", "192.0.2.2"], 4, "already"),
    "an address that is none": (["backend", "add", "shop", "10.0.0"], 2, '"10.0.0" is not'),
    "a backend of the other family": (
        ["backend", "add", "shop", "2001:db8::1"],
        2,
        "service shop: backend 2001:db8::1: address: 2001:db8::1 is ipv6 and the service is ipv4;",
    ),
    "an interface that is not attached": (["detach", "q9"], 3, "q9 is not attached (p0)"),
    "an entry that is not there": (
        ["persistence", "delete", "shop", "203.0.113.9"],
        3,
        "service shop has no persistence entry for 203.0.113.9",
    ),
    "an entry of a service without": (
        ["persistence", "delete", "web", "203.0.113.9"],
        4,
        "service web is not persistent",
    ),
    "a list of a service that is not there": (
        ["connection", "list", "--service", "shpo"],
        3,
        'no service "shpo"; did you mean shop?',
    ),
    "a list of a backend that is not there": (
        ["persistence", "list", "--backend", "192.0.2.9"],
        3,
        'no backend "192.0.2.9" in any service; did you mean 192.0.2.',
    ),
    "a list of a backend of another service": (
        ["connection", "list", "--service", "web", "--backend", "192.0.2.3"],
        3,
        'no backend "192.0.2.3" in web; did you mean 192.0.2.2?',
    ),
    "a list of a backend that is none": (
        ["connection", "list", "--backend", "shop"],
        2,
        '"shop" is not a backend (10.0.0.11, 10.0.0.11:80,',
    ),
    "a pin to a backend that is not there": (
        ["persistence", "pin", "shop", "203.0.113.9", "192.0.2.9"],
        3,
        "192.0.2.9",
    ),
    "a pin of a service that is not persistent": (
        ["persistence", "pin", "web", "203.0.113.9", "192.0.2.2"],
        4,
        "is not persistent",
    ),
    "a pin of a client of the other family": (
        ["persistence", "pin", "shop", "2001:db8::9", "192.0.2.2"],
        2,
        '"2001:db8::9" is not a client of service shop, which is ipv4',
    ),
    "a pin for longer than there is": (
        ["persistence", "pin", "shop", "203.0.113.9", "192.0.2.2", "--timeout", "2678401"],
        2,
        "2678400",
    ),
    "a client that is none": (
        ["persistence", "delete", "shop", "me"],
        2,
        '"me" is not an IPv4 or IPv6 address (192.0.2.10,',
    ),
    "a client under another netmask": (
        ["persistence", "delete", "shop", "192.0.2.9/99"],
        2,
        '"99" is not an IPv4 netmask (255.255.255.0, or a prefix length of 0 to 32)',
    ),
    "a client of the other family": (
        ["persistence", "delete", "shop", "2001:db8::1"],
        2,
        '"2001:db8::1" is not a client of service shop, which is ipv4',
    ),
    "a port that cannot be": (
        ["backend", "add", "web", "192.0.2.9:81"],
        2,
        "lvsxdp: service web: backend 192.0.2.9:81: port: 81 is not the service's port (80),",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_command_is_refused_for(settled: tuple[Pair, str], case: str) -> None:
    argv, code, told = REFUSALS[case]
    lb, before = settled
    refused, said = lb.refused(*argv)
    assert (refused, told in said) == (code, True), said
    assert lb.lvsxdp("save").stdout == before


FULL = "capacity: {services: 2, backends: 3, marks: 2}" + SHOP
OVERFLOWS = {
    "services": ["service", "add", "mark:2"],
    "backends": ["backend", "add", "web", "192.0.2.9"],
    "marks": ["mark", "add", "1", "--address", "192.0.2.1", "--port", "53"],
}


def test_what_has_no_room_is_refused_and_nothing_of_it_is_done(bare: Pair, tmp_path: Path) -> None:
    bare.lvsxdp("attach", "p0", "-c", config(FULL, tmp_path))
    before = bare.lvsxdp("save").stdout, bare.picture()
    for table, argv in OVERFLOWS.items():
        most = int(re.findall(rf"{table}: (\d)", FULL)[0])
        code, said = bare.refused(*argv)
        remedy = f"save, raise it to {most + 1} or more, detach --all, attach -c"
        assert said == (
            f"lvsxdp: capacity.{table}: {most} is too few for {most + 1} {table}; {remedy}\n"
        )
        assert code == 2
    assert (bare.lvsxdp("save").stdout, bare.picture()) == before


NOT_ATTACHED = ["status", "save", "backend list", "persistence flush", "detach --all", "run"]


@pytest.mark.parametrize("command", NOT_ATTACHED)
def test_where_nothing_is_attached_a_command_says_so(bare: Pair, command: str) -> None:
    code, said = bare.refused(*command.split())
    assert (code, "lvsxdp is not attached here" in said) == (3, True)


@pytest.mark.parametrize("name", ["lvxclinope", "../../etc"])
def test_a_namespace_that_is_not_there_is_named(name: str) -> None:
    done = run(PROGRAM, "--netns", name, "status", check=False)
    assert (done.returncode, f'no network namespace "{name}"' in done.stderr) == (3, True)


# ---- entries ----


def test_persistence_entries_are_listed_deleted_and_flushed(lb: Pair) -> None:
    lb.send(5001)
    (entry,) = lb.read("persistence", "list")
    kept = {"service", "client", "backend", "expires_in", "connections"}
    assert set(entry) == {*kept, "engine", "data"}
    assert (entry["service"], entry["client"]) == ("shop", "192.0.2.0/24")
    assert 290 < entry["expires_in"] <= 300
    lb.lvsxdp("persistence", "delete", "shop", "192.0.2.77")
    assert lb.read("persistence", "list") == []
    lb.send(5001)
    assert lb.lvsxdp("persistence", "flush", "web").stdout == "0 entries deleted\n"
    assert lb.lvsxdp("persistence", "flush", "shop").stdout == "1 entries deleted\n"
    assert lb.read("persistence", "list") == []


def test_a_client_is_pinned_to_a_backend(lb: Pair) -> None:
    lb.lvsxdp("persistence", "pin", "shop", "203.0.113.9", "192.0.2.2", "--timeout", 60)
    (entry,) = lb.read("persistence", "list")
    assert (entry["client"], entry["backend"], entry["connections"]) == (
        "203.0.113.0/24",
        "192.0.2.2",
        0,
    )
    assert 55 < entry["expires_in"] <= 60


def test_connections_are_listed(lb: Pair) -> None:
    lb.send(5001, source_port=40123)
    rows = {row["client"]: row for row in lb.read("connection", "list")}
    row = rows["192.0.2.2:40123"]
    assert row.pop("backend") in ("192.0.2.2", "192.0.2.3")
    assert 0 < row.pop("expires_in") <= 300
    assert row == {
        "service": "shop",
        "protocol": "udp",
        "client": "192.0.2.2:40123",
        "virtual": "192.0.2.1:5001",
        "state": "UDP",
        "mark": 1,
    }


BOTH = """
marks:
- {mark: 1, protocol: udp, address: 192.0.2.1, port: 5001}
services:
- {name: shop, mark: 1, persistence: {timeout: 300, netmask: 24}, backends: [{address: 192.0.2.3}]}
- {name: dns, protocol: udp, address: 192.0.2.1, port: 5002, persistence: {timeout: 300},
   backends: [{address: 192.0.2.2}]}
- {name: spare, protocol: udp, address: 192.0.2.1, port: 5003, backends: [{address: 192.0.2.2}]}
"""


@pytest.fixture
def both(lb: Pair, tmp_path: Path) -> Pair:
    """A persistent client of `shop` (kept by its /24) and of `dns` (by its address)."""
    lb.lvsxdp("apply", config(BOTH, tmp_path, "both.yaml"))
    lb.send(5001)
    lb.send(5002)
    return lb


FILTERS: dict[str, set[str]] = {
    "": {"shop", "dns"},
    "--service mark:1": {"shop"},
    "--service dns": {"dns"},
    "--service spare": set(),
    "--client 192.0.2.0/24": {"shop", "dns"},
    "--client 192.0.2.2": {"shop", "dns"},
    "--client 192.0.3.0/24": set(),
    "--client 2001:db8::/32": set(),
    "--backend 192.0.2.2": {"dns"},
    "--backend 192.0.2.3": {"shop"},
    "--service shop --client 192.0.2.2 --backend 192.0.2.3": {"shop"},
    "--service dns --client 192.0.3.2": set(),
}


def services_listed(lb: Pair, what: str, options: str) -> set[str]:
    return {row["service"] for row in lb.read(what, "list", *options.split())}


@pytest.mark.parametrize("options", FILTERS)
def test_entries_are_listed_by_service_client_and_backend(both: Pair, options: str) -> None:
    assert services_listed(both, "persistence", options) == FILTERS[options]
    known = {"shop", "dns"}  # the configuration of other tests left connections without a backend
    assert services_listed(both, "connection", options) & known == FILTERS[options]


def test_an_entry_of_a_client_network_is_listed_by_any_of_its_addresses(both: Pair) -> None:
    assert services_listed(both, "persistence", "--client 192.0.2.99") == {"shop"}
    assert services_listed(both, "connection", "--client 192.0.2.99") == set()


def test_status_has_these_keys_in_json(lb: Pair) -> None:
    status = lb.read("status")
    assert {"interfaces", "last_sweep", "tables"} <= set(status)
    (interface,) = status["interfaces"]
    assert set(interface) == {"name", "mode", "program_id", "attached"}
    assert (interface["name"], interface["attached"]) == ("p0", True)
    names = ["connections4", "connections6", "persistence4", "persistence6"]
    assert [set(table) for table in status["tables"]] == [{"name", "used", "capacity"}] * 4
    assert [table["name"] for table in status["tables"]] == names


READS = ["status", "service list", "backend list", "mark list", "persistence list"]


@pytest.mark.parametrize("command", [*READS, "connection list"])
def test_every_read_has_a_table_and_json(lb: Pair, command: str) -> None:
    assert lb.lvsxdp(*command.split()).stdout.strip()
    assert isinstance(lb.read(*command.split()), list | dict)


# ---- two at once ----


def test_two_commands_at_once_wait_for_each_other(lb: Pair) -> None:
    argv = [str(PROGRAM), "--netns", lb.ns, "backend", "edit", "shop", "192.0.2.2", "--weight"]
    started = [subprocess.Popen([*argv, str(weight)]) for weight in range(1, 7)]
    assert [one.wait(60) for one in started] == [0] * 6
    assert backends(lb)[0][1] in range(1, 7)


def test_a_command_that_may_not_wait_names_who_holds_the_lock(lb: Pair) -> None:
    lock = FILES / lb.cookie() / "lock"
    code = (
        f"import fcntl; f = open('{lock}'); fcntl.flock(f, fcntl.LOCK_EX);"
        "print('held', flush=True); input()"
    )
    with subprocess.Popen(
        ["/usr/bin/python3", "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        argv = [PROGRAM, "--netns", lb.ns, "--wait", "0.1", "save"]
        done = run(*argv, check=False)
        holder.communicate("\n")
    assert done.returncode == 4
    assert re.search(r"the lock is held by process \d+ \(--wait\)", done.stderr)


# ---- a mark without a service ----


@pytest.mark.parametrize("mode", ["native", "generic", "tc"])
def test_a_packet_with_a_mark_and_no_service_reaches_the_host_with_that_mark(
    bare: Pair, tmp_path: Path, mode: str
) -> None:
    chain = "chain input {\n type filter hook input priority 0\n meta mark 7 counter\n }\n"
    bare.inside("nft", "-f", "-", stdin=f"table inet t {{\n{chain}}}\n")
    bare.lvsxdp("attach", "p0", "--mode", mode, "-c", config(SHOP, tmp_path))
    bare.send(7777, count=3)
    bare.send(7778, count=2)
    until(lambda: "packets 3 " in bare.inside("nft", "list", "ruleset").stdout)


# ---- the daemon ----


def used(lb: Pair, table: str) -> int:
    return int(next(t["used"] for t in lb.read("status")["tables"] if t["name"] == table))


def test_the_daemon_sweeps_what_has_expired_says_so_and_stops_on_sigterm(
    lb: Pair, tmp_path: Path
) -> None:
    strict = SHOP.replace("timeout: 300,", "timeout: 3, expiry: strict,")
    lb.lvsxdp("apply", config(strict, tmp_path, "strict.yaml"))
    lb.send(5001)
    assert used(lb, "persistence4") == 1
    argv = [str(PROGRAM), "--netns", lb.ns, "run", "--interval", "0.2"]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as daemon:
        try:
            until(lambda: used(lb, "persistence4") == 0)
        finally:
            daemon.send_signal(signal.SIGTERM)
            said = daemon.communicate(timeout=PATIENCE)[1].splitlines()
    assert daemon.returncode == 0
    assert (said[0], said[-1]) == ("event=started interval=0.2", "event=stopped")
    assert "event=swept removed=1 healed=0" in said
    assert time.time() - lb.read("status")["last_sweep"] < PATIENCE
