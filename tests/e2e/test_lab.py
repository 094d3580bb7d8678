"""Promises of the laboratory itself, kept by the plain kernel with no balancer running."""

import contextlib
import ipaddress
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab import clients, layout, record, servers
from lab.errors import ClientError, LabError
from lab.layout import BACKEND4, BACKEND6, BACKENDS, VIP4, VIP6
from lab.topology import Forwarding, Lab

ROOT = Path(__file__).resolve().parents[2]
TOPOLOGY = ROOT / "scripts/topology"
PREFIX = f"lvxt-{os.getpid()}"
OTHER_PREFIX = f"lvxu-{os.getpid()}"
FAMILIES = {"IPv4": BACKEND4, "IPv6": BACKEND6}
BIG_FRAME = 1514

MAKER = """
import sys, signal
from lab import servers
from lab.topology import Lab
# a shell's background job has it ignored, and hands that on
signal.signal(signal.SIGINT, signal.default_int_handler)
with Lab(sys.argv[1]) as lab:
    servers.start(lab)
    print("ready", flush=True)
    signal.pause()
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(PREFIX, second_balancer=True) as lab:
        servers.start(lab)
        yield lab


@pytest.fixture
def running_maker() -> Iterator[subprocess.Popen[str]]:
    """A laboratory with servers in a process of its own; its name is free again afterwards."""
    argv = [sys.executable, "-c", MAKER, OTHER_PREFIX]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True) as maker:
        try:
            yield maker
        finally:
            maker.kill()
            maker.wait()
            record.take_down(OTHER_PREFIX)


def wait_until_ready(maker: subprocess.Popen[str]) -> None:
    assert maker.stdout is not None
    assert maker.stdout.readline() == "ready\n"


def url(scheme: str, address: str, path: str = "/") -> str:
    host = f"[{address}]" if ":" in address else address
    return f"{scheme}://{host}{path}"


def inhabitants(prefix: str) -> list[record.Process]:
    found = []
    for ns in record.namespaces(prefix):
        listed = subprocess.run(
            ["ip", "netns", "pids", record.netns(prefix, ns)],
            capture_output=True,
            text=True,
            check=True,
        )
        found += [record.Process.of(int(pid)) for pid in listed.stdout.split()]
    return found


def assert_nothing_is_left(prefix: str, processes: list[record.Process], directory: str) -> None:
    assert record.namespaces(prefix) == []
    assert [process for process in processes if process.is_alive()] == []
    assert not Path(directory).exists()
    assert record.load(prefix) == record.Record(prefix)


ASK: dict[str, Callable[[Lab, str, str], str]] = {
    "HTTP": lambda lab, ns, host: clients.http(lab, ns, url("http", host)),
    "HTTP on 8080": lambda lab, ns, host: clients.http(lab, ns, url("http", f"{host}", ":8080/")),
    "HTTPS": lambda lab, ns, host: clients.https(lab, ns, url("https", host)),
    "DNS over UDP": clients.dns,
    "DNS over TCP": clients.dns_tcp,
    "passive FTP": clients.ftp_passive,
    "active FTP": clients.ftp_active,
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("service", ASK)
def test_a_client_reaches_each_backend_by_its_own_address(
    lab: Lab, service: str, family: str
) -> None:
    answers = {name: ASK[service](lab, "c1", FAMILIES[family][name]) for name in BACKENDS}
    assert answers == {name: name for name in BACKENDS}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_client_of_the_second_network_reaches_each_backend(lab: Lab, family: str) -> None:
    answers = {n: clients.http(lab, "c2", url("http", FAMILIES[family][n])) for n in BACKENDS}
    assert answers == {name: name for name in BACKENDS}


@pytest.mark.parametrize("source", ["198.51.100.10", "198.51.100.77"])
def test_a_client_asks_from_the_ipv4_address_it_chooses(lab: Lab, source: str) -> None:
    asked = url("http", BACKEND4["b1"], "/client")
    assert clients.http(lab, "c1", asked, source=source) == source


@pytest.mark.parametrize("source", ["2001:db8:1::10", "2001:db8:1::77"])
def test_a_client_asks_from_the_ipv6_address_it_chooses(lab: Lab, source: str) -> None:
    asked = url("http", BACKEND6["b1"], "/client")
    assert clients.http(lab, "c1", asked, source=source) == source


def test_a_client_that_chooses_no_address_has_its_first(lab: Lab) -> None:
    seen = [
        clients.http(lab, "c1", url("http", BACKEND4["b1"], "/client")),
        clients.http(lab, "c1", url("http", BACKEND6["b1"], "/client")),
    ]
    assert seen == ["198.51.100.10", "2001:db8:1::10"]


def test_the_web_server_logs_its_clients_address(lab: Lab) -> None:
    clients.http(lab, "c1", url("http", BACKEND4["b2"]), source="198.51.100.77")
    assert servers.http_log(lab, "b2")[-1] == '198.51.100.77 10.0.0.12:80 "GET / HTTP/1.1" 200'


def test_a_client_fetches_a_megabyte(lab: Lab) -> None:
    argv = ["curl", "-s", "-o", "/dev/null", "-w", "%{size_download}"]
    fetched = lab.run("c1", [*argv, url("http", BACKEND4["b1"], "/big")], check=True)
    assert fetched.stdout == "1048576"


@pytest.mark.parametrize("client", layout.CLIENTS)
@pytest.mark.parametrize("vip", [VIP4, VIP6])
def test_the_balancer_answers_ping_for_its_vip(lab: Lab, vip: str, client: str) -> None:
    assert clients.ping(lab, client, vip)
    assert lab.neighbour("rt", vip) == layout.mac("lb", "lb0")


@pytest.mark.parametrize("vip", ["192.0.2.99", "2001:db8::99"])
def test_a_backend_answers_no_neighbour_for_the_vip_it_holds(lab: Lab, vip: str) -> None:
    lab.add_vip("b1", vip)
    lab.run("rt", ["ip", "route", "replace", vip, "dev", "back"], check=True)
    assert not clients.ping(lab, "rt", vip)
    assert lab.neighbour("rt", vip) == ""


@pytest.mark.parametrize("vip", ["192.0.2.50", "2001:db8::50"])
def test_a_vip_that_moves_is_followed_as_soon_as_it_is_announced(lab: Lab, vip: str) -> None:
    lab.add_vip("lb", vip)
    assert clients.ping(lab, "c1", vip)
    lab.remove_vip("lb", vip)
    lab.add_vip("lb2", vip)
    lab.announce("lb2", vip)
    assert clients.ping(lab, "c1", vip)
    assert lab.neighbour("rt", vip) == layout.mac("lb2", "lb0")


def test_load_counts_the_answers_by_backend(lab: Lab) -> None:
    result = clients.load(lab, "c1", url("http", BACKEND4["b1"]), 200, concurrency=8)
    assert result == clients.LoadResult(backends={"b1": 200}, errors={})


def test_load_over_https_from_a_chosen_address_has_no_failures(lab: Lab) -> None:
    asked = url("https", BACKEND6["b3"])
    result = clients.load(lab, "c1", asked, 20, concurrency=4, source="2001:db8:1::77")
    assert result == clients.LoadResult(backends={"b3": 20}, errors={})


def test_load_counts_the_failures_by_text(lab: Lab) -> None:
    result = clients.load(lab, "c1", url("http", BACKEND4["b1"], ":81/"), 10, concurrency=2)
    refused = "ConnectionRefusedError: [Errno 111] Connection refused"
    assert result == clients.LoadResult(backends={}, errors={refused: 10})


def test_background_load_runs_until_it_is_stopped_and_loses_nothing(lab: Lab) -> None:
    load = clients.start_load(lab, "c1", url("http", BACKEND4["b2"]), concurrency=4)
    before = len(servers.http_log(lab, "b2"))
    assert record.wait_until(lambda: len(servers.http_log(lab, "b2")) >= before + 50)
    result = load.stop()
    assert (result.ok >= 50, result.failed) == (True, 0)


def test_no_answer_is_an_error_that_names_the_client_and_its_command(lab: Lab) -> None:
    with pytest.raises(ClientError, match=r"no answer in c1, exit code 7: curl .*10\.0\.0\.11:81"):
        clients.http(lab, "c1", url("http", BACKEND4["b1"], ":81/"))


def test_a_stopped_web_server_is_refused_until_it_runs_again() -> None:
    with Lab(OTHER_PREFIX) as lab:
        started = servers.start(lab, ["b1"])
        started["b1"].nginx.stop()
        with pytest.raises(ClientError, match="exit code 7"):
            clients.http(lab, "c1", url("http", BACKEND4["b1"]))
        servers.start_nginx(lab, "b1")
        assert clients.http(lab, "c1", url("http", BACKEND4["b1"])) == "b1"


def test_a_command_that_fails_or_hangs_is_an_error_that_says_so(lab: Lab) -> None:
    with pytest.raises(LabError, match=r"exit code 1: .* false"):
        lab.run("lb", ["false"], check=True)
    with pytest.raises(LabError, match=r"no end after 0\.1 s: .* sleep 9"):
        lab.run("lb", ["sleep", "9"], timeout=0.1)
    with pytest.raises(LabError, match='no namespace "b9"'):
        lab.run("b9", ["true"])


@pytest.mark.parametrize(("offload", "has_big_frames"), [(False, False), (True, True)])
def test_balancers_meet_big_frames_only_with_offload(offload: bool, has_big_frames: bool) -> None:
    with Lab(OTHER_PREFIX, offload=offload) as lab:
        servers.start(lab, ["b1"])
        lab.run("lb", ["curl", "-s", url("http", BACKEND4["b1"], "/big"), "-o", "/dev/null"])
        got = lab.counters("lb", "lb1")
    assert got.rx_bytes > len(servers.BIG_BODY)
    assert (got.rx_bytes / got.rx_packets > BIG_FRAME) == has_big_frames


@pytest.mark.parametrize(
    ("forwarding", "values"), [("off", "0 0 0 0"), ("lo", "0 1 0 1"), ("on", "1 1 1 1")]
)
def test_the_balancer_forwards_as_the_caller_chose(forwarding: Forwarding, values: str) -> None:
    keys = [f"net.{v}.conf.{d}.forwarding" for v in ("ipv4", "ipv6") for d in ("lb0", "lo")]
    with Lab(OTHER_PREFIX, forwarding=forwarding) as lab:
        assert lab.run("lb", ["sysctl", "-n", *keys], check=True).stdout.split() == values.split()


@pytest.mark.parametrize("name", ["", "Lvx", "a/b", "9x", "x" * 40])
def test_a_name_that_is_no_lab_name_is_refused(name: str) -> None:
    with pytest.raises(LabError, match="is no lab name"):
        Lab(name)


def test_a_name_that_is_in_use_is_refused(lab: Lab) -> None:
    with pytest.raises(LabError, match=f'lab "{PREFIX}" is in use'), Lab(PREFIX):
        pass
    assert clients.ping(lab, "c1", VIP4)


def test_a_second_lab_of_the_same_name_works_after_the_first() -> None:
    for _ in range(2):
        with Lab(OTHER_PREFIX) as lab:
            assert clients.ping(lab, "c1", VIP4)
            directory = str(lab.directory)
        assert_nothing_is_left(OTHER_PREFIX, [], directory)


def test_an_error_inside_the_lab_leaves_nothing() -> None:
    with contextlib.suppress(ZeroDivisionError), Lab(OTHER_PREFIX) as lab:
        directory = str(lab.directory)
        sleeper = record.Process.of(lab.spawn("c1", ["sleep", "600"]).popen.pid)
        raise ZeroDivisionError
    assert_nothing_is_left(OTHER_PREFIX, [sleeper], directory)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_lab_leaves_nothing(
    running_maker: subprocess.Popen[str], how: signal.Signals
) -> None:
    wait_until_ready(running_maker)
    processes, directory = inhabitants(OTHER_PREFIX), record.load(OTHER_PREFIX).directory
    assert len(processes) > len(BACKENDS) * 3
    running_maker.send_signal(how)
    assert running_maker.wait(10) != 0
    assert_nothing_is_left(OTHER_PREFIX, processes, directory)


def test_a_lab_interrupted_while_it_is_built_leaves_nothing(
    running_maker: subprocess.Popen[str],
) -> None:
    assert record.wait_until(lambda: len(record.namespaces(OTHER_PREFIX)) > 2)
    directory = record.load(OTHER_PREFIX).directory
    running_maker.send_signal(signal.SIGTERM)
    assert running_maker.wait(10) != 0
    assert_nothing_is_left(OTHER_PREFIX, [], directory)


def test_what_a_killed_lab_left_is_taken_over(running_maker: subprocess.Popen[str]) -> None:
    wait_until_ready(running_maker)
    processes, directory = inhabitants(OTHER_PREFIX), record.load(OTHER_PREFIX).directory
    running_maker.kill()
    running_maker.wait()
    with Lab(OTHER_PREFIX) as lab:
        assert [process for process in processes if process.is_alive()] == []
        assert clients.ping(lab, "c1", VIP4)
    assert_nothing_is_left(OTHER_PREFIX, processes, directory)


def test_a_namespace_that_the_lab_did_not_make_is_left_alone() -> None:
    stranger = f"{OTHER_PREFIX}-stranger"
    subprocess.run(["ip", "netns", "add", stranger], check=True)
    try:
        with Lab(OTHER_PREFIX):
            pass
        assert (record.NAMESPACES / stranger).exists()
    finally:
        subprocess.run(["ip", "netns", "del", stranger], check=True)


def topology(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(TOPOLOGY), "--prefix", OTHER_PREFIX, *words],
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def standing() -> Iterator[None]:
    """A laboratory with servers that stands on its own."""
    try:
        assert topology("up", "--servers").returncode == 0
        yield
    finally:
        record.take_down(OTHER_PREFIX)


def test_a_standing_lab_serves_after_its_maker_is_gone(standing: None) -> None:
    argv = ["ip", "netns", "exec", record.netns(OTHER_PREFIX, "c1"), "curl", "-s"]
    got = subprocess.run([*argv, url("http", BACKEND4["b1"])], capture_output=True, check=False)
    assert got.stdout == b"b1\n"


def test_up_twice_keeps_the_lab_that_stands(standing: None) -> None:
    before = record.load(OTHER_PREFIX)
    again = topology("up", "--servers")
    assert (again.returncode, again.stdout) == (0, f"{OTHER_PREFIX}: stands already\n")
    assert record.load(OTHER_PREFIX) == before


def test_up_with_other_options_is_refused(standing: None) -> None:
    other = topology("up", "--second-balancer")
    assert (other.returncode, "take it down first" in other.stderr) == (1, True)


def test_a_standing_lab_is_not_taken_over(standing: None) -> None:
    with pytest.raises(LabError, match=f'lab "{OTHER_PREFIX}" stands'), Lab(OTHER_PREFIX):
        pass


def test_a_standing_lab_that_lost_a_server_is_built_again(standing: None) -> None:
    before = record.load(OTHER_PREFIX)
    subprocess.run(["kill", str(before.processes[0].pid)], check=True)
    assert record.wait_until(lambda: not before.processes[0].is_alive())
    assert topology("up", "--servers").returncode == 0
    assert record.load(OTHER_PREFIX).directory != before.directory


def test_show_names_every_namespace_and_address(standing: None) -> None:
    shown = topology("show").stdout
    members = layout.roles(second_balancer=False)
    missing = [
        text
        for end in layout.ends(members)
        for text in (record.netns(OTHER_PREFIX, end.ns), end.mac, *end.addresses)
        if text not in shown
    ]
    assert missing == []


def test_down_removes_all_that_up_made_and_may_be_repeated(standing: None) -> None:
    processes, directory = inhabitants(OTHER_PREFIX), record.load(OTHER_PREFIX).directory
    assert [topology("down").returncode, topology("down").returncode] == [0, 0]
    assert_nothing_is_left(OTHER_PREFIX, processes, directory)


def test_show_without_a_lab_says_how_to_build_one() -> None:
    shown = topology("show")
    assert (shown.returncode, "scripts/topology up" in shown.stderr) == (1, True)


def test_no_two_devices_share_a_mac_and_no_two_networks_overlap() -> None:
    ends = list(layout.ends(layout.ROLES))
    macs = {end.mac for end in ends}
    networks = {ipaddress.ip_interface(a).network for end in ends for a in end.addresses}
    clashes = [
        (a, b) for a in networks for b in networks if a is not b and a.version == b.version
        and a.overlaps(b)
    ]  # fmt: skip
    assert (len(macs), clashes) == (len(ends), [])
