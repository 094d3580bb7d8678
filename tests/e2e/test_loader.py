"""What attach and detach do to a machine, and what they leave when something fails."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sysconfig
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import wait_for
from tests.e2e.pair import FILES, PINS, PROGRAM, Pair, config, foreign, pair, run

ROOT = Path(__file__).resolve().parents[2]
PYTHON = PROGRAM.parent / "python"
SHOP = """
services:
- {name: shop, mark: 7, backends: [{address: 192.0.2.2}]}
marks:
- {mark: 7, protocol: udp, address: 192.0.2.1, port: 7777}
"""


@pytest.fixture
def lb() -> Iterator[Pair]:
    with pair() as made:
        yield made


@pytest.fixture
def two(lb: Pair) -> Pair:
    """The pair with a second interface `q0` that has no peer's address."""
    lb.inside("ip", "link", "add", "q0", "type", "veth", "peer", "q1")
    lb.inside("ip", "link", "set", "q0", "up")
    return lb


def xdp_on(lb: Pair, device: str) -> tuple[int, str]:
    """Id and mode of the XDP program on a device, (0, "") without one."""
    shown = lb.inside("ip", "-j", "-d", "link", "show", "dev", device).stdout
    found = json.loads(shown)[0].get("xdp")
    return (found["prog"]["id"], {1: "native", 2: "generic"}[found["mode"]]) if found else (0, "")


# ---- what was there before is there after ----


@pytest.mark.parametrize("mode", ["native", "generic", "tc"])
def test_attach_and_detach_leave_exactly_what_was_there(
    lb: Pair, tmp_path: Path, mode: str
) -> None:
    before = lb.picture()
    lb.lvsxdp("attach", "p0", "-c", config(SHOP, tmp_path), "--mode", mode)
    assert xdp_on(lb, "p0")[1] == ("" if mode == "tc" else mode)
    assert [i["mode"] for i in lb.read("status")["interfaces"]] == [mode]
    lb.lvsxdp("detach", "p0")
    kept = lb.picture()
    assert {name for name in before if kept[name] != before[name]} == {"pins", "files"}
    assert [i["attached"] for i in lb.read("status")["interfaces"]] == [False]
    lb.lvsxdp("detach", "--all")
    assert lb.picture() == before
    assert_no_empty_roots()


def assert_no_empty_roots() -> None:
    """The roots of all namespaces' pins and files hold something of others, or are not there."""
    for root in (PINS, FILES):
        for _ in range(10):  # another's next folder may be on its way
            if not root.exists() or _holds_something(root):
                break
            time.sleep(0.05)
        else:
            pytest.fail(f"{root} is there, and empty")


def _holds_something(root: Path) -> bool:
    try:
        return any(root.iterdir())
    except FileNotFoundError:
        return True


def test_an_interface_is_attached_again_to_the_tables_that_were_kept(
    lb: Pair, tmp_path: Path
) -> None:
    lb.lvsxdp("attach", "p0", "-c", config(SHOP, tmp_path))
    lb.lvsxdp("detach", "p0")
    lb.lvsxdp("attach", "p0")
    assert [row["name"] for row in lb.read("service", "list")] == ["shop"]
    assert [row["attached"] for row in lb.read("status")["interfaces"]] == [True]


def test_a_read_where_nothing_is_attached_leaves_nothing(lb: Pair) -> None:
    before = lb.picture()
    assert lb.refused("status")[0] == 3
    assert lb.picture() == before
    assert_no_empty_roots()


def test_a_users_own_qdisc_and_filter_survive(lb: Pair) -> None:
    lb.inside("tc", "qdisc", "add", "dev", "p0", "clsact")
    foreign(lb, "SCHED_CLS", "tc", 7)
    before = lb.picture()
    lb.lvsxdp("attach", "p0")
    lb.lvsxdp("detach", "--all")
    assert lb.picture() == before


def test_a_filter_that_came_later_keeps_the_qdisc(lb: Pair) -> None:
    lb.lvsxdp("attach", "p0")
    foreign(lb, "SCHED_CLS", "tc", 7)
    lb.lvsxdp("detach", "--all")
    assert set(re.findall(r"pref (\d+)", lb.picture()["ingress"])) == {"7"}


# ---- what others attached ----


@pytest.mark.parametrize("mode", ["native", "generic"])
def test_another_xdp_program_is_named_and_replaced_only_by_force(lb: Pair, mode: str) -> None:
    other = foreign(lb, "XDP", mode)
    before = lb.picture()
    code, said = lb.refused("attach", "p0")
    assert code == 4
    assert f"p0 has an XDP program already: lvsxdp_other, id {other} (--force" in said
    assert lb.picture() == before
    lb.lvsxdp("attach", "p0", "--force")
    (interface,) = lb.read("status")["interfaces"]
    assert interface["attached"]
    assert xdp_on(lb, "p0")[0] == interface["program_id"] != other


def test_another_tc_filter_at_our_priority_is_named_and_replaced_only_by_force(lb: Pair) -> None:
    other = foreign(lb, "SCHED_CLS", "tc")
    before = lb.picture()
    code, said = lb.refused("attach", "p0")
    assert code == 4
    assert f"p0 has a tc filter at priority 1000 already: lvsxdp, id {other} (--force" in said
    assert lb.picture() == before
    lb.lvsxdp("attach", "p0", "--force", "--mode", "tc")
    assert f"id {other} " not in lb.picture()["ingress"]
    assert lb.read("status")["interfaces"][0]["attached"]


def test_status_check_fails_when_another_took_the_program_away(lb: Pair) -> None:
    lb.lvsxdp("attach", "p0", "--mode", "native")
    assert lb.lvsxdp("status", "--check", check=False).returncode == 0
    lb.inside("ip", "link", "set", "dev", "p0", "xdp", "off")
    assert lb.lvsxdp("status", "--check", check=False).returncode == 1


def test_status_check_fails_for_an_interface_that_is_detached_until_the_next_apply(
    two: Pair, tmp_path: Path
) -> None:
    two.lvsxdp("attach", "-c", config(f"interfaces: [p0, q0]\n{SHOP}", tmp_path))
    assert two.read("status", "--check") == {"interfaces": two.read("status")["interfaces"]}
    two.lvsxdp("detach", "q0")
    assert two.lvsxdp("status", "--check", check=False).returncode == 1
    (row,) = (row for row in two.read("status")["interfaces"] if row["name"] == "q0")
    assert row == {"name": "q0", "mode": None, "program_id": None, "attached": False}
    two.lvsxdp("apply", config(SHOP, tmp_path))
    assert two.lvsxdp("status", "--check", check=False).returncode == 0
    two.lvsxdp("apply", config(f"interfaces: [p0, q0]\n{SHOP}", tmp_path))
    assert two.lvsxdp("status", "--check", check=False).returncode == 0


def test_status_check_fails_when_nothing_is_attached_any_more(lb: Pair) -> None:
    lb.lvsxdp("attach", "p0")
    lb.lvsxdp("detach", "p0")
    assert lb.lvsxdp("status", "--check", check=False).returncode == 1


def test_detach_leaves_a_program_that_took_our_place(lb: Pair) -> None:
    lb.lvsxdp("attach", "p0", "--mode", "native")
    lb.inside("ip", "link", "set", "dev", "p0", "xdp", "off")
    other = foreign(lb, "XDP", "native")
    lb.lvsxdp("detach", "--all")
    assert xdp_on(lb, "p0") == (other, "native")


def test_an_ingress_qdisc_is_refused_with_what_to_do(lb: Pair) -> None:
    lb.inside("tc", "qdisc", "add", "dev", "p0", "ingress")
    before = lb.picture()
    code, said = lb.refused("attach", "p0")
    assert (code, "tc qdisc del dev p0 ingress" in said) == (4, True)
    assert lb.picture() == before


# ---- all or nothing ----


def test_where_the_second_of_two_fails_the_first_is_as_it_was(two: Pair) -> None:
    two.inside("tc", "qdisc", "add", "dev", "q0", "ingress")
    before = two.picture()
    assert two.refused("attach", "p0", "q0")[0] == 4
    assert two.picture() == before


def test_where_the_second_of_two_fails_a_running_balancer_runs_on(
    two: Pair, tmp_path: Path
) -> None:
    two.inside("ip", "link", "add", "r0", "type", "veth", "peer", "r1")
    two.lvsxdp("attach", "p0", "-c", config(SHOP, tmp_path))
    two.inside("tc", "qdisc", "add", "dev", "r0", "ingress")
    before = two.picture()
    assert two.refused("attach", "q0", "r0")[0] == 4
    assert two.picture() == before
    assert [i["name"] for i in two.read("status")["interfaces"]] == ["p0"]


def test_an_interface_that_is_not_there_leaves_nothing(lb: Pair) -> None:
    before = lb.picture()
    assert lb.refused("attach", "p0", "nope0")[0] == 3
    assert lb.picture() == before


def test_a_configuration_that_does_not_fit_leaves_nothing(lb: Pair, tmp_path: Path) -> None:
    before = lb.picture()
    text = SHOP.replace("udp,", "udp, interface: nope0,")
    code, said = lb.refused("attach", "p0", "-c", config(text, tmp_path))
    assert (code, 'there is no interface "nope0" here' in said) == (2, True)
    assert lb.picture() == before


def test_an_interface_is_not_attached_twice(lb: Pair) -> None:
    lb.lvsxdp("attach", "p0")
    before = lb.picture()
    code, said = lb.refused("attach", "p0")
    assert (code, "p0 is attached already" in said) == (4, True)
    assert lb.picture() == before


def test_attach_changes_the_capacity_of_what_runs_only_by_force(two: Pair, tmp_path: Path) -> None:
    two.lvsxdp("attach", "p0", "-c", config(SHOP, tmp_path))
    before = two.read("status")["tables"]
    two.lvsxdp("backend", "drain", "shop", "192.0.2.2")
    bigger = config(SHOP + "capacity: {connections: 2048}\n", tmp_path, "bigger.yaml")
    code, said = two.refused("attach", "q0", "-c", bigger)
    assert (code, "2048 is asked for" in said) == (4, True)
    assert "0 connections and 0 persistence entries are lost" in said
    assert two.read("status")["tables"] == before
    two.lvsxdp("attach", "q0", "-c", bigger, "--force")
    tables = {row["name"]: row["capacity"] for row in two.read("status")["tables"]}
    assert tables["connections4"] == 2048
    assert two.lvsxdp("status", "--check").returncode == 0
    assert [row["state"] for row in two.read("backend", "list")] == ["draining"]
    assert two.lvsxdp("apply", bigger).stdout == "nothing to do\n"


def test_attach_with_a_file_on_what_runs_keeps_drains_as_apply_does(
    two: Pair, tmp_path: Path
) -> None:
    file = config(SHOP, tmp_path)
    two.lvsxdp("attach", "p0", "-c", file)
    two.lvsxdp("backend", "drain", "shop", "192.0.2.2")
    two.lvsxdp("attach", "q0", "-c", file)
    assert [row["state"] for row in two.read("backend", "list")] == ["draining"]


# ---- what does not compile or load ----

BROKEN = """
import sys
from pathlib import Path
from lvsxdp import attaching, controller, loading, network
from lvsxdp.errors import LvsxdpError
network.leave_private_mounts()
network.enter_namespace(sys.argv[1])
with network.Network() as net:
    try:
        build = loading.Build(folder=Path(sys.argv[2]))
        attaching.attach(controller.here(), net, ("p0",), None, "auto", build=build)
    except LvsxdpError as err:
        print(type(err).__name__, err)
"""


def attach_broken(lb: Pair, folder: Path, file: str, old: str, new: str) -> str:
    """What attaching says when one place of the sources is broken."""
    broken = folder / "bpf"
    shutil.copytree(ROOT / "bpf", broken)
    text = (broken / file).read_text()
    assert text.count(old) >= 1
    (broken / file).write_text(text.replace(old, new, 1))
    return run(PYTHON, "-c", BROKEN, lb.ns, broken).stdout


def test_an_error_in_c_names_its_file_and_line_and_leaves_nothing(lb: Pair, tmp_path: Path) -> None:
    before = lb.picture()
    lines = (ROOT / "bpf/packet.h").read_text().splitlines()
    at = next(n for n, line in enumerate(lines, 1) if line.startswith("static __always_inline"))
    old = lines[at - 1]
    said = attach_broken(lb, tmp_path, "packet.h", old, f"nonsense {old}")
    assert said.startswith("DatapathError compiling bpf/control.c failed:")
    assert f"bpf/packet.h:{at}:" in said
    assert lb.picture() == before


def test_a_program_that_the_verifier_refuses_shows_its_last_lines_and_leaves_nothing(
    lb: Pair, tmp_path: Path
) -> None:
    before = lb.picture()
    source = (ROOT / "bpf/lvsxdp.c").read_text()
    found = re.search(r"^int entry\(.*?\)\n\{\n", source, re.MULTILINE | re.DOTALL)
    assert found
    wild = found[0] + "\t*(volatile int *)8 = 1;\n"
    said = attach_broken(lb, tmp_path, "lvsxdp.c", found[0], wild)
    assert said.startswith("DatapathError loading program entry failed")
    assert "the verifier's last lines:" in said
    assert "invalid mem access" in said
    assert lb.picture() == before


def test_an_attach_that_is_killed_leaves_no_process(lb: Pair) -> None:
    argv = [str(PROGRAM), "--netns", lb.ns, "attach", "p0"]
    with subprocess.Popen(argv, stderr=subprocess.DEVNULL) as attach:
        children = Path(f"/proc/{attach.pid}/task/{attach.pid}/children")
        wait_for(children.read_text)
        (worker,) = children.read_text().split()
        attach.kill()
    wait_for(lambda: not Path("/proc", worker).exists())


def test_no_kernel_headers_are_needed(lb: Pair) -> None:
    hidden = 'for d in /lib/modules /usr/src; do mount -t tmpfs none $d; done; exec "$@"'
    argv = ["unshare", "-m", "sh", "-c", hidden, "sh", PROGRAM, "--netns", lb.ns, "attach", "p0"]
    run(*argv)
    assert xdp_on(lb, "p0")[0]


# ---- modes ----


def test_auto_falls_back_where_the_driver_has_no_xdp_and_says_so(lb: Pair) -> None:
    lb.inside("ip", "link", "add", "br0", "up", "type", "bridge")
    said = lb.lvsxdp("attach", "br0").stderr
    assert "br0: attaching XDP to br0 in native mode failed" in said
    assert [(i["name"], i["mode"]) for i in lb.read("status")["interfaces"]] == [("br0", "generic")]
    assert xdp_on(lb, "br0")[1] == "generic"


def test_native_is_refused_where_the_driver_has_no_xdp(lb: Pair) -> None:
    lb.inside("ip", "link", "add", "br0", "up", "type", "bridge")
    before = lb.picture()
    code, said = lb.refused("attach", "br0", "--mode", "native")
    assert (code, "in native mode failed" in said) == (5, True)
    assert lb.picture() == before


def test_jumbo_frames_are_served_in_native_mode() -> None:
    with pair(mtu=9000) as lb:
        lb.lvsxdp("attach", "p0", "--mode", "native")
        assert xdp_on(lb, "p0")[1] == "native"
        ping = ["ping", "-c1", "-W5", "-M", "do", "-s", "8900", "192.0.2.1"]
        run("ip", "netns", "exec", lb.peer, *ping)


# ---- namespaces ----


def test_from_outside_and_from_inside_a_namespace_it_is_the_same_balancer(
    lb: Pair, tmp_path: Path
) -> None:
    lb.lvsxdp("attach", "p0", "-c", config(SHOP, tmp_path))
    inside = json.loads(lb.inside(PROGRAM, "status", "--json").stdout)
    outside = lb.read("status")
    for shown in (inside, outside):
        del shown["reasons"], shown["stale"]
    assert inside == outside
    lb.inside(PROGRAM, "backend", "edit", "shop", "192.0.2.2", "--weight", "5")
    assert [row["weight"] for row in lb.read("backend", "list")] == [5]
    lb.lvsxdp("backend", "edit", "shop", "192.0.2.2", "--weight", "6")
    listed = json.loads(lb.inside(PROGRAM, "backend", "list", "--json").stdout)
    assert [row["weight"] for row in listed] == [6]


def test_a_balancer_that_was_attached_inside_is_seen_from_outside(lb: Pair) -> None:
    lb.inside(PROGRAM, "attach", "p0")
    assert [i["name"] for i in lb.read("status")["interfaces"]] == ["p0"]
    lb.inside(PROGRAM, "detach", "--all")
    assert lb.refused("status")[0] == 3


def test_what_a_namespace_that_is_gone_left_is_listed_and_removed(lb: Pair) -> None:
    lb.lvsxdp("attach", "p0")
    with pair() as gone:
        gone.lvsxdp("attach", "p0")
        cookie = gone.cookie()
        assert cookie not in lb.read("status")["stale"]
        for ns in (gone.ns, gone.peer):
            run("ip", "netns", "del", ns)
    assert cookie in lb.read("status")["stale"]
    assert (PINS / cookie).exists()
    lb.lvsxdp("detach", "--stale")
    assert not (PINS / cookie).exists()
    assert not (FILES / cookie).exists()
    assert [i["attached"] for i in lb.read("status")["interfaces"]] == [True]


# ---- an installed package ----


def test_a_wheel_in_a_new_environment_attaches_as_well(lb: Pair, tmp_path: Path) -> None:
    project = tmp_path / "project"
    ignore = shutil.ignore_patterns(".*", "*.egg-info", "build", "__pycache__", "tests", "bench")
    shutil.copytree(ROOT, project, ignore=ignore)
    pip = [PYTHON, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path]
    run(*pip, project, timeout=120)
    (wheel,) = tmp_path.glob("lvsxdp-*.whl")
    fresh = tmp_path / "venv"
    options = ["--system-site-packages", "--without-pip"]
    run("/usr/bin/python3", "-m", "venv", *options, fresh)
    site = next((fresh / "lib").glob("python3*/site-packages"))
    run(PYTHON, "-m", "pip", "-q", "install", "--no-deps", "--target", site, wheel)
    borrow_dependencies(site, tmp_path / "deps")
    code = textwrap.dedent("""
        import lvsxdp, sys
        from lvsxdp.cli import main
        assert lvsxdp.__file__.startswith(sys.prefix), lvsxdp.__file__
        main()
    """)
    argv = [fresh / "bin/python", "-I", "-c", code, "--netns", lb.ns, "attach", "p0"]
    run(*argv)
    assert xdp_on(lb, "p0")[0] == lb.read("status")["interfaces"][0]["program_id"]


def borrow_dependencies(site: Path, folder: Path) -> None:
    """Makes what lvsxdp needs of this environment importable there, and nothing else."""
    folder.mkdir()
    here = Path(sysconfig.get_path("purelib"))
    for name in ("click", "yaml", "_yaml", "psutil", "pyroute2"):
        if (here / name).exists():
            (folder / name).symlink_to(here / name)
    (site / "deps.pth").write_text(f"{folder}\n")
