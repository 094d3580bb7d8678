"""File systems that fail the program: the record lost or damaged, no room, read-only."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.pair import FILES, PINS, PROGRAM, Done, Pair, config, pair, run

SHOP = """
services:
  - {name: shop, protocol: udp, address: 192.0.2.1, port: 7777, persistence: 600,
     backends: [{address: 192.0.2.2, weight: 3}]}
"""
MOUNT = "/sys/fs/bpf"


@pytest.fixture
def bare() -> Iterator[Pair]:
    with pair() as made:
        yield made


@pytest.fixture
def lb(bare: Pair, tmp_path: Path) -> Pair:
    bare.lvsxdp("attach", "p0", "-c", config(SHOP, tmp_path), "--set-sysctl")
    bare.send(7777)
    return bare


def files(lb: Pair) -> Path:
    return FILES / lb.cookie()


def clients(lb: Pair) -> list[tuple[str, str]]:
    return [(row["client"], row["backend"]) for row in lb.read("persistence", "list")]


def elsewhere(lb: Pair, mount: str, *argv: object) -> Done:
    """What lvsxdp says with a mount of its own, which ends with it."""
    words = [str(word) for word in (PROGRAM, "--netns", lb.ns, *argv)]
    script = f'set -e; {mount}; exec "$@"'
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", *words],
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_without_its_folder_of_files_the_balancer_is_managed_as_before(lb: Pair) -> None:
    before, saved = clients(lb), lb.lvsxdp("save").stdout
    shutil.rmtree(files(lb))
    assert lb.lvsxdp("status", "--check").returncode == 0
    assert (clients(lb), lb.lvsxdp("save").stdout) == (before, saved)
    lb.lvsxdp("backend", "edit", "shop", "192.0.2.2", "--weight", 5)
    shutil.rmtree(files(lb))
    assert lb.read("backend", "list")[0]["weight"] == 5
    lb.lvsxdp("detach", "--all")
    assert not (PINS / lb.cookie()).exists()


def test_a_record_that_is_damaged_is_taken_from_its_copy(lb: Pair) -> None:
    saved = lb.lvsxdp("save").stdout
    record = files(lb) / "state.json"
    record.write_bytes(record.read_bytes()[:-100])
    assert lb.lvsxdp("save").stdout == saved


@pytest.mark.parametrize("damage", ["lost", "damaged"])
def test_without_record_and_copy_it_says_so_and_can_be_detached(lb: Pair, damage: str) -> None:
    (PINS / lb.cookie() / "record").unlink()
    record = files(lb) / "state.json"
    if damage == "lost":
        shutil.rmtree(files(lb))
    else:
        record.write_text("{}")
    told = {"lost": (3, "no record of what is pinned here"), "damaged": (5, f"{record} is damaged")}
    for argv in (["status"], ["backend", "list"]):
        code, said = lb.refused(*argv)
        assert (code, told[damage][1] in said) == (told[damage][0], True)
        assert "detach --all" in said
    code, _ = lb.refused("attach", "p0")
    assert code in (4, 5)
    lb.lvsxdp("detach", "--all")
    assert "xdp" not in lb.inside("ip", "-d", "link", "show", "dev", "p0").stdout
    assert lb.inside("tc", "filter", "show", "dev", "p0", "ingress").stdout == ""
    assert not (PINS / lb.cookie()).exists()
    assert not files(lb).exists()


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("next.json", "detach --all, then attach"),
        ("links", "remove it, then apply"),
        ("confirm.json", "remove it; nothing is undone then"),
    ],
)
def test_any_other_file_that_is_damaged_is_named_with_its_remedy(
    lb: Pair, name: str, remedy: str
) -> None:
    (files(lb) / name).write_text("{")
    code, said = lb.refused("backend", "list")
    assert (code, f"{name} is damaged" in said, remedy in said) == (5, True, True)
    (files(lb) / name).unlink()
    assert lb.lvsxdp("status", "--check").returncode == 0


def test_a_read_only_bpf_file_system_is_named_with_its_remedy(bare: Pair, tmp_path: Path) -> None:
    before = bare.picture()
    mount = f"mount -o remount,bind,ro {MOUNT}"
    done = elsewhere(bare, mount, "attach", "p0", "-c", config(SHOP, tmp_path))
    assert done.returncode == 5
    assert done.stderr.endswith(f"{MOUNT} is read-only: mount -o remount,rw {MOUNT}\n")
    assert bare.picture() == before


FULL = """
import errno, sys
from lvsxdp import cli, libbpf, maps
left, pin = int(sys.argv[1]), maps.pin
def full(descriptor, path):
    global left
    left -= 1
    if left < 0:
        raise libbpf.failure(f"pinning {path} failed", -errno.ENOSPC)
    pin(descriptor, path)
maps.pin = full
cli.main(sys.argv[2:])
"""


@pytest.mark.parametrize("pins", [0, 20, 50])
def test_a_bpf_file_system_that_is_full_is_told_and_nothing_is_left(
    bare: Pair, tmp_path: Path, pins: int
) -> None:
    before = bare.picture()
    words = (PROGRAM.parent / "python", "-c", FULL, pins, "--netns", bare.ns, "attach", "p0")
    done = run(*words, "-c", config(SHOP, tmp_path), check=False)
    assert done.returncode == 5
    assert "No space left on device" in done.stderr.splitlines()[-1]
    assert bare.picture() == before


def test_where_no_bpf_file_system_is_mounted_one_is(bare: Pair, tmp_path: Path) -> None:
    lvsxdp = f"{PROGRAM} --netns {bare.ns}"
    steps = (
        f"umount {MOUNT}",
        f"{lvsxdp} attach p0 -c {config(SHOP, tmp_path)}",
        f"mount | grep {MOUNT}",
        f"{lvsxdp} status --check",
        f"{lvsxdp} detach --all",
    )
    # with processes of its own, so that there is no parent whose mounts would do
    done = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "sh", "-ec", "; ".join(steps)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert f"bpf on {MOUNT} type bpf" in done.stdout


def test_without_room_for_the_record_nothing_is_changed(lb: Pair, tmp_path: Path) -> None:
    saved, before = lb.lvsxdp("save").stdout, lb.picture()
    more = "".join(
        f"  - {{protocol: udp, address: 192.0.2.1, port: {port},\n"
        "     backends: [{address: 192.0.2.2}]}\n"
        for port in range(2000, 2100)
    )
    folder = files(lb)
    mount = (
        f"cp -a {folder} {tmp_path}/kept && mount -t tmpfs -o size=64k none {folder} && "
        f"cp -a {tmp_path}/kept/. {folder}/"
    )
    done = elsewhere(lb, mount, "apply", config(SHOP + more, tmp_path, "more.yaml"))
    assert (done.returncode, "No space left on device: make room there" in done.stderr) == (5, True)
    assert (lb.lvsxdp("save").stdout, lb.picture()) == (saved, before)
    lb.send(7777)
    assert lb.lvsxdp("apply", config(SHOP + more, tmp_path, "more.yaml")).returncode == 0
